"""FuseConsecutiveSqueezes: the axes that are left, in every pair of three."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from graph_check import apply, check, parse

from onnxslim.passes.simplify.fuse_consecutive_squeezes import FuseConsecutiveSqueezes, _joined

PASS = FuseConsecutiveSqueezes()
SETS = [list(axes) for size in (1, 2) for axes in itertools.combinations(range(4), size)]


@pytest.mark.parametrize(("outer", "inner"), list(itertools.product(SETS, SETS)))
def test_joined_axes(outer, inner):
    small = np.zeros((5, 6, 7, 8))[: 5 if max(inner) < 5 else 0]
    if max(inner) >= small.ndim + len(inner) or max(outer) >= small.ndim + len(inner) + len(outer):
        return
    once = np.expand_dims(np.expand_dims(small, tuple(inner)), tuple(outer))
    joined = np.expand_dims(small, tuple(_joined(outer, inner)))
    assert once.shape == joined.shape


@pytest.mark.parametrize("opset", [11, 17])
def test_cancel(opset):
    axes = "<axes = [1]> ({})" if opset == 11 else "({}, k)"
    weights = "" if opset == 11 else "<int64[1] k = {1}>"
    head = f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[N,4] x) => (float[N,4] y)'
    check(
        PASS,
        f"""{head} {weights} {{
            a = Unsqueeze {axes.format("x")}
            b = Squeeze {axes.format("a")}
            y = Relu (b)
        }}""",
        f"{head} {weights} {{ y = Relu (x) }}",
    )
    head = f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[N,1,4] x) => (float[N,1,4] y)'
    check(
        PASS,
        f"""{head} {weights} {{
            a = Squeeze {axes.format("x")}
            b = Unsqueeze {axes.format("a")}
            y = Relu (b)
        }}""",
        f"{head} {weights} {{ y = Relu (x) }}",
    )


def test_negative_axes_count_from_the_larger_tensor():
    weights = "<int64[1] k = {1}, int64[1] l = {-2}>"
    check(
        PASS,
        f"""g (float[N,4] x) => (float[N,4] y) {weights} {{
            a = Unsqueeze (x, k)
            b = Squeeze (a, l)
            y = Relu (b)
        }}""",
        f"g (float[N,4] x) => (float[N,4] y) {weights} {{ y = Relu (x) }}",
    )


def test_other_axes_stay():
    check(
        PASS,
        """g (float[1,4] x) => (float[4,1] y) <int64[1] k = {2}, int64[1] l = {0}> {
            a = Unsqueeze (x, k)
            b = Squeeze (a, l)
            y = Relu (b)
        }""",
    )
    check(
        PASS,
        """g (float[1,4] x) => (float[1,4] y) <int64[1] k = {0}> {
            a = Squeeze (x)
            b = Unsqueeze (a, k)
            y = Relu (b)
        }""",
    )


def test_join_with_attributes():
    head = '<ir_version: 6, opset_import: ["" : 11]> '
    check(
        PASS,
        head
        + """g (float[N,4] x) => (float[A,B,C,D] y) {
            a = Unsqueeze <axes = [1]> (x)
            y = Unsqueeze <axes = [-4]> (a)
        }""",
        head
        + """g (float[N,4] x) => (float[A,B,C,D] y) {
            y = Unsqueeze <axes = [0, 2]> (x)
        }""",
    )
    check(
        PASS,
        head
        + """g (float[1,4,1,N] x) => (float[A,B] y) {
            a = Squeeze <axes = [0]> (x)
            y = Squeeze <axes = [1]> (a)
        }""",
        head + "g (float[1,4,1,N] x) => (float[A,B] y) { y = Squeeze <axes = [0, 2]> (x) }",
    )


def test_join_with_a_new_initializer():
    before = """g (float[N,4] x) => (float[A,B,C,D] y) <int64[1] k = {1}, int64[1] l = {0}> {
        a = Unsqueeze (x, k)
        y = Unsqueeze (a, l)
    }"""
    model = parse(before)
    assert apply(PASS, model) == 1
    (node,) = model.graph
    assert node.inputs[1].const_value.numpy().tolist() == [0, 2]
    weights = "<int64[2] y_axes = {0, 2}, int64[1] k = {1}, int64[1] l = {0}>"
    check(
        PASS,
        before,
        f"g (float[N,4] x) => (float[A,B,C,D] y) {weights} {{ y = Unsqueeze (x, y_axes) }}",
    )


def test_first_read_elsewhere_is_not_joined():
    check(
        PASS,
        """g (float[N,4] x) => (float[A,B,C,D] y, float[E,F,G] z)
        <int64[1] k = {1}, int64[1] l = {0}> {
            a = Unsqueeze (x, k)
            y = Unsqueeze (a, l)
            z = Relu (a)
        }""",
    )


def test_function_bodies_cancel_but_do_not_join():
    head = """<ir_version: 8, opset_import: ["" : 17, "loc" : 1]>
        g (float[N,4] x) => (float[A,B,C,D] y) { y = loc.F (x) }
        <domain: "loc", opset_import: ["" : 17]> F (x) => (y) """
    check(
        PASS,
        head
        + """{
            k = Constant <value_ints = [1]> ()
            a = Unsqueeze (x, k)
            b = Squeeze (a, k)
            c = Unsqueeze (b, k)
            y = Unsqueeze (c, k)
        }""",
        head
        + """{
            k = Constant <value_ints = [1]> ()
            c = Unsqueeze (x, k)
            y = Unsqueeze (c, k)
        }""",
    )
