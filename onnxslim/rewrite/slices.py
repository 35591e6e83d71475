"""What a Slice with constant bounds cuts."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxslim.ir.constants import int_list
from onnxslim.ir.schema import is_op
from onnxslim.rewrite.noops.rules import dim, rank


@dataclass(frozen=True)
class Cut:
    """Start, end and step along one axis, as they are written.

    Attributes:
        axis: counted from the front.
        start: the first position, negative ones counted from the end.
        end: the position behind the last one; numbers beyond the axis mean its end.
        step: not 0.
    """

    axis: int
    start: int
    end: int
    step: int


def cuts_of(node: ir.Node) -> list[Cut] | None:
    """The cuts of a Slice in the order in which they are written; None when not all are constant.

    Bounds are inputs since opset 10 and attributes before.
    """
    if not is_op(node, "Slice") or any(item.is_ref() for item in node.attributes.values()):
        return None
    if len(node.inputs) == 1:
        lists = [_ints(node, "starts"), _ints(node, "ends"), _ints(node, "axes"), None]
    else:
        lists = [_at(node, slot) for slot in (1, 2, 3, 4)]
        missing = [slot for slot in (3, 4) if _given(node, slot) and lists[slot - 1] is None]
        if missing:
            return None
    starts, ends, axes, steps = lists
    if starts is None or ends is None:
        return None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    width = rank(node.inputs[0])
    if not len(starts) == len(ends) == len(axes) == len(steps):
        return None
    if any(axis < 0 for axis in axes):
        if width is None:
            return None
        axes = [axis % width for axis in axes]
    if len(set(axes)) != len(axes):
        return None
    return [Cut(*item) for item in zip(axes, starts, ends, steps, strict=True)]


def _ints(node: ir.Node, name: str) -> list[int] | None:
    found = node.attributes.get(name)
    return None if found is None else list(found.as_ints())


def _given(node: ir.Node, slot: int) -> bool:
    return len(node.inputs) > slot and node.inputs[slot] is not None


def _at(node: ir.Node, slot: int) -> list[int] | None:
    return int_list(node.inputs[slot]) if _given(node, slot) else None


def interval(cut: Cut, value: ir.Value) -> tuple[int, int] | None:
    """First position and the one behind the last, for step 1 along an axis of known size."""
    size = dim(value, cut.axis)
    if not isinstance(size, int) or cut.step != 1:
        return None
    bounds = [edge + size if edge < 0 else edge for edge in (cut.start, cut.end)]
    start, end = (min(max(edge, 0), size) for edge in bounds)
    return (start, end) if start < end else None
