"""Single nodes and small groups of nodes in onnxruntime."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxslim.errors import RuntimeRefusedError
from onnxslim.runtime.evaluate import evaluate, evaluate_many

OPSET = {"": 17}


def node(op_type: str, count: int, outputs: int = 1, **attributes: object) -> ir.Node:
    inputs = [ir.Value(name=f"in{index}") for index in range(count)]
    names = [ir.Value(name=f"out{index}") for index in range(outputs)]
    return ir.node(op_type, inputs, attributes=attributes, outputs=names)


def test_arithmetic() -> None:
    one, other = np.float32([1.5, 2]), np.float32([[1], [2]])
    (result,) = evaluate(node("Add", 2), [one, other], OPSET)
    np.testing.assert_array_equal(result, one + other)
    assert result.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint64, np.bool_])
def test_element_types(dtype: type) -> None:
    array = np.array([[0, 1, 1]], dtype)
    (result,) = evaluate(node("Transpose", 1, perm=[1, 0]), [array], OPSET)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, array.T)


def test_bfloat16_goes_in_and_out() -> None:
    array = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    (result,) = evaluate(node("Cast", 1, to=ir.DataType.FLOAT), [array], OPSET)
    np.testing.assert_array_equal(result, np.float32([1.5, -2]))
    (back,) = evaluate(node("Cast", 1, to=ir.DataType.BFLOAT16), [result], OPSET)
    assert back.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(back, array)


def test_absent_inputs_and_outputs() -> None:
    x = ir.Value(name="x")
    high = ir.Value(name="high")
    clip = ir.node("Clip", [x, None, high], outputs=[ir.Value(name="y")])
    (result,) = evaluate(clip, [np.float32([-5, 5]), None, np.float32(2)], OPSET)
    np.testing.assert_array_equal(result, np.float32([-5, 2]))
    outputs = [ir.Value(name=""), ir.Value(name="last")]
    gates = [ir.Value(name=name) for name in ("x", "w", "r")]
    lstm = ir.node("LSTM", gates, {"hidden_size": 1}, outputs=outputs)
    arrays = [np.ones(shape, np.float32) for shape in ((3, 1, 2), (1, 4, 2), (1, 4, 1))]
    every, last = evaluate(lstm, arrays, OPSET)
    assert every is None
    assert last.shape == (1, 1, 1)


def test_old_opset_semantics() -> None:
    squeeze = node("Squeeze", 1, axes=[0])
    (result,) = evaluate(squeeze, [np.float32([[1, 2]])], {"": 11})
    assert result.shape == (2,)
    with pytest.raises(RuntimeRefusedError):
        evaluate(squeeze, [np.float32([[1, 2]])], {"": 17})


def test_several_nodes_in_one_session() -> None:
    x = ir.Value(name="x")
    first = ir.node("Shape", [x], outputs=[ir.Value(name="s")])
    second = ir.node("Concat", [first.outputs[0]] * 2, {"axis": 0}, outputs=[ir.Value(name="c")])
    wanted = [second.outputs[0], first.outputs[0]]
    both = evaluate_many([first, second], {x: np.zeros((2, 3), np.float32)}, wanted, OPSET)
    np.testing.assert_array_equal(both[0], [2, 3, 2, 3])
    np.testing.assert_array_equal(both[1], [2, 3])


def test_equal_names_of_two_scopes_do_not_meet() -> None:
    one, other = ir.Value(name="k"), ir.Value(name="k")
    negative = ir.node("Neg", [one], outputs=[ir.Value(name="r")])
    absolute = ir.node("Abs", [other], outputs=[ir.Value(name="r")])
    feeds = {one: np.float32([1]), other: np.float32([-7])}
    wanted = [negative.outputs[0], absolute.outputs[0]]
    results = evaluate_many([negative, absolute], feeds, wanted, OPSET)
    assert [result.tolist() for result in results] == [[-1], [7]]


@pytest.mark.parametrize("op_type", ["Div", "Mod"])
def test_division_without_a_result_is_refused(op_type: str) -> None:
    with pytest.raises(RuntimeRefusedError, match="division by zero"):
        evaluate(node(op_type, 2), [np.int64([4]), np.int64([0])], OPSET)
    lowest = np.int64([np.iinfo(np.int64).min])
    with pytest.raises(RuntimeRefusedError, match="overflows"):
        evaluate(node(op_type, 2), [lowest, np.int64([-1])], OPSET)


def test_integer_division_truncates() -> None:
    (result,) = evaluate(node("Div", 2), [np.int64([-7, 7]), np.int64([2])], OPSET)
    np.testing.assert_array_equal(result, [-3, 3])


def test_unknown_divisor_is_refused_unseen() -> None:
    x = ir.Value(name="x")
    size = ir.node("Size", [x], outputs=[ir.Value(name="s")])
    divide = ir.node("Div", [size.outputs[0]] * 2, outputs=[ir.Value(name="d")])
    with pytest.raises(RuntimeRefusedError, match="not known"):
        evaluate_many([size, divide], {x: np.zeros(0, np.float32)}, divide.outputs, OPSET)


@pytest.mark.parametrize(
    ("made", "arrays"),
    [
        (node("NoSuchOperator", 1), [np.float32(1)]),
        (node("MatMul", 2), [np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)]),
        (node("Gather", 2), [np.float32([1, 2]), np.int64([5])]),
        (node("Identity", 1), [np.array(["text"], object)]),
        (node("Cast", 1, to=1), [np.array([1, 2], ml_dtypes.int4)]),
        (node("Add", 2), [np.float32(1), None]),
    ],
    ids=["operator", "shapes", "index", "strings", "int4", "missing"],
)
def test_refusals_are_one_line(made: ir.Node, arrays: list[np.ndarray]) -> None:
    with pytest.raises(RuntimeRefusedError) as caught:
        evaluate(made, arrays, OPSET)
    assert "\n" not in str(caught.value)


def test_node_is_not_changed() -> None:
    made = node("Neg", 1)
    evaluate(made, [np.float32([1])], OPSET)
    assert made.graph is None
    assert made.inputs[0].name == "in0"
    assert len(list(made.inputs[0].uses())) == 1


def test_attribute_references_are_refused() -> None:
    made = node("LeakyRelu", 1)
    made.attributes["alpha"] = ir.RefAttr("alpha", "outer", ir.AttributeType.FLOAT)
    with pytest.raises(RuntimeRefusedError, match="reference"):
        evaluate(made, [np.float32([1])], OPSET)
