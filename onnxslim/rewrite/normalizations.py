"""The statistics that normalizations share: 1 / sqrt(mean(square) + epsilon) over the last axes."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import dim, rank, static_shape
from onnxslim.rewrite.patterns import maker, number, pairs, reduced_axes, with_number

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})


@dataclass
class Norm:
    """A value divided by its root mean square.

    Attributes:
        value: what is divided.
        axes: the reduced axes, all below 0 and sorted.
        epsilon: what is added to the mean of squares.
        nodes: the nodes that compute it.
    """

    value: ir.Value
    axes: list[int]
    epsilon: float
    nodes: list[ir.Node] = field(default_factory=list)


def find_norm(node: ir.Node) -> Norm | None:
    """The normalization that a Div or a Mul is the last step of.

    ``v / s``, ``v * (1 / s)`` and ``v * s ** -0.5`` are understood, where s is the root of
    ``mean(v * v) + epsilon`` or that sum itself.
    """
    if is_op(node, "Div"):
        value, deviation = node.inputs
        root = _deviation(deviation, node.graph)
        return _norm(node, value, root)
    for value, factor in pairs(node) if is_op(node, "Mul") else ():
        root = _inverse(factor, node.graph)
        found = _norm(node, value, root)
        if found is not None:
            return found
    return None


def _inverse(factor: ir.Value, home: object) -> tuple[ir.Value, list[ir.Node]] | None:
    """What 1 / sqrt is taken of, and by which nodes."""
    node = maker(factor, home, "Reciprocal", "Div", "Pow")
    if node is None:
        return None
    if node.op_type == "Pow":
        if number(node.inputs[1], node.inputs[0]) != -0.5 or node.inputs[0] is None:
            return None
        return node.inputs[0], [node]
    if node.op_type == "Div" and number(node.inputs[0], node.inputs[1]) != 1.0:
        return None
    found = _deviation(node.inputs[-1], home)
    return None if found is None else (found[0], [*found[1], node])


def _deviation(value: ir.Value | None, home: object) -> tuple[ir.Value, list[ir.Node]] | None:
    """What a square root is taken of, and by which node."""
    node = maker(value, home, "Sqrt", "Pow")
    if node is None or node.inputs[0] is None:
        return None
    if node.op_type == "Pow" and number(node.inputs[1], node.inputs[0]) != 0.5:
        return None
    return node.inputs[0], [node]


def _norm(
    last: ir.Node, value: ir.Value | None, root: tuple[ir.Value, list[ir.Node]] | None
) -> Norm | None:
    if value is None or root is None:
        return None
    total = maker(root[0], last.graph, "Add")
    parts = with_number(total) if total is not None else None
    if total is None or parts is None or not parts[1] >= 0:
        return None
    mean = maker(parts[0], last.graph, "ReduceMean")
    axes = reduced_axes(mean) if mean is not None else None
    if mean is None or axes is None or axes != list(range(-len(axes), 0)):
        return None
    square = maker(mean.inputs[0], last.graph, "Pow", "Mul")
    if square is None or not _is_square(square, value):
        return None
    return Norm(value, axes, parts[1], [square, mean, total, *root[1], last])


def _is_square(node: ir.Node, value: ir.Value) -> bool:
    if node.inputs[0] is not value:
        return False
    if node.op_type == "Mul":
        return node.inputs[1] is value
    return number(node.inputs[1], value) == 2.0


def fits(scale: ir.Value, value: ir.Value, axes: list[int]) -> bool:
    """True when a scale or bias has exactly the sizes of the normalized axes, all known."""
    sizes, width = static_shape(scale), rank(value)
    if sizes is None or width is None or len(sizes) != len(axes) or width < len(axes):
        return False
    return all(dim(value, axis) == size for axis, size in zip(axes, sizes, strict=True))
