"""Channel rules of operators that reshape, and of the numbers that spell shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import int_list
from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import dim, rank
from onnxslim.rewrite.channels.atoms import (
    Barrier,
    Channelled,
    Channels,
    Joint,
)
from onnxslim.rewrite.channels.joint import (
    as_joint,
    collapse,
    joint_of,
    length_along,
    reduced,
    track_joint,
)
from onnxslim.rewrite.channels.operators.regroup import regroup
from onnxslim.rewrite.channels.operators.target import (
    shape_literals,
    source_dims,
    spelled,
    target_dims,
)


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
    source = source_dims(node)
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
