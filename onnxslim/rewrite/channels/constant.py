"""Operands that hold one constant per channel, so that a vector can stand for the whole tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import is_constant
from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import rank, same_shape
from onnxslim.rewrite.channels.atoms import Array, Channelled
from onnxslim.rewrite.channels.emit import new_constant

_OPERATORS = ("Add", "Div", "Max", "Min", "Mul", "Sub")


@dataclass(frozen=True)
class ConstantOperand:
    """Input ``index`` of ``node`` equals ``vector`` broadcast to its shape."""

    node: ir.Node
    index: int
    vector: Array


def constant_operands(state: Channelled) -> Iterator[ConstantOperand]:
    """Computed operands of elementwise nodes that are constant in every channel.

    Only where the other operand has the shape of the result by itself, so that the result keeps
    its shape when the operand shrinks to a vector.
    """
    if state.opset < 8:  # Max and Min do not broadcast there
        return
    for node in state.graph:
        if not is_op(node, *_OPERATORS) or len(node.inputs) != 2:
            continue
        for index, value in enumerate(node.inputs):
            channels = state.of(value)
            if channels is None or channels.known is None or np.isnan(channels.known).any():
                continue
            other = node.inputs[1 - index]
            count = rank(value)
            if value is None or value.dtype is None or count is None or is_constant(other):
                continue
            if is_op(value.producer(), "DequantizeLinear"):
                continue  # the runtime joins it with the operator to integer arithmetic
            if other is not value and same_shape(other, node.outputs[0]):
                shape = (len(channels.ids), *[1] * (count - channels.axis - 1))
                vector = channels.known.astype(value.dtype.numpy()).reshape(shape)
                yield ConstantOperand(node, index, vector)
                break


def replace(state: Channelled, found: ConstantOperand, fresh_name: Callable[[str], str]) -> None:
    """Puts the vector in the place of the operand; what computed it may be dead now."""
    old = found.node.inputs[found.index]
    base = f"{old.name}_constant" if old is not None else "constant"
    found.node.replace_input_with(found.index, new_constant(state, found.vector, fresh_name(base)))
