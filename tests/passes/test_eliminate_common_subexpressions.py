"""EliminateCommonSubexpressions: fires, and each reason not to."""

from __future__ import annotations

import time

import onnx_ir as ir
import pytest
from graph_check import check, parse

from onnxslim.passes.simplify.eliminate_common_subexpressions import (
    EliminateCommonSubexpressions,
)
from onnxslim.pipeline import Context

CSE = EliminateCommonSubexpressions()


def test_equal_nodes_become_one() -> None:
    check(
        CSE,
        before="g (float[N] x) => (float[N] y) { a = Relu (x) b = Relu (x) y = Add (a, b) }",
        after="g (float[N] x) => (float[N] y) { a = Relu (x) y = Add (a, a) }",
    )


def test_whole_chains_in_one_run() -> None:
    check(
        CSE,
        before="""g (float[N] x) => (float[N] y) {
          a = Relu (x) b = Exp (a) c = Relu (x) d = Exp (c) y = Add (b, d)
        }""",
        after="g (float[N] x) => (float[N] y) { a = Relu (x) b = Exp (a) y = Add (b, b) }",
        changes=2,
    )


def test_output_keeps_its_name() -> None:
    check(
        CSE,
        before="""g (float[N] x) => (float[N] y, float[N] z) {
          a = Relu (x) y = Relu (x) z = Exp (a)
        }""",
        after="g (float[N] x) => (float[N] y, float[N] z) { y = Relu (x) z = Exp (y) }",
    )


def test_two_outputs_stay_two() -> None:
    check(CSE, before="g (float[N] x) => (float[N] y, float[N] z) { y = Relu (x) z = Relu (x) }")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("LeakyRelu <alpha = 0.1> (x)", "LeakyRelu <alpha = 0.2> (x)"),
        ("Softmax <axis = 0> (x)", "Softmax <axis = 1> (x)"),
        ("LeakyRelu <alpha = 0.0> (x)", "LeakyRelu <alpha = -0.0> (x)"),
        ("RandomNormalLike (x)", "RandomNormalLike (x)"),
        ("RandomNormalLike <seed = 1.0> (x)", "RandomNormalLike <seed = 1.0> (x)"),
        ("Bernoulli (u)", "Bernoulli (u)"),
        ("Sub (x, u)", "Sub (u, x)"),
    ],
)
def test_different_or_random_nodes_stay(one: str, other: str) -> None:
    text = f"""g (float[2,3] x) => (float[2,3] y) {{
      u = Sigmoid (x) a = {one} b = {other} y = Add (a, b)
    }}"""
    check(CSE, before=text, runs="Random" not in text and "Bernoulli" not in text)


def test_unknown_domains_stay() -> None:
    check(
        CSE,
        before="""<ir_version: 10, opset_import: ["" : 17, "com.example" : 1]>
        g (float[N] x) => (float[N] y) {
          a = com.example.Noise (x) b = com.example.Noise (x) y = Add (a, b)
        }""",
        runs=False,
    )


def test_constant_nodes_by_value() -> None:
    check(
        CSE,
        before="""g (float[2] x) => (float[2] y) {
          a = Constant <value_floats = [1.0, 2.0]> ()
          b = Constant <value_floats = [1.0, 2.0]> ()
          c = Add (x, a)
          y = Mul (c, b)
        }""",
        after="""g (float[2] x) => (float[2] y) {
          a = Constant <value_floats = [1.0, 2.0]> ()
          c = Add (x, a)
          y = Mul (c, a)
        }""",
    )


def test_each_graph_on_its_own() -> None:
    check(
        CSE,
        before="""g (bool c, float[N] x) => (float[N] y) {
          a = Relu (x)
          z = If (c) <then_branch = t () => (float[N] p) {
                        b = Relu (x) d = Relu (x) p = Add (b, d) },
                      else_branch = e () => (float[N] q) { q = Exp (x) }>
          y = Add (a, z)
        }""",
        after="""g (bool c, float[N] x) => (float[N] y) {
          a = Relu (x)
          z = If (c) <then_branch = t () => (float[N] p) { b = Relu (x) p = Add (b, b) },
                      else_branch = e () => (float[N] q) { q = Exp (x) }>
          y = Add (a, z)
        }""",
    )


def test_nodes_with_several_outputs() -> None:
    check(
        CSE,
        before="""g (float[4] x) => (float[2] y, float[2] z) {
          a, b = Split (x) c, d = Split (x) y = Add (a, d) z = Mul (b, c)
        }""",
        after="""g (float[4] x) => (float[2] y, float[2] z) {
          a, b = Split (x) y = Add (a, b) z = Mul (b, a)
        }""",
    )


def test_function_bodies_with_attribute_references() -> None:
    head = '<ir_version: 10, opset_import: ["" : 17, "local" : 1]>'
    graph = "g (float[N] x) => (float[N] y) { y = local.f <alpha = 0.5> (x) }"
    body = '<opset_import: ["" : 17], domain: "local"> f <alpha> (p) => (q)'
    leaky = "LeakyRelu <alpha: float = @alpha> (p)"
    check(
        CSE,
        before=f"{head} {graph} {body} {{ a = {leaky} b = {leaky} q = Add (a, b) }}",
        after=f"{head} {graph} {body} {{ a = {leaky} q = Add (a, a) }}",
    )


def test_time_grows_with_the_graph() -> None:
    def seconds(count: int) -> float:
        lines = " ".join(f"a{i} = Relu (x) b{i} = Neg (a{i})" for i in range(count))
        model: ir.Model = parse(f"g (float[N] x) => (float[N] y) {{ {lines} y = Exp (b0) }}")
        started = time.perf_counter()
        assert CSE(model, Context(model)).changes == 2 * count - 2
        return time.perf_counter() - started

    seconds(100)
    assert seconds(4000) < 12 * max(seconds(1000), 0.01)
