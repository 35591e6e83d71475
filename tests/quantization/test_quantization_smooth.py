"""Outliers of activations move into weights: alpha by site, the same function bit for bit."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from scaled_graphs import feed_of, graph, run, weight

from onnxslim.quantization.presets import find_preset
from onnxslim.quantization.smooth import ALPHAS, smooth_activations

PRESET = find_preset("portable")

NORM = """g (float[N,5,16] x, float[16] wg, float[16] bb, float[16,8] w1, float[16,8] w3)
    => (float[N,5,8] y, float[N,5,8] z)

{ n = LayerNormalization(x, wg, bb) y = MatMul(n, w1) t = Transpose<perm = [0, 1, 2]>(n)
  z = MatMul(t, w3) }"""

GATE = """g (float[N,5,8] x, float[8,6] w1, float[8,6] w2, float[6,4] w3) => (float[N,5,4] y)
{ u = MatMul(x, w1) t = MatMul(x, w2) s = Sigmoid(t) h = Mul(s, u) y = MatMul(h, w3) }"""


def put(model: ir.Model, name: str, array: np.ndarray) -> None:
    model.graph.initializers[name].const_value = ir.tensor(array.astype(np.float32), name=name)


def with_outliers(model: ir.Model, made: list[str], read: list[str], factor: float) -> ir.Model:
    """Channels 2 and 5 of constants of one axis (or columns) scaled, rows of readers unscaled."""
    for name in made:
        array = weight(model, name).copy()
        array[..., [2, 5]] *= factor
        put(model, name, array)
    for name in read:
        array = weight(model, name).copy()
        array[[2, 5]] /= factor
        put(model, name, array)
    return model


def fake_int8_error(model: ir.Model, feeds: list, name: str) -> float:
    """Relative error of ``y`` when the activation ``name`` and the reader ``w1`` lose all but 8
    bits; straight numpy, one scale for the activation, one per column of the weight."""
    from onnxslim.quantization.activations import Activations

    taps = Activations(model, [name])
    x = np.concatenate([array.reshape(-1, array.shape[-1]) for array in taps.each(name, feeds)])
    w = weight(model, "w1")
    step = (max(x.max(), 0) - min(x.min(), 0)) / 255
    columns = np.abs(w).max(0) / 127
    rounded = (np.round(x / step) * step) @ (np.round(w / columns) * columns)
    return float(np.linalg.norm(rounded - x @ w) / np.linalg.norm(x @ w))


def test_outliers_behind_a_norm_move_into_all_readers() -> None:
    model = with_outliers(graph(NORM), ["wg", "bb"], ["w1", "w3"], 100.0)
    feeds = [feed_of(model, seed) for seed in range(4)]
    before, error = run(model, feeds[0]), fake_int8_error(model, feeds, "n")
    (note,) = smooth_activations(model, feeds, PRESET, kinds=("norm",))
    assert note.kept
    assert note.site == "n"
    assert float(note.text.split()[1].rstrip(",")) in ALPHAS
    for one, other in zip(before, run(model, feeds[0]), strict=True):
        np.testing.assert_array_equal(one, other)
    assert fake_int8_error(model, feeds, "n") < error / 10


def test_even_channels_are_left_alone() -> None:
    model = graph(NORM)
    put(model, "wg", np.ones(16))
    put(model, "bb", np.zeros(16))
    before = weight(model, "w1")
    feeds = [feed_of(model, seed) for seed in range(4)]
    (note,) = smooth_activations(model, feeds, PRESET, kinds=("norm",))
    assert not note.kept
    assert note.text == "no alpha gains"
    np.testing.assert_array_equal(weight(model, "w1"), before)


def test_the_linear_branch_of_a_gate() -> None:
    model = with_outliers(graph(GATE), ["w1"], ["w3"], 64.0)
    feeds = [feed_of(model, seed) for seed in range(4)]
    before = run(model, feeds[0])
    notes = smooth_activations(model, feeds, PRESET)
    assert {note.site: note.kept for note in notes} == {"u": True, "t": False, "y": False}
    np.testing.assert_array_equal(run(model, feeds[0])[0], before[0])
    columns = np.abs(weight(model, "w1")).max(0)
    assert columns.max() / columns.min() < 16


def test_kinds_can_be_chosen() -> None:
    model = with_outliers(graph(NORM), ["wg", "bb"], ["w1", "w3"], 100.0)
    feeds = [feed_of(model)]
    assert not any(
        note.kept for note in smooth_activations(model, feeds, PRESET, kinds=("linear",))
    )
    assert any(note.kept for note in smooth_activations(model, feeds, PRESET, kinds=("norm",)))


def test_readers_that_cannot_take_it_refuse() -> None:
    text = NORM.replace("z = MatMul(t, w3)", "q = Sigmoid(t) z = MatMul(q, w3)")
    model = with_outliers(graph(text), ["wg", "bb"], ["w1"], 100.0)
    notes = smooth_activations(model, [feed_of(model)], PRESET)
    assert ("n", "Sigmoid does not pass a scale on") in {(n.site, n.text) for n in notes}


def test_every_kind_of_preset_is_simulated() -> None:
    for name in ("cpu-arm", "cpu-vnni", "tensorrt", "qnn"):
        model = with_outliers(graph(NORM), ["wg", "bb"], ["w1", "w3"], 100.0)
        assert smooth_activations(model, [feed_of(model)], find_preset(name), kinds=("norm",))[
            0
        ].kept


def test_it_is_the_same_every_time() -> None:
    results = []
    for _ in range(2):
        model = with_outliers(graph(NORM), ["wg", "bb"], ["w1", "w3"], 30.0)
        notes = smooth_activations(model, [feed_of(model, seed) for seed in range(3)], PRESET)
        results.append((notes, weight(model, "w1").tobytes(), weight(model, "wg").tobytes()))
    assert results[0] == results[1]
