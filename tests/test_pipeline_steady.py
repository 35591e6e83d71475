"""Passes are not run again while nothing changed, nor where their operators do not occur."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import pytest
from graph_check import parse

from onnxslim import passes
from onnxslim.ir import shapes
from onnxslim.ir.edit import bypass
from onnxslim.ir.traversal import nodes, subgraphs_below
from onnxslim.pipeline import Context, Exactness, Fixpoint, Pass, PassResult, Pipeline

MODEL = """g (float[N] x, bool c) => (float[N] y) {
  a = Relu (x)
  b = Relu (a)
  d = Relu (b)
  y = If (c) <
    then_branch = yes () => (float[N] p) { q = Relu (d)  p = Neg (q) },
    else_branch = no () => (float[N] r) { s = Neg (d)  r = Relu (s) }
  >
}"""


@dataclass(frozen=True)
class DropRelu(Pass):
    """Drops one Relu after a Relu in the main graph."""

    name: ClassVar[str] = "drop-relu"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    roots: ClassVar[frozenset[str]] = frozenset({"Relu"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        for node in context.nodes_of(model, "Relu"):
            producer = node.inputs[0].producer()
            if node.graph is model.graph and producer is not None and producer.op_type == "Relu":
                context.allow(self, node.outputs[0].name)
                bypass(node, node.inputs[0])
                return PassResult(1)
        return PassResult()


@dataclass(frozen=True)
class Count(Pass):
    """Changes nothing; the list of runs is shared by all of one label."""

    label: str
    seen: ClassVar[list[str]] = []
    name: ClassVar[str] = "count"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def run(self, model: ir.Model, context: Context) -> PassResult:
        self.seen.append(self.label)
        return PassResult()


@dataclass(frozen=True)
class CountConvs(Count):
    name: ClassVar[str] = "count-convs"
    roots: ClassVar[frozenset[str]] = frozenset({"Conv"})


@dataclass(frozen=True)
class Learn(Pass):
    """Finds out one fact at its first run."""

    name: ClassVar[str] = "learn"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def run(self, model: ir.Model, context: Context) -> PassResult:
        return PassResult(facts=int(not model.meta.setdefault("learnt", False)))


def runs(step: Pass, model: ir.Model) -> list[str]:
    Count.seen.clear()
    step(model, Context(model))
    return list(Count.seen)


def test_a_pass_that_found_nothing_waits_for_a_change() -> None:
    # two Relus go in two rounds; the pass before them has to look three times, the one after twice
    both = (Count("before"), DropRelu(), Count("after"))
    assert runs(Fixpoint(both), parse(MODEL)) == ["before", "after"] * 2 + ["before"]


def test_equal_passes_share_what_is_settled_and_others_do_not() -> None:
    same = Pipeline((Fixpoint((Count("one"),)), Fixpoint((Count("one"), Count("two")))))
    assert runs(same, parse(MODEL)) == ["one", "two"]


def test_a_new_fact_counts_as_a_change() -> None:
    model = parse(MODEL)
    assert runs(Pipeline((Count("one"), Learn(), Count("one"))), model) == ["one", "one"]


def test_nothing_is_settled_between_two_pipelines() -> None:
    model = parse(MODEL)
    context = Context(model)
    Count.seen.clear()
    for _ in range(2):  # a caller may edit the model between
        Pipeline((Count("one"), Count("one")))(model, context)
    Count("one")(model, context)
    assert Count.seen == ["one"] * 3


def test_roots_that_do_not_occur() -> None:
    model = parse(MODEL)
    context = Context(model)
    Count.seen.clear()
    CountConvs("conv")(model, context)
    assert not Count.seen
    assert not context.timings


def test_nodes_of_follows_the_walk_over_all_graphs() -> None:
    model = parse(MODEL)
    context = Context(model)
    wanted = [node for node in nodes(model) if node.op_type in ("Neg", "Relu")]
    assert len(wanted) == 7
    assert list(context.nodes_of(model, "Neg", "Relu")) == wanted
    with context.steady():
        found = []
        for node in context.nodes_of(model, "Relu"):
            found.append(node.outputs[0].name)
            if node.outputs[0].name == "a":
                bypass(
                    next(each for each in model.graph if each.outputs[0].name == "b"),
                    node.outputs[0],
                )
    assert found == ["a", "d", "q", "r"]


def test_nodes_of_other_domains_are_not_meant() -> None:
    model = parse(MODEL)
    for node in nodes(model):
        node.domain = "other"
    assert not list(Context(model).nodes_of(model, "Relu"))


def test_subgraphs_below_are_those_of_the_library() -> None:
    inner = "yes () => (float[N] p) { p = Neg (x) }"
    other = "no2 () => (float[N] o) { o = Abs (x) }"
    nested = f"p = If (c) <then_branch = {inner}, else_branch = {other}>"
    text = MODEL.replace("q = Relu (d)  p = Neg (q)", nested)
    model = parse(text)
    found = subgraphs_below(model.graph)
    assert len(found) == 4
    assert found == list(model.graph.subgraphs())


def test_inference_sees_every_kind_of_edit() -> None:
    """What is remembered of nodes and values never outlives a change of what it was made of."""
    model = parse("""g (float[N,4] x) => (float[N,4] y) {
      a = Transpose <perm = [1, 0]> (x)
      b = Concat <axis = 0> (a, a)
      y = Relu (x)
    }""")
    first, second, _ = model.graph
    shapes.infer(model)
    assert [shapes.dim(second.outputs[0], axis) for axis in (0, 1)] == [8, "N"]

    def again() -> list[int | str | None]:
        for node in (first, second):
            node.outputs[0].shape = None
        shapes.infer(model)
        return [shapes.dim(second.outputs[0], axis) for axis in (0, 1)]

    assert again() == [8, "N"]
    second.attributes["axis"] = ir.AttrInt64("axis", 1)
    assert again()[0] == 4
    first.attributes["perm"] = ir.AttrInt64s("perm", [0, 1])
    assert again() == ["N", 8]
    second.resize_inputs(1)
    assert again() == ["N", 4]
    first.op_type = "Flatten"
    first.attributes.clear()
    model.graph.inputs[0].shape = ir.Shape([3, 5])
    assert again() == [3, 5]


@pytest.mark.parametrize("operator", ["Identity (x)", "Mul (x, one)", "Identity (a0)"])
def test_thousands_of_readers_in_one_node(operator: str) -> None:
    """What a wide node reads is replaced in one go, chains of bypassed nodes included."""
    bypass_all(operator, 100)
    ratio = bypass_all(operator, 12_000) / bypass_all(operator, 3_000)
    assert ratio < 9, "four times the nodes; one by one it would be sixteen times the time"


def bypass_all(operator: str, count: int) -> float:
    """Seconds of processor time for a Concat of so many values that all come down to ``x``."""
    lines = [f"  a{index} = {operator}" for index in range(1, count)]
    text = f"""g (float[N,4] x) => (float[M,4] y) <float one = {{1.0}}> {{
      a0 = Identity (x)
      {chr(10).join(lines)}
      y = Concat <axis = 0> ({", ".join(f"a{index}" for index in range(count))})
    }}"""
    model = parse(text)
    steps = (passes.load("eliminate-identity")(), passes.load("eliminate-noop")())
    started = time.process_time()
    assert Pipeline(steps)(model, Context(model)).changes == count
    spent = time.process_time() - started
    (node,) = model.graph
    assert set(node.inputs) == {model.graph.inputs[0]}
    assert len(node.inputs) == count
    return spent
