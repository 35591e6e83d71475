"""Weights that a Transpose node turns before a MatMul reads them: a tied output layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.schema import is_op
from onnxslim.rewrite.channels.atoms import Channelled, Edits, Ids
from onnxslim.rewrite.channels.operators.quantized import Stored


@dataclass(frozen=True)
class Turned(Stored):
    """A constant matrix behind a Transpose, described as it is stored."""

    def record(self, state: Channelled, axes: Mapping[int, Ids]) -> None:
        """Says that the stored matrix may be cut along these of its axes."""
        super().record(state, axes)
        output, first, second = self.reader.outputs[0], axes[0], axes[1]

        def fix(edits: Edits) -> None:
            sizes = [int(edits.kept(ids).sum()) for ids in (second, first)]
            output.shape = ir.Shape(sizes)

        for ids in (first, second):
            state.fixes.append((ids, fix))


def turned_weight(node: ir.Node, index: int) -> Turned | None:
    """The constant matrix whose Transpose an operator alone reads, or None."""
    value = node.inputs[index]
    producer = value.producer() if value is not None else None
    if value is None or producer is None or not is_op(producer, "Transpose"):
        return None
    tensor = constant_tensor(producer.inputs[0])
    if tensor is None or len(tensor.shape) != 2 or 0 in tensor.shape.numpy():
        return None
    if len(value.uses()) != 1 or value.is_graph_output() or producer.graph is not node.graph:
        return None
    if list(producer.attributes.get_ints("perm", (1, 0))) != [1, 0]:
        return None
    return Turned(producer, 0, tensor, tensor.dtype)
