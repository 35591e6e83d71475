"""Which tensors of the chosen nodes become 8-bit numbers, and which of them share a grid.

The rules are those by which onnxruntime, when it loads a model, finds an int8 kernel for a node
between DequantizeLinear and QuantizeLinear: operators that only move numbers must have one grid
before and behind them, sums and products have one for each tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxslim.ir.constants import array
from onnxslim.quantization.axes import channel_axis
from onnxslim.quantization.presets import QuantizePreset
from onnxslim.quantization.selection import MATRIX_OPS

# Operators whose output holds numbers of the first input only, or means of them.
MOVES = frozenset({
    "AveragePool", "Flatten", "Gather", "MaxPool", "Pad", "Reshape", "Resize", "Slice", "Split",
    "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip

# Operators that int8 kernels do away with: the ends of the grid do the same.
BOUNDS = frozenset({"Clip", "Relu"})

_WITH_BIAS = frozenset({"Conv", "ConvTranspose", "Gemm"})


@dataclass
class Mark:
    """What becomes of a tensor.

    Attributes:
        range_name: the tensor whose range counts.
        is_weight: a factor of a product of matrices.
        axis: of the output channels of a weight; None for one scale.
        source: the tensor whose grid this one shares.
        is_depthwise: a weight of a convolution channel by channel.
    """

    range_name: str
    is_weight: bool = False
    axis: int | None = None
    source: ir.Value | None = None
    is_depthwise: bool = False


@dataclass
class Marks:
    """Marks by tensor, in the order in which they were made; nodes by id that work in int8."""

    tensors: dict[ir.Value, Mark] = field(default_factory=dict)
    active: set[int] = field(default_factory=set)

    def root(self, value: ir.Value) -> ir.Value:
        """The tensor whose grid ``value`` is on."""
        seen = value
        while (source := self.tensors[seen].source) is not None:
            seen = source
        return seen


def mark(chosen: Sequence[ir.Node], preset: QuantizePreset) -> Marks:
    """Marks the tensors of the nodes.

    Args:
        chosen: in the order of the graph.
        preset: the settings.
    """
    marks = Marks()
    for node in chosen:
        if node.op_type not in MOVES | BOUNDS | {"Where"} or _is_lookup(node):
            _mark_own(node, preset, marks)
    for node in chosen:
        if node.op_type in MOVES and not _is_lookup(node):
            _mark_move(node, preset, marks)
        elif _follows(node, marks):
            _mark_own(node, preset, marks)
    return marks


def _follows(node: ir.Node, marks: Marks) -> bool:
    """True for nodes that work in int8 where their inputs are."""
    if node.op_type in BOUNDS:
        return node.inputs[0] in marks.tensors
    return node.op_type == "Where" and all(one in marks.tensors for one in node.inputs[1:3])


def _is_lookup(node: ir.Node) -> bool:
    """True for a Gather from a constant table."""
    table = node.inputs[0] if node.op_type == "Gather" else None
    return table is not None and table.is_initializer()


def _mark_own(node: ir.Node, preset: QuantizePreset, marks: Marks) -> None:
    """Every tensor of the node gets a grid of its own, but for the bias."""
    for index, value in enumerate(node.inputs):
        if value is None or value.dtype != ir.DataType.FLOAT or _is_bias(node, index):
            continue
        if node.op_type == "Clip" and index > 0:
            continue
        if node.op_type in MATRIX_OPS and value.is_initializer():
            _mark_weight(node, index, value, preset, marks)
        else:
            marks.tensors.setdefault(value, Mark(value.name or ""))
    _mark_outputs(node, preset, marks, _is_lookup(node))
    marks.active.add(id(node))


def _is_bias(node: ir.Node, index: int) -> bool:
    return index == 2 and node.op_type in _WITH_BIAS


def _mark_weight(
    node: ir.Node, index: int, value: ir.Value, preset: QuantizePreset, marks: Marks
) -> None:
    rank = len(value.shape) if value.shape is not None else 0
    axis = channel_axis(node, index, rank) if preset.per_channel else None
    known = marks.tensors.get(value)
    if known is not None and known.is_weight:
        known.is_depthwise = known.is_depthwise and is_depthwise(node, value)
        known.axis = axis if axis == known.axis else None
        return
    marks.tensors[value] = Mark(value.name or "", True, axis, None, is_depthwise(node, value))


def is_depthwise(node: ir.Node, weight: ir.Value) -> bool:
    """True for a convolution of images that takes every channel by itself."""
    shape = weight.shape
    if node.op_type != "Conv" or shape is None or len(shape) != 4:
        return False
    return shape[1] == 1 and node.attributes.get_int("group", 1) == shape[0] != 1


def _mark_outputs(node: ir.Node, preset: QuantizePreset, marks: Marks, is_shared: bool) -> None:
    if node.op_type in preset.float_outputs:
        return
    for value in node.outputs:
        if value.name and value.dtype == ir.DataType.FLOAT:
            source = node.inputs[0] if is_shared else None
            if is_shared:
                marks.tensors[value] = Mark(value.name, source=source)
            else:
                marks.tensors.setdefault(value, Mark(value.name))


def _mark_move(node: ir.Node, preset: QuantizePreset, marks: Marks) -> None:
    value = node.inputs[0]
    if value is None or (value not in marks.tensors and not preset.moves_first):
        return
    marks.tensors.setdefault(value, Mark(value.name or ""))
    if marks.tensors[value].is_weight or marks.tensors[value].axis is not None:
        return
    _mark_outputs(node, preset, marks, is_shared=True)
    marks.active.add(id(node))


def bounds_of(node: ir.Node) -> tuple[float, float] | None:
    """What a Relu or Clip lets through; None when that is not constant."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    found = [-float("inf"), float("inf")]
    for index in (1, 2):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            continue
        content = array(value)
        if content is None or content.size != 1:
            return None
        found[index - 1] = float(content.item())
    return found[0], found[1]
