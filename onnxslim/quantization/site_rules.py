"""How a scale per channel passes operators: which keep it, and which weights take it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor, int_list, scalar
from onnxslim.ir.shapes import dim, rank
from onnxslim.quantization.scaling import Labels, Port, Read

LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

# f(x / s) * s = f(x) for every s > 0, element by element.
_ELEMENTWISE = ("Relu", "LeakyRelu", "PRelu", "Identity", "Abs", "Neg")
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")


class RefusedError(Exception):
    """The channels cannot be scaled; the message says why. Never leaves the room."""


class Following(Protocol):
    """What the rules need of a walk."""

    labels: dict[ir.Value, Labels]
    shifts: list[Port]
    reads: list[Read]
    clips: list[ir.Node]
    plain: bool

    @property
    def other(self) -> int:
        """The label of elements that are no channels of the site."""

    def channels_of(self, value: ir.Value | None) -> Labels | None:
        """The channels of a value, or None when it is not scaled."""


Rule = Callable[[ir.Node, Following], None]


def axis_labels(channels: int, axis: int, rank_: int) -> Labels:
    """Channels 0, 1, ... along one axis."""
    shape = [1] * rank_
    shape[axis] = channels
    return np.arange(channels, dtype=np.int64).reshape(shape)


def own_constant(node: ir.Node, index: int) -> ir.Value:
    """A float32 initializer that nothing but this input of this node reads.

    Raises:
        RefusedError: it is something else.
    """
    value = node.inputs[index]
    tensor = constant_tensor(value)
    if value is None or tensor is None or not value.is_initializer():
        raise RefusedError(f"input {index} of a {node.op_type} is no constant")
    if tensor.dtype != ir.DataType.FLOAT:
        raise RefusedError(f"{value.name!r} is not float32")
    if len(value.uses()) != 1 or value.is_graph_output():
        raise RefusedError(f"{value.name!r} is shared")
    return value


def _only_first(node: ir.Node, walk: Following) -> Labels:
    """Channels of the first input; the others must not be scaled."""
    labels = walk.channels_of(node.inputs[0])
    if labels is None or any(walk.channels_of(value) is not None for value in node.inputs[1:]):
        raise RefusedError(f"a {node.op_type} reads it as a parameter")
    return labels


def _keep(node: ir.Node, walk: Following) -> None:
    walk.labels[node.outputs[0]] = _only_first(node, walk)


def _clip(node: ir.Node, walk: Following) -> None:
    labels = _only_first(node, walk)
    low, high = clip_bounds(node)
    if low not in (0.0, None):
        raise RefusedError(f"a Clip from {low} is no Relu")
    if high is not None:
        walk.clips.append(node)
    walk.labels[node.outputs[0]] = labels


def clip_bounds(node: ir.Node) -> tuple[float | None, float | None]:
    """Lower and upper bound of a Clip; None for none.

    Raises:
        RefusedError: a bound is no constant.
    """
    found: list[float | None] = []
    for index, name in ((1, "min"), (2, "max")):
        value = node.inputs[index] if index < len(node.inputs) else None
        bound = node.attributes.get_float(name, None) if value is None else scalar(value)
        if value is not None and bound is None:
            raise RefusedError("a Clip with bounds that are no constants")
        extreme = bound is not None and abs(bound) >= float(np.finfo(np.float32).max)
        found.append(None if extreme else bound)
    return found[0], found[1]


def _pool(node: ir.Node, walk: Following) -> None:
    labels = _only_first(node, walk)
    if labels.size != labels.shape[1]:
        raise RefusedError(f"a {node.op_type} mixes it")
    walk.labels[node.outputs[0]] = labels


def _ignore(node: ir.Node, walk: Following) -> None:
    """Looks at shapes only."""


def _concat(node: ir.Node, walk: Following) -> None:
    """Puts the channels beside others, which keep their scale."""
    known = [labels for labels in map(walk.channels_of, node.inputs) if labels is not None]
    axis = (node.attributes.get_int("axis", 0) or 0) % known[0].ndim
    parts = [_part(value, axis, known[0].ndim, walk) for value in node.inputs]
    shape = np.broadcast_shapes(*[part.take([0], axis).shape for part in parts])
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


def _reduce(node: ir.Node, walk: Following) -> None:
    labels = _only_first(node, walk)
    given = node.attributes.get_ints("axes", None)
    if given is None and len(node.inputs) > 1:
        given = int_list(node.inputs[1])
    if given is None:
        raise RefusedError(f"a {node.op_type} over axes that are not known")
    axes = [axis % labels.ndim for axis in given]
    if not axes or any(labels.shape[axis] > 1 for axis in axes):
        raise RefusedError(f"a {node.op_type} mixes it")
    keep = node.attributes.get_int("keepdims", 1)
    walk.labels[node.outputs[0]] = labels if keep else labels.squeeze(tuple(axes))


def _pad(node: ir.Node, walk: Following) -> None:
    labels = _only_first(node, walk)
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
    labels = _only_first(node, walk)
    order = node.attributes.get_ints("perm", None) or list(range(labels.ndim))[::-1]
    walk.labels[node.outputs[0]] = labels.transpose(order)


def _reshape(node: ir.Node, walk: Following) -> None:
    """Row by row both shapes hold the same elements, so equal tails hold the same channels."""
    labels = _only_first(node, walk)
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
    labels = _only_first(node, walk)
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
    labels = _only_first(node, walk)
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
    labels = _only_first(node, walk)
    axis = node.attributes.get_int("axis", 0) or 0
    index = constant_tensor(node.inputs[1])
    if index is None or len(index.shape) or labels.shape[axis] > 1:
        raise RefusedError("a Gather")
    walk.labels[node.outputs[0]] = labels.squeeze(axis)


def _resize(node: ir.Node, walk: Following) -> None:
    labels = _only_first(node, walk)
    crops = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    source, target = node.inputs[0], node.outputs[0]
    if crops == "tf_crop_and_resize" or rank(source) != rank(target):
        raise RefusedError("a Resize that crops")
    for axis, size in enumerate(labels.shape):
        if size > 1 and dim(source, axis) != dim(target, axis):
            raise RefusedError("a Resize mixes it")
    walk.labels[target] = labels


def _add(node: ir.Node, walk: Following) -> None:
    first, second = (walk.channels_of(value) for value in node.inputs)
    if first is not None and second is not None:
        if first.shape != second.shape or not bool((first == second).all()):
            raise RefusedError(f"{_article(node)} of different channels")
        walk.labels[node.outputs[0]] = first
        return
    labels, other = (first, 1) if first is not None else (second, 0)
    assert labels is not None
    value = own_constant(node, other)
    tensor = constant_tensor(value)
    size = len(tensor.shape) if tensor is not None else 0
    if size > labels.ndim:
        raise RefusedError(f"{_article(node)} of a constant of more dimensions")
    lead = labels.ndim - max(size, 1)  # axes that the constant lacks, and may go on lacking
    short = (
        labels.reshape(labels.shape[lead:]) if max(labels.shape[:lead], default=1) == 1 else labels
    )
    walk.shifts.append(Port(value, short))
    walk.labels[node.outputs[0]] = labels


def _article(node: ir.Node) -> str:
    return f"{'an' if node.op_type == 'Add' else 'a'} {node.op_type}"


def _gate(node: ir.Node, walk: Following) -> None:
    """A product with, or a quotient by, what does not depend on the scale."""
    first, second = (walk.channels_of(value) for value in node.inputs)
    if (first is None) == (second is None) or (node.op_type == "Div" and first is None):
        raise RefusedError(f"a {node.op_type} by itself")
    labels, other = (first, node.inputs[1]) if first is not None else (second, node.inputs[0])
    other_rank = rank(other)
    tensor = constant_tensor(other)
    if tensor is not None:
        other_rank = len(tensor.shape)
    assert labels is not None
    if other_rank is None or other_rank > labels.ndim:
        raise RefusedError(f"a {node.op_type} of an unknown shape")
    walk.plain = walk.plain and tensor is not None
    walk.labels[node.outputs[0]] = labels


def _matmul(node: ir.Node, walk: Following) -> None:
    first, second = (walk.channels_of(value) for value in node.inputs)
    if first is not None and second is not None:
        raise RefusedError("a MatMul by itself")
    if first is not None:
        _read_matrix(node, walk, first, np.arange(2) == 0)
        return
    assert second is not None
    if rank(node.inputs[0]) != second.ndim or second.ndim < 2 or second.shape[-2] > 1:
        raise RefusedError("a MatMul sums over it")
    walk.plain = False
    walk.labels[node.outputs[0]] = second


def _read_matrix(node: ir.Node, walk: Following, labels: Labels, rows: Labels) -> None:
    """A weight matrix that sums over the last axis of the activation."""
    value = own_constant(node, 1)
    tensor = constant_tensor(value)
    if tensor is None or len(tensor.shape) != 2 or labels.shape[-1] != labels.size:
        raise RefusedError(f"a {node.op_type} by more than a matrix")
    port = Port(value, labels.reshape(-1, 1) if rows[0] else labels.reshape(1, -1))
    assert node.inputs[0] is not None
    walk.reads.append(Read(port, node, node.inputs[0], labels))


def _gemm(node: ir.Node, walk: Following) -> None:
    labels = _only_first(node, walk)
    if node.attributes.get_int("transA", 0):
        raise RefusedError("a Gemm of a transposed activation")
    by_columns = bool(node.attributes.get_int("transB", 0))
    _read_matrix(node, walk, labels, np.array([not by_columns]))


def _conv(node: ir.Node, walk: Following) -> None:
    labels = _only_first(node, walk)
    value = own_constant(node, 1)
    tensor = constant_tensor(value)
    if tensor is None or labels.ndim < 3 or labels.size != labels.shape[1]:
        raise RefusedError(f"a {node.op_type} reads it in another layout")
    shape = tuple(tensor.shape.numpy())
    flat, tail = labels.reshape(-1), [1] * (len(shape) - 2)
    group = node.attributes.get_int("group", 1) or 1
    if node.op_type == "ConvTranspose":
        port = Port(value, flat.reshape(-1, 1, *tail))
    elif group == 1:
        port = Port(value, flat.reshape(1, -1, *tail))
    else:  # weight (O, I / group, ...): row o reads the channels of group o // (O / group)
        rows = flat.reshape(group, -1).repeat(shape[0] // group, axis=0)
        port = Port(value, rows.reshape(*rows.shape, *tail))
    assert node.inputs[0] is not None
    walk.reads.append(Read(port, node, node.inputs[0], labels))


RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _keep),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), _reduce),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("Add", "Sub"), _add),
    **dict.fromkeys(("Mul", "Div"), _gate),
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    **dict.fromkeys(("Shape", "Size"), _ignore),
    "Clip": _clip,
    "Concat": _concat,
    "Pad": _pad,
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Resize": _resize,
    "MatMul": _matmul,
    "Gemm": _gemm,
}

HOMOGENEOUS = frozenset(RULES) - LINEAR - {"Mul", "Div", "Add", "Sub"}
