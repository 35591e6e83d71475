"""FuseHardSwish: both curves in every order and opset, and what must stay as it is."""

from __future__ import annotations

import pytest
from graph_check import check

from onnxslim.passes.transformers.fuse_hard_swish import FuseHardSwish

PASS = FuseHardSwish()
HEAD = "g (float[N] x) => (float[N] y) "
NUMBERS = "<float t = {3}, float z = {0}, float s = {6}> "
OLD = '<ir_version: 8, opset_import: ["" : 12]> '
CLIP = "a = Add (x, t) c = Clip (a, z, s) "
SWISH = HEAD + NUMBERS + "{ " + CLIP + "m = Mul (x, c) y = Div (m, s) }"
SIGMOID = HEAD + NUMBERS + "{ " + CLIP + "y = Div (c, s) }"
HARD = "HardSigmoid <alpha = 0.16666667, beta = 0.5> (x)"


@pytest.mark.parametrize(
    "text",
    [
        SWISH,
        HEAD + NUMBERS + "{ " + CLIP + "m = Div (c, s) y = Mul (x, m) }",
        HEAD + NUMBERS + "{ " + CLIP.replace("x, t", "t, x") + "m = Div (x, s) y = Mul (m, c) }",
        HEAD + "{ h = " + HARD + " y = Mul (h, x) }",
    ],
)
def test_swish(text):
    check(PASS, text, HEAD + "{ y = HardSwish (x) }")


def test_swish_before_opset_14():
    check(PASS, OLD + SWISH, OLD + HEAD + "{ h = " + HARD + " y = Mul (x, h) }", changes=1)


@pytest.mark.parametrize("opset", ["", OLD])
def test_sigmoid(opset):
    check(PASS, opset + SIGMOID, opset + HEAD + "{ y = " + HARD + " }", changes=1)


def test_sigmoid_with_other_numbers():
    numbers = "<float t = {1}, float z = {0}, float s = {4}> "
    check(
        PASS,
        SIGMOID.replace(NUMBERS, numbers),
        HEAD + "{ y = HardSigmoid <alpha = 0.25, beta = 0.25> (x) }",
    )


def test_gate_of_another_value():
    head = "g (float[N] x, float[N] w) => (float[N] y) "
    check(
        PASS,
        head + NUMBERS + "{ " + CLIP + "m = Div (c, s) u = Relu (m) y = Mul (w, u) }",
        head + "{ m = " + HARD + " u = Relu (m) y = Mul (w, u) }",
    )


def test_bounds_as_attributes():
    head = '<ir_version: 3, opset_import: ["" : 10]> ' + HEAD
    check(
        PASS,
        head + "{ t = Constant <value = float {3}> () s = Constant <value = float {6}> ()"
        " a = Add (x, t) c = Clip <min = 0.0, max = 6.0> (a) y = Div (c, s) }",
        head + "{ y = " + HARD + " }",
    )


@pytest.mark.parametrize(
    "text",
    [
        SIGMOID.replace("z = {0}", "z = {-1}"),
        SIGMOID.replace("(float[N] y)", "(float[N] y, float[N] c)"),
        SIGMOID.replace("Div (c, s)", "Div (c, t)"),
        SIGMOID.replace("Div (c, s)", "Div (s, c)").replace("z = {0}", "z = {1}"),
        SWISH.replace("t = {3}", "t = {2}"),
        SWISH.replace("(float[N] x)", "(float[N] x, float[N] w)").replace("Mul (x", "Mul (w"),
        SIGMOID.replace("float[N]", "double[N]").replace("float ", "double "),
        SIGMOID.replace("float[N] x", "float[N] x, float z").replace(", float z = {0}", ""),
        OLD + HEAD + "{ h = " + HARD + " y = Mul (h, x) }",
        HEAD + "{ h = HardSigmoid (x) y = Mul (h, x) }",
        SIGMOID.replace("(float[N] y)", "(uint8[N] o, float u, uint8 w)").replace(
            "y = Div (c, s)", "y = Div (c, s) o, u, w = DynamicQuantizeLinear (y)"
        ),
    ],
)
def test_refused(text):
    check(PASS, text)
