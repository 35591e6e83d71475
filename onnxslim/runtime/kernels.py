"""Which operators onnxruntime runs after it has fused what it fuses."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import onnx_ir as ir

from onnxslim.io import load
from onnxslim.runtime.session import optimized_copy


def executed_operators(model: ir.Model) -> Counter[str]:
    """Operators of the main graph as deployed on this processor, with their counts.

    Raises:
        RuntimeRefusedError: onnxruntime cannot open the model.
    """
    with tempfile.TemporaryDirectory(prefix="onnxslim-") as folder:
        path = Path(folder) / "fused.onnx"
        optimized_copy(model, path)
        return Counter(node.op_type for node in load(path).graph)


_INTEGERS = (
    "ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QAttention",
    "QGemm", "QLinearConv", "QLinearMatMul",
)  # fmt: skip
_FLOATS = (
    "Attention", "Conv", "ConvTranspose", "FusedConv", "FusedGemm", "FusedMatMul", "GRU", "Gemm",
    "LSTM", "MatMul", "NhwcFusedConv", "RNN",
)  # fmt: skip


def int8_share(operators: Counter[str]) -> float:
    """Share of the products of matrices that run on integers, from 0 to 1; 1 when there are none.

    Args:
        operators: from `executed_operators`.
    """
    integers = sum(operators[name] for name in _INTEGERS)
    floats = sum(operators[name] for name in _FLOATS)
    return integers / (integers + floats) if integers + floats else 1.0
