"""What the target shapes of operators spell, and how the numbers in them are changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import int_list, is_constant
from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import dim, rank
from onnxslim.rewrite.channels.atoms import (
    Barrier,
    Channelled,
    Edits,
    Ids,
    constant_shape,
    label,
)


def source_dims(node: ir.Node) -> list[int | str | None]:
    """The dimensions of the data of a Reshape; an unknown one has a name of its own."""
    value = node.inputs[0]
    dims = [_named(value, axis) for axis in range(rank(value) or 0)]
    expand = value.producer() if value is not None else None
    if expand is None or not is_op(expand, "Expand"):
        return dims
    spelled_dims, copied = shape_literals(expand) or [], _copied_dims(expand, len(dims))
    for axis, literal in enumerate(spelled_dims if len(spelled_dims) == len(dims) else []):
        if literal is not None and literal > 1:
            dims[axis] = literal
        elif not isinstance(dims[axis], int) and axis < len(copied) and copied[axis] is not None:
            inner = dim(expand.inputs[0], axis - len(dims))
            dims[axis] = copied[axis] if inner in (1, copied[axis]) else dims[axis]
    return dims


def _read_size(value: ir.Value) -> int | None:
    """The size of the last axis that a matrix operator with constant weights reads."""
    producer = value.producer()
    for use in value.uses():
        if producer is None or use.node.graph is not producer.graph:
            continue  # a subgraph need not run
        shape = constant_shape(use.node.inputs[1]) if len(use.node.inputs) > 1 else None
        if use.idx != 0 or shape is None or len(shape) != 2:
            continue
        if is_op(use.node, "MatMul"):
            return shape[0]
        if is_op(use.node, "Gemm") and not use.node.attributes.get_int("transA", 0):
            return shape[use.node.attributes.get_int("transB", 0)]
    return None


def _named(value: ir.Value | None, axis: int) -> int | str | None:
    size = dim(value, axis)
    if size is not None or value is None:
        return size
    return f"axis {axis} of {value.name}"


def shape_literals(node: ir.Node) -> list[int | None] | None:
    """The target shape as far as it is spelled: a constant, or a Concat of pieces."""
    value = without_guard(node.inputs[1])
    numbers = int_list(value)
    if numbers is not None:
        return list(numbers)
    producer = value.producer() if value is not None else None
    if producer is None or not is_op(producer, "Concat"):
        return None
    literals: list[int | None] = []
    for piece in producer.inputs:
        numbers, size = int_list(piece), dim(piece, 0)
        if numbers is None and not isinstance(size, int):
            return None
        literals += numbers if numbers is not None else [None] * int(size or 0)
    return literals


def target_dims(node: ir.Node, source: Sequence[int | str | None]) -> list[int | str | None]:
    """The dimensions of the result of a Reshape: inferred, or spelled in the target shape.

    Raises:
        Barrier: not even their number is known.
    """
    literals = shape_literals(node)
    count = rank(node.outputs[0])
    if count is None and literals is None:
        raise Barrier("its target shape is unknown")
    length = count if count is not None else len(literals or [])
    dims = [dim(node.outputs[0], axis) for axis in range(length)]
    for axis, literal in enumerate((literals or [])[:length]):
        if literal is not None and literal > 0:
            dims[axis] = literal
        elif literal == 0 and not node.attributes.get_int("allowzero", 0) and axis < len(source):
            dims[axis] = source[axis] if source[axis] is not None else f"copied axis {axis}"
    for axis, size in enumerate(_copied_dims(node, length)):
        if not isinstance(dims[axis], int) and size is not None:
            dims[axis] = size
    read = _read_size(node.outputs[0])
    if dims and read is not None and not isinstance(dims[-1], int):
        dims[-1] = read
    return dims


def _copied_dims(node: ir.Node, length: int) -> list[int | str | None]:
    """The dimensions that a target shape of pieces takes from the shape of some value."""
    value = without_guard(node.inputs[1])
    producer = value.producer() if value is not None else None
    if producer is None or not is_op(producer, "Concat"):
        return []
    found: list[int | str | None] = []
    for piece in producer.inputs:
        entry = shape_entry(piece)
        numbers = int_list(piece)
        size = dim(piece, 0) if numbers is None else len(numbers)
        if entry is not None:
            found.append(_named(*entry))
        else:
            found += [None] * (size if isinstance(size, int) else length)
    return found[:length]


def shape_entry(piece: ir.Value | None) -> tuple[ir.Value, int] | None:
    """The value and its axis whose size is all that a one-element vector or scalar holds."""
    node = piece.producer() if piece is not None else None
    while node is not None and is_op(node, "Unsqueeze", "Squeeze", "Cast", "Identity"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or not is_op(node, "Gather") or node.attributes.get_int("axis", 0) != 0:
        return None
    picked = int_list(node.inputs[1])
    shape = node.inputs[0].producer() if node.inputs[0] is not None else None
    if picked is None or len(picked) != 1 or not is_op(shape, "Shape"):
        return None
    assert shape is not None
    value = shape.inputs[0]
    count = rank(value)
    if value is None or count is None or {"start", "end"} & set(shape.attributes):
        return None
    return value, picked[0] % count


def spelled_count(
    state: Channelled,
    node: ir.Node,
    value: ir.Value | None,
    position: int,
    ids: Ids,
    what: str,
    index: int = 1,
) -> Callable[[Edits], None]:
    """Prepares the change of one number in an integer input of ``node``.

    The input is a constant, or a Concat of pieces of which the one in question is constant. -1 and
    0 stay as they are: they follow the other numbers.

    Raises:
        Barrier: the number is computed in another way.
    """
    if value is not node.inputs[index]:
        raise Barrier(f"{what} it is given is not an input of its own")
    fix = spelled(node, index, position, len(ids), what)
    return fix(lambda edits: int(edits.kept(ids).sum()))


def spelled(
    node: ir.Node, index: int, position: int, size: int, what: str
) -> Callable[[Callable[[Edits], int]], Callable[[Edits], None]]:
    """Prepares the change of one number in an integer input of ``node``, whatever it becomes.

    A Concat of pieces that has other readers is copied; so is a constant.

    Args:
        node: the reader.
        index: which of its inputs.
        position: the place of the number.
        size: what the number is now, unless it is -1 or 0.
        what: the input, for messages.

    Returns:
        a function that turns the way to count into the change.

    Raises:
        Barrier: the number is computed, or spells something else.
    """
    reader, place, offset = _spelling(node, index, position)
    value = node.inputs[index]
    literals = int_list(reader.inputs[place])
    if literals is None or offset >= len(literals):
        raise Barrier(f"{what} it is given, {label(value)}, is computed")
    if literals[offset] in (-1, 0):
        return lambda count: lambda edits: None
    if literals[offset] != size:
        raise Barrier(f"{what} it is given does not spell the number of channels")

    def counted(count: Callable[[Edits], int]) -> Callable[[Edits], None]:
        def fix(edits: Edits) -> None:
            _own_concat(node, index, edits)
            reader, place, offset = _spelling(node, index, position)
            old = reader.inputs[place]
            numbers = int_list(old)
            assert old is not None
            assert numbers is not None
            numbers[offset] = count(edits)
            content = np.array(numbers, dtype=np.int64)
            reader.replace_input_with(place, edits.initializer(content, f"{old.name}_cut"))

        return fix

    return counted


def _spelling(node: ir.Node, index: int, position: int) -> tuple[ir.Node, int, int]:
    """The node that reads the constant with this number, which input it is, and where inside."""
    value = without_guard(node.inputs[index])
    producer = value.producer() if value is not None else None
    if not is_constant(value) and producer is not None and is_op(producer, "Concat"):
        return _piece(producer, position)
    return node, index, position


def without_guard(value: ir.Value | None) -> ir.Value | None:
    """The shape behind ``Where (Equal (shape, -1), 1, shape)``, if no element of it is -1.

    Exporters write this for an Expand, where -1 means that an axis stays as it is.
    """
    where = value.producer() if value is not None else None
    if where is None or not is_op(where, "Where"):
        return value
    shape = where.inputs[2]
    test = where.inputs[0].producer() if where.inputs[0] is not None else None
    concat = shape.producer() if shape is not None else None
    if test is None or concat is None or not is_op(test, "Equal") or not is_op(concat, "Concat"):
        return value
    against = int_list(test.inputs[1])
    if test.inputs[0] is not shape or not against or set(against) != {-1}:
        return value
    for piece in concat.inputs:
        numbers = int_list(piece)
        if shape_entry(piece) is None and (numbers is None or -1 in numbers):
            return value
    return shape


def _own_concat(node: ir.Node, index: int, edits: Edits) -> None:
    """Copies a Concat of pieces that others read too, for this reader alone."""
    value = without_guard(node.inputs[index])
    concat = value.producer() if value is not None else None
    if value is None or concat is None or not is_op(concat, "Concat"):
        return
    node.replace_input_with(index, value)
    if _single_use(value):
        return
    name = edits.fresh_name(f"{value.name}_cut")
    output = ir.Value(name=name, type=value.type, shape=value.shape)
    attributes = [ir.AttrInt64("axis", 0)]
    copy = ir.Node("", "Concat", list(concat.inputs), attributes=attributes, outputs=[output])
    assert node.graph is not None
    node.graph.insert_before(node, copy)
    node.replace_input_with(index, output)


def _single_use(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _piece(concat: ir.Node, position: int) -> tuple[ir.Node, int, int]:
    """The input of a Concat of shape pieces that holds this position, and where inside it."""
    offset = position
    for index, value in enumerate(concat.inputs):
        size = dim(value, 0)
        if not isinstance(size, int):
            numbers = int_list(value)
            size = len(numbers) if numbers is not None else None
        if size is None:
            break
        if offset < size:
            return concat, index, offset
        offset -= size
    raise Barrier("the shape it is given is computed")
