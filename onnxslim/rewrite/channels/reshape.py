"""Channel rules of operators that reshape, and of the numbers that spell shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import int_list, is_constant
from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import dim, rank
from onnxslim.rewrite.channels.atoms import (
    Barrier,
    Channelled,
    Channels,
    Edits,
    Ids,
    Joint,
    constant_shape,
    label,
)
from onnxslim.rewrite.channels.joint import (
    as_joint,
    collapse,
    joint_of,
    length_along,
    reduced,
    track_joint,
)
from onnxslim.rewrite.channels.regroup import regroup


def flatten(state: Channelled, node: ir.Node) -> None:
    """Flatten joins axes in two groups; a channel becomes all the columns that came from it."""
    channels, count = tracked_input(state, node)
    split = node.attributes.get_int("axis", 1)
    split += count if split < 0 else 0
    first, last, axis = (split, count, 1) if channels.axis >= split else (0, split, 0)
    _join(state, node, channels, range(first, last), axis)


def plain_reshape(state: Channelled, node: ir.Node) -> None:
    """Reshape that joins and splits axes, the tracked ones among them or not."""
    joint = joint_of(state, node.inputs[0])
    if joint is None or rank(node.inputs[0]) is None:
        raise Barrier("its input is not tracked")
    try:
        _regrouped(state, node, joint)
    except Barrier:
        if len(joint.axes) == 1:
            raise
        collapse(state, node.inputs[0])
        channels, _ = tracked_input(state, node)
        _regrouped(state, node, as_joint(channels))


def _regrouped(state: Channelled, node: ir.Node, joint: Joint) -> None:
    source = _source_dims(node)
    target = target_dims(node, source)
    for axis, size in enumerate(target):
        if size == f"copied axis {axis}":
            source[axis] = size
    _name_the_unknown(source, target)
    result = regroup(joint, source, target)
    checked = reduced(result)
    for copied, literal in enumerate(shape_literals(node) or []):
        if literal == 0 and (copied in checked.axes) != (copied in joint.axes):
            raise Barrier("a 0 in its target shape copies another axis")
    pending = [
        (result.ids.reshape(-1), spelled(node, 1, axis, size, "the shape"))
        for axis, size in zip(checked.axes, checked.ids.shape, strict=True)
    ]
    track_joint(state, node, node.outputs[0], result)
    made = joint_of(state, node.outputs[0])
    assert made is not None
    for place, (ids, fix) in enumerate(pending):
        state.fixes.append((ids, fix(length_along(made, place))))


def _source_dims(node: ir.Node) -> list[int | str | None]:
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
    for use in value.uses():
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


def unmatched(
    source: list[int | str | None], target: list[int | str | None]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The ranges of axes that differ once equal leading and trailing axes are taken off.

    Changes nothing but the two lists: a single unknown on each side stands for the same number
    when all the other axes multiply to the same.

    The elements are equally many in all, so those of the two ranges are too.
    """
    copied = [axis for axis, size in enumerate(target) if size == f"copied axis {axis}"]
    for axis in copied:
        source[axis] = target[axis]
    _name_the_unknown(source, target)
    head = 0
    while head < min(len(source), len(target)) and _same(source[head], target[head]):
        head += 1
    tail = 0
    while tail < min(len(source), len(target)) - head and _same(
        source[-1 - tail], target[-1 - tail]
    ):
        tail += 1
    before, after = (head, len(source) - tail), (head, len(target) - tail)
    return before, after


def _name_the_unknown(source: list[int | str | None], target: list[int | str | None]) -> None:
    open_source = [axis for axis, size in enumerate(source) if not isinstance(size, int)]
    open_target = [axis for axis, size in enumerate(target) if not isinstance(size, int)]
    if len(open_source) != 1 or len(open_target) != 1:
        return
    known_source = math.prod(size for size in source if isinstance(size, int))
    known_target = math.prod(size for size in target if isinstance(size, int))
    if known_source == known_target and known_source > 0:
        source[open_source[0]] = target[open_target[0]] = "the rest"


def _same(first: int | str | None, second: int | str | None) -> bool:
    return first is not None and first == second


def numbers_of(dims: Sequence[int | str | None]) -> list[int]:
    numbers = [size for size in dims if isinstance(size, int)]
    if len(numbers) != len(dims):
        raise Barrier("it joins or splits an axis of unknown size")
    return numbers


def _join(
    state: Channelled, node: ir.Node, channels: Channels, group: range, target_axis: int
) -> None:
    """Merges the axes of ``group``, the tracked one among them, into one."""
    sizes = numbers_of([dim(node.inputs[0], axis) for axis in group])
    shape = [1] * len(group)
    shape[channels.axis - group.start] = len(channels.ids)
    ids = np.broadcast_to(channels.ids.reshape(shape), sizes).reshape(-1)
    known = np.broadcast_to(channels.filled().reshape(shape), sizes).reshape(-1)
    state.track(node.outputs[0], target_axis, ids, known)


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


def shape_of(state: Channelled, node: ir.Node) -> None:
    """Shape whose entries of the tracked axes nobody reads.

    Where somebody reads how many coordinates each head has, all heads keep all of theirs.
    """
    joint = joint_of(state, node.inputs[0])
    count = rank(node.inputs[0])
    if joint is None or count is None:
        raise Barrier("its input is not tracked")
    read = [place for place, axis in enumerate(joint.axes) if _is_read(node, axis, count)]
    if read and (read[0] == 0 or node.outputs[0].is_graph_output()):
        raise Barrier("the number of channels is read")
    if read:
        collapse(state, node.inputs[0])


def _is_read(node: ir.Node, axis: int, count: int) -> bool:
    """May somebody read the entry of this axis of the data of a Shape?"""
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", count)
    span = range(count)[slice(start, end)]
    if axis not in span:
        return False
    if node.outputs[0].is_graph_output():
        return True
    return not all(
        _reads_other_entries(use.node, use.idx, axis - span.start, len(span))
        for use in node.outputs[0].uses()
    )


def _reads_other_entries(node: ir.Node, index: int, entry: int, length: int) -> bool:
    if index != 0:
        return False
    if is_op(node, "Gather") and node.attributes.get_int("axis", 0) == 0:
        picked = int_list(node.inputs[1])
        return picked is not None and entry not in [number % length for number in picked]
    if is_op(node, "Slice") and len(node.inputs) >= 3:
        bounds = [int_list(value) for value in node.inputs[1:3]]
        steps = int_list(node.inputs[4]) if len(node.inputs) > 4 else [1]
        if steps == [1] and all(bound is not None and len(bound) == 1 for bound in bounds):
            start, end = (bound[0] for bound in bounds if bound is not None)
            return entry not in range(length)[slice(start, end)]
    return False


def tracked_input(state: Channelled, node: ir.Node) -> tuple[Channels, int]:
    """The channels and the rank of the first input.

    Raises:
        Barrier: not tracked.
    """
    channels = state.of(node.inputs[0] if node.inputs else None)
    count = rank(node.inputs[0]) if node.inputs else None
    if channels is None or count is None:
        raise Barrier("its input is not tracked")
    return channels, count
