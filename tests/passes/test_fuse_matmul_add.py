"""MatMul or Gemm and the Add after it become one Gemm."""

from __future__ import annotations

import pytest
from graph_check import check

from onnxslim.passes.simplify.fuse_matmul_add import FuseMatmulAdd

WEIGHT = "float[4,2] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0}"


@pytest.mark.parametrize("bias", ["float[2] b = {1.0, 2.0}", "float[1,2] b = {1.0, 2.0}"])
@pytest.mark.parametrize("order", ["m, b", "b, m"])
def test_bias_of_a_row(bias: str, order: str) -> None:
    check(
        FuseMatmulAdd(),
        f"""g (float[M,4] x) => (float[M,2] y) <{WEIGHT}, {bias}>
        {{ m = MatMul (x, w) y = Add ({order}) }}""",
        f"g (float[M,4] x) => (float[M,2] y) <{WEIGHT}, {bias}> {{ y = Gemm (x, w, b) }}",
        changes=1,
    )


@pytest.mark.parametrize("shape", ["3,2", "3,1", "1,1", "1", ""])
def test_every_shape_that_broadcasts_one_way(shape: str) -> None:
    bias = f"float[{shape}] b" if shape else "float b"
    check(
        FuseMatmulAdd(),
        f"g (float[3,4] x, float[4,2] w, {bias}) => (float[3,2] y) "
        "{ m = MatMul (x, w) y = Add (m, b) }",
        f"g (float[3,4] x, float[4,2] w, {bias}) => (float[3,2] y) {{ y = Gemm (x, w, b) }}",
    )


@pytest.mark.parametrize("kind", ["double", "float16"])
def test_other_element_types(kind: str) -> None:
    head = f"g ({kind}[M,4] x, {kind}[4,2] w, {kind}[2] b) => ({kind}[M,2] y)"
    check(
        FuseMatmulAdd(),
        f"{head} {{ m = MatMul (x, w) y = Add (m, b) }}",
        f"{head} {{ y = Gemm (x, w, b) }}",
    )


def test_integers_have_no_kernel() -> None:
    check(
        FuseMatmulAdd(),
        """g (int32[M,4] x, int32[4,2] w, int32[2] b) => (int32[M,2] y)
        { m = MatMul (x, w) y = Add (m, b) }""",
    )


@pytest.mark.parametrize(
    ("x", "w", "b", "y"),
    [
        ("3,5,4", "4,2", "2", "3,5,2"),  # rank 3
        ("4", "4,2", "2", "2"),  # a vector
        ("3,4", "4,1", "1,2", "3,2"),  # the sum is wider
        ("1,4", "4,2", "3,2", "3,2"),
        ("3,4", "4,2", "1,1,2", "1,3,2"),  # the sum has more dimensions
        ("M,4", "4,2", "M,2", "M,2"),  # a symbol is no proof
        ("M,4", "4,2", "3,2", "M,2"),
    ],
)
def test_shapes_that_are_refused(x: str, w: str, b: str, y: str) -> None:
    check(
        FuseMatmulAdd(),
        f"g (float[{x}] x, float[{w}] w, float[{b}] b) => (float[{y}] y) "
        "{ m = MatMul (x, w) y = Add (m, b) }",
    )


def test_other_readers_of_the_product() -> None:
    head = "g (float[3,4] x, float[4,2] w, float[2] b) => (float[3,2] y, float[3,2] m)"
    check(FuseMatmulAdd(), f"{head} {{ m = MatMul (x, w) y = Add (m, b) }}")
    check(FuseMatmulAdd(), f"{head} {{ k = MatMul (x, w) y = Add (k, b) m = Neg (k) }}")
    check(
        FuseMatmulAdd(),
        "g (float[3,4] x, float[4,2] w) => (float[3,2] y) { k = MatMul (x, w) y = Add (k, k) }",
    )


def test_reader_inside_a_subgraph() -> None:
    check(
        FuseMatmulAdd(),
        """g (bool p, float[3,4] x, float[4,2] w, float[2] b) => (float[3,2] y, float[3,2] z)
        { m = MatMul (x, w) y = Add (m, b)
          z = If (p) <then_branch = t () => (float[3,2] r) { r = Neg (m) },
                      else_branch = e () => (float[3,2] q) { q = Abs (m) }> }""",
    )


def test_bias_computed_after_the_product() -> None:
    check(
        FuseMatmulAdd(),
        """g (float[M,4] x, float[4,2] w, float[2] b) => (float[M,2] y)
        { m = MatMul (x, w) c = Neg (b) y = Add (m, c) }""",
        """g (float[M,4] x, float[4,2] w, float[2] b) => (float[M,2] y)
        { c = Neg (b) y = Gemm (x, w, c) }""",
    )


def test_gemm_without_a_bias() -> None:
    head = "g (float[4,M] x, float[2,4] w, float[2] b) => (float[M,2] y)"
    check(
        FuseMatmulAdd(),
        f"""{head} {{ m = Gemm <alpha = 0.5, beta = 2.0, transA = 1, transB = 1> (x, w)
            y = Add (m, b) }}""",
        f"{head} {{ y = Gemm <alpha = 0.5, transA = 1, transB = 1> (x, w, b) }}",
    )


def test_gemm_with_a_bias() -> None:
    check(
        FuseMatmulAdd(),
        """g (float[M,4] x, float[4,2] w, float[2] b) => (float[M,2] y)
        { m = Gemm (x, w, b) y = Add (m, b) }""",
    )


def test_subgraph() -> None:
    check(
        FuseMatmulAdd(),
        """g (bool p, float[3,4] x, float[4,2] w, float[2] b) => (float[3,2] z)
        { z = If (p) <then_branch = t () => (float[3,2] r) { m = MatMul (x, w) r = Add (m, b) },
                      else_branch = e () => (float[3,2] q) { q = MatMul (x, w) }> }""",
        """g (bool p, float[3,4] x, float[4,2] w, float[2] b) => (float[3,2] z)
        { z = If (p) <then_branch = t () => (float[3,2] r) { r = Gemm (x, w, b) },
                      else_branch = e () => (float[3,2] q) { q = MatMul (x, w) }> }""",
    )


def test_dequantized_factor() -> None:
    check(
        FuseMatmulAdd(),
        """g (float[M,4] x, float[2] b) => (float[M,2] y)
        <int8[4,2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float s = {0.5}>
        { d = DequantizeLinear (w, s) m = MatMul (x, d) y = Add (m, b) }""",
    )


def test_empty_inner_dimension() -> None:
    check(
        FuseMatmulAdd(),
        """g (float[3,0] x, float[0,2] w, float[2] b) => (float[3,2] y)
        { m = MatMul (x, w) y = Add (m, b) }""",
    )


def test_old_opset() -> None:
    check(
        FuseMatmulAdd(),
        """<ir_version: 3, opset_import: ["" : 6]>
        g (float[3,4] x, float[4,2] w, float[3,2] b) => (float[3,2] y)
        { m = MatMul (x, w) y = Add (m, b) }""",
        runs=False,
    )


def test_unknown_domain() -> None:
    check(
        FuseMatmulAdd(),
        """<ir_version: 10, opset_import: ["" : 17, "other" : 1]>
        g (float[3,4] x, float[4,2] w, float[2] b) => (float[3,2] y)
        { m = other.MatMul (x, w) y = Add (m, b) }""",
        runs=False,
    )
