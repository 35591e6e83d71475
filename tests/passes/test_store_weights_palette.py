"""StoreWeightsPalette: a table of 16 or 256 values and numbers, folded by the runtime."""

from __future__ import annotations

import numpy as np
import pytest
from graph_check import run
from stored_models import LAYERS, branch_model, layer, model_of, output_error, refusals, stored

from onnxslim.passes.compress.store_weights_palette import StoreWeightsPalette
from onnxslim.pipeline import Context

WIDE = StoreWeightsPalette()
NARROW = StoreWeightsPalette(levels=16, max_error=0.15)


@pytest.mark.parametrize("name", sorted(set(LAYERS) - {"depthwise"}))
def test_layers(name):
    before, after = layer(name), layer(name)
    records = stored(NARROW, after, len([value for value in LAYERS[name][1] if value != "b"]))
    for record in records.values():
        assert record.form == "palette16"
        # 16 levels of a normal distribution: 0.0095 of its variance (Max, 1960), so 0.0975
        assert 0.08 < record.error < 0.105
    assert output_error(before, after) < 0.15


def test_256_levels():
    text, shape = "g (float[N,256] x) => (float[N,256] y) { y = MatMul (x, w) }", (256, 256)
    before, after = model_of(text, {"w": shape}), model_of(text, {"w": shape})
    record = stored(WIDE, after, 1)["w"]
    assert record.form == "palette256"
    assert record.bytes_after == 256 * 256 + 1024
    assert record.error < 0.01
    assert output_error(before, after) < 0.015


@pytest.mark.parametrize(("levels", "kind"), [(16, "palette16"), (256, "palette256")])
def test_few_values_come_back_exactly(levels, kind):
    rng = np.random.default_rng(0)
    table = np.sort(rng.normal(size=levels)).astype(np.float32)
    table[0], table[1] = -0.0, 0.0
    content = table[rng.integers(0, levels, (128, 96))]
    model = model_of("g (int64[N] i) => (float[N,96] y) { y = Gather (w, i) }", {"w": content})
    record = stored(StoreWeightsPalette(levels=levels), model, 1)["w"]
    assert record.form == kind
    assert record.error == 0
    back = run(model, {"i": np.arange(128)})[0]
    np.testing.assert_array_equal(back.view(np.uint32), content.view(np.uint32))


def test_zeros_stay_zeros():
    content = np.random.default_rng(1).normal(0.5, 1, (64, 48)).astype(np.float32)
    content[np.random.default_rng(2).random(content.shape) < 0.3] = 0
    model = model_of(LAYERS["matmul"][0], {"w": content})
    stored(NARROW, model, 1)
    back = run(model, {"x": np.eye(64, dtype=np.float32)})[0]
    assert np.all(back[content == 0] == 0)


def test_4_bits_need_new_operators():
    assert refusals(NARROW, layer("matmul", opset=20)) == {}
    assert refusals(NARROW, layer("matmul", ir_version=9)) == {}


def test_8_bits_do_with_old_operators():
    model = model_of("g (float[N,96] x) => (float[N,96] y) { y = MatMul (x, w) }", {"w": (96, 96)})
    model.graph.opset_imports[""] = 13
    stored(WIDE, model, 1)


def test_a_table_that_would_not_pay():
    text = "g (float[N,16] x) => (float[N,17] y) { y = MatMul (x, w) }"
    reasons = refusals(WIDE, model_of(text, {"w": (16, 17)}))
    assert reasons == {"w": "as palette256 it would not be smaller"}


def test_the_error_limit_holds():
    reasons = refusals(StoreWeightsPalette(levels=4), layer("conv"))
    assert "above 0.05" in reasons["w"]


def test_weights_in_branches():
    before, after = branch_model(), branch_model()
    assert sorted(stored(NARROW, after, 2)) == ["k", "outer"]
    x = np.random.default_rng(3).normal(size=(2, 32)).astype(np.float32)
    for p in (True, False):
        feeds = {"p": np.array(p), "x": x}
        one, other = run(before, feeds)[0], run(after, feeds)[0]
        assert 0 < np.linalg.norm(one - other) < 0.15 * np.linalg.norm(one)


def test_its_own_table_is_no_weight():
    model = layer("embedding")
    model.graph.initializers["w"].const_value.numpy()
    pass_ = StoreWeightsPalette(levels=256, min_bytes=512)
    assert pass_(model, Context(model)).changes == 1
    assert pass_(model, Context(model)).changes == 0
