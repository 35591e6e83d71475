"""FuseAttention: heads split inside and outside, masks, scales, and what must stay as it is."""

from __future__ import annotations

import numpy as np
import pytest
from graph_check import check

from onnxslim.passes.transformers.fuse_attention import FuseAttention

PASS = FuseAttention()
OPSET = '<ir_version: 11, opset_import: ["" : 23]> '
IN = "float[B,S,8] q, float[B,S,8] k, float[B,S,8] v"
HEAD = OPSET + f"g ({IN}) => (float[B,S,8] y) "
CONSTANTS = "<int64[4] f = {0, 0, 2, 4}, int64[3] j = {0, 0, 8}, float c = {2}> "
SPLIT = (
    " a = Reshape (q, f) tq = Transpose <perm = [0, 2, 1, 3]> (a)"
    " b = Reshape (k, f) tk = Transpose <perm = [0, 2, 3, 1]> (b)"
    " d = Reshape (v, f) tv = Transpose <perm = [0, 2, 1, 3]> (d)"
)
SCORES = " s = MatMul (tq, tk) e = Div (s, c)"
CORE = SCORES + " p = Softmax <axis = -1> (e) o = MatMul (p, tv)"
JOIN = " t = Transpose <perm = [0, 2, 1, 3]> (o) y = Reshape (t, j)"
WHOLE = HEAD + CONSTANTS + "{" + SPLIT + CORE + JOIN + " }"
ATTRIBUTES = "<scale = 0.5, kv_num_heads = 2, q_num_heads = 2>"


def test_features():
    check(PASS, WHOLE, HEAD + f"{{ y = Attention {ATTRIBUTES} (q, k, v) }}", changes=1)


def test_keys_turned_twice():
    split = SPLIT.replace(
        "tk = Transpose <perm = [0, 2, 3, 1]> (b)",
        "hk = Transpose <perm = [0, 2, 1, 3]> (b) tk = Transpose <perm = [0, 1, 3, 2]> (hk)",
    )
    check(
        PASS,
        HEAD + CONSTANTS + "{" + split + CORE + JOIN + " }",
        HEAD + f"{{ y = Attention {ATTRIBUTES} (q, k, v) }}",
    )


@pytest.mark.parametrize(
    "text",
    [
        WHOLE.replace("s = MatMul (tq, tk) e = Div (s, c)", "u = Div (tq, c) e = MatMul (u, tk)"),
        WHOLE.replace("s = MatMul (tq, tk) e = Div (s, c)", "u = Div (tk, c) e = MatMul (tq, u)"),
        WHOLE.replace("e = Div (s, c)", "e = Mul (s, c)").replace("c = {2}", "c = {0.5}"),
        WHOLE.replace("a = Reshape (q, f)", "u = Div (q, c) a = Reshape (u, f)").replace(
            "s = MatMul (tq, tk) e = Div (s, c)", "e = MatMul (tq, tk)"
        ),
    ],
)
def test_scale(text):
    check(PASS, text, HEAD + f"{{ y = Attention {ATTRIBUTES} (q, k, v) }}")


def test_a_mask_for_every_pair():
    head = OPSET + f"g ({IN}, float[B,1,S,S] m) => (float[B,S,8] y) "
    scores = SCORES.replace("e = Div", "z = Div") + " e = Add (z, m)"
    check(
        PASS,
        head + CONSTANTS + "{" + SPLIT + CORE.replace(SCORES, scores) + JOIN + " }",
        head + f"{{ y = Attention {ATTRIBUTES} (q, k, v, m) }}",
    )


HEADS = OPSET + "g (float[B,2,S,4] q, float[B,2,S,4] k, float[B,2,S,4] v) => (float[B,2,S,4] y) "


def test_heads():
    check(
        PASS,
        HEADS + "{ u = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul (q, u)"
        " p = Softmax <axis = 3> (s) y = MatMul (p, v) }",
        HEADS + "{ y = Attention <scale = 1.0> (q, k, v) }",
    )


def test_heads_with_keys_in_another_order():
    head = HEADS.replace("float[B,2,S,4] k", "float[B,S,2,4] k")
    check(
        PASS,
        head + "{ u = Transpose <perm = [0, 2, 3, 1]> (k) s = MatMul (q, u)"
        " p = Softmax <axis = 3> (s) y = MatMul (p, v) }",
        head + "{ u = Transpose <perm = [0, 2, 1, 3]> (k) y = Attention <scale = 1.0> (q, u, v) }",
    )


PLAIN = HEADS + (
    "{ u = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul (q, u)"
    " p = Softmax <axis = 3> (s) y = MatMul (p, v) }"
)


@pytest.mark.parametrize(
    "text",
    [
        PLAIN.replace(": 23", ": 22"),
        PLAIN.replace("float", "double"),
        PLAIN.replace("axis = 3", "axis = 2"),
        PLAIN.replace("y)", "y, float[B,2,S,S] p)", 1),
        PLAIN.replace("perm = [0, 1, 3, 2]", "perm = [0, 1, 2, 3]").replace("S,4", "4,4"),
        PLAIN.replace("float[B,2,S,4] v", "float[1,2,S,4] v"),
        PLAIN.replace("float[B,2,S,4] v", "float[B,1,S,4] v"),
        PLAIN.replace("MatMul (p, v)", "MatMul (v, p)").replace("S,4", "4,4"),
    ],
)
def test_refused(text):
    check(PASS, text)


@pytest.mark.parametrize(
    ("mask", "size"),
    [("float[B,1,1,S]", (3, 1, 1, 3)), ("float[S]", (3,)), ("float[1,1,1,1]", (1, 1, 1, 1))],
)
def test_a_mask_for_all_queries_is_refused(mask, size):
    head = HEADS.replace("float[B,2,S,4] q", f"{mask} m, float[B,2,S,4] q")
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((3, 2, 3, 4)).astype(np.float32) for name in "qkv"}
    feeds["m"] = rng.standard_normal(size).astype(np.float32)
    check(
        PASS,
        head + "{ u = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul (q, u) e = Add (s, m)"
        " p = Softmax <axis = 3> (e) y = MatMul (p, v) }",
        feeds=feeds,
    )
