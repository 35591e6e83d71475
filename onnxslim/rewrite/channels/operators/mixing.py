"""Operators whose statistics run over channels: each output needs all inputs of its group."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxslim.rewrite.channels.atoms import Channelled, Channels, Contraction, Ids
from onnxslim.rewrite.channels.weight import Mask, Weight


class Mixing(Weight):
    """Every output of a group reads every input of the group; no number is stored.

    Args:
        tensor: any constant of the operator, for its type.
        size: how many channels.
        groups: into how many equal runs they are cut.
    """

    def __init__(self, tensor: ir.TensorProtocol, size: int, groups: int = 1) -> None:
        super().__init__(tensor, out_axis=0)
        self.shape = (size, size)
        self._group = np.repeat(np.arange(groups), size // groups)

    def out_any(self) -> Mask:
        """True for every channel."""
        return np.ones(self.outputs, dtype=np.bool_)

    def in_any(self) -> Mask:
        """True for every channel."""
        return np.ones(self.inputs, dtype=np.bool_)

    def matrix(self) -> Mask:
        """``(outputs, inputs)``: are the two in the same group?"""
        return np.asarray(np.equal.outer(self._group, self._group), dtype=np.bool_)


def mix(state: Channelled, node: ir.Node, channels: Channels, why: str, groups: int = 1) -> Ids:
    """Says that what a node computes of a channel depends on all channels of its group.

    Args:
        state: the walk.
        node: the operator.
        channels: what enters.
        why: for the report, said of the operator.
        groups: into how many runs the channels are cut.

    Returns:
        Atoms for the output, which stay where those of the input do, and the other way around.
        They are others, so that the report can tell what enters from what leaves.
    """
    inputs = Channels(channels.axis, channels.ids)
    outputs = Channels(channels.axis, state.fresh(len(channels.ids)))
    _add(state, node, inputs, outputs.ids, why, groups)
    _add(state, node, outputs, inputs.ids, "needs its output as long as its input", len(inputs.ids))
    return outputs.ids


def mix_but_zeros(state: Channelled, node: ir.Node, channels: Channels, why: str) -> None:
    """As `mix` with one group, where channels that enter as zeros may be left out.

    The output of the node has to have the atoms of the input.
    """
    known = np.where(channels.filled() == 0, 0.0, np.nan)
    inputs = Channels(channels.axis, channels.ids, known, channels.dtype)
    _add(state, node, inputs, channels.ids, why, 1)


def _add(
    state: Channelled, node: ir.Node, inputs: Channels, outputs: Ids, why: str, groups: int
) -> None:
    weight = Mixing(ir.tensor(np.zeros(0, dtype=np.float32)), len(outputs), groups)
    state.contractions.append(Contraction(node, weight, inputs, outputs, None, why=why))
