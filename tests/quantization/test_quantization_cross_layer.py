"""Cross-layer equalization: even ranges, the same function bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from scaled_graphs import feed_of, graph, run, weight
from unbalanced_models import depthwise, images

from onnxslim.quantization.cross_layer import clip_inputs, equalize_layers
from onnxslim.quantization.scaling import read_range, write_range
from onnxslim.quantization.sites import find_sites

PAIR = """g (float[N,3,6,6] x, float[4,3,3,3] w1, float[4] b1, float[5,4,1,1] w2)
    => (float[N,5,4,4] y)
{ a = Conv(x, w1, b1) r = Relu(a) y = Conv(r, w2) }"""

RELU6 = """g (float[N,3,6,6] x, float[4,3,3,3] w1, float[4] b1, float[5,4,1,1] w2)
    => (float[N,5,4,4] y)
<float low = {0.0}, float high = {6.0}>
{ a = Conv(x, w1, b1) r = Clip(a, low, high) y = Conv(r, w2) }"""


def unbalanced(text: str) -> tuple:
    """The graph with the channels of its first layer scaled by 1, 32, 1/32, 8, undone behind."""
    model = graph(text)
    factors = np.array([1, 32, 1 / 32, 8], np.float32)
    for name, scale in (("w1", factors.reshape(4, 1, 1, 1)), ("b1", factors)):
        model.graph.initializers[name].const_value = _tensor(weight(model, name) * scale, name)
    behind = weight(model, "w2") / factors.reshape(1, 4, 1, 1)
    model.graph.initializers["w2"].const_value = _tensor(behind, "w2")
    return model, factors


def _tensor(array: np.ndarray, name: str):
    import onnx_ir as ir

    return ir.tensor(array, name=name)


def test_both_sides_get_ranges_within_one_octave() -> None:
    model, _ = unbalanced(PAIR)
    feed = feed_of(model)
    before = run(model, feed)
    notes = equalize_layers(model)
    (site,), _ = find_sites(model)
    made, read = write_range(site)[:4], read_range(site)[:4]
    assert (np.abs(np.log2(made / read)) <= 1).all()
    assert [note.site for note in notes if note.kept] == ["a"]
    np.testing.assert_array_equal(run(model, feed)[0], before[0])


def test_factors_undo_an_imbalance_exactly() -> None:
    plain, model = graph(PAIR), unbalanced(PAIR)[0]
    equalize_layers(plain)
    equalize_layers(model)
    for name in ("w1", "b1", "w2"):
        np.testing.assert_array_equal(weight(plain, name), weight(model, name))


def test_it_is_at_rest_afterwards() -> None:
    model, _ = unbalanced(PAIR)
    equalize_layers(model)
    assert not any(note.kept for note in equalize_layers(model))


@pytest.mark.parametrize("octaves", [4, 8])
def test_a_chain_of_depthwise_layers_converges_and_keeps_its_function(octaves: int) -> None:
    model = depthwise(octaves)
    feed = images(16)[0]
    before = run(model, feed)
    notes = equalize_layers(model)
    assert sum(note.kept for note in notes) == 9
    np.testing.assert_array_equal(run(model, feed)[0], before[0])
    for site in find_sites(model)[0]:
        made, read = write_range(site), read_range(site)
        used = (made > 0) & (read > 0)
        assert np.abs(np.log2(made[used] / read[used])).max() <= 3, site.name
        assert np.ptp(np.log2(made[used])) < 6, site.name


def test_dead_channels_keep_their_scale() -> None:
    model, _ = unbalanced(PAIR)
    array = weight(model, "w1").copy()
    array[1] = 0
    model.graph.initializers["w1"].const_value = _tensor(array, "w1")
    bias = weight(model, "b1")[1]
    equalize_layers(model)
    assert weight(model, "b1")[1] == bias


def test_a_bound_is_the_same_for_all_channels() -> None:
    model, _ = unbalanced(RELU6)
    before = weight(model, "w1")
    notes = equalize_layers(model)
    assert [str(note) for note in notes if note.site == "a"] == [
        "cross-layer: a: Clip has the bound 6, which is the same for all channels"
    ]
    np.testing.assert_array_equal(weight(model, "w1"), before)
    assert [node.op_type for node in model.graph] == ["Conv", "Clip", "Conv"]


def test_a_bound_that_is_reached_stays() -> None:
    model, _ = unbalanced(RELU6)
    assert clip_inputs(model) == ["a"]
    notes = equalize_layers(model, input_maxima={"a": 5.0})
    assert "Clip has the bound 6, and the data reaches 5" in str(notes[-1])
    assert [node.op_type for node in model.graph] == ["Conv", "Clip", "Conv"]


def test_a_bound_out_of_reach_becomes_a_relu_and_the_note_says_so() -> None:
    model = graph(RELU6)
    for name in ("w1", "b1"):  # small: the data stays far below 6
        small = weight(model, name) * np.float32(0.01)
        model.graph.initializers[name].const_value = _tensor(small, name)
    feed = feed_of(model)
    before = run(model, feed)
    notes = equalize_layers(model, input_maxima={"a": 0.5})
    assert [node.op_type for node in model.graph] == ["Conv", "Relu", "Conv"]
    assert "became Relu: its bound was out of reach on the data" in str(notes[-1])
    np.testing.assert_array_equal(run(model, feed)[0], before[0])


def test_a_clip_from_another_bound_is_no_relu() -> None:
    model = graph(RELU6.replace("low = {0.0}", "low = {-1.0}"))
    notes = equalize_layers(model, input_maxima={"a": 0.5})
    assert [note.text for note in notes if note.site == "a"] == ["a Clip from -1.0 is no Relu"]


def test_norms_and_gates_are_left_to_the_other_steps() -> None:
    text = """g (float[N,5,8] x, float[8] wg, float[8] bb, float[8,6] w1, float[8,6] w2,
        float[6,4] w3) => (float[N,5,4] y)
    { n = LayerNormalization(x, wg, bb) u = MatMul(n, w1) t = MatMul(n, w2) s = Sigmoid(t)
      h = Mul(s, u) y = MatMul(h, w3) }"""
    assert not any(note.kept for note in equalize_layers(graph(text)))
