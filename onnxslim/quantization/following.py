"""What the rules for operators share: how a scale per channel is followed through a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor
from onnxslim.quantization.scaling import Labels, Port, Read


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
        raise RefusedError(f"input {index} of {node.op_type} is no constant")
    if tensor.dtype != ir.DataType.FLOAT:
        raise RefusedError(f"{value.name!r} is not float32")
    if len(value.uses()) != 1 or value.is_graph_output():
        raise RefusedError(f"{value.name!r} is shared")
    return value


def only_first(node: ir.Node, walk: Following) -> Labels:
    """Channels of the first input; the others must not be scaled."""
    labels = walk.channels_of(node.inputs[0])
    if labels is None or any(walk.channels_of(value) is not None for value in node.inputs[1:]):
        raise RefusedError(f"a {node.op_type} reads it as a parameter")
    return labels
