"""Channel rules of operators that reshape, and of the numbers that spell shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import int_list, is_constant
from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import dim, rank
from onnxslim.rewrite.channels.atoms import Barrier, Channelled, Channels, Edits, Ids, label


def flatten(state: Channelled, node: ir.Node) -> None:
    """Flatten joins axes in two groups; a channel becomes all the columns that came from it."""
    channels, count = tracked_input(state, node)
    split = node.attributes.get_int("axis", 1)
    split += count if split < 0 else 0
    first, last, axis = (split, count, 1) if channels.axis >= split else (0, split, 0)
    _join(state, node, channels, range(first, last), axis)


def plain_reshape(state: Channelled, node: ir.Node) -> None:
    """Reshape that leaves the tracked axis alone, joins it with others, or splits off its tail."""
    channels, count = tracked_input(state, node)
    source_dims = [dim(node.inputs[0], axis) for axis in range(count)]
    literals = _shape_literals(node)
    target = target_dims(node, source_dims)
    before, after = unmatched(source_dims, target)
    axis = after[0]
    if channels.axis < before[0] or channels.axis >= before[1]:
        axis = channels.axis + (0 if channels.axis < before[0] else len(target) - count)
        state.track(node.outputs[0], axis, channels.ids, channels.known)
    elif after[1] - after[0] == 1:
        _join(state, node, channels, range(*before), axis)
    elif before[1] - before[0] == 1 and after[1] > after[0]:
        _split_axis(state, node, channels, target[slice(*after)], axis)
    else:
        raise Barrier("it mixes the channels with other axes")
    for copied, literal in enumerate(literals or []):
        if literal == 0 and (copied == axis) != (copied == channels.axis):
            raise Barrier("a 0 in its target shape copies another axis")
    ids = state.values[node.outputs[0]].ids
    state.fixes.append((ids, spelled_count(state, node, node.inputs[1], axis, ids, "the shape")))


def _shape_literals(node: ir.Node) -> list[int | None] | None:
    """The target shape as far as it is spelled: a constant, or a Concat of pieces."""
    value = node.inputs[1]
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
    literals = _shape_literals(node)
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
    return dims


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


def _split_axis(
    state: Channelled,
    node: ir.Node,
    channels: Channels,
    sizes: Sequence[int | str | None],
    target_axis: int,
) -> None:
    """Splits the tracked axis; its first part stays tracked, each of its blocks as one atom."""
    numbers = numbers_of(sizes)
    blocks = channels.ids.reshape(numbers[0], -1)
    for column in range(1, blocks.shape[1]):
        state.unite(blocks[:, 0], blocks[:, column])
    known = channels.filled().reshape(numbers[0], -1)
    same = (known == known[:, :1]).all(axis=1)
    ids = np.ascontiguousarray(blocks[:, 0])
    state.track(node.outputs[0], target_axis, ids, np.where(same, known[:, 0], np.nan))


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
    reader, place, offset = node, index, position
    producer = value.producer() if value is not None else None
    if not is_constant(value) and is_op(producer, "Concat"):
        assert producer is not None
        reader, place, offset = _piece(producer, position)
    literals = int_list(reader.inputs[place])
    if literals is None or offset >= len(literals):
        raise Barrier(f"{what} it is given, {label(value)}, is computed")
    if reader is not node and not _single_use(reader.outputs[0]):
        raise Barrier(f"{what} it is given, {label(value)}, has other readers")
    if literals[offset] in (-1, 0):
        return lambda edits: None
    if literals[offset] != len(ids):
        raise Barrier(f"{what} it is given does not spell the number of channels")

    def fix(edits: Edits) -> None:
        old = reader.inputs[place]
        numbers = int_list(old)
        assert old is not None
        assert numbers is not None
        numbers[offset] = int(edits.kept(ids).sum())
        content = np.array(numbers, dtype=np.int64)
        reader.replace_input_with(place, edits.initializer(content, f"{old.name}_cut"))

    return fix


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
    """Shape whose entry of the tracked axis nobody reads."""
    channels, count = tracked_input(state, node)
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", count)
    span = range(count)[slice(start, end)]
    if channels.axis not in span:
        return
    entry = channels.axis - span.start
    if node.outputs[0].is_graph_output():
        raise Barrier("the number of channels is read")
    for use in node.outputs[0].uses():
        if not _reads_other_entries(use.node, use.idx, entry, len(span)):
            raise Barrier("the number of channels is read")


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
