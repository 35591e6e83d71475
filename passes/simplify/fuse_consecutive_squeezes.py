"""Cancels a Squeeze and an Unsqueeze of the same axes, and joins two of one kind.

Before::

    <int64[1] k = {1}, int64[1] l = {2}>
    a = Unsqueeze (x, k)
    b = Squeeze (a, k)
    c = Unsqueeze (b, l)
    d = Unsqueeze (c, k)

After::

    <int64[2] m = {1, 3}>
    d = Unsqueeze (x, m)

Formula: two Squeeze remove the axes of the first, and of the axes left those that the second names;
two Unsqueeze are the same backwards.

Holds only if:

1. the axes of both are given, as attribute before opset 13 and as a constant from then on;
   negative ones where the number of axes of the larger tensor is known;
2. they cancel and readers of the result may read x; or else both are of one kind, the first has no
   other reader, is no graph output and stands in the same graph;
3. to join, new axes can be stored: in an attribute or an initializer. Function bodies have no
   initializers, and below IR version 4 they are inputs.

Exactness: exact.

Source: Squeeze and Unsqueeze of the ONNX operators; Squeeze fails at run time where the size is not
1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import int_list
from onnxslim.ir.edit import add_initializer, bypass, remove
from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import rank
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.scopes import Scopes

# Each reader gets axes of its own; more of them would take more bytes than one node less saves.
_READERS = 2


@dataclass(frozen=True)
class _Match:
    """Two nodes in a row. ``axes`` is None when they cancel, else what one node has to name."""

    first: ir.Node
    second: ir.Node
    source: ir.Value
    axes: list[int] | None


@dataclass(frozen=True)
class FuseConsecutiveSqueezes(Pass):
    """Cancels or joins Squeeze and Unsqueeze, everywhere in the model."""

    name: ClassVar[str] = "fuse-consecutive-squeezes"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    roots: ClassVar[frozenset[str]] = frozenset({"Squeeze", "Unsqueeze"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        scopes = Scopes(model)
        in_functions = {
            node for function in model.functions.values() for node in function.graph.all_nodes()
        }
        may_add = (model.ir_version or 0) >= 4
        changes = 0
        for node in context.nodes_of(model, "Squeeze", "Unsqueeze"):
            new_axes = "axes" in node.attributes or (may_add and node not in in_functions)  # (3)
            while node.graph is not None and self._fuse(node, scopes, context, new_axes):
                changes += 1
        return PassResult(changes)

    def _fuse(self, node: ir.Node, scopes: Scopes, context: Context, new_axes: bool) -> bool:
        match = _match(node, scopes)
        if match is None or (match.axes is not None and not new_axes):
            return False
        detail = f"{match.first.op_type} {node.op_type}"
        if not context.allow(self, node.outputs[0].name or "", detail):
            return False
        _rewrite(match, context)
        return True


def _match(node: ir.Node, scopes: Scopes) -> _Match | None:
    middle = node.inputs[0] if is_op(node, "Squeeze", "Unsqueeze") else None
    first = middle.producer() if middle is not None else None
    if first is None or middle is None or not is_op(first, "Squeeze", "Unsqueeze"):
        return None
    source, one, other = first.inputs[0], _axes(first), _axes(node)
    if source is None or one is None or other is None:
        return None
    if first.op_type != node.op_type:
        same = one == other and scopes.can_replace(node.outputs[0], source)
        return _Match(first, node, source, None) if same else None
    if not _goes(middle, node) or first.graph is not node.graph:  # (2)
        return None
    joined = _joined(one, other) if node.op_type == "Squeeze" else _joined(other, one)
    return _Match(first, node, source, joined)


def _goes(middle: ir.Value, node: ir.Node) -> bool:
    """True when no reader of the value between is left after all of them have been joined (2)."""
    readers = middle.consumers()
    if middle.is_graph_output() or len(middle.uses()) != len(readers) or len(readers) > _READERS:
        return False
    return all(
        reader.op_type == node.op_type
        and reader.domain == node.domain
        and reader.graph is node.graph
        and reader.inputs[0] is middle
        and _axes(reader) is not None
        for reader in readers
    )


def _axes(node: ir.Node) -> list[int] | None:
    """The axes, counted from the front and in order (1)."""
    found = node.attributes.get("axes")
    if found is not None:
        axes = None if found.is_ref() else list(found.as_ints())
    else:
        axes = int_list(node.inputs[1]) if len(node.inputs) > 1 else None
    if not axes:
        return None
    if min(axes) < 0:
        width = _width(node, len(axes))
        if width is None:
            return None
        axes = [axis + width if axis < 0 else axis for axis in axes]
    return sorted(axes) if min(axes) >= 0 and len(set(axes)) == len(axes) else None


def _width(node: ir.Node, count: int) -> int | None:
    """The number of axes that those of the node are counted in."""
    width = rank(node.inputs[0])
    if width is None:
        return None
    return width if node.op_type == "Squeeze" else width + count


def _joined(outer: list[int], inner: list[int]) -> list[int]:
    """The inner axes, counted among the axes that are not outer ones, together with the outer."""
    left = [axis for axis in range(max(inner) + len(outer) + 1) if axis not in outer]
    return sorted([*outer, *(left[axis] for axis in inner)])


def _rewrite(match: _Match, context: Context) -> None:
    node, middle = match.second, match.first.outputs[0]
    if match.axes is None:
        bypass(node, match.source)
    else:
        node.replace_input_with(0, match.source)
        if "axes" in node.attributes:
            node.attributes["axes"] = ir.AttrInt64s("axes", match.axes)
        elif isinstance(node.graph, ir.Graph):
            name = context.fresh_name(f"{node.outputs[0].name}_axes")
            content = np.array(match.axes, dtype=np.int64)
            node.replace_input_with(1, add_initializer(node.graph, content, name))
    if not middle.uses() and not middle.is_graph_output():
        remove(match.first)
