"""EliminateIdentity: copies go, the interface stays."""

from __future__ import annotations

import onnx_ir as ir
from graph_check import check, parse

from onnxslim.passes.simplify.eliminate_identity import EliminateIdentity
from onnxslim.pipeline import Context

PASS = EliminateIdentity()


def test_inner_copies():
    check(
        PASS,
        """g (float[N] x) => (float[N] y) {
            a = Identity (x)
            b = Identity (a)
            c = Relu (b)
            d = Identity (c)
            y = Add (d, a)
        }""",
        "g (float[N] x) => (float[N] y) { c = Relu (x) y = Add (c, x) }",
        changes=3,
    )


def test_output_name_moves_to_the_original():
    check(
        PASS,
        """g (float[N] x) => (float[N] y, float[N] z) {
            a = Relu (x)
            y = Identity (a)
            z = Neg (a)
        }""",
        "g (float[N] x) => (float[N] y, float[N] z) { y = Relu (x) z = Neg (y) }",
    )


def test_input_or_weight_to_output_stays():
    check(
        PASS,
        """g (float[N] x) => (float[N] y, float[2] z) <float[2] w = {1, 2}> {
            y = Identity (x)
            z = Identity (w)
        }""",
    )


def test_output_to_output_stays():
    check(
        PASS,
        "g (float[N] x) => (float[N] a, float[N] y) { a = Relu (x) y = Identity (a) }",
    )


def test_two_outputs_of_one_value():
    check(
        PASS,
        """g (float[N] x) => (float[N] y, float[N] z) {
            a = Relu (x)
            y = Identity (a)
            z = Identity (a)
        }""",
        """g (float[N] x) => (float[N] y, float[N] z) {
            y = Relu (x)
            z = Identity (y)
        }""",
        changes=1,
    )


def test_subgraph_may_not_return_an_outer_value():
    check(
        PASS,
        """g (bool p, float[2] x) => (float[2] y) {
            a = Relu (x)
            y = If (p) <
                then_branch = t () => (float[2] ty) { ty = Identity (a) },
                else_branch = e () => (float[2] ey) { b = Identity (a) ey = Neg (b) }
            >
        }""",
        """g (bool p, float[2] x) => (float[2] y) {
            a = Relu (x)
            y = If (p) <
                then_branch = t () => (float[2] ty) { ty = Identity (a) },
                else_branch = e () => (float[2] ey) { ey = Neg (a) }
            >
        }""",
        changes=1,
    )


def test_copy_captured_by_a_subgraph():
    check(
        PASS,
        """g (bool p, float[2] x) => (float[2] y) {
            b = Identity (x)
            y = If (p) <
                then_branch = t () => (float[2] ty) { ty = Abs (b) },
                else_branch = e () => (float[2] ey) { ey = Neg (b) }
            >
        }""",
        """g (bool p, float[2] x) => (float[2] y) {
            y = If (p) <
                then_branch = t () => (float[2] ty) { ty = Abs (x) },
                else_branch = e () => (float[2] ey) { ey = Neg (x) }
            >
        }""",
    )


def test_name_that_a_branch_defines_again_is_not_captured():
    check(
        PASS,
        """g (bool p, float[2] x) => (float[2] y) {
            a = Abs (x)
            b = Identity (a)
            y = If (p) <
                then_branch = t () => (float[2] ty) { a = Exp (x) ty = Add (a, b) },
                else_branch = e () => (float[2] ey) { ey = Neg (b) }
            >
        }""",
        runs=False,  # onnxruntime does not take the repeated name
    )


def test_loop_condition_passed_on():
    check(
        PASS,
        """g (float[2] x) => (float[2] y) <int64 m = {3}, bool c = {1}> {
            y = Loop (m, c, x) <body = b (int64 i, bool go, float[2] v) => (bool on, float[2] w) {
                on = Identity (go)
                k = Identity (v)
                w = Add (k, k)
            }>
        }""",
        """g (float[2] x) => (float[2] y) <int64 m = {3}, bool c = {1}> {
            y = Loop (m, c, x) <body = b (int64 i, bool go, float[2] v) => (bool on, float[2] w) {
                on = Identity (go)
                w = Add (v, v)
            }>
        }""",
    )


def test_sequences():
    check(
        PASS,
        """g (float[N] x) => (float[M] y) {
            s = SequenceConstruct (x, x)
            t = Identity (s)
            y = ConcatFromSequence <axis = 0> (t)
        }""",
        """g (float[N] x) => (float[M] y) {
            s = SequenceConstruct (x, x)
            y = ConcatFromSequence <axis = 0> (s)
        }""",
    )


def test_function_body():
    head = '<ir_version: 10, opset_import: ["" : 17, "loc" : 1]>'
    check(
        PASS,
        head
        + "g (float[N] x) => (float[N] y) { y = loc.F (x) }"
        + '<domain: "loc", opset_import: ["" : 17]> F (x) => (y) '
        + "{ a = Identity (x) b = Neg (a) y = Identity (b) }",
        head
        + "g (float[N] x) => (float[N] y) { y = loc.F (x) }"
        + '<domain: "loc", opset_import: ["" : 17]> F (x) => (y) { y = Neg (x) }',
        changes=2,
    )


def test_identity_of_another_domain_stays():
    check(
        PASS,
        """<ir_version: 10, opset_import: ["" : 17, "org.example" : 1]>
        g (float[N] x) => (float[N] y) { a = org.example.Identity (x) y = Neg (a) }""",
        runs=False,
    )


def test_original_learns_what_the_copy_knew():
    model = parse(
        """<ir_version: 10, opset_import: ["" : 17, "org.example" : 1]>
        g (float[N] x) => (float[N] y) { a = org.example.F (x) b = Identity (a) y = Neg (b) }"""
    )
    copy = model.graph[1].outputs[0]
    copy.type = ir.TensorType(ir.DataType.FLOAT)
    copy.shape = ir.Shape(["N"])
    assert PASS(model, Context(model)).changes == 1
    original = model.graph[0].outputs[0]
    assert original.dtype == ir.DataType.FLOAT
    assert original.shape == ["N"]


def test_value_that_a_subgraph_returns_by_name_stays():
    model = parse(
        """g (bool p, float[2] x) => (float[2] y) {
            a = Relu (x)
            b = Identity (a)
            y = If (p) <
                then_branch = t () => (float[2] b) { },
                else_branch = e () => (float[2] ey) { ey = Neg (b) }
            >
        }"""
    )
    assert PASS(model, Context(model)).changes == 0


def test_annotated_copy_stays():
    model = parse("g (float[N] x) => (float[N] y) { a = Relu (x) b = Identity (a) y = Neg (b) }")
    model.graph[1].outputs[0].meta["quant_parameter_tensor_names"] = {"SCALE_TENSOR": "s"}
    assert PASS(model, Context(model)).changes == 0
