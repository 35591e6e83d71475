"""Channel rules of normalisations: each channel on its own, groups of channels, or all of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxslim.ir.shapes import dim
from onnxslim.rewrite.channels.atoms import (
    Barrier,
    Channelled,
    Channels,
    Edits,
    Known,
    constant_shape,
    label,
)
from onnxslim.rewrite.channels.operators.linear import optional_input
from onnxslim.rewrite.channels.operators.mixing import mix, mix_but_zeros
from onnxslim.rewrite.channels.operators.norm_compensation import layer_norm_fix, rms_norm_fix
from onnxslim.rewrite.channels.operators.quantized import vector_shape
from onnxslim.rewrite.channels.operators.reshape import tracked_input

_ALL = "takes its statistics over all channels, some of which are needed"


def batch_norm(state: Channelled, node: ir.Node) -> None:
    """BatchNormalization in inference: an affine map of each channel."""
    if node.attributes.get_int("training_mode", 0) or not node.attributes.get_int("spatial", 1):
        raise Barrier("BatchNormalization in training is not pruned")
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise Barrier("BatchNormalization with statistics as outputs is not pruned")
    channels = _channel_input(state, node, [1, 2, 3, 4])
    scale, shift, mean, variance = (
        state.constant(node, index, 0, channels.ids) for index in (1, 2, 3, 4)
    )
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + epsilon)
        known = (channels.filled() - mean) * factor + shift
        # 0 times any finite input is 0, provided that the rest is finite too
        constant = np.where((factor == 0) & np.isfinite(mean), shift, known)
    state.track(node.outputs[0], 1, channels.ids, constant, channels.dtype)


def instance_norm(state: Channelled, node: ir.Node) -> None:
    """InstanceNormalization: each channel on its own; a zero channel leaves as its shift."""
    channels = _channel_input(state, node, [1, 2])
    scale = state.constant(node, 1, 0, channels.ids)
    shift = state.constant(node, 2, 0, channels.ids)
    constant = (scale == 0) | (channels.filled() == 0)
    known = np.where(constant, shift, np.nan)
    state.track(node.outputs[0], 1, channels.ids, known, channels.dtype)


def group_norm(state: Channelled, node: ir.Node) -> None:
    """GroupNormalization: a group goes as a whole; one of zeros leaves as its shifts."""
    channels, _ = tracked_input(state, node)
    size = dim(node.inputs[0], 1)
    groups = node.attributes.get_int("num_groups", 0)
    if channels.axis != 1 or size != len(channels.ids) or groups < 1 or len(channels.ids) % groups:
        raise Barrier("its input is tracked along another axis than its groups")
    width = len(channels.ids) // groups
    vectors: list[Known] = []
    for index in (1, 2):
        if constant_shape(node.inputs[index]) == (len(channels.ids),):
            vectors.append(state.constant(node, index, 0, channels.ids))
        elif constant_shape(node.inputs[index]) == (groups,):
            # All channels of a group stay or go together, so the first one stands for them.
            vectors.append(np.repeat(state.constant(node, index, 0, channels.ids[::width]), width))
        else:
            raise Barrier(f"{label(node.inputs[index])} is no constant vector of its groups")
    scale, shift = vectors
    zeros = (channels.filled() == 0).reshape(groups, width).all(axis=1)
    known = np.where(np.repeat(zeros, width) | (scale == 0), shift, np.nan)
    why = f"takes its statistics over groups of {width} channels, and this group has one needed"
    outputs = mix(state, node, channels, why, groups)
    state.track(node.outputs[0], 1, outputs, known, channels.dtype)
    state.fixes.append((channels.ids, _group_count(node, channels, width)))


def _group_count(node: ir.Node, channels: Channels, width: int) -> Callable[[Edits], None]:
    def fix(edits: Edits) -> None:
        count = int(edits.kept(channels.ids[::width]).sum())
        node.attributes["num_groups"] = ir.AttrInt64("num_groups", count)

    return fix


def layer_norm(state: Channelled, node: ir.Node) -> None:
    """LayerNormalization: other axes pass; over the channels it needs all of them.

    With the compensated form it needs those that are not zero, but what enters as zero does not
    leave as a constant: only readers that do not need it, or a zero scale, let it go.
    """
    channels, axis = _normalised_input(state, node)
    if channels.axis < axis:
        shift = optional_input(node, 2)
        known = _zeros_only(channels) if shift is None else None
        state.track(node.outputs[0], channels.axis, channels.ids, known, channels.dtype)
        return
    scale = _parameter(state, node, 1, channels)
    shifts = np.zeros(len(channels.ids))
    if optional_input(node, 2) is not None:
        shifts = _parameter(state, node, 2, channels)
    known = np.where(scale == 0, shifts, np.nan)
    _track_mixed(state, node, channels, known)
    if state.compensate_norms:
        state.fixes.append((channels.ids, layer_norm_fix(state, node, channels, axis)))


def rms_norm(state: Channelled, node: ir.Node) -> None:
    """RMSNormalization, SimplifiedLayerNormalization: as LayerNormalization, but zeros stay."""
    channels, axis = _normalised_input(state, node)
    known = _zeros_only(channels)
    if channels.axis < axis:
        state.track(node.outputs[0], channels.axis, channels.ids, known, channels.dtype)
        return
    known = np.where(_parameter(state, node, 1, channels) == 0, 0.0, known)
    _track_mixed(state, node, channels, known)
    if state.compensate_norms:
        state.fixes.append((channels.ids, rms_norm_fix(node, channels)))


def lp_norm(state: Channelled, node: ir.Node) -> None:
    """LpNormalization: zeros add nothing to a sum of magnitudes."""
    channels, count = tracked_input(state, node)
    axis = node.attributes.get_int("axis", -1) % count
    # What is 0 / 0 where all channels are zero differs between runtimes, so one has to stay.
    state.track(node.outputs[0], channels.axis, channels.ids, None, channels.dtype)
    if channels.axis == axis:
        mix_but_zeros(state, node, channels, _ALL)


def _track_mixed(state: Channelled, node: ir.Node, channels: Channels, known: Known) -> None:
    if state.compensate_norms:
        mix_but_zeros(state, node, channels, _ALL)
        outputs = channels.ids
    else:
        outputs = mix(state, node, channels, f"{_ALL}; compensated norms can do without zeros")
    state.track(node.outputs[0], channels.axis, outputs, known, channels.dtype)


def _normalised_input(state: Channelled, node: ir.Node) -> tuple[Channels, int]:
    """The tracked axis of the input, and the first normalised axis.

    Raises:
        Barrier: not tracked, or a statistic is an output too.
    """
    channels, count = tracked_input(state, node)
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise Barrier("its statistics are used as outputs")
    axis = node.attributes.get_int("axis", -1) % count
    for index in range(1, len(node.inputs)):
        shape = constant_shape(node.inputs[index])
        if node.inputs[index] is not None and (shape is None or len(shape) > count - axis):
            raise Barrier(f"{label(node.inputs[index])} is not constant over the other axes")
    return channels, axis


def _parameter(state: Channelled, node: ir.Node, index: int, channels: Channels) -> Known:
    """A scale or shift of a normalisation over the channels: what it holds per channel."""
    shape, size = constant_shape(node.inputs[index]), len(channels.ids)
    value = node.inputs[0]
    if shape is None or value is None or value.shape is None:
        raise Barrier(f"{label(node.inputs[index])} is not constant")
    place = channels.axis - len(value.shape) + len(shape)
    if place >= 0 and shape[place] == size:
        return state.constant(node, index, place, channels.ids)
    if place >= 0 and shape[place] != 1:
        raise Barrier(f"{label(node.inputs[index])} has another number of channels")
    state.record(node, index, {})
    return np.full(size, np.nan)


def _zeros_only(channels: Channels) -> Known:
    return np.where(channels.filled() == 0, 0.0, np.nan)


def _channel_input(state: Channelled, node: ir.Node, parameters: list[int]) -> Channels:
    """Axis 1 of the first input, tied to the constant vectors of these inputs."""
    shapes = {vector_shape(optional_input(node, index)) for index in parameters}
    shape = shapes.pop()
    if shapes or shape is None or len(shape) != 1:
        raise Barrier("its parameters are not constant vectors")
    return state.on_axis(node.inputs[0], 1, shape[0])
