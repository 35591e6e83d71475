"""FuseBatchnormAffine: Mul and Add behind a BatchNormalization."""

from __future__ import annotations

import pytest
from graph_check import apply, assert_same_outputs, check, make_feeds, parse, run

from onnxslim.passes.simplify.fuse_batchnorm_affine import FuseBatchnormAffine

PASS = FuseBatchnormAffine()
HEAD = "g (float[N,2,H] x) => (float[N,2,H] y)"
REST = "float[2] mean = {0.5, -1}, float[2] var = {4, 0.25}"
NORM = "n = BatchNormalization (x, s, b, mean, var)"


def graph(body: str, more: str = "", scale: str = "{2, 3}", bias: str = "{1, -1}") -> str:
    return f"{HEAD} <float[2] s = {scale}, float[2] b = {bias}, {REST}{more}> {{ {body} }}"


@pytest.mark.parametrize("operands", ["n, c", "c, n"])
def test_mul(operands):
    check(
        PASS,
        graph(f"{NORM} m = Mul ({operands}) y = Relu (m)", ", float[2,1] c = {2, -4}"),
        graph(f"{NORM} y = Relu (n)", scale="{4, -12}", bias="{2, 4}"),
    )


def test_add():
    check(
        PASS,
        graph(f"{NORM} m = Add (n, c) y = Relu (m)", ", float[1,2,1] c = {2, -4}"),
        graph(f"{NORM} y = Relu (n)", bias="{3, -5}"),
    )


def test_both():
    model = parse(
        graph(
            f"{NORM} m = Mul (n, c) a = Add (m, d) y = Relu (a)",
            ", float[2,1] c = {2, -4}, float[2,1] d = {7, 9}",
        )
    )
    feeds = make_feeds(model)
    expected = run(model, feeds)
    assert apply(PASS, model) == 2
    assert [node.op_type for node in model.graph] == ["BatchNormalization", "Relu"]
    assert_same_outputs(expected, run(model, feeds))


@pytest.mark.parametrize(
    ("body", "more"),
    [
        (f"{NORM} y = Mul (n, c)", ", float[2] c = {2, -4}"),  # along the last axis
        (f"{NORM} y = Mul (n, n)", ""),
        (f"{NORM} m = Mul (n, c) y = Add (m, n)", ", float[2,1] c = {2, -4}"),  # another reader
        (f"{NORM} y = Mul (n, c)", ", float[2,1] c = {2, 3e38}"),  # not finite
    ],
)
def test_refused(body, more):
    text = graph(body, more).replace("float[N,2,H]", "float[N,2,2]")
    check(PASS, text)


def test_before_ir_version_4_contents_change_under_the_old_names():
    text = '<ir_version: 3, opset_import: ["" : 9]>' + graph(
        f"{NORM} m = Mul (n, c) y = Relu (m)", ", float[2,1] c = {2, -4}"
    )
    model = parse(text)
    names = set(model.graph.initializers)
    assert apply(PASS, model) == 1
    assert set(model.graph.initializers) <= names
    assert model.graph.initializers["s"].const_value.numpy().tolist() == [4, -12]


def test_shared_scale_and_bias_stay():
    """Two new tensors would take more bytes than one small node."""
    count = 64
    ones = ", ".join(["1"] * count)
    text = f"""g (float[N,{count},H] x) => (float[N,{count},H] y, float[N,{count},H] z)
        <float[{count}] s = {{{ones}}}, float[{count}] b = {{{ones}}}, float c = {{2}}> {{
            n = BatchNormalization (x, s, b, b, s)
            m = Mul (n, c)
            y = Relu (m)
            z = BatchNormalization (x, s, b, b, s)
        }}"""
    assert apply(PASS, parse(text)) == 0
