"""FuseConsecutiveReshapes: only where the last shape copies nothing."""

from __future__ import annotations

import numpy as np
import pytest
from graph_check import check

from onnxslim.passes.simplify.fuse_consecutive_reshapes import FuseConsecutiveReshapes

PASS = FuseConsecutiveReshapes()


@pytest.mark.parametrize(
    "line",
    [
        "a = Reshape (x, k)",
        "a = Flatten (x)",
        "a = Flatten <axis = 0> (x)",
        "a = Squeeze (x)",
        "a = Unsqueeze (x, u)",
    ],
)
def test_first_of_each_kind(line):
    weights = "<int64[2] s = {-1, 6}, int64[3] k = {0, 6, -1}, int64[1] u = {1}>"
    check(
        PASS,
        f"""g (float[N,1,4,3] x) => (float[M,6] y) {weights} {{
            {line}
            y = Reshape (a, s)
        }}""",
        f"g (float[N,1,4,3] x) => (float[M,6] y) {weights} {{ y = Reshape (x, s) }}",
    )


def test_chain():
    weights = "<int64[1] s = {-1}, int64[2] k = {3, -1}>"
    check(
        PASS,
        f"""g (float[N,2,3] x) => (float[A,B] y) {weights} {{
            a = Reshape (x, s)
            b = Flatten (a)
            c = Reshape (b, s)
            y = Reshape (c, k)
        }}""",
        f"g (float[N,2,3] x) => (float[A,B] y) {weights} {{ y = Reshape (x, k) }}",
    )


def test_copied_sizes_stay():
    check(
        PASS,
        """g (float[N,2,3] x) => (float[A,B] y) <int64[2] s = {3, -1}, int64[2] k = {0, -1}> {
            a = Reshape (x, s)
            y = Reshape (a, k)
        }""",
    )


def test_zero_that_means_zero():
    weights = "<int64[3] s = {2, 6, -1}, int64[3] k = {3, 0, 5}>"
    check(
        PASS,
        f"""g (float[0,4,3] x) => (float[3,0,5] y) {weights} {{
            a = Reshape (x, s)
            y = Reshape <allowzero = 1> (a, k)
        }}""",
        f"""g (float[0,4,3] x) => (float[3,0,5] y) {weights} {{
            y = Reshape <allowzero = 1> (x, k)
        }}""",
    )


def test_computed_shapes():
    check(
        PASS,
        """g (float[2,6] x, int64[2] s) => (float[A,B] y) {
            a = Flatten (x)
            y = Reshape (a, s)
        }""",
        feeds={"x": np.ones((2, 6), np.float32), "s": np.array([0, -1])},
    )
    check(
        PASS,
        """g (float[2,6] x, int64[2] s) => (float[A,B] y) {
            a = Flatten <axis = 0> (x)
            y = Reshape <allowzero = 1> (a, s)
        }""",
        """g (float[2,6] x, int64[2] s) => (float[A,B] y) {
            y = Reshape <allowzero = 1> (x, s)
        }""",
        feeds={"x": np.ones((2, 6), np.float32), "s": np.array([4, -1])},
    )


def test_overridable_shape_is_not_constant():
    check(
        PASS,
        """g (float[2,6] x, int64[2] s = {4, 3}) => (float[A,B] y) {
            a = Flatten (x)
            y = Reshape (a, s)
        }""",
    )


def test_other_readers_and_outputs_stay():
    check(
        PASS,
        """g (float[2,6] x) => (float[A,B] y, float[C,D] z, float[E,F] a) <int64[2] s = {4, 3}> {
            a = Flatten (x)
            y = Reshape (a, s)
            b = Flatten <axis = 0> (x)
            c = Reshape (b, s)
            z = MatMul (b, b)
            w = Neg (c)
        }""".replace("MatMul (b, b)", "Exp (b)"),
    )


def test_old_attribute_shape_stays():
    check(
        PASS,
        """<ir_version: 3, opset_import: ["" : 4]> g (float[2,6] x) => (float[4,3] y) {
            a = Flatten (x)
            y = Reshape <shape = [4, 3]> (a)
        }""",
        runs=False,
    )


def test_subgraphs():
    check(
        PASS,
        """g (bool p, float[2,6] x) => (float[A,B] y) <int64[2] s = {4, 3}> {
            o = Flatten (x)
            y = If (p) <
                then_branch = t () => (float[A,B] ty) { a = Flatten (x) ty = Reshape (a, s) },
                else_branch = e () => (float[A,B] ey) { ey = Reshape (o, s) }
            >
        }""",
        """g (bool p, float[2,6] x) => (float[A,B] y) <int64[2] s = {4, 3}> {
            o = Flatten (x)
            y = If (p) <
                then_branch = t () => (float[A,B] ty) { ty = Reshape (x, s) },
                else_branch = e () => (float[A,B] ey) { ey = Reshape (o, s) }
            >
        }""",
    )
