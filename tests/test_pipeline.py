"""Pipeline, Fixpoint, Context: journal, limit, switching off, errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import pytest
from graph_check import parse

from onnxslim import passes, presets
from onnxslim.errors import PassError, UsageError
from onnxslim.ir.edit import bypass
from onnxslim.pipeline import (
    Context,
    Exactness,
    Fixpoint,
    Pass,
    PassResult,
    Pipeline,
    leaves,
)

MODEL = """g (float[N] x) => (float[N] y) {
  a = Relu (x)
  b = Relu (a)
  c = Relu (b)
  y = Neg (c)
}"""


@dataclass(frozen=True)
class DropOneRelu(Pass):
    """Drops one Relu that reads a Relu each time it runs."""

    name: ClassVar[str] = "drop-one-relu"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def run(self, model: ir.Model, context: Context) -> PassResult:
        for node in model.graph:
            producer = node.inputs[0].producer()
            if node.op_type != "Relu" or producer is None or producer.op_type != "Relu":
                continue
            if context.allow(self, node.outputs[0].name):
                bypass(node, node.inputs[0])
                return PassResult(1)
        return PassResult()


@dataclass(frozen=True)
class Failing(Pass):
    name: ClassVar[str] = "failing"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def run(self, model: ir.Model, context: Context) -> PassResult:
        raise ZeroDivisionError("on purpose")


@dataclass(frozen=True)
class Restless(Pass):
    name: ClassVar[str] = "restless"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def run(self, model: ir.Model, context: Context) -> PassResult:
        return PassResult(1)


def test_pipeline_runs_each_pass_once() -> None:
    model = parse(MODEL)
    context = Context(model)
    assert Pipeline((DropOneRelu(),))(model, context).changes == 1
    assert [node.op_type for node in model.graph] == ["Relu", "Relu", "Neg"]
    assert [(entry.pass_name, entry.site) for entry in context.journal] == [("drop-one-relu", "b")]


def test_fixpoint_runs_until_nothing_changes() -> None:
    model = parse(MODEL)
    assert Fixpoint((DropOneRelu(),))(model, Context(model)).changes == 2
    assert [node.op_type for node in model.graph] == ["Relu", "Neg"]


def test_fixpoint_limit_is_a_warning() -> None:
    model = parse(MODEL)
    context = Context(model)
    Fixpoint((Restless(),), max_iterations=3)(model, context)
    assert "no fixpoint after 3 rounds of restless" in context.warnings[0]


@pytest.mark.parametrize(("limit", "left"), [(0, 4), (1, 3), (2, 2), (9, 2)])
def test_limit_stops_rewrites(limit: int, left: int) -> None:
    model = parse(MODEL)
    context = Context(model, limit=limit)
    Fixpoint((DropOneRelu(),))(model, context)
    assert len(list(model.graph)) == left
    assert len(context.journal) == 4 - left


def test_one_rewrite_is_switched_off() -> None:
    model = parse(MODEL)
    Fixpoint((DropOneRelu(),))(model, Context(model, disabled=[("drop-one-relu", "b")]))
    assert [node.outputs[0].name for node in model.graph] == ["a", "b", "y"]


def test_a_whole_pass_is_switched_off() -> None:
    model = parse(MODEL)
    context = Context(model, disabled=[("drop-one-relu", "*")])
    assert Fixpoint((DropOneRelu(),))(model, context).changes == 0
    assert context.timings == []


def test_failure_names_the_pass() -> None:
    model = parse(MODEL)
    with pytest.raises(
        PassError, match="pass failing failed: ZeroDivisionError: on purpose"
    ) as info:
        Pipeline((Failing(),))(model, Context(model))
    assert info.value.pass_name == "failing"


def test_instruments_see_changes_only() -> None:
    model = parse(MODEL)
    seen: list[str] = []
    Fixpoint((DropOneRelu(),))(
        model,
        Context(model),
        [lambda step, _, result: seen.append(f"{step.name} {result.changes}")],
    )
    assert seen == ["drop-one-relu 1", "drop-one-relu 1"]


def test_refusals_are_kept_once() -> None:
    model = parse(MODEL)
    context = Context(model)
    context.refuse(DropOneRelu(), "b", "because")
    context.refuse(DropOneRelu(), "b", "because again")
    assert [entry.reason for entry in context.refusals.values()] == ["because"]


def test_fresh_names() -> None:
    context = Context(parse(MODEL))
    assert [context.fresh_name("a"), context.fresh_name("a"), context.fresh_name("q")] == [
        "a_1",
        "a_2",
        "q",
    ]


@pytest.mark.parametrize("preset", sorted(presets.PRESETS))
def test_presets_hold_no_lossy_pass(preset: str) -> None:
    held = list(leaves(presets.build(preset)))
    assert held
    assert all(step.exactness is not Exactness.LOSSY for step in held)


def test_build_picks_and_skips() -> None:
    names = [step.name for step in leaves(presets.build(only=["eliminate-identity"]))]
    assert names == ["infer-shapes", "eliminate-identity"]
    with pytest.raises(UsageError, match="did you mean eliminate-identity"):
        presets.build(only=["eliminate-identities"])
    with pytest.raises(UsageError, match="no preset is called 'defualt'; did you mean default"):
        presets.build("defualt")
    with pytest.raises(UsageError, match="has no such pass"):
        presets.build(only=["eliminate-identity"], skip=["fold-constants"])
    for preset in presets.PRESETS:
        held = leaves(presets.build(preset, skip=["eliminate-identity"]))
        assert "eliminate-identity" not in {step.name for step in held}


def test_unknown_pass_name() -> None:
    with pytest.raises(UsageError, match="no pass is called 'nothing-like-it'"):
        passes.load("nothing-like-it")
