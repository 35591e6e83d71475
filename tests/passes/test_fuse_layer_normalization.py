"""FuseLayerNormalization: every written form, and everything that must stay as it is."""

from __future__ import annotations

import pytest
from graph_check import apply, check, parse

from onnxslim.ir import shapes
from onnxslim.passes.transformers.fuse_layer_normalization import FuseLayerNormalization
from onnxslim.pipeline import Context

PASS = FuseLayerNormalization()
HEAD = "g (float[N,3,4] x) => (float[N,3,4] y) "
ENTRIES = (
    "float[4] g = {1, 2, 3, 4}",
    "float[4] b = {1, -1, 0, 2}",
    "float two = {2}",
    "float e = {1e-5}",
    "float one = {1}",
    "float h = {0.5}",
    "float i = {-0.5}",
)
AFTER = "g (float[N,3,4] x) => (float[N,3,4] y) <float[4] g = {1, 2, 3, 4}"
FUSED = AFTER + (
    ", float[4] b = {1, -1, 0, 2}> { y = LayerNormalization <axis = -1, epsilon = 1e-5> (x, g, b) }"
)
MEAN = "m = ReduceMean <axes = [-1]> (x) d = Sub (x, m) "
VARIANCE = "q = Pow (d, two) v = ReduceMean <axes = [-1]> (q) t = Add (v, e) "
ROOT = "s = Sqrt (t) n = Div (d, s) "
AFFINE = "w = Mul (n, g) y = Add (w, b) "


def body(*parts: str) -> str:
    """A graph without the constants that it does not read."""
    text = " ".join(parts)
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    kept = [entry for entry in ENTRIES if entry.split()[1] in words]
    return HEAD + f"<{', '.join(kept)}> {{ {text} }}"


@pytest.mark.parametrize(
    "text",
    [
        body(MEAN, VARIANCE, ROOT, AFFINE),
        body(MEAN, "q = Mul (d, d) v = ReduceMean <axes = [2]> (q) t = Add (e, v) ", ROOT, AFFINE),
        body(MEAN, VARIANCE, "s = Sqrt (t) r = Reciprocal (s) n = Mul (r, d) ", AFFINE),
        body(MEAN, VARIANCE, "s = Sqrt (t) r = Div (one, s) n = Mul (d, r) ", AFFINE),
        body(MEAN, VARIANCE, "s = Pow (t, h) n = Div (d, s) ", "w = Mul (g, n) y = Add (b, w) "),
        body(MEAN, VARIANCE, "r = Pow (t, i) n = Mul (d, r) ", AFFINE),
    ],
)
def test_forms(text):
    check(PASS, text, FUSED, changes=1)


def test_without_a_bias():
    check(
        PASS,
        body(MEAN, VARIANCE, ROOT, "y = Mul (n, g) "),
        AFTER + "> { y = LayerNormalization <axis = -1, epsilon = 1e-5> (x, g) }",
    )


def test_a_sum_that_is_no_bias_stays():
    check(
        PASS,
        body(MEAN, VARIANCE, ROOT, "w = Mul (n, g) y = Add (w, x) "),
        AFTER + "> { w = LayerNormalization <axis = -1, epsilon = 1e-5> (x, g) y = Add (w, x) }",
    )


def test_two_axes_at_opset_18():
    head = '<ir_version: 10, opset_import: ["" : 18]> g (float[N,2,2] x) => (float[N,2,2] y) '
    numbers = "<float[2,2] g = {1, 2, 3, 4}, float[2,2] b = {1, 2, 3, 4}"
    check(
        PASS,
        head + numbers + ", float two = {2}, float e = {1e-5}, int64[2] a = {1, -1}> {"
        " m = ReduceMean (x, a) d = Sub (x, m) q = Pow (d, two) v = ReduceMean (q, a)"
        " t = Add (v, e) " + ROOT + AFFINE + "}",
        head + numbers + "> { y = LayerNormalization <axis = -2, epsilon = 1e-5> (x, g, b) }",
    )


HALF = "g (float16[2,4] x, float16[4] g, float16[4] b) => (float16[2,4] y) "


def test_statistics_in_float():
    check(
        PASS,
        HALF + "<float two = {2}, float e = {1e-5}> { c = Cast <to = 1> (x)"
        " m = ReduceMean <axes = [-1]> (c) d = Sub (c, m) "
        + VARIANCE
        + "s = Sqrt (t) f = Div (d, s) n = Cast <to = 10> (f) "
        + AFFINE
        + "}",
        HALF + "{ y = LayerNormalization <axis = -1, epsilon = 1e-5> (x, g, b) }",
    )


def test_in_a_branch():
    head = "g (bool k, float[2,4] x, float[4] g, float[4] b) => (float[2,4] y) "
    other = "else_branch = o () => (float[2,4] z) { z = Relu (x) }>"
    inner = MEAN + VARIANCE + ROOT + AFFINE.replace("y =", "u =")
    model = parse(
        head + "<float two = {2}, float e = {1e-5}> { y = If (k) <then_branch ="
        f" i () => (float[2,4] u) {{ {inner} }}, {other} }}"
    )
    assert apply(PASS, model) == 1
    branch = model.graph.node(0).attributes["then_branch"].as_graph()
    assert [node.op_type for node in branch] == ["LayerNormalization"]


@pytest.mark.parametrize(
    "text",
    [
        # the deviation is read elsewhere
        body(MEAN, VARIANCE, ROOT, AFFINE).replace("y)", "y, float[N,3,1] s)", 1),
        # another exponent
        body(MEAN, VARIANCE, ROOT, AFFINE).replace("two = {2}", "two = {4}"),
        # a negative epsilon
        body(MEAN, VARIANCE, ROOT, AFFINE).replace("{1e-5}", "{-1e-5}"),
        # other axes for the mean than for the variance
        body(MEAN.replace("[-1]", "[1]"), VARIANCE, ROOT, AFFINE),
        # not the last axis
        body(MEAN.replace("[-1]", "[1]"), VARIANCE.replace("[-1]", "[1]"), ROOT, AFFINE),
        # a scale for every channel
        body(MEAN, VARIANCE, ROOT, AFFINE)
        .replace("float[4] g = {1, 2, 3, 4}", "float[3,1] g = {1, 2, 3}")
        .replace("float[4] b = {1, -1, 0, 2}", "float[3,1] b = {1, 2, 3}"),
        # the mean of something else
        body(MEAN.replace("Mean <axes = [-1]> (x)", "Mean <axes = [-1]> (z)"), VARIANCE, ROOT)
        .replace("{ ", "{ z = Relu (x) ", 1)
        .replace("n = ", "y = "),
        # double
        body(MEAN, VARIANCE, ROOT, AFFINE).replace("float", "double"),
        # the opset has no such operator
        '<ir_version: 8, opset_import: ["" : 16]> ' + body(MEAN, VARIANCE, ROOT, AFFINE),
        # the result is quantized
        body(MEAN, VARIANCE, ROOT, "w = Mul (n, g) u = Add (w, b) ")
        .replace("=> (float[N,3,4] y)", "=> (uint8[N,3,4] y, float k, uint8 z)")
        .replace("u = Add (w, b)  }", "u = Add (w, b) y, k, z = DynamicQuantizeLinear (u) }"),
    ],
)
def test_refused(text):
    check(PASS, text)


def test_a_reason_is_given():
    model = parse(body(MEAN, VARIANCE, ROOT, AFFINE).replace("float", "double"))
    context = Context(model)
    shapes.infer(model)
    PASS(model, context)
    assert [entry.reason for entry in context.refusals.values()] == [
        "kept because input, scale and bias are not all float or all float16"
    ]
