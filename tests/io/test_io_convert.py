"""Raising the opset: the same answers, and what the converter drops comes back."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_check import make_feeds, parse, run

from onnxslim.errors import InvalidModelError
from onnxslim.io import load, save
from onnxslim.io.convert import convert_opset
from onnxslim.ir.schema import default_opset

NET = """
<ir_version: 7, opset_import: ["" : 11], doc_string: "about", metadata_props: ["k": "v"]>
net (float[N,40] x, bool flag) => (float[N,30] y)
   <float[40,30] w = {WEIGHTS}>
{
   m = MatMul (x, w)
   u = Unsqueeze <axes = [0]> (m)
   s = Softmax <axis = 2> (u)
   q = Squeeze <axes = [0]> (s)
   y = If (flag) <
      then_branch = yes () => (float[N,30] a) { a = Neg (q) },
      else_branch = no () => (float[N,30] b) {
         c = ReduceSum <axes = [1], keepdims = 1> (q)
         b = Sub (q, c)
      }>
}
"""


def net():
    values = np.random.default_rng(0).standard_normal(1200)
    return parse(NET.replace("WEIGHTS", ", ".join(f"{value:.4f}" for value in values)))


@pytest.mark.parametrize("target", [13, 17])
def test_same_answers(target: int) -> None:
    model = net()
    model.graph[1].doc_string = "adds an axis"
    model.graph[1].metadata_props["from"] = "layer1"
    after = convert_opset(model, target)
    assert (default_opset(model), default_opset(after)) == (11, target)
    for flag in (True, False):
        feeds = {**make_feeds(model), "flag": np.array(flag)}
        np.testing.assert_array_equal(run(model, feeds)[0], run(after, feeds)[0])
    assert [value.name for value in after.graph.inputs] == ["x", "flag"]
    assert after.metadata_props == {"k": "v"}
    assert after.doc_string == "about"
    unsqueeze = next(node for node in after.graph if node.op_type == "Unsqueeze")
    assert unsqueeze.doc_string == "adds an axis"
    assert unsqueeze.metadata_props == {"from": "layer1"}


def test_large_weights_are_shared_and_not_copied(tmp_path) -> None:
    save(net(), tmp_path / "net.onnx")
    model = load(tmp_path / "net.onnx")
    after = convert_opset(model, 17)
    one, other = (item.graph.initializers["w"].const_value for item in (model, after))
    assert one is other


def test_weights_elsewhere_go_through_whole() -> None:
    model = net()
    proto = onnx.ModelProto()
    proto.CopyFrom(onnx.load_from_string(_bytes(model)))
    weights = proto.graph.initializer.pop()
    node = onnx.helper.make_node("Constant", [], ["w"], value=weights)
    proto.graph.node.insert(0, node)
    model = load(proto)
    after = convert_opset(model, 17)
    feeds = {**make_feeds(model), "flag": np.array(True)}
    np.testing.assert_array_equal(run(model, feeds)[0], run(after, feeds)[0])


def test_defaults_that_a_caller_can_override_stay_inputs() -> None:
    proto = onnx.load_from_string(_bytes(net()))
    info = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [40, 30])
    proto.graph.input.append(info)
    after = convert_opset(load(proto), 17)
    assert [value.name for value in after.graph.inputs] == ["x", "flag", "w"]
    assert after.graph.initializers["w"].is_graph_input()


def test_no_way_there_is_one_line() -> None:
    proto = onnx.load_from_string(_bytes(net()))
    proto.graph.node[1].op_type = "NoSuchOperator"
    with pytest.raises(
        InvalidModelError, match="cannot be converted from opset 11 to 17"
    ) as caught:
        convert_opset(load(proto), 17)
    assert "\n" not in str(caught.value)


def test_the_same_opset_is_a_copy() -> None:
    model = net()
    after = convert_opset(model, 11)
    assert after is not model
    assert _bytes(after) == _bytes(model)


def _bytes(model) -> bytes:
    import io

    stream = io.BytesIO()
    save(model, stream)
    return stream.getvalue()
