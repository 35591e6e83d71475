"""EliminateTransposeBeforeShape: dimensions are read where they come from."""

from __future__ import annotations

import pytest
from graph_check import check

from onnxslim.passes.simplify.eliminate_transpose_before_shape import (
    EliminateTransposeBeforeShape,
)

PASS = EliminateTransposeBeforeShape()
HEAD = "g (float[N,3,H] x) => (int64 y)"
TRANSPOSE = "a = Transpose <perm = [2, 0, 1]> (x) s = Shape (a)"


@pytest.mark.parametrize(("place", "source"), [(0, 2), (1, 0), (-1, 1)])
def test_places_move(place, source):
    check(
        PASS,
        f"{HEAD} <int64 i = {{{place}}}> {{ {TRANSPOSE} y = Gather (s, i) }}",
        f"{HEAD} <int64 i = {{{source}}}> {{ s = Shape (x) y = Gather (s, i) }}",
    )


def test_lists_of_places():
    head = "g (float[N,3,H] x) => (int64[2] y)"
    check(
        PASS,
        f"{head} <int64[2] i = {{0, 1}}> {{ {TRANSPOSE} y = Gather (s, i) }}",
        f"{head} <int64[2] i = {{2, 0}}> {{ s = Shape (x) y = Gather (s, i) }}",
    )


@pytest.mark.parametrize(
    ("outputs", "more"),
    [
        ("int64 y, float[H,N,3] z", "z = Relu (a)"),  # the Transpose stays anyway
        ("int64 y, int64[3] z", "z = Identity (s)"),  # all of the shape is read
    ],
)
def test_refused(outputs, more):
    check(
        PASS,
        f"g (float[N,3,H] x) => ({outputs}) <int64 i = {{0}}>"
        f" {{ {TRANSPOSE} y = Gather (s, i) {more} }}",
    )


def test_places_that_are_not_known():
    check(
        PASS,
        f"g (float[N,3,H] x, int64 i) => (int64 y) {{ {TRANSPOSE} y = Gather (s, i) }}",
    )
