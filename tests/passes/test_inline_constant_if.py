"""InlineConstantIf: fires, and each reason not to."""

from __future__ import annotations

import numpy as np
from graph_check import check

from onnxslim.passes.simplify.inline_constant_if import InlineConstantIf

IF = InlineConstantIf()


def model(condition: str, branches: str) -> str:
    return f"""g (float[N] x) => (float[N] y) <bool c = {{{condition}}}> {{
      z = If (c) <{branches}> y = Relu (z)
    }}"""


BRANCHES = """then_branch = t () => (float[N] p) { a = Abs (x) p = Neg (a) },
              else_branch = e () => (float[N] q) { q = Exp (x) }"""


def test_then() -> None:
    check(
        IF,
        before=model("1", BRANCHES),
        after="""g (float[N] x) => (float[N] y) <bool c = {1}> {
          a = Abs (x) z = Neg (a) y = Relu (z) }""",
        changes=1,
    )


def test_else() -> None:
    check(
        IF,
        before=model("0", BRANCHES),
        after="""g (float[N] x) => (float[N] y) <bool c = {0}> { z = Exp (x) y = Relu (z) }""",
    )


def test_graph_output_keeps_its_name() -> None:
    found = check(
        IF,
        before=f"g (float[N] x) => (float[N] y) <bool c = {{1}}> {{ y = If (c) <{BRANCHES}> }}",
        after="g (float[N] x) => (float[N] y) <bool c = {1}> { a = Abs (x) y = Neg (a) }",
    )
    assert found.graph.outputs[0].name == "y"


def test_condition_from_outside_stays() -> None:
    check(
        IF,
        before=f"g (float[N] x, bool c) => (float[N] y) {{ y = If (c) <{BRANCHES}> }}",
    )
    check(
        IF,
        before=f"g (float[N] x, bool c = {{1}}) => (float[N] y) {{ y = If (c) <{BRANCHES}> }}",
    )


def test_equal_names_in_two_branches() -> None:
    check(
        IF,
        before=f"""g (float[N] x) => (float[N] y) <bool c = {{1}}> {{
          z = If (c) <{BRANCHES}>
          w = If (c) <then_branch = t () => (float[N] p) {{ a = Exp (z) p = Abs (a) }},
                      else_branch = e () => (float[N] q) {{ q = Exp (x) }}>
          y = Relu (w)
        }}""",
        after="""g (float[N] x) => (float[N] y) <bool c = {1}> {
          a = Abs (x) z = Neg (a) b = Exp (z) w = Abs (b) y = Relu (w) }""",
        changes=2,
    )


def test_nested_ifs_go_together() -> None:
    inner = """then_branch = i () => (float[N] r) { r = Abs (x) },
               else_branch = j () => (float[N] s) { s = Exp (x) }"""
    check(
        IF,
        before=f"""g (float[N] x) => (float[N] y) <bool c = {{1}}> {{
          z = If (c) <then_branch = t () => (float[N] p) {{ k = If (c) <{inner}> p = Neg (k) }},
                      else_branch = e () => (float[N] q) {{ q = Exp (x) }}>
          y = Relu (z)
        }}""",
        after="""g (float[N] x) => (float[N] y) <bool c = {1}> {
          k = Abs (x) p = Neg (k) y = Relu (p) }""",
        changes=2,
    )


def test_branch_that_returns_a_constant_of_its_own() -> None:
    check(
        IF,
        before="""g (float[2] x) => (float[2] y) <bool c = {1}> {
          y = If (c) <then_branch = t () => (float[2] p) <float[2] p = {1, 2}> { },
                      else_branch = e () => (float[2] q) { q = Exp (x) }>
        }""",
        after="""g (float[2] x) => (float[2] y) <bool c = {1}, float[2] p = {1, 2}> {
          y = Identity (p) }""",
        feeds={"x": np.ones(2, np.float32)},
    )


def test_one_value_for_two_outputs() -> None:
    found = check(
        IF,
        before="""g (float[2] x) => (float[2] y, float[2] w) <bool c = {1}> {
          y, w = If (c) <then_branch = t () => (float[2] p, float[2] p) { p = Abs (x) },
                         else_branch = e () => (float[2] q, float[2] q) { q = Exp (x) }>
        }""",
        after="""g (float[2] x) => (float[2] y, float[2] w) <bool c = {1}> {
          y = Abs (x) w = Identity (y) }""",
        runs=False,  # onnxruntime returns garbage for a branch that returns one value twice
    )
    assert [value.name for value in found.graph.outputs] == ["y", "w"]


def test_function_bodies() -> None:
    head = '<ir_version: 10, opset_import: ["" : 17, "local" : 1]>'
    graph = "g (float[N] x) => (float[N] y) { y = local.f (x) }"
    body = '<opset_import: ["" : 17], domain: "local"> f (x) => (y)'
    constant = "c = Constant <value = bool {1}> ()"
    check(
        IF,
        before=f"{head} {graph} {body} {{ {constant} y = If (c) <{BRANCHES}> }}",
        after=f"{head} {graph} {body} {{ {constant} a = Abs (x) y = Neg (a) }}",
    )


def test_float16_and_captures_of_captures() -> None:
    found = check(
        IF,
        before="""g (float16[N] x) => (float16[N] y) <bool c = {1}> {
          h = Neg (x)
          y = If (c) <then_branch = t () => (float16[N] p) { p = Abs (h) },
                      else_branch = e () => (float16[N] q) { q = Exp (h) }>
        }""",
        after="""g (float16[N] x) => (float16[N] y) <bool c = {1}> { h = Neg (x) y = Abs (h) }""",
    )
    assert len(found.graph) == 2
