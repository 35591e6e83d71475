"""Drops a Transpose that moves nothing but axes of size 1, where a Reshape or Squeeze reads it.

Before::

    a = Transpose <perm = [0, 2, 1, 3]> (x)     # float[N,1,7,96] x
    y = Reshape (a, <-1, 96>)

After::

    y = Reshape (x, <-1, 96>)

Holds only if:

1. the other axes stay in their order, so that the elements do;
2. every reader is a Reshape that copies no size of its input (no 0 in a constant shape, or
   ``allowzero`` = 1), and the Transpose is no graph output.

Exactness: exact.

Source: Transpose and Reshape of the ONNX operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxslim.ir.constants import int_list
from onnxslim.ir.edit import bypass
from onnxslim.ir.schema import is_op
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.noops.rules import dim, rank
from onnxslim.rewrite.scopes import Scopes


@dataclass(frozen=True)
class EliminateTransposeOfOnes(Pass):
    """Bypasses such Transposes, everywhere in the model."""

    name: ClassVar[str] = "eliminate-transpose-of-ones"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    roots: ClassVar[frozenset[str]] = frozenset({"Transpose"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        scopes = Scopes(model)
        changes = 0
        for node in context.nodes_of(model, "Transpose"):
            if not _keeps_order(node):
                continue
            value, source = node.outputs[0], node.inputs[0]
            readers = value.consumers()
            if value.is_graph_output() or not readers or source is None:
                continue
            if not all(_copies_nothing(reader, value) for reader in readers):
                continue
            if not scopes.can_replace(value, source):
                continue
            if context.allow(self, value.name or "", "moves axes of size 1"):
                bypass(node, source)
                changes += 1
        return PassResult(changes)


def _keeps_order(node: ir.Node) -> bool:
    """True when the axes that are not known to have size 1 stay in order (1)."""
    source = node.inputs[0]
    width = rank(source)
    found = node.attributes.get("perm")
    if width is None or (found is not None and found.is_ref()):
        return False
    order = list(range(width))[::-1] if found is None else list(found.as_ints())
    kept = [axis for axis in order if dim(source, axis) != 1]
    return kept == sorted(kept)


def _copies_nothing(reader: ir.Node, value: ir.Value) -> bool:
    """True for a Reshape of the value whose result depends on the elements alone (2)."""
    if not is_op(reader, "Reshape") or len(reader.inputs) != 2 or reader.inputs[0] is not value:
        return False
    found = reader.attributes.get("allowzero")
    if found is not None and found.is_ref():
        return False
    if found is not None and found.as_int() == 1:
        return reader.inputs[1] is not value
    target = int_list(reader.inputs[1])
    return target is not None and 0 not in target
