"""The layers of a graph whose cost depends on channel counts, with the atoms on either side."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxslim.ir.schema import is_op
from onnxslim.rewrite.channels.atoms import Channelled, Ids, constant_shape

_CLASSES = ("Conv", "ConvTranspose", "Gemm", "MatMul")

# Extent of a spatial axis that the shapes leave open.
_OPEN_EXTENT = 28


@dataclass(frozen=True)
class Layer:
    """A matrix operator.

    Attributes:
        node: the operator.
        kind: its class in `costs.TARGETS`.
        taps: output positions times kernel positions.
        groups: groups of a grouped Conv.
        sides: roots of the input and of the output channels, None where they are not tracked.
        counts: the input and the output channels as they are.
    """

    node: ir.Node
    kind: str
    taps: float
    groups: int
    sides: tuple[Ids | None, Ids | None]
    counts: tuple[int, int]


def layers(state: Channelled, roots: Ids) -> Iterator[Layer]:
    """Every matrix operator that the walk tracks on one side at least."""
    for node in state.graph:
        if is_op(node, *_CLASSES) and len(node.inputs) > 1 and node.outputs:
            found = _layer(state, node, roots)
            if found is not None:
                yield found


def _layer(state: Channelled, node: ir.Node, roots: Ids) -> Layer | None:
    shape = constant_shape(node.inputs[1])
    if shape is None or len(shape) < 2:
        return None
    groups = node.attributes.get_int("group", 1) if "Conv" in node.op_type else 1
    counts = _by_weight(node, shape, groups)
    inputs = _side(state, node.inputs[0], counts[0], roots)
    outputs = _side(state, node.outputs[0], counts[1], roots)
    if inputs is None and outputs is None:
        return None
    kind, taps = _kind(node, shape, groups), _positions(node) * math.prod(shape[2:])
    return Layer(node, kind, taps, groups, (inputs, outputs), counts)


def _side(state: Channelled, value: ir.Value | None, count: int, roots: Ids) -> Ids | None:
    """Roots of the tracked axis, where that is the axis of the layer's channels."""
    channels = state.of(value)
    return None if channels is None or len(channels.ids) != count else roots[channels.ids]


def _by_weight(node: ir.Node, shape: tuple[int, ...], groups: int) -> tuple[int, int]:
    """Input and output channels, by the shape of the weight."""
    if node.op_type == "Conv":
        return shape[1] * groups, shape[0]
    if node.op_type == "ConvTranspose":
        return shape[0], shape[1] * groups
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0:
        return shape[1], shape[0]
    return shape[-2], shape[-1]


def _kind(node: ir.Node, shape: tuple[int, ...], groups: int) -> str:
    value = node.inputs[1]
    is_float = value is not None and value.dtype in (None, ir.DataType.FLOAT)
    if node.op_type != "Conv" or len(shape) != 4 or not is_float:
        return "plain"
    if groups > 1:
        return "depthwise" if shape[1] == 1 and shape[0] == groups else "grouped"
    return "pointwise" if shape[2:] == (1, 1) else "spatial"


def _positions(node: ir.Node) -> float:
    """How often the operator's weight is applied in one run; a batch that is open counts as 1."""
    value = node.inputs[0] if node.op_type == "ConvTranspose" else node.outputs[0]
    shape = None if value is None else value.shape
    if "Conv" in node.op_type:
        rank = len(constant_shape(node.inputs[1]) or ()) - 2
        spatial = (None,) * rank if shape is None else tuple(shape)[2:]
        return math.prod(d if isinstance(d, int) else _OPEN_EXTENT for d in spatial)
    if shape is None:
        return 1.0
    return math.prod(d if isinstance(d, int) else 1 for d in tuple(shape)[:-1])
