"""Values with several tracked axes, such as the heads of an attention and their dimensions.

A Reshape that splits channels makes two axes of one. Which channels of a head can go may differ
from head to head, so the two axes share one array of atoms (`atoms.Joint`), of which a block of
equally long rows stays (`atoms.Grid`).

Where an operator has no rule for such a value, its first axis alone is tracked: everything at one
index of it can then only go together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.ir.shapes import dim
from onnxslim.rewrite.channels.atoms import (
    Barrier,
    Channelled,
    Channels,
    Edits,
    Grid,
    Ids,
    Joint,
    in_dtype,
)


def as_joint(channels: Channels) -> Joint:
    """One tracked axis as an array."""
    return Joint((channels.axis,), channels.ids, (), channels.filled(), channels.dtype)


def joint_of(state: Channelled, value: ir.Value | None) -> Joint | None:
    """The tracked axes of a value as one array, also where it is one axis; None for none."""
    if value is None:
        return None
    found = state.joints.get(value)
    if found is not None:
        return found
    channels = state.of(value)
    return None if channels is None else as_joint(channels)


def track_joint(
    state: Channelled,
    node: ir.Node,
    value: ir.Value,
    joint: Joint,
) -> None:
    """Says which axes of an output are tracked, as far as the atoms differ along them.

    Args:
        state: the walk.
        node: what makes the value.
        value: the output.
        joint: axes, atoms and constants; its lines are not looked at.

    Raises:
        Barrier: the inferred shape does not agree.
    """
    for axis, size in zip(joint.axes, joint.ids.shape, strict=True):
        inferred = dim(value, axis)
        if isinstance(inferred, int) and inferred != size:
            raise Barrier("its output has another number of channels than its inputs tell")
    part = reduced(joint)
    axes, ids, known = part.axes, part.ids, part.known
    if len(axes) == 1:
        state.track(value, axes[0], ids, known, joint.dtype)
        return
    dtype = value.dtype if value.dtype is not None else joint.dtype
    known = in_dtype(dtype, known)
    known = np.where(np.isfinite(known), known, np.nan)
    lines = tuple(_lines(state, ids, place) for place in range(len(axes) - 1))
    state.joints[value] = Joint(axes, ids, lines, known, dtype)
    state.grids.append(Grid(node, ids, lines, None, known))


def reduced(joint: Joint) -> Joint:
    """Without the axes along which the atoms do not differ; one axis stays."""
    varying = [
        place
        for place in range(joint.ids.ndim)
        if (joint.ids != np.take(joint.ids, [0], axis=place)).any()
    ] or [0]
    gone = [place for place in range(joint.ids.ndim) if place not in varying]
    known = joint.known
    for place in gone:
        first = np.take(known, [0], axis=place)
        same = (known == first).all(axis=place, keepdims=True)
        known = np.where(same, first, np.nan)
    picked = tuple(0 if place in gone else slice(None) for place in range(joint.ids.ndim))
    axes = tuple(joint.axes[place] for place in varying)
    return Joint(axes, np.ascontiguousarray(joint.ids[picked]), (), known[picked], joint.dtype)


def _lines(state: Channelled, ids: Ids, place: int) -> Ids:
    """One atom per index along an axis; indices with the same atoms share theirs."""
    slices = np.moveaxis(ids, place, 0).reshape(ids.shape[place], -1)
    _, back = np.unique(slices, axis=0, return_inverse=True)
    back = back.reshape(-1)
    return state.fresh(int(back.max()) + 1)[back]


def collapse(state: Channelled, value: ir.Value | None) -> None:
    """Ties together all that shares an index of the first axis, which alone is tracked then."""
    joint = state.joints.get(value) if value is not None else None
    if value is None or joint is None or value in state.values:
        return
    rows = joint.ids.reshape(joint.ids.shape[0], -1)
    for column in range(1, rows.shape[1]):
        state.unite(rows[:, 0], rows[:, column])
    state.unite(joint.lines[0], rows[:, 0])
    known = joint.known.reshape(rows.shape)
    same = (known == known[:, :1]).all(axis=1)
    ids = np.ascontiguousarray(rows[:, 0])
    filled = np.where(same, known[:, 0], np.nan)
    state.values[value] = Channels(joint.axes[0], ids, filled, joint.dtype)


def unite_joints(state: Channelled, first: Joint, second: Joint) -> None:
    """Ties two arrays of the same shape together, with their lines."""
    state.unite(first.ids.reshape(-1), second.ids.reshape(-1))
    for one, other in zip(first.lines, second.lines, strict=True):
        state.unite(one, other)


def length_along(joint: Joint, place: int) -> Callable[[Edits], int]:
    """How many coordinates stay along one axis of the array."""

    def count(edits: Edits) -> int:
        if place < len(joint.lines):
            return int(edits.kept(joint.lines[place]).sum())
        return int(edits.kept(joint.ids).sum(axis=-1).max())

    return count


def lengths_in(joint: Joint, kept: Callable[[Ids], npt.NDArray[np.bool_]]) -> dict[int, int]:
    """How many coordinates stay along each tracked axis of the value."""
    lengths = {
        axis: int(kept(line).sum()) for axis, line in zip(joint.axes, joint.lines, strict=False)
    }
    lengths[joint.axes[-1]] = int(kept(joint.ids).sum(axis=-1).max())
    return lengths
