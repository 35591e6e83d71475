"""EliminateExpandBeforeBroadcast: operators broadcast by themselves."""

from __future__ import annotations

import numpy as np
import pytest
from graph_check import check

from onnxslim.passes.simplify.eliminate_expand_before_broadcast import (
    EliminateExpandBeforeBroadcast,
)

PASS = EliminateExpandBeforeBroadcast()
HEAD = "g (float[N,3] x, float[3] z) => (float[N,3] y)"
FEEDS = {
    "x": np.arange(6, dtype=np.float32).reshape(2, 3),
    "z": np.array([5, 0, -1], np.float32),
}


@pytest.mark.parametrize("kind", ["Add", "Div", "Max", "Sub"])
def test_expand(kind):
    check(
        PASS,
        HEAD + f" {{ s = Shape (x) e = Expand (z, s) y = {kind} (x, e) }}",
        HEAD + f" {{ y = {kind} (x, z) }}",
        feeds=FEEDS,
    )


def test_filled():
    check(
        PASS,
        "g (int64[N,3] x) => (int64[N,3] y)"
        " { s = Shape (x) c = ConstantOfShape <value = int64[1] {7}> (s) y = Min (x, c) }",
        "g (int64[N,3] x) => (int64[N,3] y) <int64 c = {7}> { y = Min (x, c) }",
    )


def test_where():
    check(
        PASS,
        "g (bool[N,3] c, float[3] z) => (float[N,3] y) <float o = {0}>"
        " { s = Shape (c) e = Expand (z, s) y = Where (c, e, o) }",
        "g (bool[N,3] c, float[3] z) => (float[N,3] y) <float o = {0}> { y = Where (c, z, o) }",
    )


@pytest.mark.parametrize(
    "body",
    [
        "s = Shape (z) e = Expand (z, s) y = Add (x, e)",  # another shape
        "s = Shape <start = 1> (x) e = Expand (z, s) y = Add (x, e)",  # a part of it
    ],
)
def test_refused(body):
    check(PASS, HEAD + f" {{ {body} }}", feeds=FEEDS)


def test_before_broadcasting_of_all_operators():
    text = '<ir_version: 4, opset_import: ["" : 7]>' + HEAD
    check(PASS, text + " { s = Shape (x) c = ConstantOfShape (s) y = Max (x, c) }", runs=False)
