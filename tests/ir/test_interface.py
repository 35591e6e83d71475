"""Cutting a part out of a graph and giving inputs other shapes, subgraphs included."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graph_check import parse, run

from onnxslim.errors import UsageError
from onnxslim.ir.interface import change_input_shapes, extract
from onnxslim.ir.verify import verify

HEAD = '<ir_version: 9, opset_import: ["" : 17]>\n'
BRANCHES = HEAD + (
    "g (float[2] x, float[2] z, bool c) => (float[2] y, float[2] q) {\n"
    " a = Relu (x)\n b = Exp (z)\n"
    " y = If (c) <then_branch = t () => (float[2] p) { p = Add (a, b) },"
    " else_branch = e () => (float[2] r) { r = Neg (a) }>\n"
    " q = Abs (b)\n}"
)


def checked(model: ir.Model) -> ir.Model:
    verify(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


def names(values) -> list[str]:
    return [value.name for value in values]


def test_branches_read_the_new_inputs() -> None:
    model = parse(BRANCHES)
    extract(model, dict.fromkeys(["b", "c", "a"]), {"y": None})
    checked(model)
    assert names(model.graph.inputs) == ["b", "c", "a"]
    assert [node.op_type for node in model.graph] == ["If"]
    one, two = np.ones(2, np.float32), np.full(2, 2, np.float32)
    for choice, expected in ((True, 3), (False, -2)):
        result = run(model, {"b": one, "a": two, "c": np.array(choice)})[0]
        np.testing.assert_array_equal(result, np.full(2, expected, np.float32))


def test_an_input_that_only_a_branch_needs_is_missed() -> None:
    with pytest.raises(UsageError, match="the outputs still need 'z'"):
        extract(parse(BRANCHES), dict.fromkeys(["a", "c"]), {"y": None})


def test_values_inside_branches_and_weights_are_no_border() -> None:
    for name in ("p", "w"):
        with pytest.raises(UsageError, match=f"called '{name}'"):
            extract(parse(BRANCHES), {}, {name: None})


def test_outputs_alone_in_the_order_wanted() -> None:
    model = parse(BRANCHES)
    extract(model, {}, dict.fromkeys(["q", "a", "b"]))
    checked(model)
    assert names(model.graph.outputs) == ["q", "a", "b"]
    assert names(model.graph.inputs) == ["x", "z", "c"]
    assert [node.op_type for node in model.graph] == ["Relu", "Exp", "Abs"]


def test_an_input_as_an_output_stays_legal() -> None:
    model = parse(BRANCHES)
    extract(model, {"b": None}, {"q": None})
    assert names(checked(model).graph.inputs) == ["b"]
    with pytest.raises(UsageError, match="former input"):
        extract(parse(BRANCHES), {"b": None}, {"x": None})


def test_casts_at_both_borders() -> None:
    model = parse(BRANCHES)
    extract(model, {"b": ir.DataType.FLOAT16}, {"q": ir.DataType.INT32})
    checked(model)
    result = run(model, {"b": np.array([-1.5, 3], np.float16)})[0]
    assert result.dtype == np.int32
    assert result.tolist() == [1, 3]


def test_weights_that_are_listed_stay_listed() -> None:
    model = parse(
        '<ir_version: 3, opset_import: ["" : 9]>\n'
        "g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1,2}> "
        "{ a = Relu (x)\n y = Mul (a, w) }"
    )
    extract(model, {"a": None}, {"y": None})
    assert names(checked(model).graph.inputs) == ["a", "w"]


def test_a_value_of_unknown_type_has_to_be_told() -> None:
    text = '<ir_version: 9, opset_import: ["" : 17, "o.x" : 1]>\n'
    text += "g (float[2] x) => (float[2] y) { a = o.x.Unknown (x)\n y = Neg (a) }"
    with pytest.raises(UsageError, match="the type of 'a' is unknown"):
        extract(parse(text), {"a": None}, {"y": None})
    model = parse(text)
    extract(model, {"a": ir.DataType.FLOAT}, {"y": None})
    assert run(model, {"a": np.ones(2, np.float32)})[0].tolist() == [-1, -1]


def test_shapes_reach_the_outputs_and_stale_ones_go() -> None:
    model = parse(
        HEAD
        + "g (float[1,4] x) => (float[1,2] y) <int64[1] k = {1}, float[4,2] w = {1,2,3,4,5,6,7,8}>"
        "{ s = Relu (x)\n y = MatMul (s, w) }"
    )
    change_input_shapes(model, {"x": [3, 4]})
    assert list(checked(model).graph.outputs[0].shape) == [3, 2]
    change_input_shapes(model, {"x": ["batch", 4]})
    assert str(checked(model).graph.outputs[0].shape[0]) == "batch"
    with pytest.raises(UsageError, match="2 dimensions, 1 given"):
        change_input_shapes(model, {"x": [4]})
    with pytest.raises(UsageError, match="did you mean x"):
        change_input_shapes(model, {"xx": [4, 4]})
