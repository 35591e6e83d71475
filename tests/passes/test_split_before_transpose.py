"""SplitBeforeTranspose: which axes are split again behind a Transpose, and which only seem so."""

from __future__ import annotations

import pytest
from graph_check import check

from onnxslim.passes.simplify.split_before_transpose import SplitBeforeTranspose

PASS = SplitBeforeTranspose()


def test_joined_and_split_again():
    check(
        PASS,
        """g (float[B,3,T,4] x) => (float[B,3,4,T] y)
        <int64[1] low = {-2}, int64[1] most = {-9223372036854775808}, int64[1] last = {-1},
         int64[1] four = {4}> {
            s = Shape (x)
            front = Slice (s, most, low)
            t = Slice (s, low, last)
            joined = Concat <axis = 0> (last, t, four)
            a = Reshape (x, joined)
            c = Transpose <perm = [0, 2, 1]> (a)
            back = Concat <axis = 0> (front, four, t)
            d = Reshape (c, back)
            y = Relu (d)
        }""",
        """g (float[B,3,T,4] x) => (float[B,3,4,T] y)
        <int64[1] low = {-2}, int64[1] most = {-9223372036854775808}, int64[1] last = {-1},
         int64[1] four = {4}> {
            s = Shape (x)
            front = Slice (s, most, low)
            t = Slice (s, low, last)
            joined = Concat <axis = 0> (last, t, four)
            back = Concat <axis = 0> (front, four, t)
            d = Transpose <perm = [0, 1, 3, 2]> (x)
            y = Relu (d)
        }""",
    )


def test_axes_that_are_not_there_yet_are_made_first():
    check(
        PASS,
        """g (float[5,B,12] x) => (float[B,3,5,4] y)
        <int64[3] joined = {5, -1, 4}, int64[4] back = {-1, 3, 5, 4}> {
            a = Reshape (x, joined)
            c = Transpose <perm = [1, 0, 2]> (a)
            d = Reshape (c, back)
            y = Relu (d)
        }""",
        """g (float[5,B,12] x) => (float[B,3,5,4] y)
        <int64[3] joined = {5, -1, 4}, int64[4] back = {-1, 3, 5, 4},
         int64[4] d_order = {5, -1, 3, 4}> {
            d_split = Reshape <allowzero = 0> (x, d_order)
            d = Transpose <perm = [1, 2, 0, 3]> (d_split)
            y = Relu (d)
        }""",
    )


def test_pieces_are_put_in_order():
    check(
        PASS,
        """g (float[T,B,12] x) => (float[B,3,T,4] y)
        <int64 one = {1}, int64 nil = {0}, int64[1] axis = {0}, int64[1] rest = {-1},
         int64[1] three = {3}, int64[1] four = {4}> {
            s = Shape (x)
            t0 = Gather (s, nil)
            b0 = Gather (s, one)
            t = Unsqueeze (t0, axis)
            b = Unsqueeze (b0, axis)
            joined = Concat <axis = 0> (t, rest, four)
            a = Reshape (x, joined)
            c = Transpose <perm = [1, 0, 2]> (a)
            back = Concat <axis = 0> (b, three, t, four)
            d = Reshape (c, back)
            y = Relu (d)
        }""",
        """g (float[T,B,12] x) => (float[B,3,T,4] y)
        <int64 one = {1}, int64 nil = {0}, int64[1] axis = {0}, int64[1] rest = {-1},
         int64[1] three = {3}, int64[1] four = {4}> {
            s = Shape (x)
            t0 = Gather (s, nil)
            b0 = Gather (s, one)
            t = Unsqueeze (t0, axis)
            b = Unsqueeze (b0, axis)
            joined = Concat <axis = 0> (t, rest, four)
            back = Concat <axis = 0> (b, three, t, four)
            d_order = Concat <axis = 0> (t, b, three, four)
            d_split = Reshape <allowzero = 0> (x, d_order)
            d = Transpose <perm = [1, 2, 0, 3]> (d_split)
            y = Relu (d)
        }""",
    )


@pytest.mark.parametrize(
    ("joined", "perm", "back"),
    [
        ([6, 4, 5], [0, 2, 1], [6, 20]),  # joins behind the Transpose
        ([6, 4, 5], [0, 2, 1], [3, 2, 4, 5]),  # not along the axes of the Transpose
        ([6, 20], [1, 0], [2, 60]),
        ([6, 5, 4], [0, 2, 1], [6, 0, 5]),  # 0 copies axis 1
        ([6, 4, 5], [2, 1, 0], [-1, 24]),
    ],
)
def test_other_shapes_stay(joined, perm, back):
    numbers = ", ".join(map(str, back))
    check(
        PASS,
        f"""g (float[2,3,4,5] x) => (float y)
        <int64[{len(joined)}] joined = {{{", ".join(map(str, joined))}}},
         int64[{len(back)}] back = {{{numbers}}}> {{
            a = Reshape (x, joined)
            c = Transpose <perm = {perm}> (a)
            d = Reshape (c, back)
            y = ReduceSum <keepdims = 0> (d)
        }}""",
        None,
    )


@pytest.mark.parametrize("value", ["a", "c"])
def test_other_readers_hold_the_nodes(value):
    check(
        PASS,
        f"""g (float[2,3,4,5] x) => (float[2,3,5,4] y, float[I,J,K] z)
        <int64[3] joined = {{6, 4, 5}}, int64[4] back = {{2, 3, 5, 4}}> {{
            a = Reshape (x, joined)
            c = Transpose <perm = [0, 2, 1]> (a)
            y = Reshape (c, back)
            z = Neg ({value})
        }}""",
        None,
    )
