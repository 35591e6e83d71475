"""How attention splits features into heads and joins them, and the constants it scales by."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from onnxslim.ir.constants import int_list
from onnxslim.ir.shapes import dim, rank
from onnxslim.rewrite.patterns import maker, with_number

TO_HEADS = [0, 2, 1, 3]
KEYS = [0, 2, 3, 1]
SWAPPED = [0, 1, 3, 2]


@dataclass
class Scaled:
    """A value before it was multiplied by constants: the product of these, and the nodes."""

    value: ir.Value
    factor: float = 1.0
    nodes: list[ir.Node] = field(default_factory=list)


@dataclass
class Heads:
    """A value (batch, heads, sequence, size) that was split out of (batch, sequence, features).

    Attributes:
        features: the value before, scaled by nothing.
        count: the number of heads.
        factor: constants in between.
        nodes: the nodes of the split.
    """

    features: ir.Value
    count: int
    factor: float
    nodes: list[ir.Node]


def unscaled(value: ir.Value, home: object) -> Scaled:
    """Reads past multiplications with, and divisions by, one number."""
    found = Scaled(value)
    while True:
        node = maker(found.value, home, "Mul", "Div")
        parts = with_number(node) if node is not None else None
        if node is None or parts is None or not parts[1]:
            return found
        if node.op_type == "Div" and parts[0] is not node.inputs[0]:
            return found
        found.value = parts[0]
        found.factor *= parts[1] if node.op_type == "Mul" else 1 / parts[1]
        found.nodes.append(node)


def permuted(value: ir.Value | None, home: object, perm: list[int]) -> ir.Node | None:
    """The Transpose with this order that makes a value."""
    node = maker(value, home, "Transpose")
    if node is None or list(node.attributes.get_ints("perm", [])) != perm:
        return None
    return node


def split_heads(value: ir.Value, home: object) -> Heads | None:
    """(batch, heads, sequence, size) as a split of (batch, sequence, features)."""
    turn = permuted(value, home, TO_HEADS)
    if turn is None or turn.inputs[0] is None:
        return None
    found = split_features(turn.inputs[0], home)
    return None if found is None else _with(found, turn)


def _with(found: Heads, node: ir.Node) -> Heads:
    found.nodes.append(node)
    return found


def split_features(value: ir.Value, home: object) -> Heads | None:
    """(batch, sequence, heads, size) as a Reshape of (batch, sequence, features)."""
    node = maker(value, home, "Reshape")
    count = dim(value, 2)
    if node is None or node.inputs[0] is None or not isinstance(count, int):
        return None
    if rank(value) != 4 or rank(node.inputs[0]) != 3 or not _keeps_two(node):
        return None
    plain = unscaled(node.inputs[0], home)
    return Heads(plain.value, count, plain.factor, [*plain.nodes, node])


def join_heads(value: ir.Value, home: object) -> list[ir.Node] | None:
    """The Transpose and the Reshape that make (batch, sequence, features) of heads again."""
    turn = _reader(value, "Transpose")
    if turn is None or permuted(turn.outputs[0], home, TO_HEADS) is None:
        return None
    shape = _reader(turn.outputs[0], "Reshape")
    if shape is None or shape.graph is not home or shape.inputs[0] is not turn.outputs[0]:
        return None
    if rank(shape.outputs[0]) != 3 or rank(value) != 4 or not _keeps_two(shape):
        return None
    sizes = dim(value, 1), dim(value, 3), dim(shape.outputs[0], 2)
    if not all(isinstance(size, int) for size in sizes):
        return None
    return [turn, shape] if sizes[0] * sizes[1] == sizes[2] else None  # type: ignore[operator]


def _keeps_two(node: ir.Node) -> bool:
    """True when a Reshape provably leaves the first two dimensions as they are."""
    wanted = int_list(node.inputs[1])
    plain = not node.attributes.get_int("allowzero", 0)
    for axis in (0, 1):
        size = dim(node.inputs[0], axis)
        if plain and wanted is not None and len(wanted) > axis and wanted[axis] == 0:
            continue
        if size is None or size != dim(node.outputs[0], axis):
            return False
    return True


def _reader(value: ir.Value, op_type: str) -> ir.Node | None:
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = uses[0][0]
    return node if node.op_type == op_type and node.domain in ("", "ai.onnx") else None
