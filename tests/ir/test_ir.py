"""Shape facts, verification, constants, determinism, edits, cost."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graph_check import parse

from onnxslim.errors import VerificationError
from onnxslim.ir import shapes
from onnxslim.ir.constants import array, int_list, is_constant, scalar
from onnxslim.ir.cost import snapshot
from onnxslim.ir.determinism import is_deterministic
from onnxslim.ir.edit import can_replace, replace_value
from onnxslim.ir.schema import default_opset, is_op, opset_of
from onnxslim.ir.traversal import graphs, nodes
from onnxslim.ir.verify import verify

MLP = """g (float[N,4] x) => (float[N,8] y) <float[4,8] w = {
  1,2,3,4,5,6,7,8, 1,2,3,4,5,6,7,8, 1,2,3,4,5,6,7,8, 1,2,3,4,5,6,7,8}> {
  h = MatMul (x, w)
  y = Relu (h)
}"""

BRANCHES = """g (bool c, float[N] x) => (float[N] y) {
  a = Neg (x)
  y = If (c) <
    then_branch = t () => (float[N] p) { p = Abs (a) },
    else_branch = e () => (float[N] q) { q = RandomNormalLike (a) }
  >
}"""


def value(model: ir.Model, name: str) -> ir.Value:
    for node in nodes(model):
        for found in node.outputs:
            if found.name == name:
                return found
    return next(item for item in model.graph.inputs if item.name == name)


def test_infer_keeps_symbols() -> None:
    model = parse(MLP)
    shapes.set_aside_declared(model)
    shapes.infer(model)
    assert shapes.dim(value(model, "h"), 0) == "N"
    assert shapes.dim(value(model, "h"), 1) == 8
    assert shapes.static_shape(value(model, "h")) is None
    assert shapes.same_shape(value(model, "h"), value(model, "y"))


def test_stale_declarations_are_not_trusted() -> None:
    text = MLP.replace("=> (float[N,8] y) <", "=> (float[N,8] y) <float[N,9] h, ")
    model = parse(text)
    assert shapes.dim(value(model, "h"), 1) == 9
    shapes.set_aside_declared(model)
    shapes.infer(model)
    assert shapes.dim(value(model, "h"), 1) == 8
    shapes.restore_declared(model)
    assert shapes.dim(value(model, "h"), 1) == 8


def test_declared_shapes_come_back_and_no_others() -> None:
    model = parse(MLP.replace("=> (float[N,8] y) <", "=> (float[N,8] y) <float[M,8] h, "))
    shapes.set_aside_declared(model)
    shapes.infer(model)
    shapes.restore_declared(model)
    assert shapes.dim(value(model, "h"), 0) == "M"
    bare = parse(MLP)
    shapes.set_aside_declared(bare)
    shapes.infer(bare)
    shapes.restore_declared(bare)
    assert value(bare, "h").shape is None


def test_initializer_that_is_an_input_is_no_constant() -> None:
    text = """g (float[4] x, int64[1] s = {2}) => (float[a,b] y) { y = Reshape (x, s) }"""
    model = parse(text)
    assert not is_constant(model.graph.inputs[1])
    shapes.set_aside_declared(model)
    shapes.infer(model)
    assert len(model.graph.initializers) == 1


def test_constants() -> None:
    model = parse("""g (float[2] x) => (float[2] y) <float two = {2}> {
      k = Constant <value_ints = [3, 4]> ()
      y = Mul (x, two)
    }""")
    assert int_list(value(model, "k")) == [3, 4]
    assert scalar(model.graph.initializers["two"]) == 2.0
    assert array(model.graph.inputs[0]) is None


def test_determinism() -> None:
    model = parse(BRANCHES)
    by_type = {node.op_type: node for node in nodes(model)}
    assert is_deterministic(by_type["Neg"])
    assert not is_deterministic(by_type["RandomNormalLike"])
    assert not is_deterministic(by_type["If"]), "control flow that holds a random node"
    assert not is_deterministic(ir.node("Neg", [], domain="com.example"))
    assert not is_deterministic(ir.node("NoSuchOperator", []))


def test_dropout_in_training_mode_is_random() -> None:
    text = """g (float[2] x, bool t) => (float[2] y) <float r = {0.5}, bool no = {0}> {
      a = Dropout (x, r, no)
      y = Dropout (a, r, t)
    }"""
    first, second = list(parse(text).graph)
    assert is_deterministic(first)
    assert not is_deterministic(second)


def test_traversal_reaches_subgraphs_and_functions() -> None:
    model = parse("""<ir_version: 10, opset_import: ["" : 17, "local" : 1]>
    g (bool c, float[N] x) => (float[N] y) {
      y = If (c) <then_branch = t () => (float[N] p) { p = local.f (x) },
                  else_branch = e () => (float[N] q) { q = Abs (x) }>
    }
    <opset_import: ["" : 18], domain: "local">
    f (x) => (y) { y = Neg (x) }""")
    assert [node.op_type for node in nodes(model)] == ["If", "f", "Abs", "Neg"]
    assert len(list(graphs(model))) == 4
    neg = next(node for node in nodes(model) if node.op_type == "Neg")
    assert opset_of(neg, model) == 18
    assert default_opset(model) == 17
    assert is_op(neg, "Neg", "Abs")


def test_verify_names_the_fault() -> None:
    model = parse(MLP)
    verify(model)
    matmul, relu = list(model.graph)
    relu.replace_input_with(0, ir.Value(name="ghost"))
    with pytest.raises(VerificationError, match=r"y = Relu \(ghost\) reads 'ghost'"):
        verify(model)
    relu.replace_input_with(0, matmul.outputs[0])
    model.graph.remove(matmul)
    model.graph.append(matmul)
    with pytest.raises(VerificationError, match="reads 'h'"):
        verify(model)


def test_verify_wants_the_domain_imported() -> None:
    model = parse(MLP)
    list(model.graph)[1].domain = "com.example"
    with pytest.raises(VerificationError, match="domain 'com.example' is not imported"):
        verify(model)


def test_replacing_a_graph_output_keeps_its_name() -> None:
    model = parse("""g (float[N] x) => (float[N] y) { h = Neg (x) y = Identity (h) }""")
    neg, identity = list(model.graph)
    assert can_replace(identity.outputs[0], neg.outputs[0])
    replace_value(identity.outputs[0], neg.outputs[0])
    model.graph.remove(identity)
    assert model.graph.outputs[0].name == "y"
    assert model.graph.outputs[0].producer() is neg
    verify(model)


def test_a_graph_input_cannot_become_an_output() -> None:
    model = parse("""g (float[N] x) => (float[N] y) { y = Identity (x) }""")
    node = next(iter(model.graph))
    assert not can_replace(node.outputs[0], node.inputs[0])


def test_an_outer_value_cannot_become_a_subgraph_output() -> None:
    model = parse(BRANCHES.replace("p = Abs (a)", "p = Identity (a)"))
    identity = next(node for node in nodes(model) if node.op_type == "Identity")
    assert not can_replace(identity.outputs[0], identity.inputs[0])


def test_cost() -> None:
    model = parse(MLP)
    shapes.infer(model)
    taken = snapshot(model, 123)
    assert taken.operators == {"MatMul": 1, "Relu": 1}
    assert (taken.macs, taken.parameters, taken.weight_bytes) == (32, 32, 128)
    assert taken.file_bytes == 123


@pytest.mark.parametrize(
    ("text", "macs"),
    [
        (
            """g (float[1,8,6,6] x, float[16,4,3,3] w) => (float[1,16,4,4] y) {
            y = Conv <group = 2> (x, w) }""",
            16 * 16 * 4 * 9,
        ),
        (
            """g (float[1,8,5,5] x, float[8,4,2,2] w) => (float[1,4,6,6] y) {
            y = ConvTranspose (x, w) }""",
            8 * 25 * 4 * 4,
        ),
        (
            """g (float[5,3] x, float[5,7] w) => (float[3,7] y) { y = Gemm <transA = 1> (x, w) }""",
            3 * 7 * 5,
        ),
        ("""g (float[2,3,5] x, float[5,7] w) => (float[2,3,7] y) { y = MatMul (x, w) }""", 210),
    ],
)
def test_macs(text: str, macs: int) -> None:
    model = parse(text)
    shapes.infer(model)
    assert snapshot(model, 0).macs == macs


def test_large_tensors_survive_inference() -> None:
    model = parse(MLP)
    big = np.zeros((4, 4096), np.float32)
    model.graph.initializers["w"].const_value = ir.tensor(big, name="w")
    model.graph.initializers["w"].shape = ir.Shape(big.shape)
    before = list(model.graph.initializers)
    shapes.set_aside_declared(model)
    shapes.infer(model)
    assert list(model.graph.initializers) == before
    assert model.graph.initializers["w"].const_value.numpy() is big
    assert shapes.dim(value(model, "h"), 1) == 4096


def test_declared_shapes_of_loop_bodies_are_not_trusted() -> None:
    model = parse("""g (int64 n, bool c, float[1] x) => (float[M] y) {
      y = Loop (n, c, x) <body = b (int64 i, bool d, float[1] p) => (bool e, float[M] q) {
        e = Identity (d)
        q = Concat <axis = 0> (p, p)
      }>
    }""")
    carried = next(iter(model.graph.subgraphs())).inputs[2]
    shapes.set_aside_declared(model)
    shapes.infer(model)
    assert carried.shape is None
    shapes.restore_declared(model)
    assert shapes.static_shape(carried) == (1,)


def test_minus_one_means_unknown() -> None:
    model = parse("g (float[4] x) => (float[4] y) { h = Relu (x) y = Neg (h) }")
    declared = ir.Shape([-1])
    model.graph.inputs[0].shape = declared
    model.graph.outputs[0].shape = declared
    assert shapes.static_shape(model.graph.inputs[0]) is None
    assert shapes.dim(model.graph.inputs[0], 0) is None
    shapes.set_aside_declared(model)
    shapes.infer(model)
    assert shapes.static_shape(value(model, "h")) is None
    assert shapes.rank(value(model, "h")) == 1
    shapes.restore_declared(model)
    assert model.graph.inputs[0].shape is declared
