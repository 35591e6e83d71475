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
from onnxslim.rewrite.channels.linear import (
    add_contraction,
    bias_known,
    fold_into_input,
    is_padded,
    optional_input,
    plain_conv,
    sum_known,
    tensor_of,
    weight_shape,
)
from onnxslim.rewrite.channels.weight import Mask, Weight


class GroupedWeight(Weight):
    """The weight of a grouped Conv as one block-diagonal matrix.

    Args:
        tensor: the stored weight, ``(outputs, inputs / groups, ...)``.
        groups: how many blocks.
    """

    def __init__(self, tensor: ir.TensorProtocol, groups: int) -> None:
        super().__init__(tensor, out_axis=0)
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


def conv(state: Channelled, node: ir.Node) -> None:
    """Conv of any number of groups."""
    shape = weight_shape(node, 1)
    groups = node.attributes.get_int("group", 1)
    if groups == 1 or shape[1] == 1:
        plain_conv(state, node)
    else:
        _grouped(state, node, shape, groups)


def _grouped(state: Channelled, node: ir.Node, shape: tuple[int, ...], groups: int) -> None:
    if groups < 1 or shape[0] % groups:
        raise Barrier("its groups do not divide its outputs")
    value = node.inputs[1]
    if value is None or len(value.uses()) != 1 or value.is_graph_output():
        raise Barrier(f"its grouped weight {label(value)} has other readers")
    weight = GroupedWeight(tensor_of(node, 1), groups)
    bias = bias_known(node, shape[0])
    padded = is_padded(node)
    inputs = state.on_axis(node.inputs[0], 1, weight.inputs)
    outputs = state.fresh(shape[0])
    known = sum_known(weight, inputs, bias, exact=padded)
    state.track(node.outputs[0], 1, outputs, known, weight.tensor.dtype)
    if optional_input(node, 2) is not None:
        state.record(node, 2, {0: outputs})
    fold = None if padded else fold_into_input(node, 2)
    add_contraction(
        state, Contraction(node, weight, inputs, outputs, fold, "enters a padded grouped Conv")
    )
    leaving = state.values[node.outputs[0]]
    state.balances.append(Balance(node, groups, inputs, leaving))
    both = np.concatenate([inputs.ids, outputs])
    state.fixes.append((both, _cut(node, groups, inputs, leaving)))


def _cut(
    node: ir.Node, groups: int, inputs: Channels, outputs: Channels
) -> Callable[[Edits], None]:
    """Cuts the weight group by group, for each group may keep other channels."""

    def fix(edits: Edits) -> None:
        kept_in = edits.kept(inputs.ids).reshape(groups, -1)
        kept_out = edits.kept(outputs.ids).reshape(groups, -1)
        stays = np.flatnonzero(kept_out.any(axis=1))
        tensor, value = tensor_of(node, 1), node.inputs[1]
        assert value is not None
        content = tensor.numpy()
        blocks = content.reshape(groups, -1, *content.shape[1:])
        parts = [blocks[group][kept_out[group]][:, kept_in[group]] for group in stays]
        new = ir.tensor(np.concatenate(parts), dtype=tensor.dtype, name=value.name)
        store(value, new)
        node.attributes["group"] = ir.AttrInt64("group", len(stays))

    return fix
