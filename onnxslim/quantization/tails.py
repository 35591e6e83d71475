"""Nodes behind the last product of matrices, which int8 makes worse without making them faster."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxslim.calibration.ranges import Range
from onnxslim.errors import DataError
from onnxslim.quantization.selection import MATRIX_OPS, Selection

# A Concat with one grid leaves an input this many times narrower than the whole 5 bits.
_WIDE = 8.0

_WIDE_REASON = "it joins numbers of unlike size, and no product of matrices follows"
_SMOOTH_REASON = "its results are read in float"


def keep_tails_float(selection: Selection, ranges: Mapping[str, Range]) -> None:
    """Takes nodes out of a selection.

    A Softmax or Sigmoid whose result nobody reads in int8 would be rounded twice. And where a
    Concat joins tensors of unlike ranges (boxes and scores of a detector) one grid for all of them
    leaves the narrow ones a few levels; it goes with the arithmetic around it, back to the last
    product of matrices. In the middle of a network both stay: the next product needs int8.

    Args:
        selection: it is changed.
        ranges: lowest and highest value by tensor name.
    """
    chosen = {id(node): node for node in selection.chosen}
    tail = _tail(selection)
    dropped: dict[int, str] = {}
    for node in selection.chosen:
        if id(node) not in tail:
            continue
        if node.op_type == "Concat" and _is_wide(node, ranges):
            for one in _around(node, tail):
                dropped[id(one)] = _WIDE_REASON
    for node in reversed(selection.chosen):
        if node.op_type in ("Sigmoid", "Softmax") and id(node) not in dropped:
            readers = [user for value in node.outputs for user, _ in value.uses()]
            if not any(id(user) in chosen and id(user) not in dropped for user in readers):
                dropped[id(node)] = _SMOOTH_REASON
    selection.refused.extend(
        (node, dropped[id(node)]) for node in selection.chosen if id(node) in dropped
    )
    selection.chosen = [node for node in selection.chosen if id(node) not in dropped]


def _tail(selection: Selection) -> dict[int, ir.Node]:
    """Chosen nodes that are no products of matrices and lead to none that is chosen."""
    products = {id(node) for node in selection.chosen if node.op_type in MATRIX_OPS}
    leading: set[int] = set(products)
    stack = [node for node in selection.chosen if id(node) in products]
    while stack:
        for value in stack.pop().inputs:
            node = value.producer() if value is not None else None
            if node is not None and id(node) not in leading:
                leading.add(id(node))
                stack.append(node)
    return {id(node): node for node in selection.chosen if id(node) not in leading}


def _is_wide(node: ir.Node, ranges: Mapping[str, Range]) -> bool:
    widths = [_width(value, ranges) for value in node.inputs if value is not None]
    whole = _width(node.outputs[0], ranges)
    return any(width and whole > _WIDE * width for width in widths)


def _width(value: ir.Value, ranges: Mapping[str, Range]) -> float:
    """Largest distance from zero to an end of the range; 0 when it is not known."""
    if value.const_value is not None:
        values = value.const_value.numpy()
        return float(abs(values).max(initial=0.0))
    try:
        low, high = ranges[value.name or ""]
    except DataError:
        return 0.0
    return max(abs(low), abs(high))


def _around(node: ir.Node, tail: Mapping[int, ir.Node]) -> list[ir.Node]:
    """The node, and what of the tail it is made of or goes into."""
    found = {id(node): node}
    for step in (_before, _behind):
        stack = [node]
        while stack:
            for other in step(stack.pop()):
                if id(other) in tail and id(other) not in found:
                    found[id(other)] = other
                    stack.append(other)
    return list(found.values())


def _before(node: ir.Node) -> list[ir.Node]:
    producers = [value.producer() for value in node.inputs if value is not None]
    return [one for one in producers if one is not None]


def _behind(node: ir.Node) -> list[ir.Node]:
    return [user for value in node.outputs for user, _ in value.uses()]
