"""EliminateNoop: every rule with a graph where it holds and one where it nearly does."""

from __future__ import annotations

import numpy as np
import pytest
from graph_check import check

from onnxslim.passes.simplify.eliminate_noop import EliminateNoop

PASS = EliminateNoop()


def graph(shape: str, line: str, weights: str = "", dtype: str = "float", opset: int = 17) -> str:
    """x -> Identity -> the node under test, from a to b -> Identity -> y."""
    held = f"<{weights}>" if weights else ""
    return f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g ({dtype}{shape} x) => ({dtype} y) {held} {{
            a = Identity (x)
            {line}
            y = Identity (b)
        }}"""


GONE = """<ir_version: 8, opset_import: ["" : {opset}]>
    g ({dtype}{shape} x) => ({dtype} y) {held} {{ a = Identity (x) y = Identity (a) }}"""

HOLDS = [
    ("[N,3]", "b = Mul (a, k)", "float k = {1}"),
    ("[N,3]", "b = Mul (k, a)", "float[1] k = {1}"),
    ("[N,3]", "b = Mul (a, k)", "float[3] k = {1, 1, 1}"),
    ("[N,3]", "b = Div (a, k)", "float[1,1] k = {1}"),
    ("[N,3]", "b = Pow (a, k)", "float k = {1}"),
    ("[N,3]", "b = Sub (a, k)", "float k = {0}"),
    ("[N,3]", "b = Add (a, k)", "float k = {-0.0}"),
    ("[N,3]", "b = Add (k, a)", "float[1,3] k = {-0.0, -0.0, -0.0}"),
    ("[N,3]", "b = Sum (a)", ""),
    ("[N,3]", "b = Max (a)", ""),
    ("[N,3]", "b = Mean (a)", ""),
    ("[N,3]", "b = Cast <to = 1> (a)", ""),
    ("[N,3]", "b = CastLike (a, k)", "float k = {7}"),
    ("[N,3]", "b = Dropout (a)", ""),
    ("[N,3]", "b = Dropout (a, r, t)", "float r = {0.5}, bool t = {0}"),
    ("[N,3]", "b = Dropout (a, r, t)", "float r = {0}, bool t = {1}"),
    ("[N,3]", "b = Reshape (a, s)", "int64[2] s = {0, 3}"),
    ("[N,3]", "b = Reshape (a, s)", "int64[2] s = {-1, 3}"),
    ("[N,M]", "b = Reshape (a, s)", "int64[2] s = {0, -1}"),
    ("[N]", "b = Reshape (a, s)", "int64[1] s = {-1}"),
    ("[2,3]", "b = Reshape <allowzero = 1> (a, s)", "int64[2] s = {2, 3}"),
    ("[N,M]", "b = Flatten (a)", ""),
    ("[N,3]", "b = Expand (a, s)", "int64[2] s = {1, 3}"),
    ("[N,3]", "b = Expand (a, s)", "int64[1] s = {1}"),
    ("[2,3]", "b = Squeeze (a)", ""),
    ("[N,3]", "b = Pad (a, p)", "int64[4] p = {0, 0, 0, 0}"),
    ("[N,3]", "b = Slice (a, s, e)", "int64[2] s = {0, -3}, int64[2] e = {2147483647, 3}"),
    (
        "[N,3]",
        "b = Slice (a, s, e, i, t)",
        "int64[1] s = {0}, int64[1] e = {9223372036854775807}, int64[1] i = {0}, int64[1] t = {1}",
    ),
    ("[N,3]", "b = Concat <axis = 1> (a)", ""),
    ("[N,3]", "b = Concat <axis = 0> (a, k)", "float[0,3] k = {}"),
    ("[N,3]", "b = Split <axis = 1> (a)", ""),
    ("[N,3]", "b = Tile (a, r)", "int64[2] r = {1, 1}"),
    ("[N,3]", "b = Transpose <perm = [0, 1]> (a)", ""),
    ("[N]", "b = Transpose (a)", ""),
    ("[1,1,N]", "b = Transpose <perm = [1, 0, 2]> (a)", ""),
    ("[N,2,H,W]", 'b = Resize <mode = "linear"> (a, , s)', "float[4] s = {1, 1, 1, 1}"),
    ("[1,2,4,4]", 'b = Resize <mode = "nearest"> (a, , , s)', "int64[4] s = {1, 2, 4, 4}"),
    ("[N,2,H,W]", "b = DepthToSpace <blocksize = 1> (a)", ""),
    ("[N,3]", "b = Where (c, a, k)", "bool[1] c = {1}, float k = {5}"),
    ("[N,3]", "b = Where (c, k, a)", "bool[3] c = {0, 0, 0}, float[1,3] k = {5, 6, 7}"),
    ("[N,3]", "b = Where (c, a, a)", "bool[3] c = {0, 1, 0}"),
]


@pytest.mark.parametrize(("shape", "line", "weights"), HOLDS)
def test_holds(shape, line, weights):
    held = f"<{weights}>" if weights else ""
    text = graph(shape, line, weights)
    _check(text, GONE.format(opset=17, dtype="float", shape=shape, held=held))


def _check(before: str, after: str | None = None) -> None:
    check(PASS, before.replace(", , ,", ', "", "",').replace(", ,", ', "",'), after)


STAYS = [
    ("[N,3]", "b = Mul (a, k)", "float[1,1,1] k = {1}"),  # one more axis
    ("[N,M]", "b = Mul (a, k)", "float[3] k = {1, 1, 1}"),  # M may be 1
    ("[N,1]", "b = Mul (a, k)", "float[3] k = {1, 1, 1}"),
    ("[N,3]", "b = Mul (a, k)", "float[3] k = {1, 1, 2}"),
    ("[N,3]", "b = Div (k, a)", "float k = {1}"),
    ("[N,3]", "b = Sub (k, a)", "float k = {0}"),
    ("[N,3]", "b = Add (a, k)", "float k = {0}"),  # -0.0 + 0.0 is 0.0
    ("[N,3]", "b = Sub (a, k)", "float k = {-0.0}"),
    ("[N,3]", "b = Sum (a, a)", ""),
    ("[N,3]", "b = Clip (a)", ""),  # infinities
    ("[N,3]", "b = Dropout (a, r, t)", "float r = {0.5}, bool t = {1}"),
    ("[N,M]", "b = Reshape (a, s)", "int64[2] s = {-1, 3}"),
    ("[N,3]", "b = Reshape (a, s)", "int64[2] s = {3, -1}"),
    ("[N,3]", "b = Reshape (a, s)", "int64[3] s = {0, 3, 1}"),
    ("[0,3]", "b = Reshape <allowzero = 1> (a, s)", "int64[2] s = {3, 0}"),
    ("[N,M,3]", "b = Flatten (a)", ""),
    ("[N,3]", "b = Expand (a, s)", "int64[3] s = {1, 1, 3}"),
    ("[1,N]", "b = Expand (a, s)", "int64[2] s = {3, 1}"),
    ("[1,N]", "b = Expand (a, s)", "int64[2] s = {1, 3}"),
    ("[1,3]", "b = Squeeze (a)", ""),
    ("[N,3]", "b = Pad (a, p)", "int64[4] p = {1, 0, -1, 0}"),
    ("[N,3]", "b = Slice (a, s, e)", "int64[1] s = {0}, int64[1] e = {3}"),
    ("[3,N]", "b = Slice (a, s, e)", "int64[1] s = {0}, int64[1] e = {-1}"),
    (
        "[N,3]",
        "b = Slice (a, s, e, i, t)",
        "int64[1] s = {-1}, int64[1] e = {-99}, int64[1] i = {1}, int64[1] t = {-1}",
    ),
    ("[N,3]", "b = Concat <axis = 0> (a, a)", ""),
    ("[4,3]", "b, d = Split <axis = 0> (a)", ""),
    ("[N,3]", "b = Tile (a, r)", "int64[2] r = {1, 2}"),
    ("[N,3]", "b = Transpose (a)", ""),
    ("[1,2,N]", "b = Transpose <perm = [1, 0, 2]> (a)", ""),
    ("[N,2,H,W]", 'b = Resize <mode = "linear"> (a, , s)', "float[4] s = {1, 1, 1, 2}"),
    ("[N,2,H,W]", 'b = Resize <mode = "nearest"> (a, , , s)', "int64[4] s = {3, 2, 3, 3}"),
    (
        "[1,2,4,4]",
        'b = Resize <coordinate_transformation_mode = "tf_crop_and_resize"> (a, r, s)',
        "float[8] r = {0, 0, 0.5, 0.5, 1, 1, 1, 1}, float[4] s = {1, 1, 1, 1}",
    ),
    ("[N,3]", "b = Where (c, a, k)", "bool[3] c = {1, 0, 1}, float k = {5}"),
    ("[N,1]", "b = Where (c, a, k)", "bool[1] c = {1}, float[3] k = {5, 6, 7}"),
    ("[N,1]", "b = Where (c, a, k)", "bool[3] c = {1, 1, 1}, float k = {5}"),
    ("[N,1]", "b = Where (c, a, a)", "bool[3] c = {1, 0, 1}"),
]


@pytest.mark.parametrize(("shape", "line", "weights"), STAYS)
def test_stays(shape, line, weights):
    text = graph(shape, line, weights)
    if "r = {0.5}" in weights:
        text = text.replace("(a, r, t)", "<seed = 1> (a, r, t)")
    _check(text)


INTEGERS = [
    ("b = Add (a, k)", "int64 k = {0}", True),
    ("b = Sub (a, k)", "int64 k = {0}", True),
    ("b = Div (a, k)", "int64 k = {1}", True),
    ("b = Clip (a)", "", True),
    ("b = Cast <to = 7> (a)", "", True),
    ("b = Clip (a, k)", "int64 k = {0}", False),
    ("b = Add (a, k)", "int64[2] k = {0, 1}", False),
]


@pytest.mark.parametrize(("line", "weights", "holds"), INTEGERS)
def test_integers(line, weights, holds):
    held = f"<{weights}>" if weights else ""
    after = GONE.format(opset=17, dtype="int64", shape="[N,2]", held=held) if holds else None
    _check(graph("[N,2]", line, weights, "int64"), after)


LOGIC = [
    ("b = And (a, k)", "bool k = {1}", True),
    ("b = Or (k, a)", "bool[1] k = {0}", True),
    ("b = Xor (a, k)", "bool k = {0}", True),
    ("b = And (a, a)", "", True),
    ("b = And (a, k)", "bool k = {0}", False),
    ("b = Or (a, k)", "bool k = {1}", False),
    ("b = Xor (a, k)", "bool k = {1}", False),
    ("b = Xor (a, a)", "", False),
]


@pytest.mark.parametrize(("line", "weights", "holds"), LOGIC)
def test_logic(line, weights, holds):
    held = f"<{weights}>" if weights else ""
    after = GONE.format(opset=17, dtype="bool", shape="[N,2]", held=held) if holds else None
    _check(graph("[N,2]", line, weights, "bool"), after)


def test_negations_cancel():
    check(
        PASS,
        "g (bool[N] x) => (bool[N] y) { a = Not (x) b = Not (a) c = Not (b) y = And (c, a) }",
        "g (bool[N] x) => (bool[N] y) { a = Not (x) c = Not (x) y = And (c, a) }",
        changes=1,
    )
    check(
        PASS,
        "g (float[N] x) => (float[N] y) { a = Neg (x) b = Neg (a) y = Exp (b) }",
        "g (float[N] x) => (float[N] y) { a = Neg (x) y = Exp (x) }",
    )


def test_second_of_two_equal_steps():
    check(
        PASS,
        """g (float[N] x) => (float[N] y) {
            a = Relu (x) b = Relu (a) c = Abs (b) d = Abs (c) e = Ceil (d) f = Floor (e)
            h = Sign (f) i = Sign (h) j = Round (i) y = Exp (j)
        }""",
        """g (float[N] x) => (float[N] y) {
            a = Relu (x) c = Abs (a) e = Ceil (c) h = Sign (e) y = Exp (h)
        }""",
        changes=5,
    )
    check(
        PASS,
        """g (float[N] x) => (float[N] y) {
            a = Abs (x) b = Neg (a) c = Abs (b) d = Relu (c) e = Floor (d) f = Sign (e) h = Exp (f)
            y = Exp (h)
        }""",
    )


OLD_OPSETS = [
    (6, "b = Dropout <is_test = 1> (a)", True),
    (6, "b = Mul <broadcast = 1> (a, k)", False),
    (8, 'b = Upsample <mode = "nearest", scales = [1.0, 1.0]> (a)', True),
    (8, 'b = Upsample <mode = "nearest", scales = [1.0, 2.0]> (a)', False),
    (9, "b = Slice <starts = [0], ends = [9223372036854775807], axes = [0]> (a)", True),
    (9, "b = Slice <starts = [0], ends = [1]> (a)", False),
    (10, "b = Pad <pads = [0, 0, 0, 0]> (a)", True),
    (10, "b = Pad <pads = [0, 0, 0, 1]> (a)", False),
    (11, "b = Squeeze <axes = [1]> (a)", False),
    (11, "b = Unsqueeze <axes = [0]> (a)", False),
    (11, "b = Dropout <ratio = 0.5> (a)", True),
]


@pytest.mark.parametrize(("opset", "line", "holds"), OLD_OPSETS)
def test_old_opsets(opset, line, holds):
    shape = "[N,1]" if "Squeeze" in line else "[N,3]"
    weights = "float k = {1}" if "k)" in line else ""
    after = GONE.format(opset=opset, dtype="float", shape=shape, held="") if holds else None
    text = graph(shape, line, weights, opset=opset).replace("float y", "float[A,B] y")
    after = None if after is None else after.replace("float y", "float[A,B] y")
    if "nsqueeze" in line:
        text = text.replace("[A,B]", "[A,B,C]")
    check(PASS, text, after, runs=opset > 6)  # onnxruntime starts at opset 7


def test_reductions_of_nothing():
    weights = "<int64[0] e = {}>"
    check(
        PASS,
        f"""<ir_version: 9, opset_import: ["" : 18]> g (float[N,3] x) => (float[N,3] y) {weights} {{
            a = ReduceSum <noop_with_empty_axes = 1> (x, e)
            b = ReduceMax <noop_with_empty_axes = 1> (a)
            c = ReduceMean <noop_with_empty_axes = 1> (b, e)
            y = Relu (c)
        }}""",
        f"""<ir_version: 9, opset_import: ["" : 18]>
        g (float[N,3] x) => (float[N,3] y) {weights} {{ y = Relu (x) }}""",
        changes=3,
    )
    check(
        PASS,
        """<ir_version: 9, opset_import: ["" : 18]> g (float[N,3] x) => (float[N,3] y) {
            a = ReduceSum (x)
            b = ReduceSumSquare <noop_with_empty_axes = 1> (x)
            y = Add (a, b)
        }""",
        runs=False,  # runtimes differ in what the second does
    )


def test_mask_that_is_read_keeps_dropout():
    check(
        PASS,
        """g (float[N] x) => (float[N] y) <float k = {2}> {
            a, m = Dropout (x)
            b = Exp (a)
            y = Where (m, b, k)
        }""",
    )


def test_overridable_default_is_no_constant():
    check(
        PASS,
        """g (float[N,3] x, float k = {1}) => (float[N,3] y) { a = Mul (x, k) y = Relu (a) }""",
    )


def test_interface_stays():
    check(
        PASS,
        """g (float[N,3] x) => (float[N,3] y, float[N,3] z, float[N,3] w) <float k = {1}> {
            y = Mul (x, k)
            z = Relu (x)
            w = Mul (z, k)
        }""",
    )
    check(
        PASS,
        """g (float[N,3] x) => (float[N,3] y) <float k = {1}> { a = Relu (x) y = Mul (a, k) }""",
        "g (float[N,3] x) => (float[N,3] y) <float k = {1}> { y = Relu (x) }",
    )


def test_declared_output_shape_is_no_proof():
    check(
        PASS,
        """g (float[M,3] x, float[2] k) => (float[2,3] y, float[2,3] z) <int64[2] s = {2, 3}> {
            y = Relu (x)
            a = Reshape (y, s)
            z = Neg (a)
        }""",
        feeds={"x": np.ones((3, 2), np.float32), "k": np.ones(2, np.float32)},
        runs=False,
    )


def test_symbols_are_no_proof_across_inputs():
    check(
        PASS,
        """g (float[N,3] x, float[N,3] k) => (float[A,3] y) {
            s = Shape (k)
            e = Expand (x, s)
            y = Relu (e)
        }""",
        feeds={"x": np.ones((1, 3), np.float32), "k": np.ones((4, 3), np.float32)},
    )


def test_concat_loses_empty_inputs():
    check(
        PASS,
        """g (float[N,3] x, float[P,3] p) => (float[A,3] y) <float[0,3] e = {}, float[0,3] f = {}> {
            y = Concat <axis = 0> (e, p, f, x)
        }""",
        """g (float[N,3] x, float[P,3] p) => (float[A,3] y) <float[0,3] e = {}, float[0,3] f = {}> {
            y = Concat <axis = 0> (p, x)
        }""",
        feeds={"x": np.ones((2, 3), np.float32), "p": np.zeros((0, 3), np.float32)},
    )
    check(
        PASS,
        """g () => (float[0,3] y) <float[0,3] e = {}, float[0,3] f = {}> {
            a = Concat <axis = 0> (e, f)
            y = Relu (a)
        }""",
        """g () => (float[0,3] y) <float[0,3] e = {}, float[0,3] f = {}> { y = Relu (e) }""",
    )


def test_subgraphs_and_functions():
    check(
        PASS,
        """g (bool p, float[2] x) => (float[2] y) <float k = {1}> {
            y = If (p) <
                then_branch = t () => (float[2] ty) { a = Mul (x, k) ty = Neg (a) },
                else_branch = e () => (float[2] ey) { ey = Mul (x, k) }
            >
        }""",
        """g (bool p, float[2] x) => (float[2] y) <float k = {1}> {
            y = If (p) <
                then_branch = t () => (float[2] ty) { ty = Neg (x) },
                else_branch = e () => (float[2] ey) { ey = Mul (x, k) }
            >
        }""",
    )
    head = """<ir_version: 8, opset_import: ["" : 17, "loc" : 1]>
        g (float[N] x) => (float[N] y) { y = loc.F <t = 1> (x) }
        <domain: "loc", opset_import: ["" : 17]> F <t> (x) => (y) """
    check(
        PASS,
        head + "{ k = Constant <value_float = 1.0> () a = Mul (x, k) b = Cast <to : int = @t> (a) "
        "y = Relu (b) }",
        head + "{ k = Constant <value_float = 1.0> () b = Cast <to : int = @t> (x) y = Relu (b) }",
    )


def test_other_domains_stay():
    check(
        PASS,
        """<ir_version: 8, opset_import: ["" : 17, "org.example" : 1]>
        g (float[N] x) => (float[N] y) { a = org.example.Sum (x) y = Relu (a) }""",
        runs=False,
    )


@pytest.mark.parametrize(("dtype", "one"), [("float16", 0x3C00), ("double", 1)])
def test_other_precisions(dtype, one):
    weights = f"{dtype} k = {{{one}}}"  # half precision is written by its bits
    after = GONE.format(opset=17, dtype=dtype, shape="[N,3]", held=f"<{weights}>")
    _check(graph("[N,3]", "b = Mul (a, k)", weights, dtype), after)
