"""SinkTransposes: fires, and each reason not to."""

from __future__ import annotations

import pytest
from graph_check import check, parse

from onnxslim.ir import shapes
from onnxslim.passes.simplify.sink_transposes import SinkTransposes
from onnxslim.pipeline import Context

SINK = SinkTransposes()
DOWN, UP = "Transpose <perm = [0, 2, 3, 1]>", "Transpose <perm = [0, 3, 1, 2]>"
HEAD = "g (float[N,2,3,4] x) => (float[N,2,3,4] y)"


def test_one_unary() -> None:
    check(
        SINK,
        before=f"{HEAD} {{ a = {DOWN} (x) b = Relu (a) y = {UP} (b) }}",
        after=f"{HEAD} {{ b = Relu (x) a = {DOWN} (b) y = {UP} (a) }}",
        changes=1,
    )


def test_a_chain_in_one_run() -> None:
    check(
        SINK,
        before=f"""{HEAD} <float low = {{0}}, float high = {{6}}, float two = {{2}}> {{
          a = {DOWN} (x) b = Clip (a, low, high) c = Mul (two, b) y = {UP} (c) }}""",
        after=f"""{HEAD} <float low = {{0}}, float high = {{6}}, float two = {{2}}> {{
          b = Clip (x, low, high) c = Mul (two, b) a = {DOWN} (c) y = {UP} (a) }}""",
        changes=2,
    )


def test_two_transposes_become_one() -> None:
    check(
        SINK,
        before="""g (float[2,3] x, float[2,3] z) => (float[3,2] y) {
          a = Transpose (x) b = Transpose <perm = [1, 0]> (z) y = Add (a, b) }""",
        after="""g (float[2,3] x, float[2,3] z) => (float[3,2] y) {
          c = Add (x, z) y = Transpose <perm = [1, 0]> (c) }""",
    )


def test_broadcasting_of_equal_ranks() -> None:
    check(
        SINK,
        before="""g (float[2,3] x, float[1,3] z) => (float[3,2] y) {
          a = Transpose <perm = [1, 0]> (x) b = Transpose <perm = [1, 0]> (z) y = Sub (a, b) }""",
        after="""g (float[2,3] x, float[1,3] z) => (float[3,2] y) {
          c = Sub (x, z) y = Transpose <perm = [1, 0]> (c) }""",
    )


def test_the_same_value_twice() -> None:
    check(
        SINK,
        before=f"{HEAD} {{ a = {DOWN} (x) b = Mul (a, a) y = {UP} (b) }}",
        after=f"{HEAD} {{ b = Mul (x, x) a = {DOWN} (b) y = {UP} (a) }}",
    )


@pytest.mark.parametrize(
    "body",
    [
        f"a = {DOWN} (x) b = Relu (a) y = Reshape (b, s)",  # no Transpose below
        f"a = {DOWN} (x) b = Softmax <axis = 1> (a) y = {UP} (b)",  # not elementwise
        f"a = {DOWN} (x) b = Relu (a) c = Add (b, a) y = {UP} (c)",  # another reader above
        f"a = {DOWN} (x) b = Add (a, v) y = {UP} (b)",  # a vector along the last axis
        f"a = {DOWN} (x) b = PRelu (a, v) y = {UP} (b)",
    ],
)
def test_refusals(body: str) -> None:
    check(
        SINK,
        before=f"""{HEAD} <float[2] v = {{1, 2}}, int64[4] s = {{-1, 2, 3, 4}}> {{ {body} }}""",
    )


def test_other_permutations_stay() -> None:
    check(
        SINK,
        before="""g (float[2,2,2] x, float[2,2,2] z) => (float[2,2,2] y) {
          a = Transpose <perm = [0, 2, 1]> (x) b = Transpose <perm = [1, 0, 2]> (z)
          y = Add (a, b) }""",
    )


def test_other_ranks_stay() -> None:
    check(
        SINK,
        before="""g (float[2,2,2] x, float[2,2] z) => (float[2,2,2] y) {
          a = Transpose <perm = [0, 2, 1]> (x) b = Transpose <perm = [1, 0]> (z)
          y = Add (a, b) }""",
    )


def test_a_transpose_that_is_an_output_stays() -> None:
    check(
        SINK,
        before=f"""g (float[N,2,3,4] x) => (float[N,2,3,4] y, float[N,3,4,2] a) {{
          a = {DOWN} (x) b = Relu (a) y = {UP} (b) }}""",
    )


def test_a_captured_transpose_stays() -> None:
    check(
        SINK,
        before=f"""g (bool c, float[N,2,3,4] x) => (float[N,2,3,4] y, float[N,3,4,2] z) {{
          a = {DOWN} (x) b = Relu (a) y = {UP} (b)
          z = If (c) <then_branch = t () => (float[N,3,4,2] p) {{ p = Abs (a) }},
                      else_branch = e () => (float[N,3,4,2] q) {{ q = Exp (a) }}> }}""",
    )


def test_overridable_scalars_are_no_constants() -> None:
    check(
        SINK,
        before=f"""g (float[N,2,3,4] x, float two = {{2}}) => (float[N,2,3,4] y) {{
          a = {DOWN} (x) b = Mul (a, two) y = {UP} (b) }}""",
    )


def test_float16_and_function_bodies() -> None:
    head = '<ir_version: 10, opset_import: ["" : 17, "local" : 1]>'
    graph = "g (float16[N,2,3,4] x) => (float16[N,2,3,4] y) { y = local.f (x) }"
    body = '<opset_import: ["" : 17], domain: "local"> f (x) => (y)'
    check(
        SINK,
        before=f"{head} {graph} {body} {{ a = {DOWN} (x) b = Neg (a) y = {UP} (b) }}",
        after=f"""{head} {graph} {body} {{
        b_untransposed = Neg (x) b = {DOWN} (b_untransposed) y = {UP} (b) }}""",
    )


def test_shapes_follow() -> None:
    model = parse(f"{HEAD} {{ a = {DOWN} (x) b = Relu (a) y = {UP} (b) }}")
    shapes.infer(model)
    SINK(model, Context(model))
    relu, down, _ = list(model.graph)
    assert [shapes.dim(relu.outputs[0], axis) for axis in range(4)] == ["N", 2, 3, 4]
    assert [shapes.dim(down.outputs[0], axis) for axis in range(4)] == ["N", 3, 4, 2]
