"""Values that are never zero, or never negative, by what computes them (NaN aside)."""

from __future__ import annotations

import onnx_ir as ir

from onnxslim.ir.constants import scalar
from onnxslim.ir.schema import is_op

_DEPTH = 8
_NOT_NEGATIVE = ("Abs", "ReduceL1", "ReduceL2", "ReduceSumSquare", "Relu", "Sigmoid", "Sqrt")
_KEEPING = ("Cast", "Expand", "Identity", "ReduceMean", "Reshape", "Squeeze", "Unsqueeze")


def is_positive(value: ir.Value | None, depth: int = _DEPTH) -> bool:
    """True when every element is above zero for certain, as far as ``depth`` operators tell."""
    number = scalar(value)
    if number is not None:
        return bool(number > 0)
    node = _computed_by(value, depth)
    if node is None:
        return False
    if is_op(node, "Sqrt"):
        return is_positive(node.inputs[0], depth - 1)
    if is_op(node, "Add"):
        first, second = node.inputs
        for one, other in ((first, second), (second, first)):
            if is_positive(one, depth - 1) and is_not_negative(other, depth - 1):
                return True
    return False


def is_not_negative(value: ir.Value | None, depth: int = _DEPTH) -> bool:
    """True when no element is below zero for certain, as far as ``depth`` operators tell."""
    number = scalar(value)
    if number is not None:
        return bool(number >= 0)
    node = _computed_by(value, depth)
    if node is None:
        return False
    if is_op(node, *_NOT_NEGATIVE) or is_square(node):
        return True
    if is_op(node, *_KEEPING, "ReduceSum"):
        return is_not_negative(node.inputs[0], depth - 1)
    if is_op(node, "Add"):
        return all(is_not_negative(other, depth - 1) for other in node.inputs)
    return False


def is_square(node: ir.Node | None) -> bool:
    """A value times itself, or to the power of two."""
    if node is not None and is_op(node, "Mul"):
        return node.inputs[0] is node.inputs[1]
    return node is not None and is_op(node, "Pow") and scalar(node.inputs[1]) == 2


def _computed_by(value: ir.Value | None, depth: int) -> ir.Node | None:
    return None if value is None or depth == 0 else value.producer()
