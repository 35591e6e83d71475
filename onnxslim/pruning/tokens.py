"""Which positions of a sequence are looked at in the end, such as the class token alone.

Behind the last attention of a classifier only one position goes on; a fit that has to please all of
them gives that one away.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxslim.ir.constants import int_list, is_constant
from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import dim, rank

# Operators that work on each position by itself.
_UNARY = ("Cast", "Clip", "Dropout", "Erf", "Gelu", "Identity", "Relu", "Sigmoid", "Tanh")
_BINARY = ("Add", "Div", "Max", "Min", "Mul", "Pow", "Sub")


def positions_read(value: ir.Value) -> frozenset[int] | None:
    """The indices on axis 1 of a ``(batch, positions, channels)`` value that anything depends on.

    None when all may be, or when it cannot be told.
    """
    size = dim(value, 1)
    if rank(value) != 3 or not isinstance(size, int):
        return None
    found: set[int] = set()
    open_values, seen = [value], {value}
    while open_values:
        current = open_values.pop()
        if current.is_graph_output():
            return None
        for use in current.uses():
            picked = _picked(use.node, use.idx, size)
            if picked is not None:
                found |= picked
            elif _passes(use.node, use.idx, size) and use.node.graph is not None:
                if use.node.outputs[0] not in seen:
                    seen.add(use.node.outputs[0])
                    open_values.append(use.node.outputs[0])
            else:
                return None
    return frozenset(found) if 0 < len(found) < size else None


def _picked(node: ir.Node, index: int, size: int) -> set[int] | None:
    """The positions that a Gather takes."""
    if index != 0 or not is_op(node, "Gather") or node.attributes.get_int("axis", 0) % 3 != 1:
        return None
    numbers = int_list(node.inputs[1])
    return None if numbers is None else {number % size for number in numbers}


def _passes(node: ir.Node, index: int, size: int) -> bool:
    """Does every position of the first output come of the same position of this input?"""
    if len(node.outputs) != 1 or rank(node.outputs[0]) != 3 or dim(node.outputs[0], 1) != size:
        return False
    if is_op(node, "LayerNormalization"):
        return index == 0 and node.attributes.get_int("axis", -1) in (-1, 2)
    if is_op(node, "MatMul"):
        return index == 0 and is_constant(node.inputs[1]) and rank(node.inputs[1]) == 2
    return is_op(node, *_UNARY) or is_op(node, *_BINARY)
