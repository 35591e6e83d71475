"""FuseGelu: both definitions in every order, and everything that must stay as it is."""

from __future__ import annotations

import pytest
from graph_check import check

from onnxslim.passes.transformers.fuse_gelu import FuseGelu

PASS = FuseGelu()
OPSET = '<ir_version: 10, opset_import: ["" : 20]> '
HEAD = OPSET + "g (float[N] x) => (float[N] y) "
ENTRIES = (
    "float r = {1.4142135}",
    "float i = {0.70710677}",
    "float one = {1}",
    "float h = {0.5}",
    "float two = {2}",
    "float three = {3}",
    "float k = {0.044715}",
    "float p = {0.7978846}",
)


def body(text: str) -> str:
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    kept = ", ".join(entry for entry in ENTRIES if entry.split()[1] in words)
    return HEAD + f"<{kept}> {{ {text} }}"


DIVIDED = "a = Div (x, r) e = Erf (a) s = Add (e, one) "
TIMES = "a = Mul (i, x) e = Erf (a) s = Add (one, e) "


@pytest.mark.parametrize(
    "text",
    [
        DIVIDED + "q = Mul (x, s) y = Mul (q, h)",
        TIMES + "q = Mul (x, h) y = Mul (q, s)",
        TIMES + "q = Mul (s, h) y = Mul (x, q)",
        DIVIDED + "q = Mul (x, s) y = Div (q, two)",
    ],
)
def test_erf(text):
    check(PASS, body(text), HEAD + "{ y = Gelu (x) }", changes=1)


CUBE = "c = Pow (x, three) d = Mul (c, k) f = Add (x, d) u = Mul (f, p) "
SQUARE = "c = Mul (x, x) d = Mul (c, k) f = Add (d, one) v = Mul (x, f) u = Mul (v, p) "
SPLIT = "b = Mul (p, x) c = Mul (x, x) d = Mul (k, c) f = Add (one, d) u = Mul (b, f) "
CURVE = "t = Tanh (u) s = Add (t, one) "


@pytest.mark.parametrize("inner", [CUBE, SQUARE, SPLIT])
@pytest.mark.parametrize(
    "outer", ["q = Mul (x, h) y = Mul (q, s)", "q = Mul (x, s) y = Mul (h, q)"]
)
def test_tanh(inner, outer):
    after = HEAD + '{ y = Gelu <approximate = "tanh"> (x) }'
    check(PASS, body(inner + CURVE + outer), after, changes=1)


def test_a_gate_after_it_stays():
    head = OPSET + "g (float[N] x, float[N] z) => (float[N] y) "
    constants = "<float r = {1.4142135}, float one = {1}, float h = {0.5}> { "
    check(
        PASS,
        head + constants + DIVIDED + "q = Mul (x, h) w = Mul (q, s) y = Mul (w, z) }",
        head + "{ w = Gelu (x) y = Mul (w, z) }",
    )


def test_of_a_product():
    head = OPSET + "g (float[N] a0, float[N] b0) => (float[N] y) "
    constants = "<float r = {1.4142135}, float one = {1}, float h = {0.5}> { x = Mul (a0, b0) "
    check(
        PASS,
        head + constants + DIVIDED + "q = Mul (x, s) y = Mul (q, h) }",
        head + "{ x = Mul (a0, b0) y = Gelu (x) }",
    )


def test_float16():
    head = OPSET + "g (float16[N] x) => (float16[N] y) "
    constants = "<float16 r = {15784}, float16 one = {15360}, float16 h = {14336}> { "  # bits
    check(
        PASS,
        head + constants + DIVIDED + "q = Mul (x, s) y = Mul (q, h) }",
        head + "{ y = Gelu (x) }",
    )


PLAIN = body(DIVIDED + "q = Mul (x, s) y = Mul (q, h)")


@pytest.mark.parametrize(
    "text",
    [
        PLAIN.replace(": 20", ": 19"),
        PLAIN.replace("1.4142135", "1.414"),
        PLAIN.replace("h = {0.5}", "h = {0.25}"),
        PLAIN.replace("one = {1}", "one = {2}"),
        PLAIN.replace("(float[N] y)", "(float[N] y, float[N] e)"),
        PLAIN.replace("float h = {0.5}", "float[1,1] h = {0.5}").replace(
            "(float[N] y)", "(float[1,N] y)"
        ),
        body(CUBE + CURVE + "q = Mul (x, h) y = Mul (q, s)").replace("0.044715", "0.04"),
        body(CUBE + CURVE + "q = Mul (x, h) y = Mul (q, s)")
        .replace("(x, three)", "(x, two)")
        .replace("three = {3}", "two = {2}"),
        PLAIN.replace("(float[N] x)", "(float[N] x, float[N] z)").replace("Div (x", "Div (z"),
        PLAIN.replace("(float[N] y)", "(uint8[N] o, float w, uint8 z)").replace(
            "y = Mul (q, h)", "y = Mul (q, h) o, w, z = DynamicQuantizeLinear (y)"
        ),
    ],
)
def test_refused(text):
    check(PASS, text)
