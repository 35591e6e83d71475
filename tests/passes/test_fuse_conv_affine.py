"""Convolutions and Gemm take over constants per channel after them."""

from __future__ import annotations

import pytest
from graph_check import check, parse

from onnxslim.ir import shapes
from onnxslim.passes.simplify.fuse_conv_affine import FuseConvAffine
from onnxslim.pipeline import Context

HEAD = "g (float[N,1,3,2] x) => (float[N,2,3,2] y)"
WEIGHT = "float[2,1,1,1] w = {1.0, 2.0}"


def refused(before: str, word: str, *, runs: bool = True) -> None:
    check(FuseConvAffine(), before, runs=runs)
    model = parse(before)
    shapes.infer(model)
    context = Context(model)
    FuseConvAffine()(model, context)
    assert word in " ".join(refusal.reason for refusal in context.refusals.values())


@pytest.mark.parametrize("shape", ["1,2,1,1", "2,1,1"])
@pytest.mark.parametrize(
    ("body", "weight", "bias"),
    [
        ("y = Add (c, k)", "1.0, 2.0", "5.0, 11.0"),
        ("y = Sub (c, k)", "1.0, 2.0", "1.0, 3.0"),
        ("y = Mul (c, k)", "2.0, 8.0", "6.0, 28.0"),
        ("y = Div (c, k)", "0.5, 0.5", "1.5, 1.75"),
        ("y = Add (k, c)", "1.0, 2.0", "5.0, 11.0"),
        ("y = Mul (k, c)", "2.0, 8.0", "6.0, 28.0"),
        ("y = Sub (k, c)", "-1.0, -2.0", "-1.0, -3.0"),
    ],
)
def test_constant_along_the_channels(shape: str, body: str, weight: str, bias: str) -> None:
    check(
        FuseConvAffine(),
        f"""{HEAD} <{WEIGHT}, float[2] b = {{3.0, 7.0}}, float[{shape}] k = {{2.0, 4.0}}>
        {{ c = Conv (x, w, b) {body} }}""",
        f"""{HEAD} <float[2,1,1,1] w = {{{weight}}}, float[2] b = {{{bias}}}>
        {{ y = Conv (x, w, b) }}""",
        changes=1,
    )


def test_scalar() -> None:
    check(
        FuseConvAffine(),
        f"{HEAD} <{WEIGHT}, float k = {{2.0}}> {{ c = Conv (x, w) y = Mul (c, k) }}",
        f"{HEAD} <float[2,1,1,1] w = {{2.0, 4.0}}> {{ y = Conv (x, w) }}",
    )


def test_new_bias_takes_the_place_of_the_constant() -> None:
    check(
        FuseConvAffine(),
        f"""{HEAD} <{WEIGHT}, float[2,1,1] k = {{2.0, 4.0}}>
        {{ c = Conv (x, w) y = Add (c, k) }}""",
        f"{HEAD} <{WEIGHT}, float[2] k = {{2.0, 4.0}}> {{ y = Conv (x, w, k) }}",
    )


def test_chain_of_both() -> None:
    check(
        FuseConvAffine(),
        f"""{HEAD} <{WEIGHT}, float[1,2,1,1] s = {{2.0, 4.0}}, float[2,1,1] t = {{1.0, 5.0}}>
        {{ c = Conv (x, w) m = Mul (c, s) y = Add (m, t) }}""",
        f"""{HEAD} <float[2,1,1,1] w = {{2.0, 8.0}}, float[2] b = {{1.0, 5.0}}>
        {{ y = Conv (x, w, b) }}""",
        changes=2,
    )


def test_bias_alone_leaves_a_shared_weight_alone() -> None:
    check(
        FuseConvAffine(),
        f"""g (float[N,1,3,2] x) => (float[N,2,3,2] y, float[N,2,3,2] z)
        <{WEIGHT}, float[2,1,1] k = {{2.0, 4.0}}>
        {{ c = Conv (x, w) y = Add (c, k) z = Conv (x, w) }}""",
        f"""g (float[N,1,3,2] x) => (float[N,2,3,2] y, float[N,2,3,2] z)
        <{WEIGHT}, float[2] k = {{2.0, 4.0}}>
        {{ y = Conv (x, w, k) z = Conv (x, w) }}""",
    )


def test_bias_of_a_computed_weight() -> None:
    check(
        FuseConvAffine(),
        """g (float[N,1,3,2] x, float[2,1,1,1] w) => (float[N,2,3,2] y)
        <float[2,1,1] k = {2.0, 4.0}> { c = Conv (x, w) y = Add (c, k) }""",
        """g (float[N,1,3,2] x, float[2,1,1,1] w) => (float[N,2,3,2] y)
        <float[2] k = {2.0, 4.0}> { y = Conv (x, w, k) }""",
    )


def test_transposed_convolution_in_groups() -> None:
    check(
        FuseConvAffine(),
        """g (float[N,2,3,3] x) => (float[N,2,3,3] y)
        <float[2,1,1,1] w = {1.0, 2.0}, float[2,1,1] k = {3.0, 5.0}>
        { c = ConvTranspose <group = 2> (x, w) y = Mul (c, k) }""",
        """g (float[N,2,3,3] x) => (float[N,2,3,3] y)
        <float[2,1,1,1] w = {3.0, 10.0}> { y = ConvTranspose <group = 2> (x, w) }""",
    )


def test_gemm() -> None:
    check(
        FuseConvAffine(),
        """g (float[N,2] x) => (float[N,2] y)
        <float[2,2] w = {1.0, 2.0, 3.0, 4.0}, float[2] b = {1.0, 1.0}, float[2] k = {2.0, 4.0}>
        { c = Gemm <alpha = 0.5> (x, w, b) y = Mul (c, k) }""",
        """g (float[N,2] x) => (float[N,2] y)
        <float[2,2] w = {2.0, 8.0, 6.0, 16.0}, float[2] b = {2.0, 4.0}>
        { y = Gemm <alpha = 0.5> (x, w, b) }""",
    )


@pytest.mark.parametrize("shape", ["2", "1,2", "1,1,1,2", "1,1,2", "1,1,1,1,1"])
def test_constant_along_another_axis(shape: str) -> None:
    count = 1 if shape.endswith("1,1,1,1") else 2
    numbers = ", ".join(["2.0", "4.0"][:count])
    out = "float[1,N,2,3,2]" if count == 1 else "float[N,2,3,2]"
    refused(
        f"""g (float[N,1,3,2] x) => ({out} y) <{WEIGHT}, float[{shape}] k = {{{numbers}}}>
        {{ c = Conv (x, w) y = Mul (c, k) }}""",
        "along the channels",
    )


def test_full_tensor() -> None:
    refused(
        f"""g (float[N,1,1,2] x) => (float[N,2,1,2] y)
        <{WEIGHT}, float[1,2,1,2] k = {{2.0, 4.0, 1.0, 3.0}}>
        {{ c = Conv (x, w) y = Add (c, k) }}""",
        "along the channels",
    )


def test_one_channel_is_not_widened() -> None:
    refused(
        """g (float[N,1,3,2] x) => (float[N,2,3,2] y)
        <float[1,1,1,1] w = {1.0}, float[2,1,1] k = {2.0, 4.0}>
        { c = Conv (x, w) y = Mul (c, k) }""",
        "along the channels",
    )


def test_division_by_zero_or_of_a_constant() -> None:
    refused(
        f"""{HEAD} <{WEIGHT}, float[2,1,1] k = {{2.0, 0.0}}>
        {{ c = Conv (x, w) y = Div (c, k) }}""",
        "division",
        runs=False,
    )
    refused(
        f"""{HEAD} <{WEIGHT}, float[2,1,1] k = {{2.0, 3.0}}>
        {{ c = Conv (x, w) y = Div (k, c) }}""",
        "division",
        runs=False,
    )


def test_scalar_does_not_become_a_bias() -> None:
    refused(
        f"{HEAD} <{WEIGHT}, float k = {{2.0}}> {{ c = Conv (x, w) y = Add (c, k) }}",
        "would be stored",
    )


def test_infinite_constant() -> None:
    refused(
        f"{HEAD} <{WEIGHT}, float k = {{inf}}> {{ c = Conv (x, w) y = Mul (c, k) }}",
        "range",
        runs=False,
    )


def test_shared_weight_and_result_with_other_readers() -> None:
    refused(
        f"""g (float[N,1,3,2] x) => (float[N,2,3,2] y, float[N,2,3,2] z)
        <{WEIGHT}, float k = {{2.0}}>
        {{ c = Conv (x, w) y = Mul (c, k) z = Conv (x, w) }}""",
        "other readers",
    )
    check(
        FuseConvAffine(),
        f"""g (float[N,1,3,2] x) => (float[N,2,3,2] y, float[N,2,3,2] c)
        <{WEIGHT}, float k = {{2.0}}> {{ c = Conv (x, w) y = Mul (c, k) }}""",
    )


def test_activation_between() -> None:
    check(
        FuseConvAffine(),
        f"""{HEAD} <{WEIGHT}, float k = {{2.0}}>
        {{ c = Conv (x, w) r = Relu (c) y = Mul (r, k) }}""",
    )


def test_old_broadcast_attribute() -> None:
    check(
        FuseConvAffine(),
        f"""<ir_version: 4, opset_import: ["" : 6]> {HEAD} <{WEIGHT}, float[2] k = {{2.0, 3.0}}>
        {{ c = Conv (x, w) y = Mul <axis = 1, broadcast = 1> (c, k) }}""",
        runs=False,
    )
