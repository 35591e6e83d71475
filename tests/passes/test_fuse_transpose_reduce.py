"""FuseTransposeReduce: reductions and new axes across a Transpose."""

from __future__ import annotations

import pytest
from graph_check import check

from onnxslim.passes.simplify.fuse_transpose_reduce import FuseTransposeReduce

PASS = FuseTransposeReduce()
TRANSPOSE = "a = Transpose <perm = [0, 2, 3, 1]> (x)"


@pytest.mark.parametrize("kind", ["ReduceMax", "ReduceMean", "ReduceL2"])
def test_attribute(kind):
    head = "g (float[N,4,H,W] x) => (float[N,4] y)"
    check(
        PASS,
        f"{head} {{ {TRANSPOSE} y = {kind} <axes = [1, -2], keepdims = 0> (a) }}",
        f"{head} {{ y = {kind} <axes = [2, 3], keepdims = 0> (x) }}",
    )


def test_input():
    head = "g (float[N,4,H,W] x) => (float[N,4] y)"
    check(
        PASS,
        f"{head} <int64[2] k = {{1, 2}}> {{ {TRANSPOSE} y = ReduceSum <keepdims = 0> (a, k) }}",
        f"{head} <int64[2] k = {{2, 3}}> {{ y = ReduceSum <keepdims = 0> (x, k) }}",
    )


@pytest.mark.parametrize(
    "body",
    [
        f"{TRANSPOSE} y = ReduceMax <axes = [1], keepdims = 0> (a)",  # W before the channels
        f"{TRANSPOSE} y = ReduceMax <axes = [1, 2], keepdims = 1> (a)",
        f"{TRANSPOSE} y = ReduceMax <keepdims = 0> (a)",
    ],
)
def test_refused(body):
    check(PASS, f"g (float[N,4,H,W] x) => (float y) {{ {body} }}".replace("float y", _typed(body)))


def _typed(body: str) -> str:
    if "axes = [1]," in body:
        return "float[N,W,4] y"
    return "float[N,1,1,4] y" if "keepdims = 1" in body else "float y"


def test_another_reader():
    check(
        PASS,
        f"g (float[N,4,H,W] x) => (float[N,4] y, float[N,H,W,4] z)"
        f" {{ {TRANSPOSE} y = ReduceMax <axes = [1, 2], keepdims = 0> (a) z = Relu (a) }}",
    )


@pytest.mark.parametrize(
    ("axes", "perm", "expected"),
    [("3", "0, 3, 1, 2", "1"), ("0, 3", "1, 0, 3, 2", "1, 2"), ("-1", "3, 0, 1, 2", "0")],
)
def test_unsqueeze(axes, perm, expected):
    old = "float[N,H]" if "," in axes else "float[N,H,W]"
    head = f"g ({old} x) => (float[A,B,C,D] y)"
    count = expected.count(",") + 1
    check(
        PASS,
        f"{head} <int64[{count}] k = {{{axes}}}>"
        f" {{ a = Unsqueeze (x, k) y = Transpose <perm = [{perm}]> (a) }}",
        f"{head} <int64[{count}] k = {{{expected}}}> {{ y = Unsqueeze (x, k) }}",
    )


def test_unsqueeze_before_axes_that_move():
    check(
        PASS,
        "g (float[N,H] x) => (float[A,B,C] y) <int64[1] k = {2}>"
        " { a = Unsqueeze (x, k) y = Transpose <perm = [1, 0, 2]> (a) }",
    )
