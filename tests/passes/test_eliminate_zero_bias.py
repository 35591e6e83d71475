"""EliminateZeroBias: Adds of zeros behind sums of products go, and only those."""

from __future__ import annotations

import pytest
from graph_check import check

from onnxslim.passes.simplify.eliminate_zero_bias import EliminateZeroBias

PASS = EliminateZeroBias()
HEAD = "g (float[N,3] x) => (float[N,2] y)"
WEIGHT = "float[3,2] w = {1, 2, 3, 4, 5, 6}"


@pytest.mark.parametrize("operands", ["a, b", "b, a"])
def test_add_behind_matmul(operands):
    check(
        PASS,
        f"{HEAD} <{WEIGHT}, float[2] b = {{0, -0}}> {{ a = MatMul (x, w) y = Add ({operands}) }}",
        f"{HEAD} <{WEIGHT}, float[2] b = {{0, -0}}> {{ y = MatMul (x, w) }}",
    )


def test_moves_between_do_not_matter():
    body = """
        <float[3,2] w = {1, 2, 3, 4, 5, 6}, float[1] b = {0}> {
            a = MatMul (x, w)
            c = Transpose <perm = [1, 0]> (a)
            %s
        }"""
    check(
        PASS,
        f"g (float[N,3] x) => (float[2,N] y) {body % 'd = Add (c, b) y = Relu (d)'}",
        f"g (float[N,3] x) => (float[2,N] y) {body % 'y = Relu (c)'}",
    )


@pytest.mark.parametrize(
    ("first", "bias"),
    [
        ("a = MatMul (x, w)", "float[2] b = {0, 1e-30}"),  # not all zero
        ("a = MatMul (x, w)", "float[1,1,2] b = {0, 0}"),  # one axis more
    ],
)
def test_refused_bias(first, bias):
    check(
        PASS,
        f"g (float[N,3] x) => (float[M,N,2] y) <{WEIGHT}, {bias}> {{ {first} y = Add (a, b) }}",
    )


def test_refused_behind_what_gives_a_certain_zero():
    check(
        PASS,
        "g (float[N,2] x) => (float[N,2] y) <float[2] b = {0, 0}> { a = Neg (x) y = Add (a, b) }",
    )


def test_refused_for_an_overridable_bias():
    check(
        PASS,
        f"g (float[N,3] x, float[2] b = {{0, 0}}) => (float[N,2] y) <{WEIGHT}>"
        " { a = MatMul (x, w) y = Add (a, b) }",
    )


def test_fires_in_a_subgraph():
    body = """g (bool c, float[N,3] x) => (float[N,2] y) <float[3,2] w = {1, 2, 3, 4, 5, 6},
        float[2] b = {0, 0}> {
            y = If (c) <
                then_branch = t () => (float[N,2] p) { a = MatMul (x, w) %s },
                else_branch = e () => (float[N,2] q) { q = MatMul (x, w) }
            >
        }"""
    check(PASS, body % "d = Add (a, b) p = Relu (d)", body % "p = Relu (a)")
