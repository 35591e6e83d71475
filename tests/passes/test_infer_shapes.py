"""InferShapes: facts appear, nodes stay, and what cannot be inferred is no failure."""

from __future__ import annotations

from graph_check import check, parse

from onnxslim.ir import shapes
from onnxslim.passes.simplify.infer_shapes import InferShapes
from onnxslim.pipeline import Context


def test_facts_appear_and_no_node_changes() -> None:
    model = check(
        InferShapes(),
        before="""g (float[N,4] x) => (float[N,4] y) {
          a = Relu (x) s = Shape (a) y = Reshape (a, s)
        }""",
    )
    relu, shape = model.graph[0], model.graph[1]
    assert shapes.dim(relu.outputs[0], 0) == "N"
    assert shapes.static_shape(shape.outputs[0]) == (2,)


def test_subgraphs() -> None:
    model = check(
        InferShapes(),
        before="""g (bool c, float[2,3] x) => (float[2,3] y) {
          y = If (c) <then_branch = t () => (float[2,3] p) { a = Neg (x) p = Abs (a) },
                      else_branch = e () => (float[2,3] q) { q = Exp (x) }>
        }""",
    )
    inner = next(iter(model.graph.subgraphs()))
    assert shapes.static_shape(inner[0].outputs[0]) == (2, 3)


def test_an_unknown_operator_is_a_barrier() -> None:
    model = check(
        InferShapes(),
        before="""<ir_version: 10, opset_import: ["" : 17, "com.example" : 1]>
        g (float[2] x) => (float[2] y) { a = com.example.What (x) b = Relu (a) y = Neg (b) }""",
        runs=False,
    )
    assert shapes.rank(model.graph[1].outputs[0]) is None


def test_a_contradiction_is_not_a_failure() -> None:
    model = parse("""g (float[2,3] x, float[5,7] w) => (float[a,b] y) {
      h = MatMul (x, w) y = Relu (h) }""")
    assert InferShapes()(model, Context(model)).changes == 0


def test_float16() -> None:
    model = check(
        InferShapes(),
        before="""g (float16[2,3] x) => (float16[3,2] y) { h = Relu (x) y = Transpose (h) }""",
    )
    assert model.graph[0].outputs[0].dtype.name == "FLOAT16"
