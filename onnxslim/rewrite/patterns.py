"""What matches over several nodes need: who makes a value, constants beside it, and closedness."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor, int_list, scalar
from onnxslim.ir.edit import remove, replace_node
from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import rank
from onnxslim.pipeline import Context
from onnxslim.rewrite.place_constant import discard_unused


def maker(value: ir.Value | None, home: object, *op_types: str) -> ir.Node | None:
    """The node that makes a value, if it is one of these standard operators.

    Args:
        value: the value.
        home: the graph that the node has to stand in.
        op_types: the operators.
    """
    node = value.producer() if value is not None else None
    if node is None or node.graph is not home or not is_op(node, *op_types):
        return None
    return None if any(item.is_ref() for item in node.attributes.values()) else node


def pairs(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """The two inputs of an operator whose operands may be exchanged, in either order."""
    if len(node.inputs) != 2:
        return
    first, second = node.inputs
    if first is not None and second is not None:
        yield first, second
        yield second, first


def number(value: ir.Value | None, beside: ir.Value | None) -> float | None:
    """The one number of a constant that broadcasting over another value gives no new axis."""
    tensor, width = constant_tensor(value), rank(beside)
    if tensor is None or tensor.size != 1:
        return None
    if len(tensor.shape) and (width is None or len(tensor.shape) > width):
        return None
    found = scalar(value)
    return None if isinstance(found, bool | complex) or found is None else float(found)


def with_number(node: ir.Node) -> tuple[ir.Value, float] | None:
    """The operands of a node with one constant of one element: the other value, and the number."""
    for value, constant in pairs(node):
        found = number(constant, value)
        if found is not None and number(value, constant) is None:
            return value, found
    return None


def close(found: float | None, wanted: float, dtype: ir.DataType | None) -> bool:
    """True when a constant is a number as it is written in its element type.

    Relative 1e-3 in float16 and bfloat16 (bfloat16 has 8 bits: 4e-3), 2e-6 in float.
    """
    if found is None:
        return False
    relative = {ir.DataType.FLOAT16: 1e-3, ir.DataType.BFLOAT16: 4e-3}.get(
        dtype or ir.DataType.FLOAT, 2e-6
    )
    return abs(found - wanted) <= relative * abs(wanted)


def is_closed(nodes: Iterable[ir.Node], root: ir.Node) -> bool:
    """True when nobody but these nodes reads what they make, the root's outputs excepted."""
    group = set(nodes)
    for node in group - {root}:
        for value in node.outputs:
            if value.is_graph_output() or any(user not in group for user, _ in value.uses()):
                return False
    return True


def replace_group(nodes: Iterable[ir.Node], root: ir.Node, new: ir.Node) -> None:
    """Puts one node in the place of a closed group; constants that nobody reads any more go."""
    group = [node for node in dict.fromkeys(nodes) if node is not root]
    freed = [value for node in (*group, root) for value in node.inputs if value is not None]
    new.doc_string = new.doc_string or root.doc_string
    new.metadata_props.update(root.metadata_props)
    replace_node(root, new)
    while group:
        idle = [node for node in group if not any(value.uses() for value in node.outputs)]
        for node in idle:
            remove(node)
        group = [node for node in group if node not in idle]
    for value in dict.fromkeys(freed):
        discard_unused(value)


def rounding_matters(model: ir.Model, context: Context) -> str | None:
    """Why no float operators of a model may be replaced by one that rounds otherwise, or None.

    Where a value is quantized, a last bit decides between two steps of the grid: measured on an
    encoder with dynamic int8, two differ by 1e-2 of the largest output.
    """
    if context.holds(model, ("DynamicQuantizeLinear", "QuantizeLinear")):
        return "kept because the model quantizes, where a last bit may become a step of the grid"
    return None


def reduced_axes(node: ir.Node) -> list[int] | None:
    """The axes of a reduction that keeps its dimensions, sorted and below 0; None otherwise.

    None too where axes come from outside or the rank is not known and some axis is not negative.
    """
    if node.attributes.get_int("keepdims", 1) != 1:
        return None
    attribute = node.attributes.get("axes")
    axes = list(attribute.as_ints()) if attribute is not None else None
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = int_list(node.inputs[1])
    if not axes:
        return None
    width = rank(node.inputs[0])
    if any(axis >= 0 for axis in axes):
        if width is None:
            return None
        axes = [axis - width if axis >= 0 else axis for axis in axes]
    return sorted(axes)
