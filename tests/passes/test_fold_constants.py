"""Constant folding: what is evaluated, what is kept, and the account of bytes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graph_check import apply, assert_same_outputs, check, make_feeds, parse, run

from onnxslim.ir import shapes
from onnxslim.passes.simplify.fold_constants import FoldConstants
from onnxslim.pipeline import Context


def with_weight(text: str, **weights: np.ndarray) -> ir.Model:
    """A model whose named graph inputs are replaced by initializers."""
    model = parse(text)
    for value in list(model.graph.inputs):
        if value.name in weights:
            value.const_value = ir.tensor(weights[value.name], name=value.name)
            model.graph.register_initializer(value)
            model.graph.inputs.remove(value)
    return model


def fold(model: ir.Model, growth: int = 0) -> tuple[int, Context]:
    shapes.set_aside_declared(model)
    shapes.infer(model)
    context = Context(model, fold_growth=growth)
    return FoldConstants()(model, context).changes, context


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_shape_math_is_folded() -> None:
    check(
        FoldConstants(),
        """g (float[6,4] x) => (float[a,b] y)
        <int64[2] a = {2, 3}, int64[1] b = {4}>
        { s = Concat <axis = 0> (a, b) y = Reshape (x, s) }""",
        """g (float[6,4] x) => (float[a,b] y)
        <int64[3] s = {2, 3, 4}>
        { y = Reshape (x, s) }""",
    )


def test_chain_is_one_region() -> None:
    model = check(
        FoldConstants(),
        """g (float[N] x) => (float[N] y)
        <float one = {1.0}, float four = {4.0}>
        { a = Div (one, four) b = Sqrt (a) c = Neg (b) y = Mul (x, c) }""",
        """g (float[N] x) => (float[N] y)
        <float c = {-0.5}>
        { y = Mul (x, c) }""",
        changes=3,
    )
    assert list(model.graph.initializers) == ["c"]


def test_constant_nodes_become_initializers() -> None:
    check(
        FoldConstants(),
        """g (float[N] x) => (float[N] y)
        { k = Constant <value = float[1] {2.0}> () y = Mul (x, k) }""",
        """g (float[N] x) => (float[N] y) <float[1] k = {2.0}> { y = Mul (x, k) }""",
        changes=1,
    )


def test_constant_forms() -> None:
    check(
        FoldConstants(),
        """g (float[2] x) => (float[2] y)
        { k = Constant <value_float = 2.0> () l = Constant <value_floats = [1.0, 2.0]> ()
          m = Mul (x, k) y = Add (m, l) }""",
        """g (float[2] x) => (float[2] y) <float k = {2.0}, float[2] l = {1.0, 2.0}>
        { m = Mul (x, k) y = Add (m, l) }""",
    )


def test_old_ir_versions_keep_constant_nodes() -> None:
    head = '<ir_version: 3, opset_import: ["" : 9]>'
    check(
        FoldConstants(),
        f"""{head} g (float[N] x) => (float[N] y)
        {{ k = Constant <value = float[1] {{2.0}}> () l = Neg (k) y = Mul (x, l) }}""",
        f"""{head} g (float[N] x) => (float[N] y)
        {{ l = Constant <value = float[1] {{-2.0}}> () y = Mul (x, l) }}""",
    )


def test_graph_outputs_keep_a_producer() -> None:
    check(
        FoldConstants(),
        """g (float[2] x) => (float[2] y, float[2] k, float[1] c)
        <float[2] a = {1.0, 2.0}>
        { b = Abs (a) d = Floor (b) k = Neg (d) y = Mul (x, k)
          c = Constant <value = float[1] {2.0}> () }""",
        """g (float[2] x) => (float[2] y, float[2] k, float[1] c)
        { k = Constant <value = float[2] {-1.0, -2.0}> ()
          y = Mul (x, k) c = Constant <value = float[1] {2.0}> () }""",
    )


def test_default_value_of_an_input_is_not_constant() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17]>
    g (float[N] x, float[1] s = {1.0}) => (float[N] y) { t = Neg (s) y = Mul (x, t) }"""
    check(FoldConstants(), text)


@pytest.mark.parametrize(
    "body",
    [
        "r = RandomNormal <shape = [2]> () y = Add (x, r)",
        "r = RandomUniformLike (k) y = Add (x, r)",
        "r, m = Dropout (k, half, on) y = Add (x, r)",
    ],
)
def test_random_operators_are_kept(body: str) -> None:
    text = f"""g (float[2] x) => (float[2] y)
    <float[2] k = {{1.0, 2.0}}, float half = {{0.5}}, bool on = {{1}}> {{ {body} }}"""
    check(FoldConstants(), text, runs=False)


def test_quantization_is_kept() -> None:
    check(
        FoldConstants(),
        """g (float[2] x) => (float[2] y)
        <int8[2] w = {1, 2}, float s = {0.5}, int8 z = {0}, float[2] f = {1.0, 2.0}>
        { d = DequantizeLinear (w, s, z) q = QuantizeLinear (f, s, z)
          e = DequantizeLinear (q, s, z) a = Add (x, d) y = Add (a, e) }""",
    )


def test_large_results_are_kept_with_a_reason() -> None:
    model = parse(
        """g (float[N,512] x) => (float[M,512] y)
        <int64[2] s = {4096, 512}>
        { z = ConstantOfShape <value = float[1] {0.5}> (s) y = Concat <axis = 0> (x, z) }"""
    )
    changes, context = fold(model)
    assert changes == 0
    (refusal,) = context.refusals.values()
    assert refusal.reason == "kept because folding it would add 8.39 MB"
    assert refusal.site == "z"


def test_small_part_beside_a_large_one_is_folded() -> None:
    check(
        FoldConstants(),
        """g (float[N,64] x) => (float[M,64] y)
        <int64[1] a = {512}, int64[1] b = {64}>
        { s = Concat <axis = 0> (a, b) z = ConstantOfShape (s) y = Concat <axis = 0> (x, z) }""",
        """g (float[N,64] x) => (float[M,64] y)
        <int64[2] s = {512, 64}>
        { z = ConstantOfShape (s) y = Concat <axis = 0> (x, z) }""",
        changes=1,
    )


def test_large_intermediate_of_a_small_result_is_folded() -> None:
    check(
        FoldConstants(),
        """g (float[N] x) => (float[N] y)
        <int64[2] s = {64, 64}>
        { z = ConstantOfShape <value = float[1] {1.0}> (s)
          r = ReduceSum <keepdims = 0> (z) y = Mul (x, r) }""",
        """g (float[N] x) => (float[N] y) <float r = {4096.0}> { y = Mul (x, r) }""",
    )


def test_growth_allowance_is_spent_once() -> None:
    text = """g (float[4096] x) => (float[4096] y)
    <int64[1] s = {4096}>
    { z = ConstantOfShape <value = float[1] {0.5}> (s)
      u = ConstantOfShape <value = float[1] {0.25}> (s)
      a = Mul (x, z) y = Mul (a, u) }"""
    model = parse(text)
    changes, context = fold(model, growth=17000)
    assert changes == 1
    assert kinds(model) == ["ConstantOfShape", "Mul", "Mul"]
    assert 0 <= context.fold_growth < 700
    model = parse(text)
    assert fold(model, growth=40000)[0] == 2


def test_widened_weights_are_kept() -> None:
    text = """g (float[N,64] x, float16[64,32] w) => (float[N,32] y)
    { c = Cast <to = 1> (w) y = MatMul (x, c) }"""
    model = with_weight(text, w=np.ones((64, 32), np.float16))
    assert fold(model)[0] == 0
    assert kinds(model) == ["Cast", "MatMul"]


def test_narrowed_weights_are_folded() -> None:
    text = """g (float16[N,64] x, float[64,32] w) => (float16[N,32] y)
    { c = Cast <to = 10> (w) y = MatMul (x, c) }"""
    model = with_weight(text, w=np.full((64, 32), 0.1, np.float32))
    assert fold(model)[0] == 1
    assert list(model.graph.initializers) == ["c"]
    assert model.graph.initializers["c"].const_value.nbytes == 64 * 32 * 2


TRANSPOSED = """g (float[N,64] x, float[32,64] w) => (float[N,32] y)
{ t = Transpose <perm = [1, 0]> (w) y = MatMul (x, t) }"""


def test_transposed_weight_is_folded() -> None:
    weight = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    model, original = with_weight(TRANSPOSED, w=weight), with_weight(TRANSPOSED, w=weight)
    assert fold(model)[0] == 1
    assert kinds(model) == ["MatMul"]
    assert list(model.graph.initializers) == ["t"]
    feeds = make_feeds(original)
    assert_same_outputs(run(original, feeds), run(model, feeds), exact=True)


def test_tied_weight_is_stored_once() -> None:
    text = """g (int64[N] ids, float[N,64] x, float[32,64] w) => (float[N,64] e, float[N,32] y)
    { e = Gather (w, ids) t = Transpose <perm = [1, 0]> (w) y = MatMul (x, t) }"""
    model = with_weight(text, w=np.ones((32, 64), np.float32))
    assert fold(model)[0] == 0
    assert kinds(model) == ["Gather", "Transpose", "MatMul"]


def test_large_transpose_is_computed_late() -> None:
    text = TRANSPOSED.replace("32", "2048").replace("64", "512")
    weight = np.random.default_rng(0).standard_normal((2048, 512)).astype(np.float32)
    model = with_weight(text, w=weight)
    assert fold(model)[0] == 1
    tensor = model.graph.initializers["t"].const_value
    assert isinstance(tensor, ir.LazyTensor)
    np.testing.assert_array_equal(tensor.numpy(), weight.T)
    assert tensor.tobytes() == np.ascontiguousarray(weight.T).tobytes()


def test_memory_limit_leaves_the_region() -> None:
    text = """g (float[N,64] x, float[32,64] w) => (float[N,32] y)
    { u = Neg (w) t = Transpose <perm = [1, 0]> (u) y = MatMul (x, t) }"""
    model = with_weight(text, w=np.ones((32, 64), np.float32))
    shapes.set_aside_declared(model)
    shapes.infer(model)
    context = Context(model)
    assert FoldConstants(max_bytes=1000)(model, context).changes == 0
    assert "memory" in next(iter(context.refusals.values())).reason


def test_refused_node_leaves_the_rest() -> None:
    model = parse(
        """g (int64[1] x) => (int64[1] y, int64[1] z)
        <int64[1] a = {4}, int64[1] o = {0}>
        { d = Div (a, o) n = Neg (d) l = Neg (a) k = Neg (l) m = Neg (k)
          y = Add (x, n) z = Add (x, m) }"""
    )
    changes, context = fold(model)
    assert changes == 3
    assert kinds(model) == ["Div", "Neg", "Add", "Add"]
    assert "division by zero" in context.refusals["fold-constants", "d"].reason


def test_division_of_computed_values() -> None:
    check(
        FoldConstants(),
        """g (int64[1] x) => (int64[1] y)
        <int64[1] a = {-7}, int64[1] o = {2}>
        { n = Neg (a) d = Div (n, o) y = Add (x, d) }""",
        """g (int64[1] x) => (int64[1] y) <int64[1] d = {3}> { y = Add (x, d) }""",
    )


def test_unknown_domain_is_a_barrier() -> None:
    check(
        FoldConstants(),
        """<ir_version: 10, opset_import: ["" : 17, "other" : 1]>
        g (float[1] x) => (float[1] y) <float[1] a = {4.0}>
        { d = other.Neg (a) y = Add (x, d) }""",
        runs=False,
    )


def test_subgraph_gets_constant_nodes() -> None:
    check(
        FoldConstants(),
        """g (bool p, float[2] x) => (float[2] y)
        <float[2] a = {1.0, 2.0}>
        { y = If (p) <then_branch = t () => (float[2] r)
            { k = Abs (a) l = Floor (k) n = Neg (l) r = Add (x, n) },
            else_branch = e () => (float[2] q) { k = Abs (a) l = Floor (k) q = Neg (l) }> }""",
        """g (bool p, float[2] x) => (float[2] y)
        { y = If (p) <then_branch = t () => (float[2] r)
            { n = Constant <value = float[2] {-1.0, -2.0}> () r = Add (x, n) },
            else_branch = e () => (float[2] q)
            { q = Constant <value = float[2] {-1.0, -2.0}> () }> }""",
    )


def test_function_body_gets_constant_nodes() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17, "own" : 1]>
    g (float[2] x) => (float[2] y) { y = own.f (x) }
    <domain: "own", opset_import: ["" : 17]>
    f (a) => (b) {
      k = Constant <value = float[1] {2.0}> ()
      n = Neg (k)
      m = Sqrt (k)
      o = Add (n, m)
      b = Mul (a, o)
    }"""
    model = parse(text)
    assert apply(FoldConstants(), model) == 3
    (function,) = model.functions.values()
    assert [node.op_type for node in function.graph] == ["Constant", "Mul"]
    feeds = make_feeds(parse(text))
    assert_same_outputs(run(parse(text), feeds), run(model, feeds), exact=True)


def test_attribute_reference_is_unknown() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17, "own" : 1]>
    g (float[2] x) => (float[2] y) { y = own.f <alpha = 0.5> (x) }
    <domain: "own", opset_import: ["" : 17]>
    f <alpha> (a) => (b) {
      k = Constant <value_float : float = @alpha> ()
      n = Neg (k)
      b = Mul (a, n)
    }"""
    assert apply(FoldConstants(), parse(text)) == 0


def test_unused_and_several_outputs() -> None:
    check(
        FoldConstants(),
        """g (float[2] x) => (float[2] y)
        <float[4] a = {4.0, 1.0, 3.0, 2.0}, int64[1] k = {2}>
        { v, i = TopK (a, k) y = Add (x, v) }""",
        """g (float[2] x) => (float[2] y) <float[2] v = {4.0, 3.0}> { y = Add (x, v) }""",
    )


def test_half_precision() -> None:
    check(
        FoldConstants(),
        """g (float16[2] x) => (float16[2] y)
        <float16[1] a = {16384}>
        { n = Neg (a) y = Mul (x, n) }""",
        """g (float16[2] x) => (float16[2] y) <float16[1] n = {49152}> { y = Mul (x, n) }""",
    )


def test_empty_tensors() -> None:
    check(
        FoldConstants(),
        """g (float[N] x) => (float[M] y)
        <float[1] a = {1.0}, int64[1] z = {0}>
        { e = Slice (a, z, z, z) y = Concat <axis = 0> (x, e) }""",
        """g (float[N] x) => (float[M] y) <float[0] e = {}> { y = Concat <axis = 0> (x, e) }""",
    )


def test_limit_and_switch_off() -> None:
    text = """g (float[2] x) => (float[2] y)
    <float[2] a = {1.0, 2.0}> { n = Neg (a) y = Add (x, n) }"""
    for context in (Context(parse(text), limit=0),):
        model = parse(text)
        assert FoldConstants()(model, context).changes == 0
        assert kinds(model) == ["Neg", "Add"]
    model = parse(text)
    assert FoldConstants()(model, Context(model, disabled=[("fold-constants", "n")])).changes == 0


def test_stored_bytes_never_grow() -> None:
    text = """g (float[64] x) => (float[64] y)
    <int64 s = {0}, int64 e = {64}, int64 d = {1}>
    { r = Range (s, e, d) c = Cast <to = 1> (r) y = Add (x, c) }"""
    model = parse(text)
    size = ir.to_proto(model).ByteSize()
    fold(model)
    shapes.restore_declared(model)
    assert ir.to_proto(model).ByteSize() <= size


def test_long_chain_does_not_recurse() -> None:
    body = " ".join(f"v{i + 1} = Neg (v{i})" for i in range(3000))
    model = parse(
        f"g (float[1] x) => (float[1] y) <float[1] v0 = {{1.0}}> {{ {body} y = Add (x, v3000) }}"
    )
    assert fold(model)[0] == 3000
    assert kinds(model) == ["Add"]
