"""How a scale per channel passes operators that move numbers about."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor, int_list, scalar
from onnxslim.ir.shapes import dim, rank
from onnxslim.quantization.following import Following, RefusedError, Rule, only_first
from onnxslim.quantization.scaling import Labels


def _pad(node: ir.Node, walk: Following) -> None:
    labels = only_first(node, walk)
    pads = int_list(node.inputs[1]) if len(node.inputs) > 1 else None
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    if pads is None or len(pads) != 2 * labels.ndim or len(node.inputs) > 3:
        raise RefusedError("a Pad whose widths are not known")
    if fill is not None and scalar(fill) != 0:
        raise RefusedError("a Pad with other numbers than zero")
    along = [axis for axis, size in enumerate(labels.shape) if size > 1]
    if any(pads[axis] or pads[axis + labels.ndim] for axis in along):
        raise RefusedError("a Pad adds or drops channels")
    walk.labels[node.outputs[0]] = labels


def _transpose(node: ir.Node, walk: Following) -> None:
    labels = only_first(node, walk)
    order = node.attributes.get_ints("perm", None) or list(range(labels.ndim))[::-1]
    walk.labels[node.outputs[0]] = labels.transpose(order)


def _reshape(node: ir.Node, walk: Following) -> None:
    """Row by row both shapes hold the same elements, so equal tails hold the same channels."""
    labels = only_first(node, walk)
    source, target = node.inputs[0], node.outputs[0]
    first = next((axis for axis, size in enumerate(labels.shape) if size > 1), labels.ndim - 1)
    tail = [dim(source, axis) for axis in range(first, labels.ndim)]
    sizes = [size for size in tail if isinstance(size, int)]
    out_rank = rank(target)
    if len(sizes) != len(tail) or out_rank is None:
        raise RefusedError(f"a {node.op_type} of a shape that is not known")
    whole = np.broadcast_to(labels.reshape(labels.shape[first:]), sizes)
    wanted: list[int] = []
    for axis in reversed(range(out_rank)):
        size = dim(target, axis)
        if int(np.prod(wanted)) == whole.size or not isinstance(size, int):
            break
        wanted.insert(0, size)
    if int(np.prod(wanted)) != whole.size:
        raise RefusedError(f"a {node.op_type} tears it apart")
    cut = _shortened(whole.reshape(wanted))
    walk.labels[target] = cut.reshape([1] * (out_rank - cut.ndim) + list(cut.shape))


def _shortened(labels: Labels) -> Labels:
    """Length 1 along every axis along which the channels are the same."""
    for axis in range(labels.ndim):
        head = labels.take([0], axis)
        if bool((labels == head).all()):
            labels = head
    return labels


def _slice(node: ir.Node, walk: Following) -> None:
    labels = only_first(node, walk)
    parts = [int_list(value) for value in node.inputs[1:]]
    if not 2 <= len(parts) <= 4 or any(part is None for part in parts):
        raise RefusedError("a Slice whose bounds are not known")
    starts, ends = parts[0] or [], parts[1] or []
    axes = (parts[2] if len(parts) > 2 else None) or list(range(len(starts)))
    steps = (parts[3] if len(parts) > 3 else None) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if labels.shape[axis] > 1:
            if step != 1:
                raise RefusedError("a Slice with a step")
            index = [slice(None)] * labels.ndim
            index[axis] = slice(start, end)
            labels = labels[tuple(index)]
    walk.labels[node.outputs[0]] = labels


def _split(node: ir.Node, walk: Following) -> None:
    labels = only_first(node, walk)
    axis = node.attributes.get_int("axis", 0) or 0
    begin = 0
    for output in node.outputs:
        size = dim(output, axis)
        part = labels
        if labels.shape[axis] > 1:
            if not isinstance(size, int):
                raise RefusedError("a Split into parts that are not known")
            part = labels.take(range(begin, begin + size), axis)
            begin += size
        walk.labels[output] = part


def _gather(node: ir.Node, walk: Following) -> None:
    """One position of an axis that does not matter, such as the class token."""
    labels = only_first(node, walk)
    axis = node.attributes.get_int("axis", 0) or 0
    index = constant_tensor(node.inputs[1])
    if index is None or len(index.shape) or labels.shape[axis] > 1:
        raise RefusedError("a Gather")
    walk.labels[node.outputs[0]] = labels.squeeze(axis)


def _resize(node: ir.Node, walk: Following) -> None:
    labels = only_first(node, walk)
    crops = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    source, target = node.inputs[0], node.outputs[0]
    if crops == "tf_crop_and_resize" or rank(source) != rank(target):
        raise RefusedError("a Resize that crops")
    for axis, size in enumerate(labels.shape):
        if size > 1 and dim(source, axis) != dim(target, axis):
            raise RefusedError("a Resize mixes it")
    walk.labels[target] = labels


def _concat(node: ir.Node, walk: Following) -> None:
    """Puts the channels beside others, which keep their scale."""
    known = [labels for labels in map(walk.channels_of, node.inputs) if labels is not None]
    axis = (node.attributes.get_int("axis", 0) or 0) % known[0].ndim
    parts = [_part(value, axis, known[0].ndim, walk) for value in node.inputs]
    others = [(*part.shape[:axis], 1, *part.shape[axis + 1 :]) for part in parts]
    shape = np.broadcast_shapes(*others)
    whole = [np.broadcast_to(p, (*shape[:axis], p.shape[axis], *shape[axis + 1 :])) for p in parts]
    walk.labels[node.outputs[0]] = np.concatenate(whole, axis)


def _part(value: ir.Value | None, axis: int, rank_: int, walk: Following) -> Labels:
    labels = walk.channels_of(value)
    size = dim(value, axis)
    tensor = constant_tensor(value)
    if tensor is not None and len(tensor.shape) == rank_:
        size = int(tensor.shape.numpy()[axis])
    if not isinstance(size, int):
        raise RefusedError("a Concat of sizes that are not known")
    shape = [1] * rank_
    shape[axis] = size
    if labels is None:
        return np.full(shape, walk.other, np.int64)
    return labels if labels.shape[axis] == size else labels.repeat(size, axis)


MOVES: dict[str, Rule] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Concat": _concat,
    "Gather": _gather,
    "Pad": _pad,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
}
