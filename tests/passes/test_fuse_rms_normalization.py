"""FuseRmsNormalization: every written form, and everything that must stay as it is."""

from __future__ import annotations

import pytest
from graph_check import check

from onnxslim.passes.transformers.fuse_rms_normalization import FuseRmsNormalization

PASS = FuseRmsNormalization()
OPSET = '<ir_version: 11, opset_import: ["" : 23]> '
HEAD = OPSET + "g (float[N,4] x, float[4] g) => (float[N,4] y) "
CONSTANTS = "<float e = {1e-6}, float two = {2}, float one = {1}, int64[1] a = {-1}"
FUSED = HEAD + "{ y = RMSNormalization <axis = -1, epsilon = 1e-6> (x, g) }"
SUM = "v = ReduceMean (q, a) t = Add (v, e) s = Sqrt (t) "


def body(text: str) -> str:
    entries = ("float e = {1e-6}", "float two = {2}", "float one = {1}", "int64[1] a = {-1}")
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    kept = ", ".join(entry for entry in entries if entry.split()[1] in words)
    return HEAD + f"<{kept}> {{ {text} }}"


@pytest.mark.parametrize(
    "text",
    [
        "q = Pow (x, two) " + SUM + "n = Div (x, s) y = Mul (n, g)",
        "q = Mul (x, x) " + SUM + "r = Reciprocal (s) n = Mul (x, r) y = Mul (g, n)",
        "q = Pow (x, two) " + SUM + "r = Div (one, s) n = Mul (r, x) y = Mul (n, g)",
    ],
)
def test_forms(text):
    check(PASS, body(text), FUSED, changes=1)


HALF = OPSET + "g (float16[2,4] x, float16[4] g) => (float16[2,4] y"


def test_statistics_in_float():
    check(
        PASS,
        HALF
        + ") <float e = {1e-6}, int64[1] a = {-1}> { c = Cast <to = 1> (x) q = Mul (c, c) "
        + SUM
        + "f = Div (c, s) n = Cast <to = 10> (f) y = Mul (n, g) }",
        HALF + ") { y = RMSNormalization <axis = -1, epsilon = 1e-6> (x, g) }",
    )


def test_the_wide_input_stays_for_others():
    check(
        PASS,
        HALF + ", float[2,4] z) <float e = {1e-6}, int64[1] a = {-1}> {"
        " c = Cast <to = 1> (x) q = Mul (c, c) "
        + SUM
        + "f = Div (c, s) n = Cast <to = 10> (f) y = Mul (n, g) z = Relu (c) }",
        HALF + ", float[2,4] z) { c = Cast <to = 1> (x)"
        " y = RMSNormalization <axis = -1, epsilon = 1e-6> (x, g) z = Relu (c) }",
    )


PLAIN = body("q = Mul (x, x) " + SUM + "n = Div (x, s) y = Mul (n, g)")


@pytest.mark.parametrize(
    "text",
    [
        PLAIN.replace(": 23", ": 22"),
        PLAIN.replace("float", "double"),
        PLAIN.replace("{-1}", "{0}"),
        PLAIN.replace("float[4] g", "float[1] g"),
        PLAIN.replace("float[4] g", "float[M] g").replace("[N,4]", "[4,4]"),
        PLAIN.replace("y)", "y, float[N,1] s)", 1),
        PLAIN.replace("Mul (x, x)", "Mul (x, g)"),
        PLAIN.replace("ReduceMean (q", "ReduceSum (q"),
        PLAIN.replace("ReduceMean (q, a)", "ReduceMean <keepdims = 0> (q, a)").replace(
            "[N,4]", "[4,4]"
        ),
    ],
)
def test_refused(text):
    feeds = None
    if "float[M]" in text:
        import numpy as np

        rng = np.random.default_rng(0)
        feeds = {"x": rng.random((4, 4), np.float32), "g": rng.random(4, np.float32)}
    check(PASS, text, feeds=feeds)
