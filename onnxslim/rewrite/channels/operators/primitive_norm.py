"""Layer norms of primitive operators that lose zero channels and are corrected for it.

The form is ``mean = ReduceMean(x)``, ``c = Sub(x, mean)``, ``Div(c, Sqrt(Add(ReduceMean(c^2),
eps)))``; scale and shift behind it are operators like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import scalar
from onnxslim.ir.shapes import rank
from onnxslim.rewrite.channels.atoms import Channelled, Channels, Edits
from onnxslim.rewrite.channels.operators.mixing import mix_but_zeros
from onnxslim.rewrite.channels.operators.norm_compensation import (
    Writer,
    multiplied,
    only_reader,
    share_of,
)
from onnxslim.rewrite.channels.operators.sign import is_square

Axes = Callable[[ir.Node, int], list[int] | None]


@dataclass(frozen=True)
class _Primitive:
    """The nodes of a layer norm, in order; ``variance`` is the input of ``adder`` with it."""

    mean: ir.Node
    centre: ir.Node
    square: ir.Node
    spread: ir.Node
    adder: ir.Node
    variance: int
    root: ir.Node
    divide: ir.Node


def primitive_layer_norm(
    state: Channelled, node: ir.Node, channels: Channels, axes_of: Axes
) -> bool:
    """Follows zero channels through a layer norm that starts with this ReduceMean.

    Args:
        state: the walk, with compensated norms.
        node: a ReduceMean over the channels.
        channels: what enters it.
        axes_of: the axes of a reduction of a value of some rank.

    Returns:
        False when it is no such norm for certain.
    """
    found = _find(node, axes_of)
    if found is None:
        return False
    inner = (found.centre, found.square, found.spread, found.adder, found.root, found.divide)
    state.track(found.divide.outputs[0], channels.axis, channels.ids, None, channels.dtype)
    state.handled.update(inner)
    why = "takes its statistics over all channels, some of which are needed"
    mix_but_zeros(state, found.divide, channels, why)
    state.fixes.append((channels.ids, _fix(state, found, channels)))
    return True


def _find(mean: ir.Node, axes_of: Axes) -> _Primitive | None:
    source, centre = mean.inputs[0], only_reader(mean, "Sub")
    if centre is None or centre.inputs[0] is not source or centre.outputs[0].is_graph_output():
        return None
    readers = {use.node for use in centre.outputs[0].uses()}
    square = next((reader for reader in readers if is_square(reader)), None)
    spread = only_reader(square, "ReduceMean")
    adder = only_reader(spread, "Add")
    root = only_reader(adder, "Sqrt")
    divide = only_reader(root, "Div")
    if square is None or spread is None or adder is None or root is None or divide is None:
        return None
    variance = 0 if adder.inputs[0] is spread.outputs[0] else 1
    quotient = list(divide.inputs) == [centre.outputs[0], root.outputs[0]]
    if readers != {square, divide} or not quotient or scalar(adder.inputs[1 - variance]) is None:
        return None
    return (
        _Primitive(mean, centre, square, spread, adder, variance, root, divide)
        if _same_axes(mean, spread, axes_of)
        else None
    )


def _same_axes(mean: ir.Node, spread: ir.Node, axes_of: Axes) -> bool:
    count = rank(mean.inputs[0])
    if count is None:
        return False
    axes = [axes_of(node, count) for node in (mean, spread)]
    keeps = all(node.attributes.get_int("keepdims", 1) for node in (mean, spread))
    return keeps and axes[0] is not None and sorted(axes[0]) == sorted(axes[1] or [])


def _fix(state: Channelled, found: _Primitive, channels: Channels) -> Callable[[Edits], None]:
    def fix(edits: Edits) -> None:
        dtype = channels.dtype or found.mean.outputs[0].dtype or ir.DataType.FLOAT
        share, mean = share_of(edits, channels.ids), found.mean.outputs[0]
        for node in (found.mean, found.spread):
            multiplied(Writer(node, edits, state.opset, dtype), node, share)
        write = Writer(found.adder, edits, state.opset, dtype)
        rest = write.number(1 - share, f"{mean.name}_rest")
        zeros = write.op("Mul", [write.op("Mul", [mean, mean], mean), rest], mean)
        variance = write.op("Add", [found.adder.inputs[found.variance], zeros], mean)
        found.adder.replace_input_with(found.variance, variance)
        for node in (found.centre, found.square):
            value = node.outputs[0]
            if value.shape is not None:
                sizes = list(value.shape)
                sizes[channels.axis] = int(np.sum(edits.kept(channels.ids)))
                value.shape = ir.Shape(sizes)

    return fix
