"""ShareTransposedWeights: one of two matrices that are each other's transpose."""

from __future__ import annotations

import numpy as np
import pytest
from graph_check import make_feeds, run
from stored_models import model_of, refusals, stored, weight_bytes

from onnxslim.passes.compress.share_transposed_weights import ShareTransposedWeights

PASS = ShareTransposedWeights()
TIED = """g (int64[N] i) => (float[N,40] y) {
    e = Gather (w, i)
    y = MatMul (e, v)
}"""
CONTENT = np.random.default_rng(0).normal(size=(40, 32)).astype(np.float32)


def tied(first: np.ndarray = CONTENT, second: np.ndarray = CONTENT.T):
    return model_of(TIED, {"w": first, "v": np.ascontiguousarray(second)})


def test_tied_embeddings():
    before, after = tied(), tied()
    stored(PASS, after, 1)
    assert list(after.graph.initializers) == ["w"]
    assert [node.op_type for node in after.graph] == ["Transpose", "Gather", "MatMul"]
    assert weight_bytes(after) * 2 == weight_bytes(before)
    feeds = make_feeds(before)
    np.testing.assert_array_equal(run(after, feeds)[0], run(before, feeds)[0])


def test_square_and_symmetric_matrices():
    square = np.random.default_rng(1).normal(size=(32, 32)).astype(np.float32)
    text = "g (float[N,32] x) => (float[N,32] y) { a = MatMul (x, w) y = MatMul (a, v) }"
    before = model_of(text, {"w": square, "v": square.T.copy()})
    after = model_of(text, {"w": square, "v": square.T.copy()})
    stored(PASS, after, 1)
    feeds = make_feeds(before)
    np.testing.assert_array_equal(run(after, feeds)[0], run(before, feeds)[0])


@pytest.mark.parametrize("place", [(0, 0), (39, 31), (17, 5)])
def test_near_equal_is_not_equal(place):
    other = CONTENT.copy()
    other[place] = np.nextafter(other[place], np.float32(9))
    assert refusals(PASS, tied(second=other.T)) == {}


def test_bits_decide():
    first, second = CONTENT.copy(), CONTENT.copy()
    first[3, 3], second[3, 3] = 0.0, -0.0
    assert refusals(PASS, tied(first, second.T)) == {}
    first[3, 3] = second[3, 3] = np.nan
    stored(PASS, tied(first, second.T), 1)


def test_same_bytes_of_another_type_stay():
    text = """g (float[N,32] x, int32[N,40] k) => (float[N,40] y, int32[N,40] z) {
        y = MatMul (x, v)
        m = Gather (w, i)
        z = Add (k, m)
    }"""
    first = CONTENT.view(np.int32)
    model = model_of(text, {"w": first, "v": CONTENT.T.copy(), "i": np.zeros((1, 1), np.int64)})
    assert refusals(PASS, model) == {}


def test_inputs_outputs_and_small_ones_stay():
    content = {"w": CONTENT, "v": CONTENT.T.copy()}
    output = TIED.replace("float[N,40] y)", "float[N,40] y, float[32,40] v)")
    model = model_of(output, content)
    assert refusals(PASS, model) == {}
    listed = TIED.replace("[N] i)", "[N] i, float[32,40] v)")
    assert refusals(PASS, model_of(listed, content)) == {}
    small = TIED.replace("40", "31")
    content = {"w": CONTENT[:31], "v": CONTENT[:31].T.copy()}
    assert refusals(PASS, model_of(small, content)) == {}


def test_what_is_read_as_an_initializer_stays():
    text = """g (int64[N] i, float s, int8 z) => (float[N,32] y, int8[32,40] q) {
        y = Gather (w, i)
        q = QuantizeLinear (v, s, z)
    }"""
    model = model_of(text, {"w": CONTENT, "v": CONTENT.T.copy()})
    assert refusals(PASS, model) == {"v": "a reader needs an initializer"}
