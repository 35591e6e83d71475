"""Makes one Transpose of two in a row, or none where they cancel.

Before::

    a = Transpose <perm = [0, 2, 3, 1]> (x)
    b = Transpose <perm = [0, 2, 1, 3]> (a)

After::

    b = Transpose <perm = [0, 3, 2, 1]> (x)

Formula: axis i of the result is axis ``first[second[i]]`` of x.

Holds only if:

1. both permutations are known: given as numbers, or left out where the number of axes is known;
2. they cancel and readers of the result may read x; or else the first Transpose has no other
   reader, is no graph output and stands in the same graph.

Exactness: exact.

Source: Transpose of the ONNX operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxslim.ir.edit import bypass, remove
from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import rank
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.scopes import Scopes


@dataclass(frozen=True)
class FuseConsecutiveTransposes(Pass):
    """Composes Transpose nodes, in main graph, subgraphs and function bodies."""

    name: ClassVar[str] = "fuse-consecutive-transposes"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    roots: ClassVar[frozenset[str]] = frozenset({"Transpose"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        scopes = Scopes(model)
        changes = 0
        for node in context.nodes_of(model, "Transpose"):
            while node.graph is not None and self._fuse(node, scopes, context):
                changes += 1
        return PassResult(changes)

    def _fuse(self, node: ir.Node, scopes: Scopes, context: Context) -> bool:
        first = _producer(node)
        order = None if first is None else _composed(first, node)
        if first is None or order is None:
            return False
        source, middle = first.inputs[0], first.outputs[0]
        site = node.outputs[0].name or ""
        if source is None:
            return False
        if order == sorted(order) and scopes.can_replace(node.outputs[0], source):
            if not context.allow(self, site, "cancel"):
                return False
            bypass(node, source)
        else:
            alone = len(middle.uses()) == 1 and not middle.is_graph_output()
            if not alone or first.graph is not node.graph:  # (2)
                return False
            if not context.allow(self, site, "compose"):
                return False
            node.replace_input_with(0, source)
            node.attributes["perm"] = ir.AttrInt64s("perm", order)
        if not middle.uses() and not middle.is_graph_output():
            remove(first)
        return True


def _producer(node: ir.Node) -> ir.Node | None:
    """The Transpose before a Transpose."""
    if not is_op(node, "Transpose") or node.inputs[0] is None:
        return None
    first = node.inputs[0].producer()
    return first if is_op(first, "Transpose") else None


def _composed(first: ir.Node, second: ir.Node) -> list[int] | None:
    one, other = _order(first), _order(second)
    if one is None and other is not None:
        one = _reversed(first, len(other))
    if other is None and one is not None:
        other = _reversed(second, len(one))
    if one is None and other is None and not {*first.attributes, *second.attributes}:
        width = rank(first.inputs[0])
        one = other = None if width is None else list(reversed(range(width)))
    if one is None or other is None or sorted(one) != sorted(other):
        return None
    return [one[axis] for axis in other]


def _order(node: ir.Node) -> list[int] | None:
    found = node.attributes.get("perm")
    return None if found is None or found.is_ref() else list(found.as_ints())


def _reversed(node: ir.Node, width: int) -> list[int] | None:
    """What a Transpose without a permutation does; None when it has one that is not known."""
    return None if "perm" in node.attributes else list(reversed(range(width)))
