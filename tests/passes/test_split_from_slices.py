"""SplitFromSlices: Slices that cover an axis, in any order, and what does not cover it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from graph_check import apply, assert_same_outputs, check, make_feeds, parse, run

from onnxslim.passes.simplify.split_from_slices import SplitFromSlices

PASS = SplitFromSlices()


def test_roll():
    check(
        PASS,
        """g (float[N,5] x) => (float[N,5] y)
        <int64[1] o = {0}, int64[1] c = {2}, int64[1] e = {99}, int64[1] k = {1}> {
            a = Slice (x, o, c, k)
            b = Slice (x, c, e, k)
            y = Concat <axis = 1> (b, a)
        }""",
        """g (float[N,5] x) => (float[N,5] y) <int64[2] s = {2, 3}> {
            a, b = Split <axis = 1> (x, s)
            y = Concat <axis = 1> (b, a)
        }""",
    )


def test_before_opset_13_sizes_are_an_attribute():
    head = (
        '<ir_version: 8, opset_import: ["" : 9]> g (float[N,5] x) => (float[N,3] y, float[N,2] z)'
    )
    check(
        PASS,
        head
        + """{
            y = Slice <starts = [-3], ends = [5], axes = [1]> (x)
            z = Slice <starts = [0], ends = [2], axes = [1]> (x)
        }""",
        head + "{ z, y = Split <axis = 1, split = [2, 3]> (x) }",
    )


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_three_pieces_in_any_order(order):
    bounds = [("o", "c"), ("c", "d"), ("d", "e")]
    lines = "\n".join(f"y{i} = Slice (x, {bounds[i][0]}, {bounds[i][1]}, k)" for i in order)
    model = parse(
        f"""g (float[2,6] x) => (float[2,1] y0, float[2,3] y1, float[2,2] y2)
        <int64[1] o = {{0}}, int64[1] c = {{1}}, int64[1] d = {{4}}, int64[1] e = {{6}},
         int64[1] k = {{-1}}> {{ {lines} }}"""
    )
    feeds = make_feeds(model)
    expected = run(model, feeds)
    assert apply(PASS, model) == 1
    assert [node.op_type for node in model.graph] == ["Split"]
    assert_same_outputs(expected, run(model, feeds), exact=True)


@pytest.mark.parametrize(
    ("bounds", "size"),
    [
        ((0, 2, 3, 5), "5"),  # a gap
        ((0, 3, 2, 5), "5"),  # an overlap
        ((0, 2, 2, 4), "5"),  # the end is left out
        ((0, 2, 2, 5), "M"),  # the size is not known
    ],
)
def test_refused(bounds, size):
    check(
        PASS,
        f"""g (float[N,{size}] x) => (float[N,A] y, float[N,B] z)
        <int64[1] a = {{{bounds[0]}}}, int64[1] b = {{{bounds[1]}}}, int64[1] c = {{{bounds[2]}}},
         int64[1] d = {{{bounds[3]}}}, int64[1] k = {{1}}>
        {{ y = Slice (x, a, b, k) z = Slice (x, c, d, k) }}""",
        feeds={"x": np.arange(10, dtype=np.float32).reshape(2, 5)},
    )


def test_shapes_are_left_to_other_passes():
    check(
        PASS,
        """g (float[2,3,4] x) => (int64[1] y, int64[2] z)
        <int64[1] o = {0}, int64[1] c = {1}, int64[1] e = {3}>
        { s = Shape (x) y = Slice (s, o, c) z = Slice (s, c, e) }""",
    )


def test_steps_and_further_axes_are_left_alone():
    check(
        PASS,
        """g (float[4,4] x) => (float[2,4] y, float[2,4] z)
        <int64[1] o = {0}, int64[1] i = {1}, int64[1] e = {4}, int64[1] k = {0}, int64[1] s = {2}>
        { y = Slice (x, o, e, k, s) z = Slice (x, i, e, k, s) }""",
    )
