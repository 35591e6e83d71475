"""DeduplicateInitializers: fires, and each reason not to."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graph_check import check, parse

import onnxslim
from onnxslim.passes.simplify.deduplicate_initializers import DeduplicateInitializers
from onnxslim.pipeline import Context

DEDUP = DeduplicateInitializers()


def test_equal_weights_become_one() -> None:
    check(
        DEDUP,
        before="""g (float[2] x) => (float[2] y) <float[2] v = {1, 2}, float[2] w = {1, 2}> {
          a = Add (x, v) y = Mul (a, w) }""",
        after="""g (float[2] x) => (float[2] y) <float[2] v = {1, 2}> {
          a = Add (x, v) y = Mul (a, v) }""",
        changes=1,
    )


@pytest.mark.parametrize(
    ("v", "w"),
    [
        ("float[2] v = {1, 2}", "float[2] w = {1, 3}"),
        ("float[2] v = {1, 0}", "float[2] w = {1, -0.0}"),
        ("float[2] v = {1, 2}", "float[1,2] w = {1, 2}"),
    ],
)
def test_other_bytes_or_shape_stay(v: str, w: str) -> None:
    check(
        DEDUP,
        before=f"""g (float[2] x) => (float[a,b] y) <{v}, {w}> {{
          p = Add (x, v) q = Mul (p, w) s = Constant <value_ints = [1, 2]> () y = Reshape (q, s)
        }}""",
    )


def test_same_bytes_of_another_type_stay() -> None:
    check(
        DEDUP,
        before="""g (float[1] x) => (float[1] y) <float[1] v = {0}, int32[1] w = {0}> {
          a = Add (x, v) b = Cast <to = 1> (w) y = Add (a, b) }""",
    )


def test_inputs_and_outputs_stay() -> None:
    check(
        DEDUP,
        before="""g (float[2] x, float[2] v = {1, 2}) => (float[2] y) <float[2] w = {1, 2}> {
          a = Add (x, v) y = Mul (a, w) }""",
    )
    check(
        DEDUP,
        before="""g (float[2] x) => (float[2] y, float[2] v)
        <float[2] v = {1, 2}, float[2] w = {1, 2}> { y = Mul (x, w) }""",
    )


def test_strings_are_left_alone() -> None:
    check(
        DEDUP,
        before="""g (float[2] x) => (float[2] y, bool[1] z)
        <string[1] v = {"a"}, string[1] w = {"a"}> { y = Relu (x) z = Equal (v, w) }""",
        runs=False,
    )


def branch(name: str, initializers: str) -> str:
    return f"""g (bool c, float[2] x) => (float[2] y) <float[2] {name} = {{1, 2}}> {{
      a = Add (x, {name})
      y = If (c) <then_branch = t () => (float[2] p) <{initializers}> {{ p = Mul (a, w) }},
                  else_branch = e () => (float[2] q) {{ q = Exp (a) }}>
    }}"""


def test_main_graph_serves_subgraphs() -> None:
    check(
        DEDUP,
        before=branch("v", "float[2] w = {1, 2}"),
        after=branch("v", "").replace("Mul (a, w)", "Mul (a, v)").replace("<>", ""),
    )


def test_a_name_that_is_hidden_in_a_subgraph_stays() -> None:
    model = parse(branch("v", "float[2] w = {1, 2}"))
    inner = next(iter(model.graph.subgraphs()))
    model.graph.initializers["v"].name = "p"  # the subgraph's own output is called p as well
    assert {value.name for value in inner.outputs} == {"p"}
    assert DEDUP(model, Context(model)).changes == 0


def test_nan_payloads_decide() -> None:
    text = """g (float[2] x) => (float[2] y) <float[2] v = {1, 2}, float[2] w = {1, 2}> {
      a = Add (x, v) y = Mul (a, w) }"""
    for payload, changes in ((0x7FC00001, 1), (0x7FC00002, 0)):
        model = parse(text)
        for name, bits in (("v", 0x7FC00001), ("w", payload)):
            array = np.array([bits, 0], np.uint32).view(np.float32)
            model.graph.initializers[name].const_value = ir.tensor(array, name=name)
        assert DEDUP(model, Context(model)).changes == changes


def test_large_weights_in_a_file(tmp_path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 64)).astype(np.float32)
    near = weight.copy()
    near[31, 7] = np.nextafter(near[31, 7], 2)
    model = parse("""g (float[N,64] x) => (float[N,64] y)
    <float[1] a = {0}, float[1] b = {0}, float[1] c = {0}> {
      p = MatMul (x, a) q = MatMul (p, b) y = MatMul (q, c) }""")
    for name, array in (("a", weight), ("b", weight.copy()), ("c", near)):
        value = model.graph.initializers[name]
        value.const_value, value.shape = ir.tensor(array, name=name), ir.Shape(array.shape)
    onnxslim.save(model, tmp_path / "m.onnx")
    loaded = onnxslim.load(tmp_path / "m.onnx")
    assert DEDUP(loaded, Context(loaded)).changes == 1
    assert list(loaded.graph.initializers) == ["a", "c"]
