"""StoreWeightsNarrow: fewer bytes, and every bit comes back."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from graph_check import run
from stored_models import layer, model_of, refusals, stored

from onnxslim.passes.compress.store_weights_narrow import StoreWeightsNarrow

PASS = StoreWeightsNarrow()
TABLE = "g (int64[N] i) => (float[N,64] y) { y = Gather (w, i) }"
RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(96, 64)).astype(np.float32)


def with_zeros(array: np.ndarray) -> np.ndarray:
    array[0, :2] = [0.0, -0.0]
    return array


CASES = {
    "palette16": with_zeros(RNG.choice(NORMAL.reshape(-1)[:14], (96, 64))),
    "palette256": with_zeros(RNG.choice(NORMAL.reshape(-1)[:254], (96, 64))),
    "fp16": with_zeros(NORMAL.astype(np.float16).astype(np.float32)),
    "bf16": with_zeros((NORMAL * 1e20).astype(ml_dtypes.bfloat16).astype(np.float32)),
}


def check_bits(content: np.ndarray, form: str, **options: int) -> None:
    model = model_of(TABLE, {"w": content}, **options)
    record = stored(PASS, model, 1)["w"]
    assert record.form == form
    assert record.error == 0
    back = run(model, {"i": np.arange(96)})[0]
    np.testing.assert_array_equal(back.view(np.uint32), content.view(np.uint32))


@pytest.mark.parametrize("form", sorted(CASES))
def test_bits_come_back(form):
    check_bits(CASES[form], form)


def test_integers_times_a_power_of_two():
    content = (RNG.integers(-127, 128, (96, 64)) * 2.0**-9).astype(np.float32)
    check_bits(content, "palette256", opset=13, ir_version=7)


def test_without_4_bit_numbers_8_bits():
    check_bits(CASES["palette16"], "palette256", opset=20)
    check_bits(CASES["palette16"], "palette256", ir_version=9)


def test_small_float16_numbers():
    """Subnormal as float16, so their bits are few; onnxruntime has to bring them back."""
    content = (RNG.integers(1, 1000, (96, 64)) * 2.0**-24).astype(np.float32)
    check_bits(content, "fp16")


def test_one_odd_bit_is_enough_to_stay():
    content = CASES["fp16"].copy()
    content[50, 50] = np.nextafter(content[50, 50], np.float32(9))
    reasons = refusals(PASS, model_of(TABLE, {"w": content}))
    assert reasons == {"w": "no narrow form gives it back exactly"}


def test_usual_weights_stay():
    assert set(refusals(PASS, layer("lstm"))) == {"w", "r"}


def test_bfloat16_needs_opset_13():
    reasons = refusals(PASS, model_of(TABLE, {"w": CASES["bf16"]}, opset=12, ir_version=7))
    assert set(reasons) == {"w"}
