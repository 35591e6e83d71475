"""Lets an operator broadcast what is expanded to the shape of its other operand.

Before::

    s = Shape (x)
    c = ConstantOfShape <value = {7}> (s)
    y = Min (x, c)

    e = Expand (z, s)
    w = Add (x, e)

After::

    y = Min (x, <7>)

    w = Add (x, z)

Holds only if:

1. the operator works element by element and broadcasts all operands (opset 8);
2. the shape is Shape, without ``start`` and ``end``, of another operand of the same node;
3. for ConstantOfShape, the number can be stored without the file getting larger: the filled tensor
   has no other reader, or the constant is there already.

Exactness: exact.

Source: multidirectional broadcasting of the ONNX operators; Expand broadcasts the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxslim.ir.edit import remove
from onnxslim.ir.schema import is_op, opset_of
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.place_constant import add_constant, discard_unused

_ELEMENTWISE = (
    *("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max"),
    *("Min", "Mod", "Mul", "Or", "Pow", "Sub", "Sum", "Where", "Xor"),
)
_SINCE = 8  # Max, Min and Sum broadcast since then, the others a version longer


@dataclass(frozen=True)
class EliminateExpandBeforeBroadcast(Pass):
    """A change is one operand that is read unexpanded."""

    name: ClassVar[str] = "eliminate-expand-before-broadcast"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    roots: ClassVar[frozenset[str]] = frozenset({"ConstantOfShape", "Expand"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        changes = 0
        for node in context.nodes_of(model, *_ELEMENTWISE):
            if (opset_of(node, model) or 0) < _SINCE:
                continue
            for slot in range(len(node.inputs)):
                changes += self._shorten(node, slot, model, context)
        return PassResult(changes)

    def _shorten(self, node: ir.Node, slot: int, model: ir.Model, context: Context) -> int:
        value = node.inputs[slot]
        wide = value.producer() if value is not None else None
        if value is None or wide is None or not is_op(wide, "ConstantOfShape", "Expand"):
            return 0
        others = [item for place, item in enumerate(node.inputs) if place != slot]
        if wide.graph is not node.graph or not _has_shape_of(wide, others):
            return 0
        filled = is_op(wide, "ConstantOfShape")
        alone = len(value.uses()) == 1 and not value.is_graph_output()
        if filled and (not alone or _filling(wide) is None):
            return 0
        if not context.allow(self, f"{node.outputs[0].name}[{slot}]", wide.op_type):
            return 0
        node.replace_input_with(slot, self._narrow(wide, node, model, context))
        _drop(wide)
        return 1

    def _narrow(
        self, wide: ir.Node, node: ir.Node, model: ir.Model, context: Context
    ) -> ir.Value | None:
        if is_op(wide, "Expand"):
            return wide.inputs[0]
        number = _filling(wide)
        assert number is not None  # the match asked for it
        name = context.fresh_name(f"{wide.outputs[0].name}_number")
        return add_constant(model, node, ir.tensor(number), name)


def _has_shape_of(wide: ir.Node, others: list[ir.Value | None]) -> bool:
    """True when the shape is the whole shape of another operand (2)."""
    shape = wide.inputs[-1]
    source = shape.producer() if shape is not None else None
    if source is None or not is_op(source, "Shape"):
        return False
    if source.attributes.get_int("start", 0) != 0 or "end" in source.attributes:
        return False
    return source.inputs[0] in others


def _filling(wide: ir.Node) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None:
    """The number of a ConstantOfShape, of rank 0."""
    found = wide.attributes.get("value")
    if found is None:
        return np.zeros((), dtype=np.float32)
    if found.is_ref():
        return None
    content: np.ndarray[tuple[int, ...], np.dtype[np.generic]] = found.as_tensor().numpy()
    return content.reshape(())


def _drop(node: ir.Node) -> None:
    """Removes a node if nobody reads it, and then the Shape that it alone read."""
    value = node.outputs[0]
    if value.uses() or value.is_graph_output():
        return
    inputs = [item for item in node.inputs if item is not None]
    remove(node)
    for item in dict.fromkeys(inputs):
        producer = item.producer()
        if producer is not None and is_op(producer, "Shape"):
            _drop(producer)
        else:
            discard_unused(item)
