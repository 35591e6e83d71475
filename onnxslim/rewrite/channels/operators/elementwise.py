"""Channel rules of operators that work on each element, pooling windows or each channel alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import array, int_list, is_constant, scalar
from onnxslim.ir.determinism import is_deterministic
from onnxslim.ir.shapes import dim, rank
from onnxslim.rewrite.channels.atoms import (
    Array,
    Barrier,
    Channelled,
    Channels,
    Known,
    constant_shape,
    label,
    node_label,
)
from onnxslim.rewrite.channels.operators.sign import is_positive

# Smooth enough that a constant known up to rounding stays known up to rounding.
CONTINUOUS = (
    *("Abs", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu"),
    *("Mish", "Neg", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh"),
)
# Per element too, but with jumps: what is known about the input says nothing sure of the output.
JUMPING = (
    *("Ceil", "Floor", "IsInf", "IsNaN", "Not", "Round", "Shrink", "Sign", "ThresholdedRelu"),
    *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cos", "Cosh", "Log", "Reciprocal"),
    *("Sin", "Sinh", "Tan"),
)


def unary(state: Channelled, node: ir.Node) -> None:
    """One data input, the others are single constants (the bounds of Clip)."""
    for value in node.inputs[1:]:
        if value is not None and scalar(value) is None:
            raise Barrier(f"{label(value)} is not a constant number")
    channels = tracked_on(state, node)
    known = evaluated(state, node, channels) if node.op_type in CONTINUOUS else None
    state.track(node.outputs[0], channels.axis, channels.ids, known, channels.dtype)


def cast(state: Channelled, node: ir.Node) -> None:
    """Cast: between float types constants are rounded; to anything else nothing is known."""
    channels = tracked_on(state, node)
    target = node.outputs[0].dtype
    keeps = target is not None and target.is_floating_point() and target.bitwidth >= 16
    known = channels.known if keeps else None
    state.track(node.outputs[0], channels.axis, channels.ids, known)


def passing(state: Channelled, node: ir.Node) -> None:
    """Identity, and Dropout outside of training with an unused mask."""
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise Barrier("its mask is used")
    if not is_deterministic(node):
        raise Barrier("it may be in training mode")
    channels = tracked_on(state, node)
    state.track(node.outputs[0], channels.axis, channels.ids, channels.known, channels.dtype)


def evaluated(state: Channelled, node: ir.Node, channels: Channels) -> Known | None:
    """Runs the operator itself on the distinct constants, in the type of the value."""
    if channels.known is None or channels.dtype is None:
        return None
    where = np.flatnonzero(~np.isnan(channels.known))
    distinct, back = np.unique(channels.known[where], return_inverse=True)
    feeds: list[Array | None] = [distinct.astype(channels.dtype.numpy())]
    feeds += [None if other is None else array(other) for other in node.inputs[1:]]
    result = state.evaluate(node, feeds)
    known = np.full(len(channels.ids), np.nan)
    if result is not None and result.shape == distinct.shape:
        known[where] = result.astype(np.float64)[back]
    return known


def _add(first: Known, second: Known) -> Known:
    return first + second


def _multiply(first: Known, second: Known) -> Known:
    return np.where((first == 0) | (second == 0), 0.0, first * second)


def _divide(first: Known, second: Known) -> Known:
    known = np.where(second == 0, np.nan, first / second)
    return np.asarray(known)


def _power(first: Known, second: Known) -> Known:
    known = np.power(first, second)
    return np.where((first == 0) & (second > 0), 0.0, np.where(first == 0, np.nan, known))


def _prelu(first: Known, second: Known) -> Known:
    return np.where(first >= 0, first, first * second)


_ARITHMETIC: dict[str, Callable[[Known, Known], Known]] = {
    "Add": _add,
    "Sum": _add,
    "Sub": np.subtract,
    "Mul": _multiply,
    "Div": _divide,
    "Max": np.maximum,
    "Min": np.minimum,
    "Pow": _power,
    "PRelu": _prelu,
}
# Per element without anything known of the result.
OPAQUE = (
    *("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mean", "Mod", "Or"),
    *("Where", "Xor"),
)
BROADCASTING = (*_ARITHMETIC, *OPAQUE)


def broadcasting(state: Channelled, node: ir.Node) -> None:
    """Several inputs that broadcast: their channels can only go together.

    An input with one coordinate on the tracked axis is not tied to the others.
    """
    ranks = [rank(value) if value is not None else None for value in node.inputs]
    if any(axes is None for axes in ranks):
        raise Barrier("the rank of an input is unknown")
    top = max(axes for axes in ranks if axes is not None)
    axis, size = _joined_axis(state, node, top)
    joined: Channels | None = None
    parts: list[Known] = []
    constants: list[int] = []
    for index, value in enumerate(node.inputs):
        if is_constant(value):
            constants.append(index)
            parts.append(np.full(size, np.nan))
            continue
        part = _operand(state, node, index, axis - top, size)
        parts.append(np.broadcast_to(part.filled(), (size,)))
        if len(part.ids) != size:
            continue
        if joined is None:
            joined = Channels(axis, part.ids)
        else:
            state.unite(joined.ids, part.ids)
    if joined is None:
        raise Barrier("no input is tracked")
    for index in constants:
        parts[index] = _constant_operand(state, node, index, axis - top, joined)
    state.track(node.outputs[0], axis, joined.ids, _combined(node, parts))


def _joined_axis(state: Channelled, node: ir.Node, top: int) -> tuple[int, int]:
    """The tracked axis of the result, counted in the result, and its size."""
    for value in node.inputs:
        channels = state.of(value)
        if value is not None and channels is not None and len(channels.ids) > 1:
            own = rank(value)
            assert own is not None
            return channels.axis + top - own, len(channels.ids)
    raise Barrier("no input is tracked")


def _operand(state: Channelled, node: ir.Node, index: int, from_end: int, size: int) -> Channels:
    """A computed operand on the joined axis; pinned when it is tracked on another or not at all."""
    value = node.inputs[index]
    own = rank(value)
    assert value is not None
    assert own is not None
    axis = own + from_end
    if axis < 0 or dim(value, axis) == 1:
        found = state.of(value)
        if found is not None and found.axis != axis:
            state.pin(found.ids, f"{node_label(node)} joins it along another axis")
        known = found.known if found is not None and found.axis == axis else None
        return Channels(axis, state.fresh(1) if size > 1 else state.fresh(0), known)
    return state.on_axis(value, axis, size)


def _constant_operand(
    state: Channelled, node: ir.Node, index: int, from_end: int, joined: Channels
) -> Known:
    """What a constant operand holds per channel; it is cut along when it varies by channel."""
    shape = constant_shape(node.inputs[index])
    assert shape is not None
    axis = len(shape) + from_end
    size = len(joined.ids)
    if axis >= 0 and shape[axis] == size:
        return state.constant(node, index, axis, joined.ids)
    if axis >= 0 and shape[axis] != 1:
        raise Barrier(f"{label(node.inputs[index])} widens the channels")
    state.record(node, index, {})
    number = scalar(node.inputs[index])
    return np.full(size, np.nan if number is None else float(number))


def _combined(node: ir.Node, parts: list[Known]) -> Known | None:
    combine = _ARITHMETIC.get(node.op_type)
    if combine is None or not all(
        value is not None and value.dtype is not None and value.dtype.is_floating_point()
        for value in node.inputs
    ):
        return None
    known = parts[0]
    with np.errstate(all="ignore"):
        for part in parts[1:]:
            known = combine(known, part)
    if node.op_type == "Div" and is_positive(node.inputs[1]):
        known = np.where(parts[0] == 0, 0.0, known)
    return known


def max_pool(state: Channelled, node: ir.Node) -> None:
    """MaxPool without indices; padding never wins."""
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise Barrier("the indices of MaxPool count channels")
    channels = tracked_on(state, node, axis=1)
    plain = all(step == 1 for step in node.attributes.get_ints("dilations", ()))
    state.track(node.outputs[0], 1, channels.ids, channels.known if plain else None, channels.dtype)


def average_pool(state: Channelled, node: ir.Node) -> None:
    """AveragePool: zeros stay; another constant stays where padding is not averaged in."""
    channels = tracked_on(state, node, axis=1)
    auto = node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    padded = auto or any(node.attributes.get_ints("pads", ()))
    ceil = node.attributes.get_int("ceil_mode", 0)
    counted = padded and node.attributes.get_int("count_include_pad", 0) != 0
    known = zeros_only(channels) if counted or ceil else channels.known
    state.track(node.outputs[0], 1, channels.ids, known, channels.dtype)


def global_pool(state: Channelled, node: ir.Node) -> None:
    """GlobalAveragePool and GlobalMaxPool keep a constant."""
    channels = tracked_on(state, node, axis=1)
    state.track(node.outputs[0], 1, channels.ids, channels.known, channels.dtype)


KEEPING_REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceMin")
SUMS = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")
REDUCTIONS = (*KEEPING_REDUCTIONS, *SUMS)


def reduced_axes(node: ir.Node, count: int) -> list[int] | None:
    """The axes of a reduction, Squeeze or Unsqueeze (attribute or input), or None when unknown."""
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = int_list(node.inputs[1])
    else:
        axes = [int(axis) for axis in node.attributes.get_ints("axes", ())]
    if not axes or any(not -count <= axis < count for axis in axes):
        return None
    return [axis % count for axis in axes]


def lp_pool(state: Channelled, node: ir.Node) -> None:
    """LpPool, GlobalLpPool: zeros stay zero."""
    channels = tracked_on(state, node, axis=1)
    state.track(node.outputs[0], 1, channels.ids, zeros_only(channels), channels.dtype)


def zeros_only(channels: Channels) -> Known:
    """What is known of the channels, as far as they are zero."""
    return np.where(channels.filled() == 0, 0.0, np.nan)


def tracked_on(state: Channelled, node: ir.Node, axis: int | None = None) -> Channels:
    """The channels of the first input, on ``axis`` when one is asked for.

    Raises:
        Barrier: not tracked, or on another axis.
    """
    channels = state.of(node.inputs[0] if node.inputs else None)
    if channels is None:
        raise Barrier("its input is not tracked")
    if axis is not None and channels.axis != axis:
        raise Barrier(f"it works on axis {axis}, its input is tracked along another")
    return channels
