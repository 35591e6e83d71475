"""Channel rules of operators that work along axes: reductions, Softmax, CumSum and the like."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxslim.ir.constants import int_list
from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import rank
from onnxslim.rewrite.channels.atoms import Barrier, Channelled, Channels, node_label
from onnxslim.rewrite.channels.operators.elementwise import (
    KEEPING_REDUCTIONS,
    SUMS,
    reduced_axes,
    tracked_on,
    zeros_only,
)
from onnxslim.rewrite.channels.operators.norm_compensation import reduced_mean_fix
from onnxslim.rewrite.channels.operators.primitive_norm import primitive_layer_norm
from onnxslim.rewrite.channels.operators.sign import is_square


def reduction(state: Channelled, node: ir.Node) -> None:
    """A reduction over other axes than the tracked one."""
    channels = tracked_on(state, node)
    axes_count = rank(node.inputs[0])
    axes = reduced_axes(node, axes_count) if axes_count is not None else None
    if not axes:
        raise Barrier("the axes it reduces are unknown")
    if channels.axis in axes:
        _over_channels(state, node, channels)
        return
    keeps = node.attributes.get_int("keepdims", 1)
    axis = channels.axis if keeps else channels.axis - sum(other < channels.axis for other in axes)
    known = channels.known if node.op_type in KEEPING_REDUCTIONS else zeros_only(channels)
    state.track(node.outputs[0], axis, channels.ids, known, channels.dtype)


def _over_channels(state: Channelled, node: ir.Node, channels: Channels) -> None:
    """A reduction over the channels: zeros add nothing to a sum, and a mean can be corrected."""
    if node.op_type == "ReduceMean":
        if channels.dtype is None or not channels.dtype.is_floating_point():
            raise Barrier("it averages over the channels")
        if not state.compensate_norms and _is_statistic(node):
            raise Barrier(
                "it is a norm's mean over all channels; compensated norms can do without zeros"
            )
        if state.compensate_norms and primitive_layer_norm(state, node, channels, reduced_axes):
            return
        state.fixes.append((channels.ids, reduced_mean_fix(state, node, channels)))
    elif node.op_type not in SUMS:
        raise Barrier("it reduces over the channels")
    varies = channels.ids[channels.filled() != 0]
    state.pin(varies, f"{node_label(node)} sums it up with the other channels")


def _is_statistic(node: ir.Node) -> bool:
    """Is it a mean of squares, or one that is subtracted from what it is the mean of?"""
    source = node.inputs[0]
    squared = source.producer() if source is not None else None
    return is_square(squared) or any(
        is_op(use.node, "Sub") and use.node.inputs[0] is source for use in node.outputs[0].uses()
    )


def softmax(state: Channelled, node: ir.Node) -> None:
    """Softmax over another axis than the tracked one (from opset 13 on, one axis only)."""
    channels = tracked_on(state, node)
    count = rank(node.inputs[0])
    axis = node.attributes.get_int("axis", -1)
    several = state.opset < 13 and (count is None or axis % count != count - 1)
    if several or count is None or axis % count == channels.axis:
        raise Barrier("each of its outputs depends on all channels")
    state.track(node.outputs[0], channels.axis, channels.ids)


def along_another_axis(state: Channelled, node: ir.Node) -> None:
    """CumSum, TopK, Hardmax: what happens along another axis than the tracked one.

    A sum of zeros is zero, and so is any of them; of indices and of Hardmax nothing is known.
    """
    channels = tracked_on(state, node)
    count = rank(node.inputs[0])
    axis: int | None = node.attributes.get_int("axis", -1)
    if node.op_type == "CumSum":
        numbers = int_list(node.inputs[1])
        axis = numbers[0] if numbers else None
    if count is None or axis is None or axis % count == channels.axis:
        raise Barrier("each of its outputs depends on many channels")
    if node.op_type == "Hardmax" and state.opset < 13:
        raise Barrier("it works on several axes at once")
    known = None if node.op_type == "Hardmax" else zeros_only(channels)
    state.track(node.outputs[0], channels.axis, channels.ids, known, channels.dtype)
    for output in node.outputs[1:]:
        state.track(output, channels.axis, channels.ids)


def trilu(state: Channelled, node: ir.Node) -> None:
    """Trilu of other axes than the tracked one: what it takes away becomes zero."""
    channels = tracked_on(state, node)
    count = rank(node.inputs[0])
    if count is None or channels.axis >= count - 2:
        raise Barrier("it cuts a triangle out of the channels")
    state.track(node.outputs[0], channels.axis, channels.ids, zeros_only(channels), channels.dtype)


def mixed(reason: str) -> Callable[[Channelled, ir.Node], None]:
    """The rule of an operator that cannot be pruned through, with its own reason."""

    def rule(state: Channelled, node: ir.Node) -> None:
        raise Barrier(reason)

    return rule
