"""Gemm transposes its factors by itself."""

from __future__ import annotations

import pytest
from graph_check import check

from onnxslim.passes.simplify.fuse_transpose_gemm import FuseTransposeGemm

HEAD = "g (float[{}] x, float[{}] w, float[2] c) => (float[3,2] y)"


@pytest.mark.parametrize("perm", ["<perm = [1, 0]>", ""])
def test_second_factor(perm: str) -> None:
    head = HEAD.format("3,4", "2,4")
    check(
        FuseTransposeGemm(),
        f"{head} {{ t = Transpose {perm} (w) y = Gemm (x, t, c) }}",
        f"{head} {{ y = Gemm <transB = 1> (x, w, c) }}",
        changes=1,
    )


def test_first_factor_of_a_transposing_gemm() -> None:
    head = HEAD.format("3,4", "4,2")
    check(
        FuseTransposeGemm(),
        f"""{head} {{ t = Transpose <perm = [1, 0]> (x)
            y = Gemm <alpha = 0.5, transA = 1> (t, w, c) }}""",
        f"{head} {{ y = Gemm <alpha = 0.5> (x, w, c) }}",
    )


def test_both_factors() -> None:
    check(
        FuseTransposeGemm(),
        """g (float[3,3] x) => (float[3,3] y, float[3,3] z)
        { t = Transpose <perm = [1, 0]> (x) y = Gemm (t, t) z = Gemm (x, t) }""",
        """g (float[3,3] x) => (float[3,3] y, float[3,3] z)
        { y = Gemm <transA = 1, transB = 1> (x, x) z = Gemm <transB = 1> (x, x) }""",
        changes=1,
    )


def test_gemm_in_a_subgraph() -> None:
    check(
        FuseTransposeGemm(),
        """g (bool p, float[3,3] x) => (float[3,3] y)
        { t = Transpose <perm = [1, 0]> (x)
          y = If (p) <then_branch = a () => (float[3,3] r) { r = Gemm (x, t) },
                      else_branch = b () => (float[3,3] q) { q = Neg (x) }> }""",
        """g (bool p, float[3,3] x) => (float[3,3] y)
        { y = If (p) <then_branch = a () => (float[3,3] r) { r = Gemm <transB = 1> (x, x) },
                      else_branch = b () => (float[3,3] q) { q = Neg (x) }> }""",
    )


@pytest.mark.parametrize(
    "body",
    [
        "t = Transpose <perm = [0, 1]> (x) y = Gemm (x, t)",
        "t = Transpose <perm = [1, 0]> (x) z = Gemm (x, t) y = Add (z, t)",  # another reader
        "t = Transpose <perm = [1, 0]> (x) y = Gemm (x, x, t)",  # not a factor
        "t = Transpose <perm = [1, 0]> (x) y = MatMul (x, t)",
    ],
)
def test_refusals(body: str) -> None:
    check(FuseTransposeGemm(), f"g (float[3,3] x) => (float[3,3] y) {{ {body} }}")


def test_graph_output() -> None:
    check(
        FuseTransposeGemm(),
        """g (float[3,3] x) => (float[3,3] y, float[3,3] t)
        { t = Transpose <perm = [1, 0]> (x) y = Gemm (x, t) }""",
    )
