"""SimplifyWhere: nested choices by one condition, and differences that are compared with 0."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graph_check import apply, check, parse

from onnxslim.passes.simplify.simplify_where import SimplifyWhere

PASS = SimplifyWhere()
HEAD = "g (bool[2,3] c, float[2,3] a, float[2,3] b, float[2,3] d) => (float[2,3] y)"


def test_nested_in_the_second_branch():
    check(
        PASS,
        HEAD + " { e = Where (c, a, b) f = Where (c, d, e) y = Relu (f) }",
        HEAD + " { f = Where (c, d, b) y = Relu (f) }",
    )


def test_nested_in_the_first_branch():
    check(
        PASS,
        HEAD + " { e = Where (c, a, b) f = Where (c, e, d) y = Relu (f) }",
        HEAD + " { f = Where (c, a, d) y = Relu (f) }",
    )


def test_another_condition():
    check(
        PASS,
        HEAD.replace("(bool", "(bool[2,3] o, bool")
        + " { e = Where (o, a, b) f = Where (c, d, e) y = Relu (f) }",
    )


def test_the_operand_that_goes_decides_the_shape():
    check(
        PASS,
        "g (bool[3] c, float[2,3] a, float[3] b, float[3] d) => (float[2,3] y)"
        " { e = Where (c, a, b) f = Where (c, d, e) y = Relu (f) }",
    )


def test_unknown_shapes():
    check(
        PASS,
        "g (bool[N] c, float[N] a, float[N] b, float[N] d) => (float[N] y)"
        " { e = Where (c, a, b) f = Where (c, d, e) y = Relu (f) }",
    )


def test_difference_of_constants():
    head = "g (float[3,3] x) => (float[3,3] y) <float[3,1] a = {1, 2, 3}, float[3] b = {1, 5, 3}"
    check(
        PASS,
        head + ", float z = {0}> { d = Sub (a, b) e = Equal (d, z) f = Cast <to = 1> (e)"
        " y = Mul (x, f) }",
        head + "> { e = Equal (a, b) f = Cast <to = 1> (e) y = Mul (x, f) }",
    )


def test_difference_of_integers():
    head = "g (int64[N] a, int64[N] b) => (bool[N] y)"
    check(
        PASS,
        head + " <int64 z = {0}> { d = Sub (a, b) y = Equal (d, z) }",
        head + " { y = Equal (a, b) }",
        feeds={
            "a": np.array([1, 2, -(2**63), 2**63 - 1]),
            "b": np.array([1, 3, 2**63 - 1, 2**63 - 1]),
        },
    )


@pytest.mark.parametrize(
    "text",
    [
        # infinities may come in
        (
            "g (float[N] a, float[N] b) => (bool[N] y) <float z = {0}>"
            " { d = Sub (a, b) y = Equal (d, z) }"
        ),
        # not compared with 0
        (
            "g (int64[N] a, int64[N] b) => (bool[N] y) <int64 z = {1}>"
            " { d = Sub (a, b) y = Equal (d, z) }"
        ),
        # 0 adds an axis
        (
            "g (int64[N] a, int64[N] b) => (bool[1,N] y) <int64[1,1] z = {0}>"
            " { d = Sub (a, b) y = Equal (d, z) }"
        ),
        # the difference is needed
        (
            "g (int64[N] a, int64[N] b) => (bool[N] y, int64[N] d) <int64 z = {0}>"
            " { d = Sub (a, b) y = Equal (d, z) }"
        ),
    ],
)
def test_refused(text):
    check(PASS, text)


def test_constants_that_are_not_finite():
    model = parse(
        "g (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {1, 2}, float z = {0}>"
        " { d = Sub (a, b) e = Equal (d, z) f = Cast <to = 1> (e) y = Mul (x, f) }"
    )
    value = model.graph.initializers["a"]
    value.const_value = ir.tensor(np.array([np.inf, 2], np.float32), name="a")
    assert apply(PASS, model) == 0
