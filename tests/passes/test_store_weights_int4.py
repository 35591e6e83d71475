"""StoreWeightsInt4: a seventh of the bytes, folded by the runtime, only where operators allow."""

from __future__ import annotations

import numpy as np
import pytest
from graph_check import run
from stored_models import (
    LAYERS,
    branch_model,
    layer,
    model_of,
    output_error,
    refusals,
    stored,
    weight_bytes,
)

from onnxslim.passes.compress.store_weights_int4 import StoreWeightsInt4
from onnxslim.pipeline import Context

PASS = StoreWeightsInt4()


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_layers(name):
    before, after = layer(name), layer(name)
    records = stored(PASS, after, len([value for value in LAYERS[name][1] if value != "b"]))
    for record in records.values():
        assert record.form == "int4"
        assert 0.02 < record.error < 0.1
        assert record.bytes_after < 0.165 * record.bytes_before
    assert output_error(before, after) < 0.12
    assert weight_bytes(after) < 0.2 * weight_bytes(before)


def test_form():
    model = layer("matmul")
    PASS(model, Context(model))
    assert [node.op_type for node in model.graph] == ["Cast", "Cast", "Mul", "Reshape", "MatMul"]
    codes = model.graph.initializers["w_int4"].const_value
    assert codes.dtype.name == "INT4"
    assert codes.shape == (2, 32, 48)
    assert codes.nbytes == 64 * 48 // 2
    assert model.graph.initializers["w_scale"].const_value.shape == (2, 1, 48)


def test_blocks_run_along_the_summed_axis():
    """Columns of very different size keep their relative accuracy."""
    size = np.exp2(np.arange(48) - 24).astype(np.float32)
    content = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32) * size
    model = model_of(LAYERS["matmul"][0], {"w": content})
    stored(PASS, model, 1)
    back = run(model, {"x": np.eye(64, dtype=np.float32)})[0]
    error = np.linalg.norm((back - content) / size, axis=0)
    assert np.all(error < 0.12 * np.linalg.norm(content / size, axis=0))


def test_each_element_is_off_by_half_a_step_or_clipped():
    content = np.random.default_rng(1).uniform(-1, 1, (64, 48)).astype(np.float32)
    model = model_of(LAYERS["matmul"][0], {"w": content})
    stored(PASS, model, 1)
    back = run(model, {"x": np.eye(64, dtype=np.float32)})[0]
    scale = np.abs(model.graph.initializers["w_scale"].const_value.numpy().astype(np.float32))
    step = scale.repeat(32, axis=1).reshape(64, 48)
    inside = np.abs(content) <= 7 * step
    assert inside.mean() > 0.75
    assert np.all(np.abs(back - content)[inside] <= step[inside] * 0.5001)


def test_weights_of_sixteen_levels_come_back_exactly():
    """The grid of a weight that was rounded to it before is found again."""
    codes = np.random.default_rng(2).integers(-8, 8, (64, 48))
    codes[::32] = -8
    content = (codes * 0.25).astype(np.float32)
    model = model_of(LAYERS["matmul"][0], {"w": content})
    assert stored(PASS, model, 1)["w"].error == 0
    np.testing.assert_array_equal(run(model, {"x": np.eye(64, dtype=np.float32)})[0], content)


def test_older_operators_stay():
    assert refusals(PASS, layer("matmul", opset=20)) == {}
    assert refusals(PASS, layer("matmul", opset=21, ir_version=9)) == {}


def test_no_block_length_divides():
    text = "g (float[N,67] x) => (float[N,71] y) { y = MatMul (x, w) }"
    reasons = refusals(PASS, model_of(text, {"w": (67, 71)}))
    assert reasons == {"w": "no block of 16 to 64 elements divides its shape [67, 71]"}


def test_the_error_limit_holds():
    reasons = refusals(StoreWeightsInt4(max_error=0.02), layer("conv"))
    assert "above 0.02" in reasons["w"]


def test_weights_in_branches():
    before, after = branch_model(), branch_model()
    assert sorted(stored(PASS, after, 2)) == ["k", "outer"]
    x = np.random.default_rng(3).normal(size=(2, 32)).astype(np.float32)
    for p in (True, False):
        feeds = {"p": np.array(p), "x": x}
        one, other = run(before, feeds)[0], run(after, feeds)[0]
        assert 0 < np.linalg.norm(one - other) < 0.12 * np.linalg.norm(one)


def test_zero_blocks_give_zeros():
    content = np.random.default_rng(4).normal(size=(64, 48)).astype(np.float32)
    content[:32, 7] = 0
    model = model_of(LAYERS["matmul"][0], {"w": content})
    stored(PASS, model, 1)
    assert np.all(run(model, {"x": np.eye(64, dtype=np.float32)})[0][:32, 7] == 0)
