"""Reads dimensions before a Transpose instead of behind it.

Before::

    a = Transpose <perm = [0, 2, 1]> (x)
    s = Shape (a)
    y = Gather (s, <1>)

After::

    s = Shape (x)
    y = Gather (s, <2>)

The Transpose goes where nobody else reads it.

Holds only if:

1. the Shape has neither ``start`` nor ``end``, is the only reader of the Transpose, and neither
   result is a graph output;
2. every reader of the Shape is a Gather along its axis with constant positions.

Exactness: exact.

Source: Transpose, Shape and Gather of the ONNX operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import array
from onnxslim.ir.edit import remove
from onnxslim.ir.schema import is_op
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.place_constant import add_constant, discard_unused


@dataclass(frozen=True)
class EliminateTransposeBeforeShape(Pass):
    """A change is one Transpose less."""

    name: ClassVar[str] = "eliminate-transpose-before-shape"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    roots: ClassVar[frozenset[str]] = frozenset({"Transpose"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        changes = 0
        for node in context.nodes_of(model, "Shape"):
            transpose = _match(node)
            if transpose is None:
                continue
            if context.allow(self, node.outputs[0].name or "", "Shape of a Transpose"):
                _rewrite(node, transpose, model, context)
                changes += 1
        return PassResult(changes)


def _match(node: ir.Node) -> ir.Node | None:
    """The Transpose whose shape the node gives."""
    if node.attributes:
        return None
    value = node.inputs[0]
    transpose = value.producer() if value is not None else None
    if value is None or transpose is None or not is_op(transpose, "Transpose"):
        return None
    if len(value.uses()) != 1 or value.is_graph_output() or transpose.graph is not node.graph:
        return None
    order = transpose.attributes.get("perm")
    if order is None or order.is_ref() or node.outputs[0].is_graph_output():
        return None
    readers = node.outputs[0].consumers()
    width = len(order.as_ints())
    return transpose if readers and all(_picks(user, node, width) for user in readers) else None


def _picks(user: ir.Node, shape: ir.Node, width: int) -> bool:
    """True for a Gather of constant positions in the shape (2)."""
    if not is_op(user, "Gather") or user.inputs[0] is not shape.outputs[0]:
        return False
    if user.attributes.get_int("axis", 0) not in (0, -1):
        return False
    places = array(user.inputs[1], max_bytes=1024)
    return places is not None and bool(((places >= -width) & (places < width)).all())


def _rewrite(shape: ir.Node, transpose: ir.Node, model: ir.Model, context: Context) -> None:
    order = np.array(transpose.attributes["perm"].as_ints())
    for user in list(shape.outputs[0].consumers()):
        former = user.inputs[1]
        places = array(former)
        assert places is not None  # the match asked for it
        moved = np.asarray(order[places], dtype=places.dtype)
        name = context.fresh_name(f"{user.outputs[0].name}_places")
        user.replace_input_with(1, add_constant(model, user, ir.tensor(moved), name))
        if former is not None:
            discard_unused(former)
    shape.replace_input_with(0, transpose.inputs[0])
    shape.outputs[0].shape = ir.Shape([len(order)])
    remove(transpose)
