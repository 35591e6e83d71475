"""Drops what a Where never chooses, and a Sub that is only compared with 0.

Before::

    d = Sub (a, b)
    c = Equal (d, <0.0>)
    e = Where (c, d, <-100.0>)
    y = Where (c, <0.0>, e)

After::

    c = Equal (a, b)
    y = Where (c, <0.0>, <-100.0>)

Attention masks of shifted windows are written this way.

Holds only if:

1. a Where inside another one has the very same condition; without the operand that goes, the shape
   of the result is the same, all shapes being known in full;
2. for Sub and Equal: nobody else reads the difference and it is no graph output; the numbers are
   integers (whose differences wrap around, but never to 0), or floats that are constant and finite,
   perhaps moved by Reshape, Squeeze, Transpose or Unsqueeze: two infinities are equal, and their
   difference is not 0;
3. 0 has one element and no more axes than the difference.

Exactness: exact.

Source: Where, Sub and Equal of the ONNX operators; IEEE 754 has a difference of 0 only for equals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import SMALL_BYTES, array, constant_tensor, scalar
from onnxslim.ir.edit import remove
from onnxslim.ir.schema import is_op
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.noops.rules import is_integer, rank, static_shape
from onnxslim.rewrite.place_constant import discard_unused

_MOVES = ("Reshape", "Squeeze", "Transpose", "Unsqueeze")


@dataclass(frozen=True)
class SimplifyWhere(Pass):
    """A change is one operand that is read past a node."""

    name: ClassVar[str] = "simplify-where"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    roots: ClassVar[frozenset[str]] = frozenset({"Equal", "Where"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        changes = 0
        for node in context.nodes_of(model, "Equal", "Where"):
            if is_op(node, "Where"):
                changes += sum(self._choose(node, slot, context) for slot in (1, 2))
            else:
                changes += self._compare(node, context)
        return PassResult(changes)

    def _choose(self, node: ir.Node, slot: int, context: Context) -> int:
        """Reads an operand of a Where with the same condition (1)."""
        value = node.inputs[slot]
        inner = value.producer() if value is not None else None
        if inner is None or not is_op(inner, "Where") or inner.inputs[0] is not node.inputs[0]:
            return 0
        if inner.graph is not node.graph:
            return 0
        kept = inner.inputs[slot]
        operands = [kept if index == slot else item for index, item in enumerate(node.inputs)]
        if not _has_shape(operands, node.outputs[0]):
            return 0
        if not context.allow(self, f"{node.outputs[0].name}[{slot}]", "same condition"):
            return 0
        node.replace_input_with(slot, kept)
        _drop(inner)
        return 1

    def _compare(self, node: ir.Node, context: Context) -> int:
        """Compares the operands of a Sub instead of their difference with 0 (2, 3)."""
        difference, zero = node.inputs
        sub = difference.producer() if difference is not None else None
        if (
            difference is None
            or sub is None
            or not is_op(sub, "Sub")
            or sub.graph is not node.graph
        ):
            return 0
        if difference.is_graph_output() or len(difference.uses()) != 1:
            return 0
        if not _is_zero(zero, difference) or not all(map(_is_plain, sub.inputs)):
            return 0
        if not context.allow(self, node.outputs[0].name or "", "Sub before Equal"):
            return 0
        for slot in (0, 1):
            node.replace_input_with(slot, sub.inputs[slot])
        _drop(sub)
        if zero is not None:
            discard_unused(zero)
        return 1


def _has_shape(operands: list[ir.Value | None], result: ir.Value) -> bool:
    """True when the operands broadcast to the shape that the result is known to have."""
    shapes = [static_shape(value) for value in operands]
    wanted = static_shape(result)
    known = [shape for shape in shapes if shape is not None]
    if wanted is None or len(known) != len(shapes):
        return False
    return bool(np.broadcast_shapes(*known) == wanted)


def _is_zero(value: ir.Value | None, other: ir.Value) -> bool:
    tensor, width = constant_tensor(value), rank(other)
    if tensor is None or width is None or len(tensor.shape) > width:
        return False
    return bool(scalar(value) == 0)


def _is_plain(value: ir.Value | None) -> bool:
    """Integers, or constants without infinities and NaN (2)."""
    while value is not None and is_op(value.producer(), *_MOVES):
        producer = value.producer()
        value = producer.inputs[0] if producer is not None else None
    if is_integer(value):
        return True
    content = array(value, max_bytes=SMALL_BYTES)
    return content is not None and content.dtype.kind == "f" and bool(np.isfinite(content).all())


def _drop(node: ir.Node) -> None:
    """Removes a node if nobody reads it any more."""
    if node.outputs[0].uses() or node.outputs[0].is_graph_output():
        return
    inputs = [value for value in node.inputs if value is not None]
    remove(node)
    for value in dict.fromkeys(inputs):
        discard_unused(value)
