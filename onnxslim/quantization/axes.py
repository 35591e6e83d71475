"""Along which axis the output channels of a weight lie."""

from __future__ import annotations

import onnx_ir as ir


def channel_axis(node: ir.Node, index: int, rank: int) -> int | None:
    """The axis of output channels of a weight, or None when it has none.

    Args:
        node: reads the weight.
        index: as which input.
        rank: dimensions of the weight.
    """
    if index != 1 or rank < 2:
        return None
    match node.op_type:
        case "Conv":
            return 0
        case "ConvTranspose":
            return 1 if node.attributes.get_int("group", 1) == 1 else None
        case "Gemm":
            return 0 if node.attributes.get_int("transB", 0) else 1
        case "MatMul":
            return 1 if rank == 2 else None  # QLinearMatMul takes scales of matrices only
    return None
