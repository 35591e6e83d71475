"""StoreWeightsHalf: float16, and bfloat16 where float16 overflows or loses too much."""

from __future__ import annotations

import numpy as np
import pytest
from graph_check import run
from stored_models import LAYERS, branch_model, layer, model_of, output_error, refusals, stored

from onnxslim.passes.compress.store_weights_half import StoreWeightsHalf

PASS = StoreWeightsHalf()


@pytest.mark.parametrize("name", sorted(LAYERS))
@pytest.mark.parametrize(("bfloat", "error"), [(False, 3e-4), (True, 2.3e-3)])
def test_layers(name, bfloat, error):
    before, after = layer(name, opset=17), layer(name, opset=17)
    weights = [value for value in LAYERS[name][1] if value != "b"]
    records = stored(StoreWeightsHalf(bfloat=bfloat), after, len(weights))
    for record in records.values():
        assert record.form == ("bf16" if bfloat else "fp16")
        assert error / 2 < record.error < error
        assert record.bytes_after * 2 == record.bytes_before
    assert output_error(before, after) < 2 * error


def test_rounding_is_to_the_nearest():
    content = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)
    model = model_of(LAYERS["matmul"][0], {"w": content})
    stored(PASS, model, 1)
    back = run(model, {"x": np.eye(64, dtype=np.float32)})[0]
    np.testing.assert_array_equal(back, content.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("value", [65520.0, 1e30])
def test_overflow_takes_bfloat16(value):
    content = np.random.default_rng(1).normal(size=(64, 48)).astype(np.float32)
    content[5, 6] = value
    model = model_of(LAYERS["matmul"][0], {"w": content})
    assert stored(PASS, model, 1)["w"].form == "bf16"
    back = run(model, {"x": np.eye(64, dtype=np.float32)})[0]
    assert np.isfinite(back).all()
    assert back[5, 6] == pytest.approx(value, rel=2**-8)


def test_the_largest_float16_fits():
    content = np.random.default_rng(2).normal(size=(64, 48)).astype(np.float32)
    content[5, 6] = 65504.0
    model = model_of(LAYERS["matmul"][0], {"w": content})
    assert stored(PASS, model, 1)["w"].form == "fp16"


def test_subnormal_numbers_take_bfloat16():
    content = (np.random.default_rng(3).normal(size=(64, 48)) * 1e-7).astype(np.float32)
    model = model_of(LAYERS["matmul"][0], {"w": content})
    assert stored(PASS, model, 1)["w"].form == "bf16"


def test_overflow_without_bfloat16_stays():
    content = np.full((64, 48), 1e6, np.float32)
    model = model_of(LAYERS["matmul"][0], {"w": content}, opset=12)
    assert refusals(PASS, model) == {"w": "as fp16 it overflows, and bf16 needs opset 13"}
    assert refusals(StoreWeightsHalf(bfloat=True), layer("conv", opset=12)) == {}


def test_weights_in_branches():
    before, after = branch_model(16), branch_model(16)
    assert sorted(stored(PASS, after, 2)) == ["k", "outer"]
    x = np.random.default_rng(4).normal(size=(2, 32)).astype(np.float32)
    for p in (True, False):
        feeds = {"p": np.array(p), "x": x}
        one, other = run(before, feeds)[0], run(after, feeds)[0]
        assert 0 < np.linalg.norm(one - other) < 1e-3 * np.linalg.norm(one)


def test_float16_weights_are_half_already():
    text = "g (float16[N,64] x) => (float16[N,48] y) { y = MatMul (x, w) }"
    content = np.ones((64, 48), np.float16)
    assert refusals(PASS, model_of(text, {"w": content})) == {}
