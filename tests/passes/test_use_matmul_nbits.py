"""UseMatmulNbits: onnxruntime's own product, from MatMul and Gemm, and only where it means that."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graph_check import make_feeds, run
from stored_models import branch_model, model_of, output_error, refusals

from onnxslim.ir.verify import verify
from onnxslim.passes.compress.use_matmul_nbits import UseMatmulNbits
from onnxslim.pipeline import Context
from onnxslim.rewrite.stored_weights.emit import META_KEY

MATMUL = "g (float[N,K] x) => (float[N,48] y) { y = MatMul (x, w) }"
GEMM = "g (float[N,K] x) => (float[N,48] y) { y = Gemm <transB = 1> (x, w, b) }"


def nbits(model: ir.Model, bits: int) -> int:
    pass_ = UseMatmulNbits(bits=bits)
    changes = pass_(model, Context(model)).changes
    verify(model)
    assert pass_(model, Context(model)).changes == 0
    return changes


@pytest.mark.parametrize(("bits", "error"), [(4, 0.12), (8, 0.015)])
@pytest.mark.parametrize("rows", [64, 96, 50])
def test_matmul(bits, error, rows):
    text = MATMUL.replace("K", str(rows))
    before, after = (model_of(text, {"w": (rows, 48)}) for _ in range(2))
    assert nbits(after, bits) == 1
    assert [node.op_type for node in after.graph] == ["MatMulNBits"]
    assert after.graph.opset_imports["com.microsoft"] == 1
    record = after.graph[0].outputs[0].meta[META_KEY]
    assert 0 < record.error < error
    assert 0 < output_error(before, after) < error


@pytest.mark.parametrize(("bits", "error"), [(4, 0.12), (8, 0.015)])
def test_gemm_becomes_product_and_add(bits, error):
    text = GEMM.replace("K", "64")
    before, after = (model_of(text, {"w": (48, 64), "b": (48,)}) for _ in range(2))
    assert nbits(after, bits) == 1
    assert [node.op_type for node in after.graph] == ["MatMulNBits", "Add"]
    assert 0 < output_error(before, after) < error


def test_batched_input_and_shared_weight():
    text = """g (float[2,3,64] x) => (float[2,3,64] y) {
        a = MatMul (x, w)
        y = MatMul (a, w)
    }"""
    before, after = (model_of(text, {"w": (64, 64)}) for _ in range(2))
    assert nbits(after, 8) == 1
    assert len(after.graph.initializers) == 2
    assert 0 < output_error(before, after) < 0.02


def test_the_product_reads_the_right_weights():
    """One column at a time: a layout that is wrong by one nibble shows."""
    content = np.zeros((64, 48), np.float32)
    content[np.arange(48), np.arange(48)] = np.arange(1, 49)
    model = model_of(MATMUL.replace("K", "64"), {"w": content})
    assert nbits(model, 4) == 1
    back = run(model, {"x": np.eye(64, dtype=np.float32)})[0]
    np.testing.assert_allclose(back, content, rtol=2e-3, atol=1e-4)


REFUSED = {
    "other reader": (
        """g (float[N,64] x) => (float[N,48] y, float[48,64] t) {
            y = MatMul (x, w)
            t = Transpose (w)
        }""",
        "other nodes than MatMul and Gemm",
    ),
    "alpha": (
        "g (float[N,64] x) => (float[N,48] y) { y = Gemm <alpha = 2.0> (x, w) }",
        "other nodes than MatMul and Gemm",
    ),
    "both ways": (
        "g (float[N,64] x) => (float[N,64] y) { a = MatMul (x, w) y = Gemm <transB = 1> (a, w) }",
        "transposed and as it is",
    ),
    "output": (
        "g (float[N,64] x) => (float[N,48] y, float[64,48] w) { y = MatMul (x, w) }",
        "output of the graph",
    ),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refusals(name):
    text, reason = REFUSED[name]
    found = refusals(UseMatmulNbits(), model_of(text, {"w": (64, 48)}))
    assert reason in found["w"]


def test_stacked_matrices_stay():
    text = "g (float[3,N,64] x) => (float[3,N,48] y) { y = MatMul (x, w) }"
    assert refusals(UseMatmulNbits(), model_of(text, {"w": (3, 64, 48)})) == {
        "w": "it is no matrix"
    }


def test_the_error_limit_holds():
    reasons = refusals(
        UseMatmulNbits(max_error=0.01), model_of(MATMUL.replace("K", "64"), {"w": (64, 48)})
    )
    assert "above 0.01" in reasons["w"]


def test_what_is_not_finite_stays():
    content = np.full((64, 48), np.nan, np.float32)
    model = model_of(MATMUL.replace("K", "64"), {"w": content})
    assert refusals(UseMatmulNbits(), model) == {"w": "it holds NaN or infinity"}


def test_left_operands_overridable_and_half_stay():
    left = "g (float[48,N] x) => (float[64,N] y) { y = MatMul (w, x) }"
    assert refusals(UseMatmulNbits(), model_of(left, {"w": (64, 48)})) == {}
    listed = "g (float[N,64] x, float[64,48] w) => (float[N,48] y) { y = MatMul (x, w) }"
    assert refusals(UseMatmulNbits(), model_of(listed, {"w": (64, 48)})) == {}
    half = "g (float16[N,64] x) => (float16[N,48] y) { y = MatMul (x, w) }"
    assert refusals(UseMatmulNbits(), model_of(half, {"w": np.ones((64, 48), np.float16)})) == {}


def test_readers_in_branches_stay():
    assert "other nodes" in refusals(UseMatmulNbits(), branch_model())["outer"]


def test_seeded_inputs_agree_on_many_rows():
    text = MATMUL.replace("K", "64").replace("[N,", "[40,")
    before, after = (model_of(text, {"w": (64, 48)}) for _ in range(2))
    nbits(after, 8)
    feeds = make_feeds(before, 7)
    one, other = run(before, feeds)[0], run(after, feeds)[0]
    assert np.abs(one - other).max() < 0.03 * np.abs(one).max()
