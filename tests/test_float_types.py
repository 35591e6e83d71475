"""Whole models in float16 and back: types agree everywhere, and outputs stay close."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graph_check import make_feeds, parse, run

from onnxslim.errors import UsageError
from onnxslim.ir.verify import verify
from onnxslim.rewrite.float_types import FloatChange, convert_floats

HEAD = '<ir_version: 9, opset_import: ["" : 17]>\n'
FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def convert(text: str, *, tolerance: float = 2e-3) -> tuple[ir.Model, FloatChange]:
    """Converts, checks types in full, and compares outputs there and back."""
    original, model = parse(text), parse(text)
    feeds = make_feeds(original)
    expected = run(original, feeds)
    change = convert_floats(model, HALF)
    _compare(model, feeds, expected, np.float16, tolerance)
    back = ir.from_proto(ir.to_proto(model))
    convert_floats(back, FLOAT)
    _compare(back, feeds, expected, np.float32, tolerance)
    return model, change


def _compare(model: ir.Model, feeds, expected, dtype, tolerance: float) -> None:
    verify(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    cast = {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in feeds.items()}
    for one, other in zip(expected, run(model, cast), strict=True):
        if one.dtype.kind == "f":
            assert other.dtype == dtype
            scale = np.abs(one).max(initial=1e-6)
            error = np.abs(one - other.astype(np.float32)).max(initial=0)
            assert error <= tolerance * scale
        else:
            np.testing.assert_array_equal(one, other)


def types(model: ir.Model) -> dict[str, str]:
    return {
        v.name: v.dtype.name for node in model.graph.all_nodes() for v in node.outputs if v.dtype
    }


def test_weights_inputs_and_outputs() -> None:
    model, change = convert(
        HEAD + "g (float[2,3] x) => (float[2,3] y) <float[3] w = {0.1,0.2,0.3}> { y = Mul (x, w) }"
    )
    assert change == FloatChange(converted=1)
    assert model.graph.initializers["w"].dtype == HALF


def test_an_operator_that_wants_float32_keeps_it_with_all_digits_of_constants() -> None:
    model, change = convert(
        HEAD + "g (float[1,1,6,6] x) => (float[N,M,K,L] y) <float[4] s = {1,1,0.333,0.7}> "
        '{ y = Resize <mode = "nearest"> (x, , s) }'
    )
    assert model.graph.initializers["s"].dtype == FLOAT
    assert change.kept == ["Resize -> 'y'"]
    assert [node.op_type for node in model.graph] == ["Resize"]


def test_a_constant_with_readers_of_both_kinds_is_kept_twice() -> None:
    model, _ = convert(
        HEAD + "g (float x) => (float[N] r, float y) <float s = {0.5}> "
        "{ e = Constant <value = float {4.0}> ()\n o = Constant <value = float {0.0}> ()\n"
        " r = Range (o, e, s)\n y = Mul (x, s) }"
    )
    assert {model.graph.initializers[n].dtype for n in model.graph.initializers} == {FLOAT, HALF}
    assert [node.op_type for node in model.graph].count("Cast") == 1


def test_attributes_that_name_a_type_follow() -> None:
    model, _ = convert(
        HEAD + "g (int64[3] n) => (float[3] a, float[2,2] b, int32[3] c) { a = Cast <to = 1> (n)\n"
        " t = Constant <value = int64[2] {2,2}> ()\n"
        " b = ConstantOfShape <value = float[1] {0.25}> (t)\n c = Cast <to = 6> (n) }"
    )
    assert types(model)["c"] == "INT32"
    convert(
        HEAD + "g (int64[3] n) => (float[N] b) "
        "{ q = ConstantOfShape (n)\n s = Constant <value = int64[1] {-1}> ()\n"
        " b = Reshape (q, s) }"
    )


def test_subgraphs() -> None:
    convert(
        HEAD
        + "g (float[2] x, bool c) => (float[2] y) { w = Constant <value_floats = [1.5, 2.5]> ()\n"
        " y = If (c) <then_branch = t () => (float[2] p) { p = Add (x, w) },"
        " else_branch = e () => (float[2] q) { k = Constant <value_float = 3.0> ()\n"
        " q = Mul (x, k) }> }"
    )


def test_quantized_parts_meet_the_rest_behind_casts() -> None:
    model, change = convert(
        '<ir_version: 9, opset_import: ["" : 13]>\n'
        "g (float[4] x) => (float[4] y) <float s = {0.02}, uint8 z = {128}> "
        "{ r = Relu (x)\n q = QuantizeLinear (r, s, z)\n d = DequantizeLinear (q, s, z)\n"
        " y = Neg (d) }",
        tolerance=2e-2,
    )
    assert len(change.kept) == 2
    assert model.graph.initializers["s"].dtype == FLOAT


def test_numbers_outside_the_range() -> None:
    text = HEAD + (
        "g (float[2] x) => (float[2] y) <float[2] big = {1e6, -1e6}, float eps = {1e-12}> "
        "{ a = Min (x, big)\n y = Add (a, eps) }"
    )
    model = parse(text)
    change = convert_floats(model, HALF)
    assert change.clamped == ["big"]
    big = model.graph.initializers["big"].const_value.numpy()
    assert big.tolist() == [65504.0, -65504.0]
    assert model.graph.initializers["eps"].const_value.numpy() > 0


def test_an_output_that_keeps_its_type_keeps_its_name_too() -> None:
    model, _ = convert(
        HEAD + "g (int64 n) => (float[N] y) { o = Constant <value = float {0.0}> ()\n"
        " e = Constant <value = float {5.0}> ()\n s = Constant <value = float {1.0}> ()\n"
        " y = Range (o, e, s) }"
    )
    assert model.graph.outputs[0].name == "y"


def test_unknown_types_are_an_error() -> None:
    text = '<ir_version: 9, opset_import: ["" : 17, "o.x" : 1]>\n'
    text += "g (float[2] x) => (float[2] y) { a = o.x.Unknown (x)\n y = Neg (a) }"
    with pytest.raises(UsageError, match="type of 'a'"):
        convert_floats(parse(text), HALF)
