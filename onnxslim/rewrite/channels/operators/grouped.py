"""Channel rule of the grouped Conv: one contraction per group, with equally many channels each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.rewrite.channels.atoms import (
    Array,
    Balance,
    Barrier,
    Channelled,
    Channels,
    Contraction,
    Edits,
    label,
)
from onnxslim.rewrite.channels.emit import store
from onnxslim.rewrite.channels.operators.linear import (
    add_contraction,
    bias_known,
    fold_into_input,
    is_padded,
    no_fold_reason,
    plain_conv,
    plain_conv_transpose,
    record_bias,
    sum_known,
)
from onnxslim.rewrite.channels.operators.quantized import Stored, stored_weight
from onnxslim.rewrite.channels.weight import Mask, Quantization, Weight


class GroupedWeight(Weight):
    """The weight of a grouped Conv as one block-diagonal matrix.

    Args:
        tensor: the stored weight, ``(outputs, inputs / groups, ...)``.
        groups: how many blocks.
        scheme: how stored integers become numbers.
    """

    def __init__(
        self, tensor: ir.TensorProtocol, groups: int, scheme: Quantization | None = None
    ) -> None:
        super().__init__(tensor, 0, scheme)
        self.groups = groups
        self._diagonal: Mask | None = None

    @property
    def inputs(self) -> int:
        """Number of input channels of all groups."""
        return self.shape[1] * self.groups

    def in_any(self) -> Mask:
        """Per input channel: does any output channel read it?"""
        return np.asarray(self.matrix().any(axis=0), dtype=np.bool_)

    def matrix(self) -> Mask:
        """``(outputs, inputs)``: is any kernel position of the pair not zero?"""
        if self._diagonal is None:
            self._diagonal = self._spread(super().matrix()).astype(np.bool_)
        return self._diagonal

    def sums(self, inputs: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """``(outputs, len(inputs))``: sums over the kernel for these inputs, in float64."""
        totals = super().sums(np.arange(self.shape[1]))
        return np.asarray(self._spread(totals)[:, inputs], dtype=np.float64)

    def _spread(self, blocks: Array) -> Array:
        """Puts ``(outputs, inputs / groups)`` on the diagonal of ``(outputs, inputs)``."""
        whole = np.zeros((self.outputs, self.inputs), dtype=blocks.dtype)
        rows = self.outputs // self.groups
        for group in range(self.groups):
            row, column = group * rows, group * self.shape[1]
            whole[row : row + rows, column : column + self.shape[1]] = blocks[row : row + rows]
        return whole


class GroupedTransposedWeight(GroupedWeight):
    """The weight of a grouped ConvTranspose, stored as ``(inputs, outputs / groups, ...)``.

    Args:
        tensor: the stored weight.
        groups: how many blocks.
    """

    @property
    def outputs(self) -> int:
        """Number of output channels of all groups."""
        return self.shape[1] * self.groups

    @property
    def inputs(self) -> int:
        """Number of input channels."""
        return self.shape[0]

    def out_any(self) -> Mask:
        """Per output channel: is any of its weights not zero?"""
        return np.asarray(self.matrix().any(axis=1), dtype=np.bool_)

    def _spread(self, blocks: Array) -> Array:
        """Puts ``(inputs, outputs / groups)`` on the diagonal of ``(outputs, inputs)``."""
        whole = np.zeros((self.outputs, self.inputs), dtype=blocks.dtype)
        columns = self.inputs // self.groups
        for group in range(self.groups):
            row, column = group * self.shape[1], group * columns
            held = blocks[column : column + columns]
            whole[row : row + self.shape[1], column : column + columns] = held.T
        return whole


def conv_transpose(state: Channelled, node: ir.Node) -> None:
    """ConvTranspose of any number of groups; depthwise is one input channel per group."""
    stored = stored_weight(node, 1)
    groups = node.attributes.get_int("group", 1)
    if groups == 1:
        plain_conv_transpose(state, node)
        return
    if groups < 1 or stored.shape[0] % groups:
        raise Barrier("its groups do not divide its inputs")
    if stored.scheme is not None:
        raise Barrier("a quantized grouped ConvTranspose is not pruned")
    weight = GroupedTransposedWeight(stored.tensor, groups)
    _track_groups(state, node, stored, weight, padded=True)


def conv(state: Channelled, node: ir.Node) -> None:
    """Conv of any number of groups."""
    stored = stored_weight(node, 1)
    groups = node.attributes.get_int("group", 1)
    if groups == 1 or stored.shape[1] == 1:
        plain_conv(state, node)
    else:
        _grouped(state, node, stored, groups)


def _grouped(state: Channelled, node: ir.Node, stored: Stored, groups: int) -> None:
    shape = stored.shape
    if groups < 1 or shape[0] % groups:
        raise Barrier("its groups do not divide its outputs")
    if stored.scheme is not None and stored.scheme.scale.ndim and stored.scheme.axis != 0:
        raise Barrier("the scales of its grouped weight do not count its outputs")
    weight = GroupedWeight(stored.tensor, groups, stored.scheme)
    _track_groups(state, node, stored, weight, padded=is_padded(node))


def _track_groups(
    state: Channelled, node: ir.Node, stored: Stored, weight: GroupedWeight, *, padded: bool
) -> None:
    groups = weight.groups
    value = stored.reader.inputs[stored.index]
    if value is None or len(value.uses()) != 1 or value.is_graph_output():
        raise Barrier(f"its grouped weight {label(value)} has other readers")
    bias = bias_known(node, weight.outputs)
    inputs = state.on_axis(node.inputs[0], 1, weight.inputs)
    outputs = state.fresh(weight.outputs)
    known = sum_known(weight, inputs, bias, exact=padded)
    state.track(node.outputs[0], 1, outputs, known, stored.dtype)
    record_bias(state, node, outputs)
    stored.record_scheme(state, {0: outputs})
    fold = None if padded else fold_into_input(node, 2)
    no_fold = no_fold_reason(node, f"enters a grouped {node.op_type}")
    add_contraction(state, Contraction(node, weight, inputs, outputs, fold, no_fold))
    leaving = state.values[node.outputs[0]]
    state.balances.append(Balance(node, groups, inputs, leaving))
    both = np.concatenate([inputs.ids, outputs])
    state.fixes.append((both, _cut(node, stored, groups, inputs, leaving)))


def _cut(
    node: ir.Node, stored: Stored, groups: int, inputs: Channels, outputs: Channels
) -> Callable[[Edits], None]:
    """Cuts the weight group by group, for each group may keep other channels."""

    def fix(edits: Edits) -> None:
        kept_in = edits.kept(inputs.ids).reshape(groups, -1)
        kept_out = edits.kept(outputs.ids).reshape(groups, -1)
        stays = np.flatnonzero(kept_out.any(axis=1))
        tensor, value = stored.tensor, stored.reader.inputs[stored.index]
        assert value is not None
        content = tensor.numpy()
        blocks = content.reshape(groups, -1, *content.shape[1:])
        rows, columns = kept_out, kept_in
        if node.op_type == "ConvTranspose":
            rows, columns = kept_in, kept_out
        parts = [blocks[group][rows[group]][:, columns[group]] for group in stays]
        new = ir.tensor(np.concatenate(parts), dtype=tensor.dtype, name=value.name)
        store(value, new)
        if stored.scheme is not None:
            stored.reader.outputs[0].shape = ir.Shape(new.shape.numpy())
        node.attributes["group"] = ir.AttrInt64("group", len(stays))

    return fix
