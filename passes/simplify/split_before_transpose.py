"""Splits a joined axis before a Transpose instead of behind it.

Before::

    a = Reshape (x, s)                      # (b, h, t, d) -> (b * h, t, d)
    c = Transpose <perm = [0, 2, 1]> (a)
    y = Reshape (c, r)                      # (b * h, d, t) -> (b, h, d, t)

After::

    y = Transpose <perm = [0, 1, 3, 2]> (x)

Exporters join heads with the batch for a product of matrices and split them again. Where the split
axes are not those of ``x`` already, a Reshape makes them::

    a = Reshape (x, r_in_order)
    y = Transpose (a)

Holds only if:

1. each axis of ``c`` becomes one or several axes of ``y``, which is seen from numbers, names of
   dimensions, and where the pieces of the shapes come from;
2. no 0 in the last shape copies a size, since its axis would be another one;
3. the pieces of the last shape can be put in the other order: it is constant, or a Concat of which
   no piece spells parts of two axes of ``c``;
4. ``a`` and ``c`` have no other readers and are no graph outputs, and all stand in one graph.

Exactness: exact.

Source: Reshape and Transpose of the ONNX operators; a Transpose moves blocks of axes as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import int_list
from onnxslim.ir.edit import add_initializer, remove, replace_node
from onnxslim.ir.schema import is_op
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.channels.operators.regroup import Dim, blocks
from onnxslim.rewrite.shape_contents import FOLLOWED, Element, ShapeContents


@dataclass(frozen=True)
class SplitBeforeTranspose(Pass):
    """Reshape, Transpose, Reshape become one Transpose, or a Reshape and a Transpose."""

    name: ClassVar[str] = "split-before-transpose"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    roots: ClassVar[frozenset[str]] = frozenset({"Transpose"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        changes = 0
        contents = ShapeContents(model)
        functions = [function.graph for function in model.functions.values()]
        for node in list(context.nodes_of(model, *FOLLOWED, "Reshape")):
            contents.follow(node)
            if not is_op(node, "Reshape") or any(node.graph is body for body in functions):
                continue
            found = _match(node, contents)
            if found is None:
                continue
            if context.allow(self, node.outputs[0].name or "", "a split behind a Transpose"):
                _rewrite(found, context)
                changes += 1
        return PassResult(changes)


@dataclass(frozen=True)
class _Match:
    """Three nodes that are a Reshape and a Transpose.

    Attributes:
        join: the Reshape that joins axes.
        swap: the Transpose.
        split: the Reshape that splits one again.
        places: the axes of the result in the order in which they stand before the Transpose.
        shape: the target of a Reshape to these axes in this order; None when the input of ``join``
            has this shape.
    """

    join: ir.Node
    swap: ir.Node
    split: ir.Node
    places: list[int]
    shape: list[ir.Value] | list[int] | None


def _match(node: ir.Node, contents: ShapeContents) -> _Match | None:
    swap = _only_producer(node, "Transpose")
    join = _only_producer(swap, "Reshape")
    if swap is None or join is None:
        return None
    joined, target = _dims_of(join, contents), _dims_of(node, contents)
    found = contents.of(node.inputs[1])
    order = list(swap.attributes.get_ints("perm", ()))
    if joined is None or target is None or found is None or len(order) != len(joined):
        return None
    if 0 in found.elements:  # (2)
        return None
    groups = _groups([joined[axis] for axis in order], target)
    if groups is None:  # (1)
        return None
    places = [place for axis in range(len(order)) for place in groups[order.index(axis)]]
    own = contents.dims(join.inputs[0])
    wanted = [target[place] for place in places]
    if own is not None and None not in wanted and [_named(size) for size in own] == wanted:
        return _Match(join, swap, node, places, None)
    shape = _pieces(node.inputs[1], places, contents)  # (3)
    return None if shape is None else _Match(join, swap, node, places, shape)


def _only_producer(node: ir.Node | None, wanted: str) -> ir.Node | None:
    """The node that computes the first input, for this node alone (4)."""
    value = node.inputs[0] if node is not None and len(node.inputs) else None
    producer = value.producer() if value is not None else None
    if node is None or value is None or producer is None or not is_op(producer, wanted):
        return None
    if len(value.uses()) != 1 or value.is_graph_output() or producer.graph is not node.graph:
        return None
    return producer


def _groups(source: list[Dim], target: list[Dim]) -> list[range] | None:
    """For each axis of the Transpose's result, the axes that it becomes."""
    parts = blocks(source, target)
    whole = [(axis, axis + 1) for axis in range(len(source))]
    groups = [range(*after) for _, after in parts]
    return groups if [before for before, _ in parts] == whole and all(groups) else None


def _named(size: Element) -> Dim:
    if isinstance(size, tuple):
        return f"axis {size[1]} of {size[0].name}"
    return size


def _dims_of(node: ir.Node, contents: ShapeContents) -> list[Dim] | None:
    """The dimensions of the result of a Reshape, from its target where that tells more."""
    target = contents.of(node.inputs[1])
    own, output = contents.dims(node.inputs[0]), contents.dims(node.outputs[0])
    if target is None:
        return None if output is None else [_named(size) for size in output]
    copies = not node.attributes.get_int("allowzero", 0)
    dims: list[Dim] = []
    for axis, size in enumerate(target.elements):
        if size == 0 and copies:
            dims.append(_named(own[axis]) if own is not None and axis < len(own) else None)
        elif size in (-1, 0, None):
            dims.append(_named(output[axis]) if output is not None else None)
        else:
            dims.append(_named(size))
    return dims


def _pieces(
    value: ir.Value | None, places: list[int], contents: ShapeContents
) -> list[ir.Value] | list[int] | None:
    """A target shape in another order: its numbers, or the pieces of its Concat."""
    numbers = int_list(value)
    if numbers is not None:
        return [numbers[place] for place in places]
    concat = value.producer() if value is not None else None
    if concat is None or not is_op(concat, "Concat"):
        return None
    starts: dict[int, tuple[ir.Value, int]] = {}
    start = 0
    for piece in concat.inputs:
        found = contents.of(piece)
        if piece is None or found is None:
            return None
        starts[start] = piece, len(found.elements)
        start += len(found.elements)
    pieces: list[ir.Value] = []
    at = 0
    while at < len(places):
        piece, length = starts.get(places[at], (None, 0))
        if piece is None or places[at : at + length] != list(
            range(places[at], places[at] + length)
        ):
            return None
        pieces.append(piece)
        at += length
    return pieces


def _rewrite(found: _Match, context: Context) -> None:
    source = found.join.inputs[0]
    if found.shape is not None:
        source = _reshaped(found, found.shape, context)
    order = [found.places.index(place) for place in range(len(found.places))]
    new = ir.Node("", "Transpose", [source], attributes=[ir.AttrInt64s("perm", order)])
    replace_node(found.split, new)
    remove(found.swap)
    remove(found.join)


def _reshaped(found: _Match, shape: list[ir.Value] | list[int], context: Context) -> ir.Value:
    """The input of the first Reshape, with the split axes in their old order."""
    graph, output = found.split.graph, found.split.outputs[0]
    assert graph is not None
    pieces = [piece for piece in shape if isinstance(piece, ir.Value)]
    if pieces:
        name = context.fresh_name(f"{output.name}_order")
        target = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64))
        axis = [ir.AttrInt64("axis", 0)]
        concat = ir.Node("", "Concat", pieces, attributes=axis, outputs=[target])
        graph.insert_before(found.split, concat)
    else:
        content = np.array(shape, dtype=np.int64)
        target = add_initializer(graph, content, context.fresh_name(f"{output.name}_order"))
    attributes = [ir.AttrInt64("allowzero", found.split.attributes.get_int("allowzero", 0))]
    split = ir.Value(name=context.fresh_name(f"{output.name}_split"), type=output.type)
    inputs = [found.join.inputs[0], target]
    node = ir.Node("", "Reshape", inputs, attributes=attributes, outputs=[split])
    graph.insert_before(found.split, node)
    return split
