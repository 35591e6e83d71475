"""Computes a shape from as few nodes as can be.

Before::

    s = Shape (x)                      # float[N,C,H,W] x
    n = Gather (s, <0>)
    u = Unsqueeze (n, <0>)
    h = Gather (s, <2>)
    v = Unsqueeze (h, <0>)
    t = Concat <axis = 0> (u, <-1>, v)

After::

    a = Shape <start = 0, end = 1> (x)
    b = Shape <start = 2, end = 3> (x)
    t = Concat <axis = 0> (a, <-1>, b)

Before opset 15 a piece of a shape is a Gather with a list of positions.

Holds only if:

1. every element of the shape is a number, or provably a dimension of a value whose shape it was
   computed from before (as in `fold-shape-arithmetic`); an input of a Concat that is neither stays;
2. there are fewer nodes afterwards, counting those that become unused: for one shape by itself, or
   for all that are left in a graph taken together, which may share pieces;
3. the file does not grow.

Exactness: exact.

Source: Shape of the ONNX operators, opsets 1, 13 and 15.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import int_list, is_constant
from onnxslim.ir.edit import replace_value
from onnxslim.ir.schema import is_op, opset_of
from onnxslim.ir.traversal import graphs
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.place_constant import add_constant, discard_unused, needs_node
from onnxslim.rewrite.scopes import Scopes
from onnxslim.rewrite.shape_contents import FOLLOWED, ShapeContents
from onnxslim.rewrite.shape_segments import Dims, Input, Segment, dying_with, segments_of
from onnxslim.rewrite.stored_bytes import freed_bytes, freed_constants, node_bytes

_SINCE = 15  # Shape has ``start`` and ``end``
# Bytes of new nodes with their attributes, and of a new list, beside the names and the numbers.
_NEW_SHAPE = 38
_NEW_CONCAT = 24
_NEW_CONSTANT = 18


@dataclass(frozen=True)
class _Plan:
    """A shape and the pieces that it is to be made of."""

    node: ir.Node
    segments: list[Segment]


@dataclass(frozen=True)
class RebuildShapes(Pass):
    """A change is one shape that is put together anew."""

    name: ClassVar[str] = "rebuild-shapes"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    roots: ClassVar[frozenset[str]] = frozenset({"Shape"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        known, scopes = ShapeContents(model), Scopes(model)
        changes = 0
        functions = {id(function.graph) for function in model.functions.values()}
        for graph in graphs(model):
            for node in graph:
                known.follow(node)
            if id(graph) in functions:
                continue
            plans = [plan for node in graph if (plan := _plan(node, known, scopes)) is not None]
            left: list[_Plan] = []
            for plan in plans:
                if plan.node.graph is graph and not self._apply([plan], model, context):
                    left.append(plan)
                else:
                    changes += 1
            left = [plan for plan in left if plan.node.graph is graph]
            if len(left) > 1 and self._apply(left, model, context):
                changes += len(left)
        return PassResult(changes)

    def _apply(self, plans: Sequence[_Plan], model: ir.Model, context: Context) -> bool:
        """Rewrites all of the shapes if that pays and leave is given."""
        opset = opset_of(plans[0].node, model) or 1
        if not _pays(plans, opset, model):
            return False
        allowed = [
            context.allow(self, plan.node.outputs[0].name or "", f"{len(plan.segments)} pieces")
            for plan in plans
        ]
        made: dict[tuple[object, ...], ir.Value] = {}
        for plan in (plan for plan, leave in zip(plans, allowed, strict=True) if leave):
            _rebuild(plan, opset, made, model, context)
        return any(allowed)


def _plan(node: ir.Node, known: ShapeContents, scopes: Scopes) -> _Plan | None:
    """The node with its pieces, when something but other shapes reads it (1)."""
    if not is_op(node, *FOLLOWED) or is_op(node, "Shape") or len(node.outputs) != 1:
        return None
    value = node.outputs[0]
    if value.dtype != ir.DataType.INT64 or value.is_graph_output():
        return None
    contents = known.of(value)
    if contents is not None and (contents.scalar or contents.numbers is not None):
        return None
    if all(_is_inside(user, known) for user in value.consumers()):
        return None
    segments = segments_of(node, known)
    if segments is None or not any(isinstance(piece, Dims) for piece in segments):
        return None
    return _Plan(node, segments) if value.name not in scopes.outside else None


def _is_inside(user: ir.Node, known: ShapeContents) -> bool:
    """True for a reader that computes a shape of which every element is known."""
    contents = known.of(user.outputs[0]) if is_op(user, *FOLLOWED) else None
    return contents is not None and None not in contents.elements


def _key(piece: Dims, opset: int) -> tuple[object, ...]:
    if opset < _SINCE and piece.end - piece.start < piece.rank:
        return ("Gather", piece.source, piece.start, piece.end)
    return ("Shape", piece.source, piece.start, piece.end)


def _pays(plans: Sequence[_Plan], opset: int, model: ir.Model) -> bool:
    """Fewer nodes (2) in no more bytes (3)."""
    gone = dying_with([plan.node for plan in plans])
    nodes: set[tuple[object, ...]] = set()
    for plan in plans:
        for piece in plan.segments:
            if isinstance(piece, Dims):
                nodes.add(_key(piece, opset))
                if nodes and _key(piece, opset)[0] == "Gather":
                    nodes.add(("Shape", piece.source, 0, piece.rank))
    created = sum(not _exists(key, gone) for key in nodes)
    created += sum(len(plan.segments) > 1 for plan in plans)
    if created >= len(gone):
        return False
    freed = sum(node_bytes(node) for node in gone)
    freed += sum(freed_bytes(value) for value in freed_constants(gone))
    return _added(plans, [key for key in nodes if not _exists(key, gone)]) <= freed


def _added(plans: Sequence[_Plan], keys: Sequence[tuple[object, ...]]) -> int:
    """About how many bytes the new nodes and constants take."""
    total = 0
    numbers: dict[tuple[int, ...], int] = {}
    for plan in plans:
        name = len(plan.node.outputs[0].name or "")
        if len(plan.segments) > 1:
            total += _NEW_CONCAT + name + 8 + 4 * len(plan.segments)
        for piece in plan.segments:
            if isinstance(piece, tuple):
                numbers.setdefault(piece, name)
    for key in keys:
        source = key[1]
        assert isinstance(source, ir.Value)  # that is how keys are made
        total += _NEW_SHAPE + 3 * len(source.name or "")  # its own name, and where it is read
        if key[0] == "Gather":
            total += _NEW_CONSTANT + 8 * (int(str(key[3])) - int(str(key[2])))
    return total + sum(_NEW_CONSTANT + 8 * len(item) + size for item, size in numbers.items())


def _exists(key: tuple[object, ...], gone: dict[ir.Node, None]) -> bool:
    """True when a node that stays gives this piece already."""
    source = key[1]
    assert isinstance(source, ir.Value)
    return key[0] == "Shape" and any(
        _gives(user, key) and user not in gone for user in source.consumers()
    )


def _gives(node: ir.Node, key: tuple[object, ...]) -> bool:
    if not is_op(node, "Shape") or any(item.is_ref() for item in node.attributes.values()):
        return False
    rank = len(node.inputs[0].shape) if node.inputs[0] and node.inputs[0].shape else None
    if rank is None:
        return False
    start = node.attributes.get_int("start", 0) or 0
    end = node.attributes.get_int("end", rank)
    end = rank if end is None else min(end, rank)
    return (start, end) == (key[2], key[3])


def _rebuild(
    plan: _Plan,
    opset: int,
    made: dict[tuple[object, ...], ir.Value],
    model: ir.Model,
    context: Context,
) -> None:
    """Puts the pieces before the node and lets its readers read them; the node becomes unused."""
    node, output = plan.node, plan.node.outputs[0]
    values = [_piece(piece, node, opset, made, model, context) for piece in plan.segments]
    if len(values) == 1:
        new = values[0]
    else:
        concat = ir.node("Concat", values, {"axis": 0})
        assert node.graph is not None  # the match asked for it
        node.graph.insert_before(node, concat)
        new = concat.outputs[0]
        new.name = context.fresh_name(f"{output.name}_rebuilt")
        new.type, new.shape = output.type, output.shape
    replace_value(output, new)
    _remove_dead(node)


def _piece(
    piece: Segment,
    node: ir.Node,
    opset: int,
    made: dict[tuple[object, ...], ir.Value],
    model: ir.Model,
    context: Context,
) -> ir.Value:
    if isinstance(piece, Input):
        kept = node.inputs[piece.index]
        assert kept is not None  # it has contents or none, but it is there
        return kept
    if isinstance(piece, tuple):
        return _numbers(list(piece), node, made, model, context)
    key = _key(piece, opset)
    if key not in made:
        made[key] = _new_piece(piece, key, node, made, model, context)
    return made[key]


def _new_piece(
    piece: Dims,
    key: tuple[object, ...],
    node: ir.Node,
    made: dict[tuple[object, ...], ir.Value],
    model: ir.Model,
    context: Context,
) -> ir.Value:
    name = context.fresh_name(f"{piece.source.name}_{piece.start}_{piece.end}")
    if key[0] == "Gather":
        whole = Dims(piece.source, 0, piece.rank, piece.rank)
        shape = _piece(whole, node, 0, made, model, context)
        places = _numbers(list(range(piece.start, piece.end)), node, made, model, context)
        return _insert(ir.node("Gather", [shape, places], {"axis": 0}), piece, name, node)
    all_of_it = piece.start == 0 and piece.end == piece.rank
    bounds = {} if all_of_it else {"start": piece.start, "end": piece.end}
    return _insert(ir.node("Shape", [piece.source], bounds), piece, name, node)


def _insert(new: ir.Node, piece: Dims, name: str, node: ir.Node) -> ir.Value:
    """Puts a node where its value is known first, so that every shape below may share it."""
    producer = piece.source.producer()
    assert node.graph is not None  # the match asked for it
    value = new.outputs[0]
    value.name = name
    value.type = ir.TensorType(ir.DataType.INT64)
    value.shape = ir.Shape([piece.end - piece.start])
    if new.op_type == "Shape" and producer is not None and producer.graph is node.graph:
        node.graph.insert_after(producer, new)
    else:
        node.graph.insert_before(node, new)
    return value


def _numbers(
    numbers: list[int],
    node: ir.Node,
    made: dict[tuple[object, ...], ir.Value],
    model: ir.Model,
    context: Context,
) -> ir.Value:
    for value in node.inputs if is_op(node, "Concat") else ():
        if is_constant(value) and int_list(value) == numbers and value is not None:
            return value
    key = ("Constant", *numbers)
    if key not in made or needs_node(model, node.graph):
        tensor = ir.tensor(np.array(numbers, dtype=np.int64))
        name = context.fresh_name(f"{node.outputs[0].name}_numbers")
        made[key] = add_constant(model, node, tensor, name)
    return made[key]


def _remove_dead(node: ir.Node) -> None:
    for gone in dying_with([node]):
        inputs = [value for value in gone.inputs if value is not None]
        assert gone.graph is not None  # nothing was removed before
        gone.graph.remove(gone, safe=True)
        for value in dict.fromkeys(inputs):
            discard_unused(value)
