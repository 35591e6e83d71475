"""Channel rules of normalisations that treat every channel on its own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxslim.rewrite.channels.atoms import Barrier, Channelled, Channels, constant_shape
from onnxslim.rewrite.channels.linear import optional_input


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


def _channel_input(state: Channelled, node: ir.Node, parameters: list[int]) -> Channels:
    """Axis 1 of the first input, tied to the constant vectors of these inputs."""
    shapes = {constant_shape(optional_input(node, index)) for index in parameters}
    shape = shapes.pop()
    if shapes or shape is None or len(shape) != 1:
        raise Barrier("its parameters are not constant vectors")
    return state.on_axis(node.inputs[0], 1, shape[0])
