"""Computed shapes become constants where the dimensions are known."""

from __future__ import annotations

import numpy as np
import pytest
from graph_check import assert_same_outputs, check, parse, run

from onnxslim.passes.simplify.fold_shape_arithmetic import FoldShapeArithmetic

I64 = np.int64
CONSTANTS = """<int64 i0 = {0}, int64 i1 = {1}, int64[1] a0 = {0}, int64[1] a1 = {1},
    int64[1] n3 = {3}, int64[1] n4 = {4}, int64[1] n12 = {12}, int64[1] m1 = {-1}, OWN>"""


def graph(head: str, body: str, own: str = "int64[1] n2 = {2}") -> str:
    return f"{head} {CONSTANTS.replace('OWN', own)} {{ {body} }}"


def folds(
    head: str, body: str, after: str, sizes: tuple[dict[str, tuple[int, ...]], ...] = ()
) -> None:
    """The body after folding, up to constants that the bodies do not read; and every size runs."""
    before = _read_only(graph(head, body))
    model = check(FoldShapeArithmetic(slack=64), before, f"{head} {after}")
    for shapes in sizes:
        rng = np.random.default_rng(0)
        feeds = {
            name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
        }
        assert_same_outputs(run(parse(before), feeds), run(model, feeds), exact=True)


def _read_only(text: str) -> str:
    """Drops the constants of the head that the body does not name."""
    start, end = text.index("<int64 i0"), text.index(", int64[1] n2")
    body = text[text.index("{ ", end) :]
    kept = [
        item.strip()
        for item in text[start + 1 : text.index(">", end)].split(",")
        if item.split("=")[0].split()[1] in body.replace("(", " ").replace(",", " ").split()
        or item.split("=")[0].split()[1] + ")" in body.replace("(", " ").replace(",", " ")
    ]
    initializers = f"<{', '.join(kept)}>" if kept else ""
    return text[:start] + initializers + text[text.index(">", end) + 1 :]


def test_static_shape() -> None:
    folds(
        "g (float[2,3] x, float[N] z) => (float[A,B] y)",
        "s = Shape (x) y = Expand (z, s)",
        "<int64[2] s = {2, 3}> { y = Expand (z, s) }",
        ({"x": (2, 3), "z": (3,)}, {"x": (2, 3), "z": (1,)}),
    )


@pytest.mark.parametrize(
    ("attributes", "numbers"),
    [
        ("start = 1", "3, 4, 5"),
        ("end = 2", "2, 3"),
        ("start = -2", "4, 5"),
        ("start = 1, end = -1", "3, 4"),
        ("start = -9, end = 9", "2, 3, 4, 5"),
        ("start = 3, end = 1", ""),
    ],
)
def test_start_and_end(attributes: str, numbers: str) -> None:
    count = len(numbers.split(",")) if numbers else 0
    check(
        FoldShapeArithmetic(slack=64),
        f"""g (float[2,3,4,5] x, int64[{count}] z) => (int64[{count}] y)
        {{ s = Shape <{attributes}> (x) y = Add (s, z) }}""",
        f"""g (float[2,3,4,5] x, int64[{count}] z) => (int64[{count}] y)
        <int64[{count}] s = {{{numbers}}}> {{ y = Add (s, z) }}""",
    )


def test_partly_static_shape() -> None:
    folds(
        "g (float[N,3] x, int64 z) => (int64 y)",
        "s = Shape (x) n = Gather (s, i1) y = Add (n, z)",
        "<int64 n = {3}> { y = Add (n, z) }",
    )


def test_dynamic_dimension_is_kept() -> None:
    check(
        FoldShapeArithmetic(slack=64),
        """g (float[N,3] x, int64 z) => (int64 y) <int64 i0 = {0}>
        { s = Shape (x) n = Gather (s, i0) y = Add (n, z) }""",
    )


def test_size() -> None:
    check(
        FoldShapeArithmetic(slack=64),
        "g (float[2,3] x, int64 z) => (int64 y) { s = Size (x) y = Add (s, z) }",
        "g (float[2,3] x, int64 z) => (int64 y) <int64 s = {6}> { y = Add (s, z) }",
    )
    check(
        FoldShapeArithmetic(slack=64),
        "g (float[2,N] x, int64 z) => (int64 y) { s = Size (x) y = Add (s, z) }",
    )


def test_arithmetic() -> None:
    check(
        FoldShapeArithmetic(slack=64),
        """g (float[N,7] x, int64[1] z) => (int64[1] y) <int64[1] i = {1}, int64[1] two = {2}>
        { s = Shape (x) d = Gather (s, i) h = Div (d, two) p = Mul (h, two) q = Sub (d, p)
          r = Add (q, h) y = Add (r, z) }""",
        "g (float[N,7] x, int64[1] z) => (int64[1] y) <int64[1] r = {4}> { y = Add (r, z) }",
    )


def test_slice() -> None:
    check(
        FoldShapeArithmetic(slack=64),
        """g (float[N,3,4,5] x, int64[2] z) => (int64[2] y)
        <int64[1] b = {-3}, int64[1] e = {9223372036854775807}, int64[1] a = {0}, int64[1] t = {2}>
        { s = Shape (x) c = Slice (s, b, e, a, t) y = Add (c, z) }""",
        "g (float[N,3,4,5] x, int64[2] z) => (int64[2] y) <int64[2] c = {3, 5}> { y = Add (c, z) }",
    )


def test_cast_to_int32() -> None:
    check(
        FoldShapeArithmetic(slack=64),
        """g (float[2,3] x, int32[2] z) => (int32[2] y)
        { s = Shape (x) c = Cast <to = 6> (s) y = Add (c, z) }""",
        "g (float[2,3] x, int32[2] z) => (int32[2] y) <int32[2] c = {2, 3}> { y = Add (c, z) }",
    )


def test_old_opset_attributes() -> None:
    head = '<ir_version: 4, opset_import: ["" : 9]> g (float[N,3] x, int64[1] z) => (int64[1] y)'
    check(
        FoldShapeArithmetic(slack=64),
        f"""{head} <int64 i = {{1}}>
        {{ s = Shape (x) d = Slice <starts = [1], ends = [2]> (s) e = Gather (s, i)
           f = Unsqueeze <axes = [0]> (e) g = Mul (d, f) y = Add (g, z) }}""",
        f"{head} <int64[1] g = {{9}}> {{ y = Add (g, z) }}",
    )


def test_split_of_heads_keeps_every_size() -> None:
    folds(
        "g (float[B,T,12] x) => (float[B,T,3,4] y)",
        """s = Shape (x) b = Gather (s, i0) t = Gather (s, i1) u = Unsqueeze (b, a0)
        v = Unsqueeze (t, a0) c = Concat <axis = 0> (u, v, n3, n4) y = Reshape (x, c)""",
        "<int64[4] c = {0, 0, 3, 4}> { y = Reshape (x, c) }",
        ({"x": (2, 5, 12)}, {"x": (1, 1, 12)}, {"x": (0, 5, 12)}, {"x": (2, 0, 12)}),
    )


def test_symbol_carried_by_another_value() -> None:
    folds(
        "g (float[B,T,12] x) => (float[B,T,3,4] y)",
        """n = Neg (x) s = Shape (x) h = Slice (s, a0, n2, a0) c = Concat <axis = 0> (h, n3, n4)
        y = Reshape (n, c)""",
        "<int64[4] c = {0, 0, 3, 4}> { n = Neg (x) y = Reshape (n, c) }",
        ({"x": (2, 5, 12)}, {"x": (0, 1, 12)}),
    )


def test_one_unknown_dimension() -> None:
    folds(
        "g (float[3,N,4] x) => (float[M,12] y)",
        """s = Shape (x) n = Gather (s, a1) c = Concat <axis = 0> (n, n12) y = Reshape (x, c)""",
        "<int64[2] c = {-1, 12}> { y = Reshape (x, c) }",
        ({"x": (3, 5, 4)}, {"x": (3, 1, 4)}),
    )


def test_two_unknown_dimensions() -> None:
    check(
        FoldShapeArithmetic(slack=64),
        """g (float[A,B,12] x) => (float[B,A,12] y) <int64[3] i = {1, 0, 2}>
        { s = Shape (x) c = Gather (s, i) y = Reshape (x, c) }""",
    )


def test_unknown_dimension_beside_one_that_may_be_empty() -> None:
    check(
        FoldShapeArithmetic(slack=64),
        """g (float[A,3,B] x) => (float[A,B,3] y)
        <int64[1] a = {0}, int64[1] b = {2}, int64[1] n = {3}>
        { s = Shape (x) p = Gather (s, a) q = Gather (s, b) c = Concat <axis = 0> (p, q, n)
          y = Reshape (x, c) }""",
    )


def test_inferred_dimension_in_the_original() -> None:
    folds(
        "g (float[B,T,12] x) => (float[B,M] y)",
        "s = Shape (x) b = Gather (s, a0) c = Concat <axis = 0> (b, m1) y = Reshape (x, c)",
        "<int64[2] c = {0, -1}> { y = Reshape (x, c) }",
        ({"x": (2, 5, 12)}, {"x": (1, 1, 12)}),
    )


def test_allowzero() -> None:
    """A dimension that is 0 at run time gives 0 both ways, so the attribute can go."""
    check(
        FoldShapeArithmetic(slack=64),
        """g (float[B,12] x) => (float[B,3,4] y) <int64[1] a = {0}, int64[2] n = {3, 4}>
        { s = Shape (x) b = Gather (s, a) c = Concat <axis = 0> (b, n)
          y = Reshape <allowzero = 1> (x, c) }""",
        """g (float[B,12] x) => (float[B,3,4] y) <int64[3] c = {0, 3, 4}>
        { y = Reshape (x, c) }""",
        feeds={"x": np.zeros((0, 12), np.float32)},
    )


def test_allowzero_with_a_literal_zero() -> None:
    check(
        FoldShapeArithmetic(slack=64),
        """g (float[B,0] x) => (float[B,0,4] y) <int64[1] a = {0}, int64[2] n = {0, 4}>
        { s = Shape (x) b = Gather (s, a) c = Concat <axis = 0> (b, n)
          y = Reshape <allowzero = 1> (x, c) }""",
    )


def test_reshapes_that_share_a_shape() -> None:
    """Alone each of them would leave the chain for the other one, and the file would grow."""
    check(
        FoldShapeArithmetic(),
        """g (float[B,12] x, float[B,12] z) => (float[B,3,4] y, float[B,3,4] w)
        <int64[1] a = {0}, int64[2] n = {3, 4}> {
            s = Shape (x) b = Gather (s, a) c = Concat <axis = 0> (b, n)
            y = Reshape (x, c) w = Reshape (z, c)
        }""",
        """g (float[B,12] x, float[B,12] z) => (float[B,3,4] y, float[B,3,4] w)
        <int64[3] c = {0, 3, 4}> { y = Reshape (x, c) w = Reshape (z, c) }""",
        changes=2,
    )


def test_empty_static_dimension() -> None:
    head = "g (float[0,N] x, float[0,N] z) => (float[A,B] y)"
    check(
        FoldShapeArithmetic(slack=64),
        f"""{head} <int64[1] a = {{1}}, int64[1] n = {{0}}>
        {{ s = Shape (x) b = Gather (s, a) c = Concat <axis = 0> (b, n) y = Reshape (z, c) }}""",
        feeds={"x": np.zeros((0, 0), np.float32), "z": np.zeros((0, 0), np.float32)},
    )


def test_declared_shape_of_a_graph_output_is_not_trusted() -> None:
    check(
        FoldShapeArithmetic(slack=64),
        """g (float[N] x, int64[1] z) => (int64[1] y, float[7] r)
        { r = Relu (x) s = Shape (r) y = Add (s, z) }""",
        runs=False,
    )


def test_declared_shape_of_a_loop_value_is_not_trusted() -> None:
    check(
        FoldShapeArithmetic(slack=64),
        """g (int64 n, bool go, float[1] v) => (float[M] last, int64[n] sizes)
        { last, sizes = Loop (n, go, v) <body = b (int64 i, bool c, float[1] w) =>
            (bool d, float[K] e, int64[1] f)
            { d = Identity (c) r = Relu (w) s = Shape (r) f = Neg (s)
              e = Concat <axis = 0> (r, r) }> }""",
        feeds={"n": np.array(3), "go": np.array(True), "v": np.float32([1])},
    )


def test_graph_output_gets_a_constant_node() -> None:
    check(
        FoldShapeArithmetic(slack=64),
        "g (float[2,3] x) => (int64[2] s) { s = Shape (x) }",
        "g (float[2,3] x) => (int64[2] s) { s = Constant <value = int64[2] {2, 3}> () }",
    )


def test_other_readers_keep_the_nodes() -> None:
    check(
        FoldShapeArithmetic(slack=64),
        """g (float[N,3] x, int64 z) => (int64 y, int64[2] k) <int64 i = {1}>
        { s = Shape (x) n = Gather (s, i) y = Add (n, z) k = Neg (s) }""",
        """g (float[N,3] x, int64 z) => (int64 y, int64[2] k) <int64 n = {3}>
        { s = Shape (x) y = Add (n, z) k = Neg (s) }""",
    )


def test_inside_a_branch() -> None:
    check(
        FoldShapeArithmetic(slack=64),
        """g (bool p, float[N,3] x, int64 z) => (int64 y) <int64 i = {1}>
        { s = Shape (x)
          y = If (p) <then_branch = t () => (int64 q) { n = Gather (s, i) q = Add (n, z) },
                      else_branch = e () => (int64 r) { r = Neg (z) }> }""",
        """g (bool p, float[N,3] x, int64 z) => (int64 y)
        { y = If (p) <then_branch = t () => (int64 q)
              { n = Constant <value = int64 {3}> () q = Add (n, z) },
                      else_branch = e () => (int64 r) { r = Neg (z) }> }""",
    )


def test_unknown_rank() -> None:
    check(
        FoldShapeArithmetic(slack=64),
        "g (float x, float[N] k) => (float y) { y = Identity (x) }",
    )
    check(
        FoldShapeArithmetic(slack=64),
        """<ir_version: 10, opset_import: ["" : 17, "other" : 1]>
        g (float[N] x, int64[1] z) => (int64[1] y)
        { r = other.Relu (x) s = Shape (r) y = Add (s, z) }""",
        runs=False,
    )


def test_out_of_range_index() -> None:
    check(
        FoldShapeArithmetic(slack=64),
        """g (float[2,N] x, int64 z) => (int64 y) <int64 i = {5}>
        { t = Shape (x) n = Gather (t, i) y = Add (n, z) }""",
        runs=False,
    )


def test_by_default_the_file_does_not_grow() -> None:
    check(
        FoldShapeArithmetic(),
        before="""g (float[2,3,4,5] x) => (int64[4] y) { s = Shape (x) y = Neg (s) }""",
    )
