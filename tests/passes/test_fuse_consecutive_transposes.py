"""FuseConsecutiveTransposes: the composed permutation, or none."""

from __future__ import annotations

import itertools

import pytest
from graph_check import check

from onnxslim.passes.simplify.fuse_consecutive_transposes import FuseConsecutiveTransposes

PASS = FuseConsecutiveTransposes()
PAIRS = list(itertools.product(itertools.permutations(range(3)), repeat=2))


@pytest.mark.parametrize("orders", PAIRS)
def test_all_pairs_of_three_axes(orders):
    first, second = orders
    composed = [first[axis] for axis in second]
    check(
        PASS,
        f"""g (float[A,4,5] x) => (float[B,C,D] y) {{
            h = Exp (x)
            a = Transpose <perm = {list(first)}> (h)
            b = Transpose <perm = {list(second)}> (a)
            y = Relu (b)
        }}""",
        f"""g (float[A,4,5] x) => (float[B,C,D] y) {{
            h = Exp (x)
            b = Transpose <perm = {composed}> (h)
            y = Relu (b)
        }}"""
        if composed != [0, 1, 2]
        else "g (float[A,4,5] x) => (float[B,C,D] y) { h = Exp (x) y = Relu (h) }",
    )


def test_chain_of_three():
    check(
        PASS,
        """g (float[2,3,4] x) => (float[B,C,D] y) {
            a = Transpose <perm = [1, 2, 0]> (x)
            b = Transpose <perm = [1, 2, 0]> (a)
            c = Transpose <perm = [1, 2, 0]> (b)
            y = Relu (c)
        }""",
        "g (float[2,3,4] x) => (float[B,C,D] y) { y = Relu (x) }",
        changes=2,
    )


def test_left_out_permutations():
    check(
        PASS,
        """g (float[2,3,4] x) => (float[B,C,D] y, float[E,F,G] z) {
            a = Transpose (x)
            b = Transpose (a)
            y = Relu (b)
            c = Transpose (x)
            d = Transpose <perm = [1, 0, 2]> (c)
            z = Relu (d)
        }""",
        """g (float[2,3,4] x) => (float[B,C,D] y, float[E,F,G] z) {
            y = Relu (x)
            d = Transpose <perm = [1, 2, 0]> (x)
            z = Relu (d)
        }""",
    )


def test_cancelled_while_the_first_is_read_elsewhere():
    check(
        PASS,
        """g (float[2,3] x) => (float[2,3] y, float[3,2] z) {
            a = Transpose <perm = [1, 0]> (x)
            b = Transpose <perm = [1, 0]> (a)
            y = Relu (b)
            z = Exp (a)
        }""",
        """g (float[2,3] x) => (float[2,3] y, float[3,2] z) {
            a = Transpose <perm = [1, 0]> (x)
            y = Relu (x)
            z = Exp (a)
        }""",
    )


def test_third_cancels_the_first_that_is_read_elsewhere():
    check(
        PASS,
        """g (float[2,3,4] x) => (float[2,3,4] y, float[A,B,C] z) {
            a = Transpose <perm = [1, 2, 0]> (x)
            b = Transpose <perm = [1, 2, 0]> (a)
            c = Transpose <perm = [1, 2, 0]> (b)
            y = Relu (c)
            z = Exp (a)
        }""",
        """g (float[2,3,4] x) => (float[2,3,4] y, float[A,B,C] z) {
            a = Transpose <perm = [1, 2, 0]> (x)
            y = Relu (x)
            z = Exp (a)
        }""",
        changes=2,
    )


def test_composition_would_not_save_a_node():
    check(
        PASS,
        """g (float[2,3,4] x) => (float[A,B,C] y, float[D,E,F] a) {
            a = Transpose <perm = [1, 2, 0]> (x)
            b = Transpose <perm = [0, 2, 1]> (a)
            y = Relu (b)
        }""",
    )


def test_interface():
    check(
        PASS,
        """g (float[2,3] x) => (float[2,3] y) {
            a = Transpose <perm = [1, 0]> (x)
            y = Transpose <perm = [1, 0]> (a)
        }""",
        "g (float[2,3] x) => (float[2,3] y) { y = Transpose <perm = [0, 1]> (x) }",
    )


def test_across_graphs_only_what_cancels():
    check(
        PASS,
        """g (bool p, float[2,3,4] x) => (float[A,B,C] y) {
            a = Transpose <perm = [1, 2, 0]> (x)
            y = If (p) <
                then_branch = t () => (float[A,B,C] ty) {
                    b = Transpose <perm = [2, 0, 1]> (a)
                    ty = Relu (b)
                },
                else_branch = e () => (float[A,B,C] ey) { ey = Relu (x) }
            >
        }""",
        """g (bool p, float[2,3,4] x) => (float[A,B,C] y) {
            y = If (p) <
                then_branch = t () => (float[A,B,C] ty) { ty = Relu (x) },
                else_branch = e () => (float[A,B,C] ey) { ey = Relu (x) }
            >
        }""",
    )


def test_permutation_of_the_caller_is_unknown():
    check(
        PASS,
        """<ir_version: 8, opset_import: ["" : 17, "loc" : 1]>
        g (float[2,3] x) => (float[2,3] y) { y = loc.F <p = [1, 0]> (x) }
        <domain: "loc", opset_import: ["" : 17]> F <p> (x) => (y) {
            a = Transpose <perm : ints = @p> (x)
            b = Transpose <perm : ints = @p> (a)
            c = Transpose (b)
            d = Transpose (c)
            y = Relu (d)
        }""",
    )
