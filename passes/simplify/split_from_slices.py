"""Makes one Split of Slices that together cut all of an axis.

Before::

    a = Slice (x, <0>, <3>, <1>)        # float[N,56] x
    b = Slice (x, <3>, <56>, <1>)

After::

    a, b = Split <axis = 1> (x, <3, 53>)

Exporters write a roll this way, and the gates of a recurrent cell.

Holds only if:

1. the size of the axis is known; the Slices cut this axis alone, with step 1 and constant bounds;
2. sorted by their start they cover the axis without gap or overlap, and there are two or more;
3. they stand in one graph and read nothing but ``x`` and constants;
4. the element type is one that a Split takes in the runtimes: floats, integers of 8, 32 and 64
   bits, bool; and ``x`` is no list of integers, which is a shape that other passes understand.

Exactness: exact.

Source: Slice and Split of the ONNX operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxslim.ir.edit import remove, replace_value
from onnxslim.ir.schema import is_op, opset_of
from onnxslim.ir.shapes import rank
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.place_constant import add_constant, discard_unused
from onnxslim.rewrite.slices import cuts_of, interval

_TYPES = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT32}
    | {ir.DataType.INT64, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.BOOL}
)


@dataclass(frozen=True)
class _Piece:
    node: ir.Node
    axis: int
    start: int
    end: int


@dataclass(frozen=True)
class SplitFromSlices(Pass):
    """A change is one new Split."""

    name: ClassVar[str] = "split-from-slices"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    roots: ClassVar[frozenset[str]] = frozenset({"Slice"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        changes = 0
        tried: set[tuple[ir.Value | None, int]] = set()
        for node in context.nodes_of(model, "Slice"):
            piece = _piece(node)
            if piece is None or (node.inputs[0], piece.axis) in tried:
                continue
            tried.add((node.inputs[0], piece.axis))
            pieces = _pieces(piece)
            if pieces is None:
                continue
            opset = opset_of(node, model) or 1
            if context.allow(self, node.outputs[0].name or "", f"{len(pieces)} Slices"):
                _rewrite(node, pieces, model, context, opset)
                changes += 1
        return PassResult(changes)


def _piece(node: ir.Node) -> _Piece | None:
    """The interval that a Slice cuts (1)."""
    cuts = cuts_of(node)
    value = node.inputs[0] if cuts is not None and len(cuts) == 1 else None
    if cuts is None or value is None or value.dtype not in _TYPES:
        return None
    if value.dtype.is_integer() and rank(value) == 1:  # (4)
        return None
    found = interval(cuts[0], value)
    return None if found is None else _Piece(node, cuts[0].axis, *found)


def _pieces(first: _Piece) -> list[_Piece] | None:
    """All pieces of the axis in order (2, 3)."""
    value = first.node.inputs[0]
    if value is None or value.shape is None:
        return None
    size = value.shape[first.axis]
    found: dict[int, _Piece] = {}
    for user in dict.fromkeys(value.consumers()):
        piece = _piece(user) if is_op(user, "Slice") and user.inputs[0] is value else None
        if piece is None or piece.axis != first.axis or user.graph is not first.node.graph:
            continue
        found.setdefault(piece.start, piece)
    ordered, place = [], 0
    while place != size:
        piece = found.get(place)
        if piece is None:
            return None
        ordered.append(piece)
        place = piece.end
    return ordered if len(ordered) > 1 and first.node in [piece.node for piece in ordered] else None


def _rewrite(
    earliest: ir.Node, pieces: Sequence[_Piece], model: ir.Model, context: Context, opset: int
) -> None:
    """Puts a Split before the Slice that stands first; its outputs take their names."""
    slices = [piece.node for piece in pieces]
    sizes = [piece.end - piece.start for piece in pieces]
    inputs: list[ir.Value | None] = [slices[0].inputs[0]]
    attributes: dict[str, int | list[int]] = {"axis": pieces[0].axis}
    if opset < 13:
        attributes["split"] = sizes
    else:
        name = context.fresh_name(f"{slices[0].outputs[0].name}_split")
        tensor = ir.tensor(np.array(sizes, dtype=np.int64))
        inputs.append(add_constant(model, earliest, tensor, name))
    split = ir.node("Split", inputs, attributes, num_outputs=len(slices))
    assert earliest.graph is not None  # it was found in a graph
    earliest.graph.insert_before(earliest, split)
    for node, new in zip(slices, split.outputs, strict=True):
        _take_over(node, new)


def _take_over(node: ir.Node, new: ir.Value) -> None:
    old = node.outputs[0]
    name = old.name
    new.type, new.shape = old.type, old.shape
    replace_value(old, new)
    old.name, new.name = f"{name}__replaced", name
    constants = [value for value in node.inputs[1:] if value is not None]
    remove(node)
    for value in dict.fromkeys(constants):
        discard_unused(value)
