"""StoreWeightsInt8: a quarter of the bytes, folded by the runtime, half a scale of error."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graph_check import check, make_feeds, run
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

from onnxslim.passes.compress.store_weights_int8 import StoreWeightsInt8
from onnxslim.pipeline import Context

PASS = StoreWeightsInt8()


@pytest.mark.parametrize("name", sorted(LAYERS))
@pytest.mark.parametrize("opset", [17, 21])
def test_layers(name, opset):
    before, after = layer(name, opset=opset), layer(name, opset=opset)
    weights = [value for value in LAYERS[name][1] if value != "b"]
    records = stored(PASS, after, len(weights))
    assert sorted(records) == sorted(weights)
    assert all(record.form == "int8" and 0 < record.error < 0.012 for record in records.values())
    assert output_error(before, after) < 0.02
    assert weight_bytes(after) < 0.34 * weight_bytes(before)


def test_form():
    model = layer("matmul")
    PASS(model, Context(model))
    assert [node.op_type for node in model.graph] == ["Cast", "Cast", "Mul", "MatMul"]
    codes = model.graph.initializers["w_int8"].const_value.numpy()
    scale = model.graph.initializers["w_scale"].const_value.numpy()
    assert codes.dtype == np.int8
    assert codes.shape == (64, 48)
    assert scale.dtype == np.float16
    assert scale.shape == (1, 48)
    assert np.abs(codes).max() == 127


def test_each_element_is_off_by_half_a_scale_at_most():
    rng = np.random.default_rng(1)
    content = (rng.normal(size=(48, 64)) * np.exp(rng.normal(size=(48, 1)))).astype(np.float32)
    text = "g (float[N,64] x) => (float[N,48] y) { y = Gemm <transB = 1> (x, w) }"
    model = model_of(text, {"w": content})
    stored(PASS, model, 1)
    identity = {"x": np.eye(64, dtype=np.float32)}
    given_back = run(model, identity)[0].T
    scale = model.graph.initializers["w_scale"].const_value.numpy().astype(np.float32)
    # the largest element may be clipped by what the rounded scale lacks: 127 * 2**-11 scales
    assert np.all(np.abs(given_back - content) <= scale * 0.5625)


def test_a_few_large_elements_get_blocks():
    content = np.random.default_rng(2).normal(0, 0.01, (64, 16, 3, 3)).astype(np.float32)
    content[::5, 3, 1, 1] = 2.0
    text = "g (float[1,16,6,6] x) => (float[1,64,4,4] y) { y = Conv (x, w) }"
    before, after = model_of(text, {"w": content}), model_of(text, {"w": content})
    record = stored(PASS, after, 1)["w"]
    assert record.form == "int8 blocks"
    assert record.error < 0.02
    assert record.bytes_after < 0.27 * record.bytes_before
    assert output_error(before, after) < 0.02


def test_the_error_limit_holds():
    model = layer("matmul")
    reasons = refusals(StoreWeightsInt8(max_error=0.001), model)
    assert "relative error" in reasons["w"]
    assert "above 0.001" in reasons["w"]


def test_one_weight_as_table_and_matrix():
    text = """g (int64[N] i, float[N,32] x) => (float[N,32] y, float[N,40] z) {
        y = Gather (w, i)
        t = Transpose (w)
        z = MatMul (x, t)
    }"""
    before, after = model_of(text, {"w": (40, 32)}), model_of(text, {"w": (40, 32)})
    stored(PASS, after, 1)
    feeds = make_feeds(before)
    for one, other in zip(run(before, feeds), run(after, feeds), strict=True):
        assert np.linalg.norm(one - other) < 0.02 * np.linalg.norm(one)


@pytest.mark.parametrize("opset", [16, 21])
def test_weights_in_branches(opset):
    before, after = branch_model(opset), branch_model(opset)
    assert sorted(stored(PASS, after, 2)) == ["k", "outer"]
    assert weight_bytes(after) < 0.3 * weight_bytes(before)
    x = np.random.default_rng(3).normal(size=(2, 32)).astype(np.float32)
    for p in (True, False):
        feeds = {"p": np.array(p), "x": x}
        one, other = run(before, feeds)[0], run(after, feeds)[0]
        assert 0 < np.linalg.norm(one - other) < 0.02 * np.linalg.norm(one)


def test_before_ir_version_4_there_are_constant_nodes():
    model = layer("conv", opset=9, ir_version=3)
    before = layer("conv", opset=9, ir_version=3)
    PASS(model, Context(model))
    assert not model.graph.initializers
    assert {node.op_type for node in model.graph} == {"Constant", "Cast", "Mul", "Conv"}
    assert output_error(before, model) < 0.02


def test_float16_weights_come_back_as_float16():
    text = "g (float16[N,64] x) => (float16[N,48] y) { y = MatMul (x, w) }"
    content = np.random.default_rng(4).normal(size=(64, 48)).astype(np.float16)
    model = model_of(text, {"w": content})
    record = stored(PASS, model, 1)["w"]
    assert record.bytes_before == 6144
    assert record.bytes_after == 64 * 48 + 2 * 48
    before = model_of(text, {"w": content})
    assert output_error(before, model) < 0.02


def test_what_is_no_weight_stays():
    before = """g (float[N,300] x) => (float[N,300] y) { y = Add (x, w) }"""
    model = model_of(before, {"w": (1, 300)})
    assert refusals(PASS, model) == {}


def test_small_weights_stay():
    model = model_of(*(LAYERS["matmul"][0], {"w": (64, 48)}))
    assert refusals(StoreWeightsInt8(min_bytes=64 * 48 * 4 + 1), model) == {}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_stay(bad):
    content = np.ones((64, 48), np.float32)
    content[3, 4] = bad
    model = model_of(LAYERS["matmul"][0], {"w": content})
    assert refusals(PASS, model) == {"w": "it holds NaN or infinity"}


def test_all_zero_and_tiny_channels():
    content = np.random.default_rng(6).normal(size=(64, 48)).astype(np.float32)
    content[:, 3] = 0
    content[:, 4] *= 1e-30
    content[:, 5] *= 1e-42
    wanted = content.astype(np.float64)
    model = model_of(LAYERS["matmul"][0], {"w": content})
    stored(PASS, model, 1)
    back = run(model, {"x": np.eye(64, dtype=np.float32)})[0].astype(np.float64)
    assert np.all(back[:, 3] == 0)
    assert np.linalg.norm(back[:, 4] - wanted[:, 4]) < 0.02 * np.linalg.norm(wanted[:, 4])
    assert np.abs(back[:, 5]).max() < 1e-37


def test_an_output_stays():
    text = "g (float[N,64] x) => (float[N,48] y, float[64,48] w) { y = MatMul (x, w) }"
    model = model_of(text, {"w": (64, 48)})
    assert refusals(PASS, model) == {"w": "it is an output of the graph"}


def test_what_a_caller_may_override_stays():
    text = "g (float[N,64] x, float[64,48] w) => (float[N,48] y) { y = MatMul (x, w) }"
    assert refusals(PASS, model_of(text, {"w": (64, 48)})) == {}


def test_what_is_read_as_an_initializer_stays():
    text = """g (float[N,64] x, float s, int8 z) => (float[N,48] y, int8[64,48] q) {
        y = MatMul (x, w)
        q = QuantizeLinear (w, s, z)
    }"""
    reasons = refusals(PASS, model_of(text, {"w": (64, 48)}))
    assert reasons == {"w": "QuantizeLinear reads it too and needs an initializer"}


def test_old_operators_stay():
    assert refusals(PASS, layer("matmul", opset=6, ir_version=7)) == {}


def test_function_bodies_stay():
    numbers = ", ".join("0.5" for _ in range(256))
    check(
        PASS,
        f"""<ir_version: 10, opset_import: ["" : 17, "local" : 1]>
        g (float[N,16] x) => (float[N,16] y) {{ y = local.f (x) }}
        <domain: "local", opset_import: ["" : 17]>
        f (a) => (b) {{
            k = Constant <value = float[16,16] {{{numbers}}}> ()
            b = MatMul (a, k)
        }}""",
    )


def test_same_bytes_every_time():
    def written() -> bytes:
        model = layer("lstm")
        PASS(model, Context(model))
        return ir.to_proto(model).SerializeToString(deterministic=True)

    assert written() == written()
