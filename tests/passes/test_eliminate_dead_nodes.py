"""EliminateDeadNodes: what no output depends on goes, and nothing else."""

from __future__ import annotations

import time

import onnx_ir as ir
from graph_check import check, parse

from onnxslim.passes.simplify.eliminate_dead_nodes import EliminateDeadNodes
from onnxslim.pipeline import Context

PASS = EliminateDeadNodes()


def test_chain_and_its_weights():
    check(
        PASS,
        """g (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}, float[2] k = {3, 4}> {
            a = Add (x, w)
            b = Exp (a)
            y = Mul (x, k)
        }""",
        """g (float[N,2] x) => (float[N,2] y) <float[2] k = {3, 4}> {
            y = Mul (x, k)
        }""",
        changes=3,
    )


def test_outputs_are_uses():
    check(
        PASS,
        """g (float[N] x) => (float[N] a, float[N] y) {
            a = Exp (x)
            y = Neg (a)
        }""",
    )


def test_random_nodes_go():
    check(
        PASS,
        """g (float[N] x) => (float[N] y) {
            r = RandomNormal <shape = [4]> ()
            y = Neg (x)
        }""",
        "g (float[N] x) => (float[N] y) { y = Neg (x) }",
    )


def test_initializer_that_is_an_input_or_an_output_stays():
    model = check(
        PASS,
        """g (float[N] x) => (float[N] y, float[1] w)
        <float[1] w = {1}, float[1] d = {2}> { y = Neg (x) }""",
        """g (float[N] x) => (float[N] y, float[1] w) <float[1] w = {1}> { y = Neg (x) }""",
    )
    assert list(model.graph.initializers) == ["w"]
    model = check(PASS, "g (float[N] x, float[1] d = {2}) => (float[N] y) { y = Neg (x) }")
    assert [value.name for value in model.graph.inputs] == ["x", "d"]


def test_subgraph_inside_and_what_it_captures():
    check(
        PASS,
        """g (bool p, float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
            a = Add (x, w)
            b = Exp (x)
            y = If (p) <
                then_branch = t () => (float[2] ty) { dead = Mul (a, a) ty = Neg (b) },
                else_branch = e () => (float[2] ey) { ey = Abs (x) }
            >
        }""",
        """g (bool p, float[2] x) => (float[2] y) {
            b = Exp (x)
            y = If (p) <
                then_branch = t () => (float[2] ty) { ty = Neg (b) },
                else_branch = e () => (float[2] ey) { ey = Abs (x) }
            >
        }""",
        changes=3,
    )


def test_dead_control_flow_frees_what_it_captured():
    check(
        PASS,
        """g (bool p, float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
            a = Add (x, w)
            dead = If (p) <
                then_branch = t () => (float[2] ty) {
                    ty = If (p) <
                        then_branch = tt () => (float[2] tty) { tty = Neg (a) },
                        else_branch = te () => (float[2] tey) { tey = Abs (a) }
                    >
                },
                else_branch = e () => (float[2] ey) { ey = Abs (a) }
            >
            y = Neg (x)
        }""",
        "g (bool p, float[2] x) => (float[2] y) { y = Neg (x) }",
        changes=3,
    )


def test_optional_outputs_at_the_end():
    check(
        PASS,
        """g (float[2,3] x) => (float[2,3] y, float[2,3] z) {
            y, mask = Dropout (x)
            z, mean, deviation = LayerNormalization (x, s)
        }""".replace("{\n", "<float[3] s = {1, 1, 1}> {\n", 1),
        """g (float[2,3] x) => (float[2,3] y, float[2,3] z) <float[3] s = {1, 1, 1}> {
            y = Dropout (x)
            z = LayerNormalization (x, s)
        }""",
        changes=2,
    )


def test_outputs_that_are_not_optional_stay():
    check(
        PASS,
        """g (float[4] x) => (float[2] y) {
            y, rest = Split (x)
        }""".replace("Split (x)", "Split <axis = 0> (x)"),
    )


def test_used_output_after_an_unused_one_stays():
    check(
        PASS,
        """g (float[2,3] x) => (float[2,3] z, float[2,1] d) <float[3] s = {1, 1, 1}> {
            z, mean, d = LayerNormalization (x, s)
        }""",
    )


def test_training_normalization_keeps_its_outputs():
    check(
        PASS,
        """<ir_version: 7, opset_import: ["" : 13]>
        g (float[2,3,4] x) => (float[2,3,4] y)
        <float[3] s = {1, 1, 1}, float[3] b = {0, 0, 0}, float[3] m = {0, 0, 0},
         float[3] v = {1, 1, 1}> {
            y, m2, v2, sm, sv = BatchNormalization (x, s, b, m, v)
        }""",
        runs=False,
    )


def test_unknown_operators_stay_with_a_reason():
    text = """<ir_version: 10, opset_import: ["" : 17, "org.example" : 1]>
        g (float[N] x) => (float[N] y) {
            a = Exp (x)
            log = org.example.Print (a)
            box = BoxFilter (a)
            y = Neg (x)
        }"""
    check(PASS, text, runs=False)
    model = parse(text)
    context = Context(model)
    PASS(model, context)
    assert {site for _, site in context.refusals} == {"log", "box"}


def test_unknown_operator_inside_a_dead_branch_keeps_the_branch():
    check(
        PASS,
        """<ir_version: 10, opset_import: ["" : 17, "org.example" : 1]>
        g (bool p, float[N] x) => (float[N] y) {
            dead = If (p) <
                then_branch = t () => (float[N] ty) { ty = org.example.Print (x) },
                else_branch = e () => (float[N] ey) { ey = Abs (x) }
            >
            y = Neg (x)
        }""",
        runs=False,
    )


FUNCTIONS = """
    <domain: "loc", opset_import: ["" : 17]> Pure (x) => (y) { dead = Exp (x) y = Neg (x) }
    <domain: "loc", opset_import: ["" : 17, "org.example" : 1]>
    Printing (x) => (y) { y = org.example.Print (x) }
    <domain: "loc", opset_import: ["" : 17]> Unused (x) => (y) { y = Abs (x) }
"""
HEAD = '<ir_version: 10, opset_import: ["" : 17, "loc" : 1, "org.example" : 1]>'


def test_functions_are_swept_and_dropped_when_nobody_calls_them():
    model = check(
        PASS,
        HEAD + "g (float[N] x) => (float[N] y) { y = loc.Pure (x) }" + FUNCTIONS,
        HEAD
        + "g (float[N] x) => (float[N] y) { y = loc.Pure (x) }"
        + '<domain: "loc", opset_import: ["" : 17]> Pure (x) => (y) { y = Neg (x) }',
        changes=3,
    )
    assert model.graph.opset_imports == {"": 17, "loc": 1, "org.example": 1}


def test_unread_call_goes_unless_the_function_holds_something_unknown():
    model = check(
        PASS,
        HEAD
        + "g (float[N] x) => (float[N] y) { a = loc.Pure (x) b = loc.Printing (x) y = Neg (x) }"
        + FUNCTIONS,
        HEAD
        + "g (float[N] x) => (float[N] y) { b = loc.Printing (x) y = Neg (x) }"
        + FUNCTIONS.splitlines()[2]
        + FUNCTIONS.splitlines()[3],
        runs=False,
    )
    assert [key[1] for key in model.functions] == ["Printing"]


def test_tensors_named_by_annotations_stay():
    model = parse(
        """g (float[N] x) => (float[N] y) <float scale = {0.5}, float other = {2}> {
            y = Neg (x)
        }"""
    )
    model.graph.outputs[0].meta["quant_parameter_tensor_names"] = {"SCALE_TENSOR": "scale"}
    assert PASS(model, Context(model)).changes == 1
    assert list(model.graph.initializers) == ["scale"]


def test_limit_and_switch_off():
    text = "g (float[N] x) => (float[N] y) { a = Exp (x) b = Abs (x) y = Neg (x) }"
    model = parse(text)
    assert PASS(model, Context(model, limit=1)).changes == 1
    assert [node.op_type for node in model.graph] == ["Exp", "Neg"]
    model = parse(text)
    assert PASS(model, Context(model, disabled=[(PASS.name, "b")])).changes == 1
    assert [node.op_type for node in model.graph] == ["Abs", "Neg"]


def test_long_dead_chain_takes_linear_time():
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=["N"])
    nodes = [ir.node("Neg", [x])]
    for _ in range(20_000):
        nodes.append(ir.node("Relu", [nodes[-1].outputs[0]]))
    y = ir.node("Abs", [x])
    graph = ir.Graph([x], y.outputs, nodes=[*nodes, y], opset_imports={"": 17})
    model = ir.Model(graph, ir_version=10)
    started = time.perf_counter()
    assert PASS(model, Context(model)).changes == 20_001
    assert time.perf_counter() - started < 5
    assert len(graph) == 1


def test_wide_dead_node_takes_linear_time():
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=["N"])
    nodes = [ir.node("Relu", [x]) for _ in range(20_000)]
    total = ir.node("Sum", [node.outputs[0] for node in nodes])
    y = ir.node("Abs", [x])
    graph = ir.Graph([x], y.outputs, nodes=[*nodes, total, y], opset_imports={"": 17})
    model = ir.Model(graph, ir_version=10)
    started = time.perf_counter()
    assert PASS(model, Context(model)).changes == 20_001
    assert time.perf_counter() - started < 5
    assert [use.node for use in x.uses()] == [y]


def test_names_in_carried_messages_count_as_used():
    class Carried:
        training_info = (b"\x0a\x06momentum",)
        annotations = (b"\x12\x05scale",)

    model = parse(
        """g (float[N] x) => (float[N] y)
        <float momentum = {2}, float scale = {2}, float k = {2}> { y = Neg (x) }"""
    )
    model.graph.meta["carried"] = Carried()
    assert PASS(model, Context(model)).changes == 1
    assert list(model.graph.initializers) == ["momentum", "scale"]


def test_value_that_a_subgraph_returns_by_name_stays():
    model = parse(
        """g (bool p, float[2] x) => (float[2] y) {
            b = Relu (x)
            y = If (p) <
                then_branch = t () => (float[2] b) { },
                else_branch = e () => (float[2] ey) { ey = Neg (x) }
            >
        }"""
    )
    assert PASS(model, Context(model)).changes == 0
