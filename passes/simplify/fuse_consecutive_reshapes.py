"""Drops a Reshape, Flatten, Squeeze or Unsqueeze whose result is only reshaped once more.

Before::

    <int64[2] s = {-1, 6}>
    a = Flatten <axis = 2> (x)
    b = Reshape (a, s)

After::

    <int64[2] s = {-1, 6}>
    b = Reshape (x, s)

Holds only if:

1. the first node keeps all elements in their order, as these four do;
2. the shape of the second copies no size from the first: it is constant and has no 0, or
   ``allowzero`` is 1, where 0 means 0 also for a shape that is computed;
3. the result of the first has no other reader and is no graph output, and both stand in the same
   graph.

A -1 gives the same in both: the number of elements is the same.

Exactness: exact.

Source: Reshape, Flatten, Squeeze and Unsqueeze of the ONNX operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxslim.ir.constants import int_list
from onnxslim.ir.edit import remove
from onnxslim.ir.schema import is_op
from onnxslim.pipeline import Context, Exactness, Pass, PassResult


@dataclass(frozen=True)
class FuseConsecutiveReshapes(Pass):
    """Lets the last Reshape of a chain read the first input, everywhere in the model."""

    name: ClassVar[str] = "fuse-consecutive-reshapes"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    roots: ClassVar[frozenset[str]] = frozenset({"Reshape"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        changes = 0
        for node in context.nodes_of(model, "Reshape"):
            while self._fuse(node, context):
                changes += 1
        return PassResult(changes)

    def _fuse(self, node: ir.Node, context: Context) -> bool:
        first = _match(node)
        if first is None:
            return False
        if not context.allow(self, node.outputs[0].name or "", f"{first.op_type} Reshape"):
            return False
        node.replace_input_with(0, first.inputs[0])
        remove(first)
        return True


def _match(node: ir.Node) -> ir.Node | None:
    """The node before a Reshape that may go."""
    if not is_op(node, "Reshape") or len(node.inputs) != 2 or not _copies_nothing(node):
        return None
    middle = node.inputs[0]
    first = middle.producer() if middle is not None else None
    if first is None or not is_op(first, "Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        return None
    if middle is None or len(middle.uses()) != 1 or middle.is_graph_output():  # (3)
        return None
    return first if first.graph is node.graph and first.inputs[0] is not None else None


def _copies_nothing(node: ir.Node) -> bool:
    """True when no 0 in the shape stands for a size of the input (2)."""
    found = node.attributes.get("allowzero")
    if found is not None:
        if found.is_ref():
            return False
        if found.as_int() == 1:
            return True
    target = int_list(node.inputs[1])
    return target is not None and 0 not in target
