"""Mean errors of int8 layers go into their int32 biases."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from scaled_graphs import graph
from unbalanced_models import depthwise, images, top1

from onnxslim.io import load
from onnxslim.quantization.activations import Activations
from onnxslim.quantization.bias_correction import correct_analytically, correct_empirically
from onnxslim.quantization.engine import quantize_model
from onnxslim.quantization.equalize import correct_biases
from onnxslim.runtime.session import open_session

CONVS = """g (float[N,3,6,6] x, float[4,3,3,3] w1, float[4] b1, float[5,4,1,1] w2)
    => (float[N,5,4,4] y)
{ a = Conv(x, w1, b1) r = Relu(a) y = Conv(r, w2) }"""


def positive_feeds(count: int) -> list[dict[str, np.ndarray]]:
    """Activations with a mean: that is what makes weight errors shift outputs."""
    rng = np.random.default_rng(3)
    return [{"x": rng.random((8, 3, 6, 6)).astype(np.float32)} for _ in range(count)]


def mean_error(model: ir.Model, int8: ir.Model, feeds: list) -> np.ndarray:
    """Mean of the error of the output by channel, as the kernels compute it."""
    real, exact = (open_session(one, optimize=True) for one in (int8, model))
    errors = [real.run(feed)[0] - exact.run(feed)[0] for feed in feeds]
    stacked = np.concatenate(errors)
    return stacked.mean(axis=tuple(i for i in range(stacked.ndim) if i != 1), dtype=np.float64)


def shifted_codes(int8: ir.Model, by: int) -> ir.Model:
    """All weights of the last Conv moved by some steps: an error with a mean, made on purpose."""
    model = load(int8)
    node = [node for node in model.graph if node.op_type == "Conv"][-1]
    codes = node.inputs[1].producer().inputs[0]
    array = np.clip(codes.const_value.numpy().astype(np.int16) + by, -127, 127).astype(np.int8)
    codes.const_value = ir.tensor(array, name=codes.name)
    return model


def biases(model: ir.Model) -> list[np.ndarray]:
    """The int32 biases in order."""
    found = []
    for node in model.graph:
        if node.op_type in ("Conv", "Gemm") and len(node.inputs) > 2 and node.inputs[2] is not None:
            found.append(node.inputs[2].producer().inputs[0].const_value.numpy())
    return found


@pytest.mark.parametrize("correct", [correct_analytically, correct_empirically])
def test_a_mean_error_disappears(correct) -> None:
    model, feeds = graph(CONVS), positive_feeds(4)
    int8 = shifted_codes(quantize_model(model, feeds, preset="portable")[0], 6)
    before = np.abs(mean_error(model, int8, feeds))
    notes = correct(model, int8, feeds)
    after = np.abs(mean_error(model, int8, feeds))
    assert before.max() > 0.1
    assert after.max() < 0.1 * before.max()
    assert [note.kept for note in notes] == [True, True]


@pytest.mark.parametrize("preset", ["portable", "tensorrt"])
def test_biases_in_float_and_the_factors_of_a_gemm(preset: str) -> None:
    text = """g (float[N,6] x, float[6,8] w1, float[8] b1, float[4,8] w2, float[4] b2)
        => (float[N,4] y)
    { a = Gemm<alpha = 0.5, beta = 2.0>(x, w1, b1) r = Relu(a)
      y = Gemm<transB = 1, alpha = 3.0>(r, w2, b2) }"""
    model = graph(text)
    rng = np.random.default_rng(5)
    feeds = [{"x": rng.random((8, 6)).astype(np.float32)} for _ in range(4)]
    int8 = quantize_model(model, feeds, preset=preset)[0]
    before = np.abs(mean_error(model, int8, feeds)).max()
    notes = correct_analytically(model, int8, feeds)
    assert [note.kept for note in notes] == [True, True], notes
    correct_empirically(model, int8, feeds)
    assert np.abs(mean_error(model, int8, feeds)).max() < 0.5 * before


def test_a_layer_without_bias_gets_one_in_int32() -> None:
    model, feeds = graph(CONVS), positive_feeds(4)
    int8 = shifted_codes(quantize_model(model, feeds, preset="portable")[0], 6)
    assert len(biases(int8)) == 1
    correct_analytically(model, int8, feeds)
    assert [(found.dtype, found.shape) for found in biases(int8)] == [
        (np.dtype(np.int32), (4,)),
        (np.dtype(np.int32), (5,)),
    ]
    kernels = Activations(int8, [], optimize=True)  # opens with all optimizations
    assert next(kernels.each("y", feeds)).shape == (8, 5, 4, 4)


def test_a_second_round_moves_less_than_half_a_step_of_the_output() -> None:
    model, feeds = graph(CONVS), positive_feeds(4)
    int8 = shifted_codes(quantize_model(model, feeds, preset="portable")[0], 6)
    start = biases(int8)[0].copy()
    correct_empirically(model, int8, feeds)
    once = [array.copy() for array in biases(int8)]
    correct_empirically(model, int8, feeds)
    convs = [node for node in int8.graph if node.op_type == "Conv"]
    for node, first, second in zip(convs, once, biases(int8), strict=True):
        steps = node.inputs[2].producer().inputs[1].const_value.numpy()
        (quantize,) = [user for user, _ in node.outputs[0].uses()]
        output_step = float(quantize.inputs[1].const_value.numpy())
        assert (np.abs(second - first) * steps).max() < output_step / 2
    assert (start != once[0]).any()


def test_what_has_no_bias_of_its_own_says_so() -> None:
    text = """g (float[N,5,8] x, float[8,6] w1, float[6] b1, float[6,4] w2) => (float[N,5,4] y)
    { m = MatMul(x, w1) a = Add(m, b1) r = Relu(a) y = MatMul(r, w2) }"""
    model = graph(text)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.random((4, 5, 8)).astype(np.float32)} for _ in range(4)]
    int8 = quantize_model(model, feeds, preset="portable")[0]
    notes = correct_analytically(model, int8, feeds)
    assert [note.text for note in notes] == ["a MatMul has no bias of its own"] * 2


def test_models_that_do_not_belong_together_stay() -> None:
    model, feeds = graph(CONVS), positive_feeds(4)
    int8 = quantize_model(model, feeds, preset="portable")[0]
    other = graph(
        CONVS.replace("r = Relu(a) y = Conv(r, w2)", "y = Relu(a)")
        .replace(", float[5,4,1,1] w2", "")
        .replace("float[N,5,4,4]", "float[N,4,4,4]")
    )
    (note,) = correct_analytically(other, int8, feeds)
    assert "do not match" in note.text


def test_the_judge_keeps_what_helps_and_only_that() -> None:
    model = depthwise(0)
    feeds = images(128)
    int8 = quantize_model(model, feeds, preset="portable")[0]
    before = [array.copy() for array in biases(int8)]
    better, notes = correct_biases(model, int8, feeds)
    assert [a.tobytes() for a in biases(int8)] == [a.tobytes() for a in before]  # untouched
    (verdict,) = [n for n in notes if n.site == "model" and "from the weights" in n.text]
    assert verdict.kept
    reached, old = (float(part.split()[-2]) for part in verdict.text.split(" instead of "))
    assert reached > old + 1
    assert top1(better) >= top1(int8) - 0.005
    again, _ = correct_biases(model, int8, feeds)
    assert [a.tobytes() for a in biases(again)] == [a.tobytes() for a in biases(better)]
