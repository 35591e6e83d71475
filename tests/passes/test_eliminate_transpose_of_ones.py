"""EliminateTransposeOfOnes: only axes of size 1 move, and a Reshape reads the result."""

from __future__ import annotations

import pytest
from graph_check import check

from onnxslim.passes.simplify.eliminate_transpose_of_ones import EliminateTransposeOfOnes

PASS = EliminateTransposeOfOnes()
HEAD = "g (float[N,1,7,1,5] x) => (float[M,5] y) <int64[2] s = {-1, 5}>"


@pytest.mark.parametrize("perm", ["0, 2, 1, 3, 4", "1, 3, 0, 2, 4", "0, 1, 2, 4, 3"])
def test_ones_move(perm):
    check(
        PASS,
        HEAD + f" {{ a = Transpose <perm = [{perm}]> (x) y = Reshape (a, s) }}",
        HEAD + " { y = Reshape (x, s) }",
    )


def test_larger_axes_move():
    check(PASS, HEAD + " { a = Transpose <perm = [0, 1, 4, 3, 2]> (x) y = Reshape (a, s) }")


def test_sizes_that_are_not_known():
    check(
        PASS,
        "g (float[N,K,7] x) => (float[M,P] y) <int64[2] s = {-1, 7}>"
        " { a = Transpose <perm = [1, 0, 2]> (x) y = Reshape (a, s) }",
    )


def test_a_size_is_copied():
    check(
        PASS,
        "g (float[N,1,7] x) => (float[1,M] y) <int64[2] s = {0, -1}>"
        " { a = Transpose <perm = [1, 0, 2]> (x) y = Reshape (a, s) }",
    )


def test_another_reader():
    check(
        PASS,
        "g (float[N,1,7] x) => (float[M,7] y, float[1,N,7] z) <int64[2] s = {-1, 7}>"
        " { a = Transpose <perm = [1, 0, 2]> (x) y = Reshape (a, s) z = Relu (a) }",
    )
