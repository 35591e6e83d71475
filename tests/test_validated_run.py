"""A wrong rewrite is found by bisection, taken back, and named; right ones stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from graph_check import parse

from onnxslim import passes
from onnxslim.ir.edit import bypass
from onnxslim.pipeline import Context, Exactness, Pass, PassResult, Pipeline
from onnxslim.validated_run import Check, ValidatedRun

MODEL = """g (float[N,3] x) => (float[N,3] y) {
  a = Identity (x)
  b = Abs (a)
  c = Abs (b)
  d = Sigmoid (c)
  e = Identity (d)
  f = Abs (e)
  y = Neg (f)
}"""


@dataclass(frozen=True)
class DropAnyAbs(Pass):
    """Wrong: drops every Abs, though only those of non-negative values may go."""

    name: ClassVar[str] = "drop-any-abs"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def run(self, model: ir.Model, context: Context) -> PassResult:
        changes = 0
        for node in list(model.graph):
            if node.op_type == "Abs" and context.allow(self, node.outputs[0].name):
                bypass(node, node.inputs[0])
                changes += 1
        return PassResult(changes)


@dataclass(frozen=True)
class BreaksTheGraph(Pass):
    """Wrong: puts the last node first."""

    name: ClassVar[str] = "breaks-the-graph"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def run(self, model: ir.Model, context: Context) -> PassResult:
        if not context.allow(self, "y"):
            return PassResult()
        last = model.graph[-1]
        model.graph.remove(last)
        model.graph.insert_before(model.graph[0], last)
        return PassResult(1)


@dataclass(frozen=True)
class Raises(Pass):
    """Fails before it asks for anything."""

    name: ClassVar[str] = "raises"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def run(self, model: ir.Model, context: Context) -> PassResult:
        raise LookupError("on purpose")


IDENTITY = passes.load("eliminate-identity")()


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_only_the_wrong_rewrites_are_taken_back() -> None:
    run = ValidatedRun(parse(MODEL), Pipeline((IDENTITY, DropAnyAbs()))).run()
    assert run.validation["status"] == "passed"
    # the Abs after an Abs and the one after Sigmoid could go, one of the first two had to stay
    assert operators(run.model) == ["Abs", "Sigmoid", "Neg"]
    assert len(run.notes) == 1
    assert run.notes[0].startswith("drop-any-abs at ")


def test_a_broken_graph_is_taken_back() -> None:
    run = ValidatedRun(parse(MODEL), Pipeline((IDENTITY, BreaksTheGraph()))).run()
    assert operators(run.model) == ["Abs", "Abs", "Sigmoid", "Abs", "Neg"]
    assert run.notes[0].startswith("breaks-the-graph at y was taken back")


def test_a_pass_that_raises_is_left_out() -> None:
    run = ValidatedRun(parse(MODEL), Pipeline((Raises(), IDENTITY))).run()
    assert operators(run.model) == ["Abs", "Abs", "Sigmoid", "Abs", "Neg"]
    assert run.notes[0].startswith("raises was taken back")
    assert "LookupError: on purpose" in run.notes[0]


def test_without_validation_wrong_rewrites_stay_and_the_report_says_so() -> None:
    run = ValidatedRun(parse(MODEL), Pipeline((DropAnyAbs(),)), Check(enabled=False)).run()
    assert "Abs" not in operators(run.model)
    assert run.validation["status"] == "skipped"


def test_the_original_is_never_touched() -> None:
    original = parse(MODEL)
    ValidatedRun(original, Pipeline((IDENTITY, DropAnyAbs()))).run()
    assert operators(original) == operators(parse(MODEL))


def test_exact_passes_meet_a_tolerance_of_zero() -> None:
    run = ValidatedRun(parse(MODEL), Pipeline((IDENTITY,)), Check(rtol=0.0, atol=0.0)).run()
    assert run.validation["status"] == "passed"
    assert run.notes == []
