"""RebuildShapes: computed shapes from few pieces, equal at run time, never from more nodes."""

from __future__ import annotations

import numpy as np
from graph_check import apply, assert_same_outputs, check, make_feeds, parse, run

from onnxslim.passes.simplify.eliminate_common_subexpressions import EliminateCommonSubexpressions
from onnxslim.passes.simplify.rebuild_shapes import RebuildShapes
from onnxslim.pipeline import Context

PASS = RebuildShapes()
CHAIN = """
    g (float[N,4,H,W] x) => (float[M,P,Q] y)
    <int64 i = {0}, int64 j = {2}, int64[1] k = {0}, int64[1] rest = {-1}> {
        s = Shape (x)
        the_size_of_the_batch = Gather (s, i)
        the_height_of_the_image = Gather (s, j)
        a_list_of_the_size_of_the_batch = Unsqueeze (the_size_of_the_batch, k)
        a_list_of_the_height_of_the_image = Unsqueeze (the_height_of_the_image, k)
        t = Concat <axis = 0>
            (a_list_of_the_size_of_the_batch, rest, a_list_of_the_height_of_the_image)
        y = Reshape (x, t)
        %s
    }"""


def test_two_pieces():
    check(
        PASS,
        CHAIN % "",
        """g (float[N,4,H,W] x) => (float[M,P,Q] y) <int64[1] rest = {-1}> {
            a = Shape <start = 0, end = 1> (x)
            b = Shape <start = 2, end = 3> (x)
            t = Concat <axis = 0> (a, rest, b)
            y = Reshape (x, t)
        }""",
    )


def test_before_opset_15_positions_are_gathered():
    head = '<ir_version: 8, opset_import: ["" : 13]>'
    check(
        PASS,
        head + CHAIN % "",
        head
        + """g (float[N,4,H,W] x) => (float[M,P,Q] y)
        <int64[1] rest = {-1}, int64[1] p = {0}, int64[1] q = {2}> {
            s = Shape (x)
            a = Gather <axis = 0> (s, p)
            b = Gather <axis = 0> (s, q)
            t = Concat <axis = 0> (a, rest, b)
            y = Reshape (x, t)
        }""",
    )


def test_neighbours_become_one_piece():
    model = check(
        PASS,
        """g (float[N,4,H,W] x, float[N,4,1,1] z) => (float[N,4,H,W] y)
        <int64[1] a = {0}, int64[1] b = {1}, int64[1] c = {2}, int64[1] d = {3}> {
            s = Shape (x)
            p = Gather (s, a)
            q = Gather (s, b)
            r = Gather (s, c)
            o = Gather (s, d)
            t = Concat <axis = 0> (p, q, r, o)
            y = Expand (z, t)
        }""",
        """g (float[N,4,H,W] x, float[N,4,1,1] z) => (float[N,4,H,W] y) {
            s = Shape (x)
            y = Expand (z, s)
        }""",
        feeds={
            "x": np.zeros((2, 4, 3, 5), np.float32),
            "z": np.ones((2, 4, 1, 1), np.float32),
        },
    )
    assert [node.op_type for node in model.graph] == ["Shape", "Expand"]


def test_unknown_inputs_of_a_concat_stay():
    text = """
        g (float[N,4,H,W] x, int64[1] given) => (float[A,B,C] y)
        <int64 i = {0}, int64[1] k = {0}, int64[1] four = {4}, int64[1] rest = {-1}> {
            s = Shape (x)
            n = Gather (s, i)
            u = Unsqueeze (n, k)
            t = Concat <axis = 0> (u, given, rest)
            y = Reshape (x, t)
        }"""
    model = parse(text)
    feeds = {"x": np.ones((2, 4, 3, 5), np.float32), "given": np.array([12])}
    expected = run(model, feeds)
    assert apply(PASS, model) == 1
    assert sorted(node.op_type for node in model.graph) == ["Concat", "Reshape", "Shape"]
    assert_same_outputs(expected, run(model, feeds), exact=True)


def test_shapes_that_share_pieces_are_weighed_together():
    """Alone each of the two would keep the Gather alive for the other one."""
    text = """
        g (float[N,H,W] x) => (float[A,B] y, float[C,D] z)
        <int64 i = {1}, int64[1] k = {0}, int64[1] rest = {-1}> {
            s = Shape (x)
            the_height_of_the_image = Gather (s, i)
            list_of_the_height_of_the_image = Unsqueeze (the_height_of_the_image, k)
            p = Concat <axis = 0> (rest, list_of_the_height_of_the_image)
            q = Concat <axis = 0> (list_of_the_height_of_the_image, rest)
            y = Reshape (x, p)
            z = Reshape (x, q)
        }"""
    model = parse(text)
    feeds = make_feeds(model)
    expected = run(model, feeds)
    assert apply(PASS, model) == 2
    EliminateCommonSubexpressions()(model, Context(model))
    kinds = [node.op_type for node in model.graph]
    assert sorted(kinds) == ["Concat", "Concat", "Reshape", "Reshape", "Shape"]
    assert_same_outputs(expected, run(model, feeds), exact=True)


def test_no_gain_no_change():
    """The scalar is needed anyway: Gather and Unsqueeze would only become Gather and Shape."""
    check(
        PASS,
        """g (float[N,H,W] x) => (float[A,B] y, int64[C] z)
        <int64 i = {1}, int64 o = {0}, int64 d = {1}, int64[1] k = {0}, int64[1] rest = {-1}> {
            s = Shape (x)
            h = Gather (s, i)
            u = Unsqueeze (h, k)
            t = Concat <axis = 0> (rest, u)
            y = Reshape (x, t)
            z = Range (o, h, d)
        }""",
    )


def test_in_a_loop_body_nothing_is_believed():
    text = """
        g (float[N,4] x, int64 m, bool c) => (float[A,B] y) {
            y = Loop (m, c, x) <body = b (int64 n, bool d, float[P,Q] v) => (bool e, float[R,S] w)
                <int64[1] k = {0}, int64 i = {0}, int64[1] rest = {-1}> {
                    e = Identity (d)
                    s = Shape (v)
                    g0 = Gather (s, i)
                    u = Unsqueeze (g0, k)
                    t = Concat <axis = 0> (rest, u)
                    w = Reshape (v, t)
                }>
        }"""
    model = parse(text)
    assert apply(PASS, model) == 0
