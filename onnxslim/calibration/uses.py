"""What each operator takes the values of its inputs for: indices, axes, lengths, divisors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxslim.calibration.roles import Bound, RoleBuilder
from onnxslim.ir import shapes
from onnxslim.ir.constants import array, scalar

Consumer = Callable[[RoleBuilder, ir.Node, int, int], None]


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _attribute(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else attribute.as_int()


def _index_on_axis(builder: RoleBuilder, node: ir.Node, position: int, shift: int) -> None:
    if position == 1:
        axis = _attribute(node, "axis", 0)
        builder.bound(0, builder.size(node.inputs[0], axis), shift)


def _index_tuple(builder: RoleBuilder, node: ir.Node, position: int, shift: int) -> None:
    """GatherND, ScatterND: the last axis of the indices walks over the first axes of the data."""
    if position != 1:
        return
    depth = builder.size(node.inputs[1], -1)
    first = _attribute(node, "batch_dims", 0)
    if not isinstance(depth, int):
        builder.bound(0, None, shift)
        return
    for axis in range(first, first + depth):
        builder.bound(0, builder.size(node.inputs[0], axis), shift)


def _one_hot(builder: RoleBuilder, node: ir.Node, position: int, shift: int) -> None:
    if position == 0:
        depth = scalar(node.inputs[1])
        builder.bound(0, int(depth) if depth is not None else None, shift)
    elif position == 1:
        builder.role.extents = True
        builder.bound(1, 5, shift)


def _lengths(builder: RoleBuilder, node: ir.Node, position: int, shift: int) -> None:
    """Lengths of sequences along the time axis of input 0."""
    if node.op_type == "ReverseSequence":
        wanted, time_axis = 1, _attribute(node, "time_axis", 0)
    else:
        wanted, time_axis = 4, _attribute(node, "layout", 0)
    if position == wanted:
        builder.bound(1, builder.size(node.inputs[0], time_axis), shift, high=1)


def _extent(*positions: int, low: int = 1, high: int = 4) -> Consumer:
    def use(builder: RoleBuilder, node: ir.Node, position: int, shift: int) -> None:
        if position in positions:
            builder.role.extents = True
            builder.bound(low, high, shift)

    return use


def _axes(position_of_axes: int) -> Consumer:
    def use(builder: RoleBuilder, node: ir.Node, position: int, shift: int) -> None:
        if position == position_of_axes:
            builder.role.axes = True
            builder.bound(0, shapes.rank(node.inputs[0]), shift)

    return use


def _roi_align(builder: RoleBuilder, node: ir.Node, position: int, shift: int) -> None:
    if position == 2:
        builder.bound(0, builder.size(node.inputs[0], 0), shift)


def _top_k(builder: RoleBuilder, node: ir.Node, position: int, shift: int) -> None:
    if position == 1:
        builder.bound(1, builder.size(node.inputs[0], _attribute(node, "axis", -1)), shift, high=1)
        builder.bound(1, 4, shift)


def _slice(builder: RoleBuilder, node: ir.Node, position: int, shift: int) -> None:
    if position == 1:
        builder.bound(0, 1, shift)
    elif position == 3:
        _axes(3)(builder, node, position, shift)
    elif position in (2, 4):
        builder.bound(1, 4 if position == 2 else 2, shift)


def _divisor(builder: RoleBuilder, node: ir.Node, position: int, shift: int) -> None:
    """Dividing integers by zero kills the process; floats keep clear of it too."""
    if position == 1:
        builder.bound(1, 8, shift)
        builder.role.domain = "positive"


def _reshape(builder: RoleBuilder, node: ir.Node, position: int, shift: int) -> None:
    if position == 1:
        builder.role.reshapes = True


def _positive(position_of_sizes: int) -> Consumer:
    """Scales of a Resize: floats above zero."""

    def use(builder: RoleBuilder, node: ir.Node, position: int, shift: int) -> None:
        if position == position_of_sizes:
            builder.role.domain = "positive"

    return use


def _resize(builder: RoleBuilder, node: ir.Node, position: int, shift: int) -> None:
    if position in (1, 2):
        builder.role.domain = "positive"
    elif position == 3:
        builder.bound(1, 9, shift)


def _compared(builder: RoleBuilder, node: ir.Node, position: int, shift: int) -> None:
    """An input that is compared with constants takes values on both sides of them."""
    content = array(node.inputs[1 - position]) if len(node.inputs) == 2 else None
    if content is not None and content.dtype.kind in "iu" and 0 < content.size <= 64:
        builder.role.hints.append(
            Bound(int(np.min(content)) - shift, int(np.max(content)) + 2, -shift)
        )


_REDUCTIONS = (
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceSumSquare",
)

CONSUMERS: dict[str, Consumer] = {
    **dict.fromkeys(("Gather", "GatherElements", "ScatterElements", "Scatter"), _index_on_axis),
    **dict.fromkeys(("GatherND", "ScatterND"), _index_tuple),
    **dict.fromkeys(("RNN", "LSTM", "GRU", "ReverseSequence"), _lengths),
    **dict.fromkeys(("Div", "Mod"), _divisor),
    "ConstantOfShape": _extent(0, low=1, high=4),
    "SequenceAt": _extent(1, low=0, high=1),
    "SequenceErase": _extent(1, low=0, high=1),
    "SequenceInsert": _extent(2, low=0, high=1),
    "OneHot": _one_hot,
    "Expand": _extent(1, low=1, high=2),
    "Tile": _extent(1, low=1, high=3),
    "Loop": _extent(0, low=1, high=5),
    "Range": _extent(0, 1, 2, low=1, high=4),
    "Pad": _extent(1, low=0, high=2),
    "EyeLike": _extent(0, low=1, high=4),
    "Trilu": _extent(1, low=-1, high=2),
    "CumSum": _axes(1),
    "CumProd": _axes(1),
    "STFT": _extent(1, 3, low=2, high=4),
    "DFT": _extent(1, low=2, high=5),
    "Col2Im": _extent(1, 2, low=2, high=3),
    "RoiAlign": _roi_align,
    "Squeeze": _axes(1),
    "Unsqueeze": _axes(1),
    **dict.fromkeys(_REDUCTIONS, _axes(1)),
    "TopK": _top_k,
    "Slice": _slice,
    "Reshape": _reshape,
    "Resize": _resize,
    "Upsample": _positive(1),
    "Equal": _compared,
    "Less": _compared,
    "LessOrEqual": _compared,
    "Greater": _compared,
    "GreaterOrEqual": _compared,
    "CenterCropPad": _extent(1, low=1, high=4),
    "NonMaxSuppression": _extent(2, low=1, high=4),
    "BitShift": _extent(1, low=0, high=4),
}

DOMAINS = {
    "Log": "positive",
    "Sqrt": "positive",
    "Pow": "positive",
    "Acos": "unit",
    "Asin": "unit",
    "Atanh": "unit",
    "Acosh": "above-one",
}

# Position of the indices -> position of the table they index along axis 0.
_CONTRIB_TABLES = {
    "EmbedLayerNormalization": {0: 2, 1: 4},
    "GatherBlockQuantized": {1: 0},
}
_CONTRIB_MASKS = frozenset({("EmbedLayerNormalization", 7), ("Attention", 3)})


def contrib_use(builder: RoleBuilder, node: ir.Node, position: int, shift: int) -> None:
    """Operators of onnxruntime's own domain; an unknown use keeps the values small."""
    table = _CONTRIB_TABLES.get(node.op_type, {}).get(position)
    if table is not None:
        builder.bound(0, builder.size(_input(node, table), 0), shift)
    elif (node.op_type, position) in _CONTRIB_MASKS:
        builder.role.mask = True
    else:
        builder.bound(0, 2, shift)
