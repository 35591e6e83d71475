"""Convolutions and Gemm take over the BatchNormalization after them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graph_check import apply, assert_same_outputs, check, make_feeds, parse, run

from onnxslim.ir import shapes
from onnxslim.passes.simplify.fuse_conv_batchnorm import FuseConvBatchnorm
from onnxslim.pipeline import Context

NORM = "<float[2] s = {2.0, 1.0}, float[2] t = {1.0, -1.0}, float[2] m = {0.5, 1.0}, "
NORM += "float[2] v = {0.25, 4.0}"
WEIGHT = "float[2,1,1,1] w = {1.0, 2.0}"
HEAD = "g (float[N,1,3,3] x) => (float[N,2,3,3] y)"


def refused(before: str, word: str, opset: int = 17) -> None:
    """Nothing changes, and the reason that is noted holds the word."""
    text = f'<ir_version: 10, opset_import: ["" : {opset}]> {before}'
    check(FuseConvBatchnorm(), text, runs=False)
    model = parse(text)
    context = Context(model)
    FuseConvBatchnorm()(model, context)
    assert word in " ".join(refusal.reason for refusal in context.refusals.values())


def with_weights(text: str, **weights: np.ndarray) -> ir.Model:
    model = parse(text)
    for value in list(model.graph.inputs):
        if value.name in weights:
            value.const_value = ir.tensor(weights[value.name], name=value.name)
            model.graph.register_initializer(value)
            model.graph.inputs.remove(value)
    return model


def norm_weights(channels: int, dtype: type = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        "s": rng.uniform(0.5, 2, channels).astype(dtype),
        "t": rng.standard_normal(channels).astype(dtype),
        "m": rng.standard_normal(channels).astype(dtype),
        "v": rng.uniform(0.2, 2, channels).astype(dtype),
    }


def test_conv_without_bias() -> None:
    check(
        FuseConvBatchnorm(),
        f"""{HEAD} {NORM}, {WEIGHT}>
        {{ c = Conv (x, w) y = BatchNormalization <epsilon = 0.0> (c, s, t, m, v) }}""",
        f"""{HEAD} <float[2,1,1,1] w = {{4.0, 1.0}}, float[2] b = {{-1.0, -1.5}}>
        {{ y = Conv (x, w, b) }}""",
        changes=1,
    )


def test_conv_with_bias_keeps_names() -> None:
    model = check(
        FuseConvBatchnorm(),
        f"""{HEAD} {NORM}, {WEIGHT}, float[2] b = {{1.5, 3.0}}>
        {{ c = Conv (x, w, b) y = BatchNormalization <epsilon = 0.0> (c, s, t, m, v) }}""",
        f"""{HEAD} <float[2,1,1,1] w = {{4.0, 1.0}}, float[2] b = {{5.0, 0.0}}>
        {{ y = Conv (x, w, b) }}""",
    )
    assert {"w", "b"} <= set(model.graph.initializers)


def test_gemm() -> None:
    head = "g (float[N,2] x) => (float[N,2] y)"
    for attributes, weight in (
        ("", "{4.0, 0.5, 8.0, 1.0}"),
        ("<transB = 1>", "{4.0, 4.0, 1.0, 1.0}"),
    ):
        check(
            FuseConvBatchnorm(),
            f"""{head} {NORM}, float[2,2] w = {{1.0, 1.0, 2.0, 2.0}}>
            {{ c = Gemm {attributes} (x, w)
               y = BatchNormalization <epsilon = 0.0> (c, s, t, m, v) }}""",
            f"""{head} <float[2,2] w = {weight}, float[2] b = {{-1.0, -1.5}}>
            {{ y = Gemm {attributes} (x, w, b) }}""",
        )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution_in_groups(groups: int, dtype: type) -> None:
    kind = ir.DataType.from_numpy(np.dtype(dtype)).name.lower()
    channels = 3 * groups
    text = f"""g ({kind}[N,4,5,5] x, {kind}[4,3,3,3] w, {kind}[{channels}] b, {kind}[{channels}] s,
        {kind}[{channels}] t, {kind}[{channels}] m, {kind}[{channels}] v) => ({kind}[N,C,H,W] y)
    {{ c = ConvTranspose <group = {groups}, strides = [2, 2]> (x, w, b)
       y = BatchNormalization (c, s, t, m, v) }}"""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype(dtype),
        "b": rng.standard_normal(channels).astype(dtype),
        **norm_weights(channels, dtype),
    }
    original, model = with_weights(text, **weights), with_weights(text, **weights)
    assert apply(FuseConvBatchnorm(), model) == 1
    assert [node.op_type for node in model.graph] == ["ConvTranspose"]
    if dtype is np.float32:  # onnxruntime has no kernel of another type on the CPU
        feeds = make_feeds(original)
        assert_same_outputs(run(original, feeds), run(model, feeds))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_convolution_in_groups(groups: int, spatial: int) -> None:
    size, kernel = ",".join(["5"] * spatial), (3,) * spatial
    text = f"""g (float[N,4,{size}] x, float[8,{4 // groups},{",".join("3" * spatial)}] w,
        float[8] s, float[8] t, float[8] m, float[8] v) => (float[A{",B" * (spatial + 1)}] y)
    {{ c = Conv <group = {groups}> (x, w) y = BatchNormalization (c, s, t, m, v) }}"""
    weight = np.random.default_rng(1).standard_normal((8, 4 // groups, *kernel)).astype(np.float32)
    original = with_weights(text, w=weight, **norm_weights(8))
    model = with_weights(text, w=weight, **norm_weights(8))
    assert apply(FuseConvBatchnorm(), model) == 1
    feeds = make_feeds(original)
    assert_same_outputs(run(original, feeds), run(model, feeds))


def test_training_mode_is_refused() -> None:
    refused(
        f"""{HEAD} {NORM}, {WEIGHT}>
        {{ c = Conv (x, w) y, a, b = BatchNormalization <training_mode = 1> (c, s, t, m, v) }}""",
        "training",
    )
    refused(
        f"""{HEAD} {NORM}, {WEIGHT}>
        {{ c = Conv (x, w) y, a, b, d, e = BatchNormalization (c, s, t, m, v) }}""",
        "training",
        opset=9,
    )
    refused(
        f"""{HEAD} {NORM}, {WEIGHT}>
        {{ c = Conv (x, w) y = BatchNormalization (c, s, t, m, v) }}""",
        "training",
        opset=6,
    )
    refused(
        f"""{HEAD} {NORM}, {WEIGHT}>
        {{ c = Conv (x, w) y = BatchNormalization <spatial = 0> (c, s, t, m, v) }}""",
        "training",
        opset=7,
    )


@pytest.mark.parametrize(("opset", "attribute"), [(6, ", is_test = 1"), (7, ""), (9, ""), (14, "")])
def test_inference_of_every_opset(opset: int, attribute: str) -> None:
    head = f'<ir_version: 4, opset_import: ["" : {opset}]> {HEAD}'
    check(
        FuseConvBatchnorm(),
        f"""{head} {NORM}, {WEIGHT}>
        {{ c = Conv (x, w) y = BatchNormalization <epsilon = 0.0{attribute}> (c, s, t, m, v) }}""",
        f"""{head} <float[2,1,1,1] w = {{4.0, 1.0}}, float[2] b = {{-1.0, -1.5}}>
        {{ y = Conv (x, w, b) }}""",
        runs=opset >= 7,
    )


def test_parameters_that_are_not_constant() -> None:
    refused(
        f"""g (float[N,1,3,3] x, float[2] q) => (float[N,2,3,3] y) {NORM}, {WEIGHT}>
        {{ c = Conv (x, w) y = BatchNormalization (c, q, t, m, v) }}""",
        "parameters",
    )


def test_variance_that_is_not_positive() -> None:
    refused(
        f"""{HEAD} {NORM.replace("4.0", "0.0")}, {WEIGHT}>
        {{ c = Conv (x, w) y = BatchNormalization <epsilon = 0.0> (c, s, t, m, v) }}""",
        "positive",
    )


def test_other_readers() -> None:
    check(
        FuseConvBatchnorm(),
        f"""g (float[N,1,3,3] x) => (float[N,2,3,3] y, float[N,2,3,3] z) {NORM}, {WEIGHT}>
        {{ c = Conv (x, w) y = BatchNormalization (c, s, t, m, v) z = Relu (c) }}""",
    )
    check(
        FuseConvBatchnorm(),
        f"""g (float[N,1,3,3] x) => (float[N,2,3,3] y, float[N,2,3,3] c) {NORM}, {WEIGHT}>
        {{ c = Conv (x, w) y = BatchNormalization (c, s, t, m, v) }}""",
    )


def test_shared_weight() -> None:
    refused(
        f"""g (float[N,1,3,3] x) => (float[N,2,3,3] y, float[N,2,3,3] z) {NORM}, {WEIGHT}>
        {{ c = Conv (x, w) y = BatchNormalization (c, s, t, m, v) z = Conv (x, w) }}""",
        "other readers",
    )


def test_shared_bias_is_split_off_when_paid_for() -> None:
    check(
        FuseConvBatchnorm(),
        f"""g (float[N,1,3,3] x) => (float[N,2,3,3] y, float[2] z)
        {NORM}, {WEIGHT}, float[2] b = {{1.5, 3.0}}>
        {{ c = Conv (x, w, b) y = BatchNormalization <epsilon = 0.0> (c, s, t, m, v)
           z = Neg (b) }}""",
        """g (float[N,1,3,3] x) => (float[N,2,3,3] y, float[2] z)
        <float[2,1,1,1] w = {4.0, 1.0}, float[2] b = {1.5, 3.0}, float[2] n = {5.0, 0.0}>
        { y = Conv (x, w, n) z = Neg (b) }""",
    )


def test_shared_parameters_do_not_pay_for_a_bias() -> None:
    refused(
        f"""g (float[N,1,3,3] x) => (float[N,2,3,3] y, float[N,2,3,3] z)
        {NORM}, {WEIGHT}, float[2,1,1,1] u = {{1.0, 3.0}}>
        {{ c = Conv (x, w) y = BatchNormalization (c, s, t, m, v)
           d = Conv (x, u) z = BatchNormalization (d, s, t, m, v) }}""",
        "would be stored",
    )


def test_weight_that_a_caller_may_override() -> None:
    refused(
        """g (float[N,1,3,3] x, float[2,1,1,1] w = {1.0, 2.0}) => (float[N,2,3,3] y)
        <float[2] s = {2.0, 1.0}, float[2] t = {1.0, 1.0}, float[2] m = {0.5, 1.0},
         float[2] v = {0.25, 4.0}>
        { c = Conv (x, w) y = BatchNormalization (c, s, t, m, v) }""",
        "not an initializer",
    )


def test_half_precision_out_of_range() -> None:
    head = "g (float16[N,1,3,3] x, float16[2,1,1,1] w, {}) => (float16[N,2,3,3] y)"
    parameters = "float16[2] s, float16[2] t, float16[2] m, float16[2] v"
    text = head.format(parameters)
    text += "{ c = Conv (x, w) y = BatchNormalization (c, s, t, m, v) }"
    for factor, word in ((6e4, "range"), (1e-5, "too small")):
        weights = norm_weights(2, np.float16)
        weights["s"] = np.float16([factor, 1])
        model = with_weights(text, w=np.full((2, 1, 1, 1), 0.1, np.float16) * 30, **weights)
        shapes.set_aside_declared(model)
        shapes.infer(model)
        if word == "too small":
            model.graph.initializers["w"].const_value = ir.tensor(
                np.full((2, 1, 1, 1), 1e-3, np.float16)
            )
        context = Context(model)
        assert FuseConvBatchnorm()(model, context).changes == 0
        assert word in context.refusals["fuse-conv-batchnorm", "y"].reason


def test_inside_a_subgraph_with_outer_weights() -> None:
    check(
        FuseConvBatchnorm(),
        f"""g (bool p, float[N,1,3,3] x) => (float[N,2,3,3] y) {NORM}, {WEIGHT}>
        {{ y = If (p) <then_branch = a () => (float[N,2,3,3] r) {{
              c = Conv (x, w) r = BatchNormalization <epsilon = 0.0> (c, s, t, m, v) }},
            else_branch = e () => (float[N,2,3,3] q) {{ q = Concat <axis = 1> (x, x) }}> }}""",
        """g (bool p, float[N,1,3,3] x) => (float[N,2,3,3] y)
        <float[2,1,1,1] w = {4.0, 1.0}, float[2] b = {-1.0, -1.5}>
        { y = If (p) <then_branch = a () => (float[N,2,3,3] r) { r = Conv (x, w, b) },
            else_branch = e () => (float[N,2,3,3] q) { q = Concat <axis = 1> (x, x) }> }""",
    )


def test_gemm_bias_that_is_scaled_or_differs_by_row() -> None:
    for gemm, bias in (
        ("Gemm <beta = 2.0>", "float[2] b = {1.0, 2.0}"),
        ("Gemm", "float[3,2] b = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}"),
    ):
        refused(
            f"""g (float[3,2] x) => (float[3,2] y)
            {NORM}, float[2,2] w = {{1.0, 2.0, 3.0, 4.0}}, {bias}>
            {{ c = {gemm} (x, w, b) y = BatchNormalization (c, s, t, m, v) }}""",
            "bias",
        )
