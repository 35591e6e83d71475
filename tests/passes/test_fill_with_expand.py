"""FillWithExpand: constants of one value, exactly, where readers take a computed value."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graph_check import run
from stored_models import model_of, refusals, stored

from onnxslim.passes.compress.fill_with_expand import FillWithExpand

PASS = FillWithExpand()
ADD = "g (float[32,32] x) => (float[32,32] y) { y = Add (x, c) }"


@pytest.mark.parametrize("value", [0.0, -0.0, 2.5, np.inf, -1e-42])
def test_floats(value):
    content = np.full((32, 32), value, np.float32)
    text = "g (float[32,32] x) => (float[32,32] y) { y = Max (c, c) z = Add (x, c) }"
    model = model_of(
        text.replace("=> (float[32,32] y)", "=> (float[32,32] y, float[32,32] z)"), {"c": content}
    )
    record = stored(PASS, model, 1)["c"]
    assert record.bytes_after == 4 + 16
    assert [node.op_type for node in model.graph] == ["Expand", "Max", "Add"]
    zeros = {"x": np.zeros((32, 32), np.float32)}
    np.testing.assert_array_equal(run(model, zeros)[0].view(np.uint32), content.view(np.uint32))


@pytest.mark.parametrize(
    ("name", "value"), [("double", 1.5), ("int32", 7), ("int64", -3), ("float", np.nan)]
)
def test_types(name, value):
    dtype = np.dtype({"float": "float32", "double": "float64"}.get(name, name))
    content = np.full((40, 40), value, dtype)
    model = model_of(
        f"g ({name}[40,40] x) => ({name}[40,40] y) {{ y = Mul (x, c) }}", {"c": content}
    )
    stored(PASS, model, 1)
    np.testing.assert_array_equal(run(model, {"x": np.ones((40, 40), dtype)})[0], content)


def test_masks():
    text = "g (bool[64,64] x) => (bool[64,64] y) { y = And (x, c) }"
    model = model_of(text, {"c": np.ones((64, 64), np.bool_)})
    stored(PASS, model, 1)
    assert run(model, {"x": np.ones((64, 64), np.bool_)})[0].all()


@pytest.mark.parametrize("index", [0, 1, 500, 1023])
def test_one_other_element_is_enough_to_stay(index):
    content = np.full(1024, 2.0, np.float32)
    content[index] = np.nextafter(np.float32(2), np.float32(3))
    assert refusals(PASS, model_of(ADD, {"c": content.reshape(32, 32)})) == {}


def test_zero_and_minus_zero_are_two_values():
    content = np.zeros((32, 32), np.float32)
    content[9, 9] = -0.0
    assert refusals(PASS, model_of(ADD, {"c": content})) == {}


def test_less_than_4_kib_stays():
    text = ADD.replace("32,32", "33,31")
    assert refusals(PASS, model_of(text, {"c": np.ones((33, 31), np.float32)})) == {}


def test_old_operators_and_other_types_stay():
    assert (
        refusals(PASS, model_of(ADD, {"c": np.ones((32, 32), np.float32)}, opset=7, ir_version=7))
        == {}
    )
    half = ADD.replace("float", "float16").replace("32,32", "64,64")
    assert refusals(PASS, model_of(half, {"c": np.ones((64, 64), np.float16)})) == {}


def test_a_reader_that_may_need_an_initializer():
    text = "g (float[N,1024] x) => (float[N,1024] y) { y = LayerNormalization (x, c) }"
    reasons = refusals(PASS, model_of(text, {"c": np.ones(1024, np.float32)}))
    assert reasons == {"c": "a reader may need it as an initializer"}


def test_outputs_and_overridable_constants_stay():
    output = ADD.replace("float[32,32] y)", "float[32,32] y, float[32,32] c)")
    ones = np.ones((32, 32), np.float32)
    assert refusals(PASS, model_of(output, {"c": ones})) == {"c": "it is an output of the graph"}
    listed = ADD.replace("x)", "x, float[32,32] c)")
    assert refusals(PASS, model_of(listed, {"c": ones})) == {}


def test_the_file_is_small():
    model = model_of(ADD, {"c": np.ones((32, 32), np.float32)})
    stored(PASS, model, 1)
    proto = ir.to_proto(model)
    assert proto.ByteSize() < 400
    onnx.checker.check_model(proto, full_check=True)
