"""Channel rules of operators that move, join, split and pad axes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import array, int_list, is_constant, scalar
from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import dim, rank
from onnxslim.rewrite.channels.atoms import (
    Barrier,
    Channelled,
    Channels,
    Edits,
    Ids,
    Known,
    constant_shape,
)
from onnxslim.rewrite.channels.operators.elementwise import reduced_axes
from onnxslim.rewrite.channels.operators.reshape import numbers_of, tracked_input
from onnxslim.rewrite.channels.operators.target import spelled_count


def transpose(state: Channelled, node: ir.Node) -> None:
    """Transpose moves the tracked axis."""
    channels, count = tracked_input(state, node)
    order = list(node.attributes.get_ints("perm", tuple(reversed(range(count)))))
    state.track(node.outputs[0], order.index(channels.axis), channels.ids, channels.known)


def concat(state: Channelled, node: ir.Node) -> None:
    """Concat along the tracked axis lines atoms up; along another one it ties them together."""
    count = next((rank(value) for value in node.inputs if state.of(value) is not None), None)
    if count is None:
        raise Barrier("no input is tracked")
    joined = node.attributes.get_int("axis", 1) % count
    tracked = [found for value in node.inputs if (found := state.of(value)) is not None]
    axis = tracked[0].axis
    if any(found.axis != axis for found in tracked):
        raise Barrier("its inputs are tracked along different axes")
    sizes = [
        dim(value, axis) if (found := state.of(value)) is None else len(found.ids)
        for value in node.inputs
    ]
    if not all(isinstance(size, int) for size in sizes):
        raise Barrier("the size of an input is unknown")
    parts = [
        _concat_part(state, node, index, axis, size)
        for index, size in enumerate(sizes)
        if isinstance(size, int)
    ]
    if axis == joined:
        ids = np.concatenate([part.ids for part in parts])
        known = np.concatenate([part.filled() for part in parts])
        state.track(node.outputs[0], axis, ids, known)
        return
    known = parts[0].filled()
    for part in parts[1:]:
        state.unite(parts[0].ids, part.ids)
        known = np.where(known == part.filled(), known, np.nan)
    state.track(node.outputs[0], axis, parts[0].ids, known)


def _concat_part(state: Channelled, node: ir.Node, index: int, axis: int, size: int) -> Channels:
    value = node.inputs[index]
    if is_constant(value):
        ids = state.fresh(size)
        return Channels(axis, ids, state.constant(node, index, axis, ids))
    return state.on_axis(value, axis, size)


def split(state: Channelled, node: ir.Node) -> None:
    """Split along the tracked axis deals atoms out; along another one it repeats them."""
    channels, count = tracked_input(state, node)
    if node.attributes.get_int("axis", 0) % count != channels.axis:
        for output in node.outputs:
            state.track(output, channels.axis, channels.ids, channels.known)
        return
    sizes = numbers_of([dim(output, channels.axis) for output in node.outputs])
    if sum(sizes) != len(channels.ids):
        raise Barrier("the sizes of its outputs are unknown")
    if len(node.inputs) > 1 and node.inputs[1] is not None and int_list(node.inputs[1]) is None:
        raise Barrier("its sizes are computed")
    start = 0
    parts: list[Ids] = []
    for output, size in zip(node.outputs, sizes, strict=True):
        span = slice(start, start + size)
        known: Known | None = None if channels.known is None else channels.known[span]
        state.track(output, channels.axis, channels.ids[span], known)
        parts.append(channels.ids[span])
        start += size
    state.fixes.append((channels.ids, _split_sizes(state, node, parts)))


def _split_sizes(state: Channelled, node: ir.Node, parts: list[Ids]) -> Callable[[Edits], None]:
    def fix(edits: Edits) -> None:
        sizes = [int(edits.kept(ids).sum()) for ids in parts]
        if state.opset < 13:
            node.attributes["split"] = ir.AttrInt64s("split", sizes)
            return
        node.attributes.pop("num_outputs", None)
        node.resize_inputs(2)
        content = np.array(sizes, dtype=np.int64)
        node.replace_input_with(1, edits.initializer(content, f"{node.outputs[0].name}_sizes"))

    return fix


def slice_(state: Channelled, node: ir.Node) -> None:
    """Slice: other axes pass; along the tracked axis it picks coordinates."""
    channels, count = tracked_input(state, node)
    bounds = _slice_bounds(state, node, count)
    if channels.axis not in bounds:
        state.track(node.outputs[0], channels.axis, channels.ids, channels.known)
        return
    if state.opset < 10 or len(bounds) != 1 or bounds[channels.axis][2] < 1:
        raise Barrier("it slices the channels in a way that is not followed")
    span = slice(*bounds[channels.axis])
    if span.step != 1:
        raise Barrier("it slices the channels with a step")
    picked = np.arange(len(channels.ids))[span]
    if not picked.size:
        raise Barrier("it slices nothing")
    known = None if channels.known is None else channels.known[picked]
    ids = channels.ids[picked]
    state.track(node.outputs[0], channels.axis, ids, known)
    before = channels.ids[: picked[0]]

    def fix(edits: Edits) -> None:
        start = int(edits.kept(before).sum())
        for place, number in ((1, start), (2, start + int(edits.kept(ids).sum()))):
            old = node.inputs[place]
            assert old is not None
            content = np.array([number], dtype=np.int64)
            node.replace_input_with(place, edits.initializer(content, f"{old.name}_cut"))
        if len(node.inputs) > 3 and node.inputs[3] is not None:
            _widen(node, edits)

    state.fixes.append((channels.ids, fix))


def _widen(node: ir.Node, edits: Edits) -> None:
    """The axes and steps of a Slice have to be of the type of its starts and ends."""
    for place in range(3, len(node.inputs)):
        old = node.inputs[place]
        numbers = int_list(old)
        if old is not None and numbers is not None and old.dtype != ir.DataType.INT64:
            content = np.array(numbers, dtype=np.int64)
            node.replace_input_with(place, edits.initializer(content, f"{old.name}_wide"))


def _slice_bounds(state: Channelled, node: ir.Node, count: int) -> dict[int, tuple[int, int, int]]:
    """Start, end and step by axis.

    Raises:
        Barrier: they are not constant.
    """
    if state.opset < 10:
        parts: list[list[int] | None] = [
            list(node.attributes.get_ints(name, ())) for name in ("starts", "ends", "axes")
        ]
        parts.append(None)
    else:
        parts = [int_list(value) for value in node.inputs[1:]]
        given = [value is not None for value in node.inputs[1:]]
        if any(part is None for part, there in zip(parts, given, strict=True) if there):
            raise Barrier("its bounds are computed")
        parts += [None] * (4 - len(parts))
    starts, ends, axes, steps = parts
    if starts is None or ends is None:
        raise Barrier("its bounds are unknown")
    axes = axes or list(range(len(starts)))
    steps = steps or [1] * len(starts)
    triples = zip(starts, ends, steps, strict=True)
    return {axis % count: triple for axis, triple in zip(axes, triples, strict=True)}


def gather(state: Channelled, node: ir.Node) -> None:
    """Gather with constant indices: picks coordinates of the tracked axis, or of another one."""
    channels, count = tracked_input(state, node)
    axis = node.attributes.get_int("axis", 0) % count
    width = rank(node.inputs[1])
    indices = int_list(node.inputs[1])
    if axis != channels.axis:
        if width is None:
            raise Barrier("the rank of its indices is unknown")
        target = channels.axis + (width - 1 if axis < channels.axis else 0)
        state.track(node.outputs[0], target, channels.ids, channels.known)
        return
    if not indices or constant_shape(node.inputs[1]) != (len(indices),):
        raise Barrier("it picks channels that are not known")
    picked = np.array(indices) % len(channels.ids)
    ids = channels.ids[picked]
    known = None if channels.known is None else channels.known[picked]
    state.track(node.outputs[0], axis, ids, known)

    def fix(edits: Edits) -> None:
        old = node.inputs[1]
        assert old is not None
        kept = edits.kept(channels.ids)
        content = (np.cumsum(kept) - 1)[picked[kept[picked]]].astype(np.int64)
        node.replace_input_with(1, edits.initializer(content, f"{old.name}_cut"))

    state.fixes.append((channels.ids, fix))


def unsqueeze(state: Channelled, node: ir.Node) -> None:
    """Unsqueeze shifts the tracked axis by the new axes in front of it."""
    channels, count = tracked_input(state, node)
    listed = int_list(node.inputs[1]) if len(node.inputs) > 1 else None
    total = count + len(listed or list(node.attributes.get_ints("axes", ())))
    axes = reduced_axes(node, total)
    if not axes or len(set(axes)) != total - count:
        raise Barrier("the axes it adds are unknown")
    old = [axis for axis in range(total) if axis not in axes]
    state.track(node.outputs[0], old[channels.axis], channels.ids, channels.known)


def squeeze(state: Channelled, node: ir.Node) -> None:
    """Squeeze of given axes shifts the tracked axis by those in front of it."""
    channels, count = tracked_input(state, node)
    axes = reduced_axes(node, count)
    if not axes or channels.axis in axes:
        raise Barrier("the axes it takes away are unknown")
    axis = channels.axis - sum(other < channels.axis for other in axes)
    state.track(node.outputs[0], axis, channels.ids, channels.known)


def pad(state: Channelled, node: ir.Node) -> None:
    """Pad of other axes; a constant channel stays one when the padding has the same value."""
    channels, count = tracked_input(state, node)
    listed = int_list(node.inputs[1]) if len(node.inputs) > 1 else None
    pads = listed if listed is not None else list(node.attributes.get_ints("pads", ()))
    axes = list(range(count))
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = [axis % count for axis in int_list(node.inputs[3]) or []]
    if not pads or len(pads) != 2 * len(axes):
        raise Barrier("its pads are unknown")
    for axis, before, after in zip(axes, pads, pads[len(axes) :], strict=False):
        if axis == channels.axis and (before or after):
            raise Barrier("it pads the channels")
    known = channels.known
    if known is not None and node.attributes.get_string("mode", "constant") == "constant":
        known = np.where(known == _pad_value(node), known, np.nan)
    state.track(node.outputs[0], channels.axis, channels.ids, known)


def _pad_value(node: ir.Node) -> float:
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        number = scalar(node.inputs[2])
        return math.nan if number is None else float(number)
    return float(node.attributes.get_float("value", 0.0))


def resize(state: Channelled, node: ir.Node) -> None:
    """Resize of other axes than the tracked one."""
    channels, count = tracked_input(state, node)
    mode = node.attributes.get_string("coordinate_transformation_mode", "")
    if mode == "tf_crop_and_resize" or "axes" in node.attributes:
        raise Barrier("this form of Resize is not pruned")
    sizes = node.inputs[3] if len(node.inputs) > 3 else None
    place = 1 if is_op(node, "Upsample") or state.opset < 11 else 2
    scales = array(node.inputs[place]) if len(node.inputs) > place else None
    smooth = node.attributes.get_string("mode", "nearest") != "cubic"
    known = channels.known
    if known is not None and not smooth:
        known = np.where(known == 0, 0.0, np.nan)
    if sizes is not None:
        fix = spelled_count(state, node, sizes, channels.axis, channels.ids, "the size", index=3)
        state.track(node.outputs[0], channels.axis, channels.ids, known)
        state.fixes.append((channels.ids, fix))
    elif scales is not None and scales.size == count and scales[channels.axis] == 1:
        state.track(node.outputs[0], channels.axis, channels.ids, known)
    else:
        raise Barrier("its scales are unknown or scale the channels")


def expand(state: Channelled, node: ir.Node) -> None:
    """Expand that leaves the tracked axis as long as it is."""
    channels, count = tracked_input(state, node)
    total = rank(node.outputs[0])
    if total is None or len(channels.ids) == 1:
        raise Barrier("it widens the channels")
    axis = channels.axis + total - count
    state.track(node.outputs[0], axis, channels.ids, channels.known, channels.dtype)
    numbers = int_list(node.inputs[1])
    place = axis if numbers is None else axis - total + len(numbers)
    if place >= 0 and (numbers is None or numbers[place] != 1):
        fix = spelled_count(state, node, node.inputs[1], place, channels.ids, "the shape")
        state.fixes.append((channels.ids, fix))


def tile(state: Channelled, node: ir.Node) -> None:
    """Tile along other axes than the tracked one."""
    channels, count = tracked_input(state, node)
    repeats = int_list(node.inputs[1])
    if repeats is None or len(repeats) != count:
        raise Barrier("how often it repeats is unknown")
    if repeats[channels.axis] != 1:
        raise Barrier("it repeats the channels")
    state.track(node.outputs[0], channels.axis, channels.ids, channels.known, channels.dtype)
