"""Where scales per channel may move, and that moving them anywhere changes no bit."""

from __future__ import annotations

import numpy as np
import pytest
from scaled_graphs import feed_of, graph, run

from onnxslim.quantization.scaling import apply
from onnxslim.quantization.sites import find_sites

# name: (text, opset, names of the sites with the number of channels that are free)
GRAPHS = {
    "conv relu conv": (
        """g (float[N,3,6,6] x, float[4,3,3,3] w1, float[4] b1, float[5,4,1,1] w2)
    => (float[N,5,4,4] y)
        { a = Conv(x, w1, b1) r = Relu(a) y = Conv(r, w2) }""",
        20,
        {"a": 4},
    ),
    "depthwise triple with leaky relu and prelu": (
        """g (float[N,3,6,6] x, float[4,3,1,1] w1, float[4] b1, float[4,1,3,3] w2, float[4] b2,
            float[4,1,1] wp, float[5,4,1,1] w3) => (float[N,5,4,4] y)
        { a = Conv(x, w1, b1) r = LeakyRelu<alpha = 0.1>(a) d = Conv<group = 4>(r, w2, b2)
          p = PRelu(d, wp) y = Conv(p, w3) }""",
        20,
        {"a": 4, "d": 4},
    ),
    "grouped conv with a multiplier": (
        """g (float[N,3,6,6] x, float[4,3,1,1] w1, float[8,2,3,3] w2, float[5,8,1,1] w3)
            => (float[N,5,4,4] y)
        { a = Conv(x, w1) d = Conv<group = 2>(a, w2) y = Conv(d, w3) }""",
        20,
        {"a": 4, "d": 8},
    ),
    "grouped transposed conv": (
        """g (float[N,3,6,6] x, float[4,3,1,1] w1, float[4,3,2,2] w2, float[6] b2,
            float[5,6,1,1] w3)
            => (float[N,5,7,7] y)
        { a = Conv(x, w1) r = Relu(a) d = ConvTranspose<group = 2>(r, w2, b2) y = Conv(d, w3) }""",
        20,
        {"a": 4, "d": 6},
    ),
    "two readers": (
        """g (float[N,3,6,6] x, float[4,3,1,1] w1, float[5,4,1,1] w2, float[5,4,1,1] w3)
            => (float[N,5,6,6] y)
        { a = Conv(x, w1) r = Relu(a) p = Conv(r, w2) q = Conv(a, w3) y = Sub(p, q) }""",
        20,
        {"a": 4},
    ),
    "pools, padding, resize, flatten and gemm": (
        """g (float[N,3,6,6] x, float[4,3,1,1] w1, float[4] b1, float[7,64] w2, float[7] b2,
            float[7,3] w3) => (float[N,3] y)
        <int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}, float[4] scales = {1.0, 1.0, 1.0, 1.0}>
        { a = Conv(x, w1, b1) p = Pad(a, pads)
          m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(p)
          s = Resize<mode = "nearest">(m, , scales) f = Flatten(s) g1 = Gemm<transB = 1>(f, w2, b2)
          r = Relu(g1) y = Gemm(r, w3) }""",
        20,
        {"a": 4, "g1": 7},
    ),
    "mean over the positions": (
        """g (float[N,3,6,6] x, float[4,3,1,1] w1, float[4,5] w2) => (float[N,5] y)
        <int64[2] axes = {2, 3}>
        { a = Conv(x, w1) m = ReduceMean<keepdims = 0>(a, axes) y = MatMul(m, w2) }""",
        20,
        {"a": 4},
    ),
    "concat beside others": (
        """g (float[N,3,6,6] x, float[4,3,1,1] w1, float[2,3,1,1] w2, float[5,9,1,1] w3)
            => (float[N,5,6,6] y)
        { a = Conv(x, w1) b = Conv(x, w2) c = Concat<axis = 1>(x, a, b) y = Conv(c, w3) }""",
        20,
        {"a": 4, "b": 2},
    ),
    "split, one half is an output": (
        """g (float[N,3,6,6] x, float[4,3,1,1] w1, float[5,2,1,1] w2)
            => (float[N,5,6,6] y, float[N,2,6,6] z)
        <int64[2] parts = {2, 2}>
        { a = Conv(x, w1) h, z = Split<axis = 1>(a, parts) y = Conv(h, w2) }""",
        20,
        {"a": 2},
    ),
    "layer norm and two readers": (
        """g (float[N,5,8] x, float[8] wg, float[8] bb, float[8,4] w1, float[8,6] w2)
            => (float[N,5,4] y, float[N,5,6] z)
        { n = LayerNormalization(x, wg, bb) y = MatMul(n, w1) z = MatMul(n, w2) }""",
        20,
        {"n": 8},
    ),
    "layer norm of primitive operators": (
        """g (float[N,5,8] x, float[8] wg, float[8] bb, float[8,4] w1) => (float[N,5,4] y)
        <int64[1] axes = {-1}, float two = {2.0}, float eps = {0.00001}>
        { m = ReduceMean(x, axes) c = Sub(x, m) q = Pow(c, two) v = ReduceMean(q, axes)
          e = Add(v, eps) s = Sqrt(e) d = Div(c, s) g1 = Mul(d, wg) n = Add(g1, bb)
          y = MatMul(n, w1) }""",
        20,
        {"g1": 8},
    ),
    "rms norm of primitive operators": (
        """g (float[N,5,8] x, float[8] wg, float[8,4] w1) => (float[N,5,4] y)
        <int64[1] axes = {-1}, float two = {2.0}, float eps = {0.00001}>
        { q = Pow(x, two) v = ReduceMean(q, axes) e = Add(v, eps) s = Sqrt(e) i = Reciprocal(s)
          d = Mul(x, i) n = Mul(d, wg) y = MatMul(n, w1) }""",
        20,
        {"n": 8},
    ),
    "attention: values and the output projection": (
        """g (float[2,5,8] x, float[8,24] w1, float[24] b1, float[8,6] w2) => (float[2,5,6] y)
        <int64[1] s0 = {0}, int64[1] s1 = {8}, int64[1] s2 = {16}, int64[1] s3 = {24},
         int64[1] ax = {2}, int64[4] heads = {2, 5, 2, 4}, int64[3] flat = {2, 5, 8}>
        { m = MatMul(x, w1) a = Add(b1, m) q = Slice(a, s0, s1, ax) k = Slice(a, s1, s2, ax)
          v = Slice(a, s2, s3, ax) q1 = Reshape(q, heads) k1 = Reshape(k, heads)
          v1 = Reshape(v, heads) q2 = Transpose<perm = [0, 2, 1, 3]>(q1)
          k2 = Transpose<perm = [0, 2, 3, 1]>(k1) v2 = Transpose<perm = [0, 2, 1, 3]>(v1)
          z = MatMul(q2, k2) s = Softmax(z) o = MatMul(s, v2)
          o1 = Transpose<perm = [0, 2, 1, 3]>(o) o2 = Reshape(o1, flat) y = MatMul(o2, w2) }""",
        20,
        {"m": 8},
    ),
    "gated network: the linear branch": (
        """g (float[N,5,8] x, float[8,6] w1, float[8,6] w2, float[6,4] w3) => (float[N,5,4] y)
        { u = MatMul(x, w1) t = MatMul(x, w2) s = Sigmoid(t) h = Mul(s, u) y = MatMul(h, w3) }""",
        20,
        {"u": 6},
    ),
    "class token": (
        """g (float[N,5,8] x, float[8,6] w1, float[6,4] w2) => (float[N,4] y)
        <int64 first = {0}>
        { u = MatMul(x, w1) t = Gather<axis = 1>(u, first) r = Relu(t) y = MatMul(r, w2) }""",
        20,
        {"u": 6},
    ),
    "a shape is read": (
        """g (float[N,3,6,6] x, float[4,3,1,1] w1, float[5,4,1,1] w2)
            => (float[N,5,6,6] y, int64[4] z)
        { a = Conv(x, w1) z = Shape(a) y = Conv(a, w2) }""",
        20,
        {"a": 4},
    ),
    "batch normalization": (
        """g (float[N,3,6,6] x, float[3] wg, float[3] bb, float[5,3,1,1] w2) => (float[N,5,6,6] y)
        <float[3] mean = {0.5, 0.25, 1.0}, float[3] var = {1.0, 2.0, 3.0}>
        { n = BatchNormalization(x, wg, bb, mean, var) r = Relu(n) y = Conv(r, w2) }""",
        20,
        {"n": 3},
    ),
    "leaky relu as a maximum": (
        """g (float[N,3,6,6] x, float[4,3,1,1] w1, float[5,4,1,1] w2) => (float[N,5,6,6] y)
        <float slope = {0.125}, float zero = {0.0}>
        { a = Conv(x, w1) b = Mul(a, slope) m = Max(a, b) r = Max(zero, m) y = Conv(r, w2) }""",
        20,
        {"a": 4},
    ),
    "an empty part": (
        """g (float[N,3,6,6] x, float[4,3,1,1] w1, float[5,4,1,1] w2) => (float[N,5,6,6] y)
        <int64[2] parts = {4, 0}>
        { a = Conv(x, w1) b, c = Split<axis = 1>(a, parts) d = Concat<axis = 1>(c, b, c)
          y = Conv(d, w2) }""",
        20,
        {"a": 4},
    ),
    "a scalar is added": (
        """g (float[N,3,6,6] x, float[4,3,1,1] w1, float[5,4,1,1] w2) => (float[N,5,6,6] y)
        <float half = {0.5}>
        { a = Conv(x, w1) c = Add(a, half) r = Relu(c) y = Conv(r, w2) }""",
        20,
        {"a": 4},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GRAPHS)
def test_sites_are_found(case: str) -> None:
    text, opset, wanted = GRAPHS[case]
    sites, _ = find_sites(graph(text, opset=opset))
    assert {site.name: site.size for site in sites} == wanted


@pytest.mark.parametrize("case", GRAPHS)
def test_powers_of_two_change_no_bit(case: str) -> None:
    text, opset, _ = GRAPHS[case]
    model = graph(text, opset=opset)
    feed = feed_of(model)
    before = run(model, feed)
    rng = np.random.default_rng(2)
    for site in find_sites(model)[0]:
        old = [port.value.const_value.numpy() for port in site.writers]
        assert apply(site, np.exp2(rng.integers(-6, 7, site.channels)))
        new = [port.value.const_value.numpy() for port in site.writers]
        assert not all(np.array_equal(a, b) for a, b in zip(old, new, strict=True))
    for one, other in zip(before, run(model, feed), strict=True):
        np.testing.assert_array_equal(one, other)


REFUSED = {
    "an output between": (
        """g (float[N,3,6,6] x, float[4,3,1,1] w1, float[5,4,1,1] w2)
            => (float[N,5,6,6] y, float[N,4,6,6] a)
        { a = Conv(x, w1) r = Relu(a) y = Conv(r, w2) }""",
        "'a' is an output of the model",
    ),
    "shared weights": (
        """g (float[N,4,6,6] x, float[4,4,1,1] w1, float[5,4,1,1] w2) => (float[N,5,6,6] y)
        { a = Conv(x, w1) r = Relu(a) b = Conv(r, w1) q = Sigmoid(b) y = Conv(q, w2) }""",
        "'w1' is shared",
    ),
    "a branch that does not take it": (
        """g (float[N,3,6,6] x, float[4,3,1,1] w1, float[5,4,1,1] w2)
            => (float[N,5,6,6] y, float[N,4,6,6] z)
        { a = Conv(x, w1) z = Sigmoid(a) y = Conv(a, w2) }""",
        "Sigmoid does not pass a scale on",
    ),
    "a residual sum": (
        """g (float[N,4,6,6] x, float[4,4,1,1] w1, float[5,4,1,1] w2) => (float[N,5,6,6] y)
        { a = Conv(x, w1) s = Add(x, a) y = Conv(s, w2) }""",
        "an Add of something that keeps its scale",
    ),
    "a subgraph reads it": (
        """g (float[N,3,6,6] x, bool c, float[4,3,1,1] w1, float[5,4,1,1] w2)
            => (float[N,5,6,6] y, float[N,4,6,6] z)
        { a = Conv(x, w1)
          z = If(c) <then_branch = t () => (float[N,4,6,6] p) { p = Neg(a) },
                     else_branch = e () => (float[N,4,6,6] q) { q = Identity(a) }>
          y = Conv(a, w2) }""",
        "a subgraph reads 'a'",
    ),
    "a maximum with another bound": (
        """g (float[N,3,6,6] x, float[4,3,1,1] w1, float[5,4,1,1] w2) => (float[N,5,6,6] y)
        <float one = {1.0}>
        { a = Conv(x, w1) m = Min(a, one) y = Conv(m, w2) }""",
        "a Min with something that keeps its scale",
    ),
    "a square": (
        """g (float[N,3,6,6] x, float[4,3,1,1] w1, float[5,4,1,1] w2) => (float[N,5,6,6] y)
        { a = Conv(x, w1) m = Mul(a, a) y = Conv(m, w2) }""",
        "a Mul by itself",
    ),
    "a softmax over the channels": (
        """g (float[N,8] x, float[8,4] w1, float[4,5] w2) => (float[N,5] y)
        { a = MatMul(x, w1) s = Softmax(a) y = MatMul(s, w2) }""",
        "Softmax does not pass a scale on",
    ),
    "nobody reads it": (
        """g (float[N,3,6,6] x, float[4,3,1,1] w1) => (float[N,1,6,6] y)
        <int64[1] axes = {1}>
        { a = Conv(x, w1) y = ReduceSum(a, axes) }""",
        "a ReduceSum mixes it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_why(case: str) -> None:
    text, reason = REFUSED[case]
    sites, refused = find_sites(graph(text))
    reasons = {one.name: one.reason for one in refused}
    assert "a" not in {site.name for site in sites}
    assert reasons["a"] == reason


def test_numbers_that_would_leave_the_normal_range_stay() -> None:
    text, opset, _ = GRAPHS["conv relu conv"]
    model = graph(text, opset=opset)
    (site,), _ = find_sites(model)
    before = [
        site.writers[0].value.const_value.numpy(),
        site.reads[0].port.value.const_value.numpy(),
    ]
    assert not apply(site, np.full(site.channels, 2.0**140))
    after = [
        site.writers[0].value.const_value.numpy(),
        site.reads[0].port.value.const_value.numpy(),
    ]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
