"""EliminateCommonSubexpressions: equal nodes become one, and only equal nodes."""

from __future__ import annotations

import math
import time

import numpy as np
import onnx_ir as ir
import pytest
from graph_check import check, parse

from onnxslim.ir.verify import verify
from onnxslim.passes.simplify.eliminate_common_subexpressions import EliminateCommonSubexpressions
from onnxslim.pipeline import Context

PASS = EliminateCommonSubexpressions()


def test_chains_merge_in_one_run():
    check(
        PASS,
        """g (float[N] x) => (float[N] y) {
            a = Relu (x)
            b = Relu (x)
            c = Exp (a)
            d = Exp (b)
            y = Add (c, d)
        }""",
        "g (float[N] x) => (float[N] y) { a = Relu (x) c = Exp (a) y = Add (c, c) }",
        changes=2,
    )


def test_attributes_count():
    check(
        PASS,
        """g (float[N,4] x) => (float[N,4] y) {
            a = Softmax <axis = 0> (x)
            b = Softmax <axis = 1> (x)
            c = Softmax <axis = 1> (x)
            d = Add (a, b)
            y = Add (d, c)
        }""",
        """g (float[N,4] x) => (float[N,4] y) {
            a = Softmax <axis = 0> (x)
            b = Softmax <axis = 1> (x)
            d = Add (a, b)
            y = Add (d, b)
        }""",
    )


def test_small_constants_are_compared_by_content():
    check(
        PASS,
        """g (float[N,2] x) => (float[N,2] y)
        <float[2] k = {1, 2}, float[2] l = {1, 2}, float[2] m = {1, 3}> {
            a = Mul (x, k)
            b = Mul (x, l)
            c = Mul (x, m)
            d = Add (a, b)
            y = Add (d, c)
        }""",
        """g (float[N,2] x) => (float[N,2] y)
        <float[2] k = {1, 2}, float[2] l = {1, 2}, float[2] m = {1, 3}> {
            a = Mul (x, k)
            c = Mul (x, m)
            d = Add (a, a)
            y = Add (d, c)
        }""",
    )


def test_overridable_defaults_are_not_compared_by_content():
    check(
        PASS,
        """g (float[N,2] x, float[2] k = {1, 2}, float[2] l = {1, 2}) => (float[N,2] y) {
            a = Mul (x, k)
            b = Mul (x, l)
            y = Add (a, b)
        }""",
    )


def test_equal_bytes_of_other_type_or_shape():
    check(
        PASS,
        """g () => (int64[1] n, int64[1] m, int64[1] k)
        <float[2] a = {0, 0}, int32[2] b = {0, 0}, float[2,1] c = {0, 0}> {
            s = Shape (a)
            t = Shape (c)
            n = Size (s)
            m = Size (t)
            u = Identity (b)
            v = Identity (a)
            w = Shape (u)
            z = Shape (v)
            q = Size (w)
            r = Size (z)
            k = Add (q, r)
        }""".replace("int64[1]", "int64"),
    )


@pytest.mark.parametrize("values", [(math.nan, math.nan), (0.0, 0.0)])
def test_equal_bits_merge(values):
    assert _merges(*values)


@pytest.mark.parametrize("values", [(0.0, -0.0), (math.nan, 1.0)])
def test_other_bits_stay(values):
    assert not _merges(*values)


def _merges(first: float, second: float) -> bool:
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=["N"])
    nodes = [ir.node("LeakyRelu", [x], attributes={"alpha": each}) for each in (first, second)]
    y = ir.node("Add", [nodes[0].outputs[0], nodes[1].outputs[0]])
    model = ir.Model(
        ir.Graph([x], y.outputs, nodes=[*nodes, y], opset_imports={"": 17}), ir_version=10
    )
    return PASS(model, Context(model)).changes == 1


def test_constant_nodes():
    check(
        PASS,
        """g (float[N] x) => (float[N] y) {
            k = Constant <value = float[1] {2}> ()
            l = Constant <value = float[1] {2}> ()
            m = Constant <value_floats = [2.0]> ()
            a = Mul (x, k)
            b = Mul (a, l)
            y = Mul (b, m)
        }""",
        """g (float[N] x) => (float[N] y) {
            k = Constant <value = float[1] {2}> ()
            m = Constant <value_floats = [2.0]> ()
            a = Mul (x, k)
            b = Mul (a, k)
            y = Mul (b, m)
        }""",
    )


def test_random_nodes_stay():
    check(
        PASS,
        """g (float[4] x) => (float[4] y) {
            a = RandomNormalLike (x)
            b = RandomNormalLike (x)
            y = Sub (a, b)
        }""",
        feeds={},
        runs=False,
    )


def test_training_dropout_stays():
    check(
        PASS,
        """g (float[4] x, bool t) => (float[4] y) <float r = {0.5}> {
            a = Dropout (x, r, t)
            b = Dropout (x, r, t)
            y = Sub (a, b)
        }""",
        runs=False,
    )


def test_output_takes_the_name_over():
    check(
        PASS,
        """g (float[N] x) => (float[N] y, float[N] z) {
            a = Relu (x)
            y = Relu (x)
            z = Add (a, y)
        }""",
        "g (float[N] x) => (float[N] y, float[N] z) { y = Relu (x) z = Add (y, y) }",
    )


def test_two_outputs_stay():
    check(PASS, "g (float[N] x) => (float[N] y, float[N] z) { y = Relu (x) z = Relu (x) }")


def test_number_and_presence_of_outputs_count():
    check(
        PASS,
        """g (float[4] x) => (float[2] y, float[2] z) {
            a, b = Split <axis = 0> (x)
            c, d = Split <axis = 0> (x)
            y = Add (a, d)
            z = Add (c, b)
        }""",
        """g (float[4] x) => (float[2] y, float[2] z) {
            a, b = Split <axis = 0> (x)
            y = Add (a, b)
            z = Add (a, b)
        }""",
        changes=1,
    )
    check(
        PASS,
        """g (float[2,3] x) => (float[2,3] y, int64[K] z) {
            y, m = Dropout (x)
            v = Unique (x)
            w, i = Unique (x)
            z = Shape (w)
        }""",
    )


def test_branches_merge_inside_but_not_with_each_other():
    check(
        PASS,
        """g (bool p, float[2] x) => (float[2] y) {
            o = Exp (x)
            z = If (p) <
                then_branch = t () => (float[2] ty) { a = Exp (x) b = Exp (x) ty = Add (a, b) },
                else_branch = e () => (float[2] ey) { a = Exp (x) ey = Neg (a) }
            >
            y = Add (z, o)
        }""",
        """g (bool p, float[2] x) => (float[2] y) {
            o = Exp (x)
            z = If (p) <
                then_branch = t () => (float[2] ty) { a = Exp (x) ty = Add (a, a) },
                else_branch = e () => (float[2] ey) { a = Exp (x) ey = Neg (a) }
            >
            y = Add (z, o)
        }""",
        runs=False,
    )


def test_value_captured_by_a_branch_is_replaced_there():
    check(
        PASS,
        """g (bool p, float[2] x) => (float[2] y) {
            a = Exp (x)
            b = Exp (x)
            z = If (p) <
                then_branch = t () => (float[2] ty) { ty = Add (a, b) },
                else_branch = e () => (float[2] ey) { ey = Neg (b) }
            >
            y = Add (z, a)
        }""",
        """g (bool p, float[2] x) => (float[2] y) {
            a = Exp (x)
            z = If (p) <
                then_branch = t () => (float[2] ty) { ty = Add (a, a) },
                else_branch = e () => (float[2] ey) { ey = Neg (a) }
            >
            y = Add (z, a)
        }""",
    )


def test_control_flow_itself_stays():
    check(
        PASS,
        """g (bool p, float[2] x) => (float[2] y) {
            a = If (p) <
                then_branch = t () => (float[2] ty) { ty = Exp (x) },
                else_branch = e () => (float[2] ey) { ey = Neg (x) }
            >
            b = If (p) <
                then_branch = u () => (float[2] uy) { uy = Abs (x) },
                else_branch = v () => (float[2] vy) { vy = Neg (x) }
            >
            y = Sub (a, b)
        }""",
    )


def test_functions_and_unknown_domains_stay():
    check(
        PASS,
        """<ir_version: 10, opset_import: ["" : 17, "loc" : 1, "org.example" : 1]>
        g (float[N] x) => (float[N] y) {
            a = loc.F (x)
            b = loc.F (x)
            c = org.example.G (a, b)
            d = org.example.G (a, b)
            y = Add (c, d)
        }
        <domain: "loc", opset_import: ["" : 17]> F (x) => (y) { y = RandomNormalLike (x) }""",
        runs=False,
    )


def test_function_body_with_attribute_references():
    head = """<ir_version: 10, opset_import: ["" : 17, "loc" : 1]>
        g (float[N] x) => (float[N] y) { y = loc.F <p = 0.1, q = 0.2> (x) }
        <domain: "loc", opset_import: ["" : 17]> F <p, q> (x) => (y) """
    check(
        PASS,
        head
        + """{
            a = LeakyRelu <alpha : float = @p> (x)
            b = LeakyRelu <alpha : float = @p> (x)
            c = LeakyRelu <alpha : float = @q> (x)
            d = Sub (a, c)
            y = Sub (d, b)
        }""",
        head
        + """{
            a = LeakyRelu <alpha : float = @p> (x)
            c = LeakyRelu <alpha : float = @q> (x)
            d = Sub (a, c)
            y = Sub (d, a)
        }""",
    )


def test_absent_inputs_at_the_end_are_the_same():
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=["N"])
    nodes = [ir.node("Clip", [x, *rest]) for rest in ([], [None], [None, None])]
    y = ir.node("Sum", [node.outputs[0] for node in nodes])
    graph = ir.Graph([x], y.outputs, nodes=[*nodes, y], opset_imports={"": 17})
    model = ir.Model(graph, ir_version=10)
    assert PASS(model, Context(model)).changes == 2


def test_large_tensor_attributes_are_left_to_deduplication():
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=["N", 1])
    content = np.zeros((1, 20_000), np.float32)
    nodes = [ir.node("Constant", [], attributes={"value": ir.tensor(content)}) for _ in range(2)]
    y = ir.node("Sub", [nodes[0].outputs[0], nodes[1].outputs[0]])
    graph = ir.Graph([x], y.outputs, nodes=[*nodes, y], opset_imports={"": 17})
    model = ir.Model(graph, ir_version=10)
    assert PASS(model, Context(model)).changes == 0


def test_many_merges_into_one_wide_node_take_linear_time():
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=["N"])
    nodes = [ir.node("Relu", [x]) for _ in range(20_000)]
    total = ir.node("Sum", [node.outputs[0] for node in nodes])
    graph = ir.Graph([x], total.outputs, nodes=[*nodes, total], opset_imports={"": 17})
    model = ir.Model(graph, ir_version=10)
    started = time.perf_counter()
    assert PASS(model, Context(model)).changes == 19_999
    assert time.perf_counter() - started < 5
    verify(model)
    kept = nodes[0].outputs[0]
    assert len(graph) == 2
    assert total.inputs == (kept,) * 20_000
    assert list(kept.uses()) == [(total, index) for index in range(20_000)]


def test_limit():
    model = parse(
        """g (float[N] x) => (float[N] y) {
            a = Relu (x) b = Relu (x) c = Relu (x) y = Sum (a, b, c)
        }"""
    )
    assert PASS(model, Context(model, limit=1)).changes == 1
    assert [node.op_type for node in model.graph] == ["Relu", "Relu", "Sum"]
