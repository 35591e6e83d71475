"""Divides what lies behind a cut into stretches that can be refitted one after the other.

A *waist* is a value through which everything that a cut changes has to pass, such as the residual
stream of a transformer between two sublayers. There the cut model can be compared with the
original. A stretch reaches from one waist to the next, with at least one cut between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxslim.ir.constants import is_constant
from onnxslim.ir.schema import is_op
from onnxslim.pruning.cut import Cut


@dataclass(frozen=True)
class Stretch:
    """Consecutive nodes that a cut changes.

    Attributes:
        nodes: in order.
        goals: values of theirs that the original has in the same form, the last one at the end.
        fixed: those of them behind the last sum, such as a classifier. They lost nothing, and what
            they read is a goal, so their weights stay: few samples would only lead them astray.
    """

    nodes: tuple[ir.Node, ...]
    goals: tuple[ir.Value, ...]
    fixed: frozenset[ir.Node] = frozenset()


def joined(stretches: Sequence[Stretch], goals: Sequence[ir.Value]) -> Stretch:
    """Consecutive stretches as one, with some of their goals."""
    nodes = tuple(node for one in stretches for node in one.nodes)
    fixed = frozenset(node for one in stretches for node in one.fixed)
    return Stretch(nodes, tuple(goals), fixed)


def stretches_of(original: ir.Model, model: ir.Model, cut: Cut) -> list[Stretch]:
    """The stretches behind a cut, in order; what is behind the last waist belongs to none.

    Args:
        original: what the cut was made in, with inferred shapes.
        model: the cut model or a repaired copy of it, with inferred shapes.
        cut: what was cut.
    """
    found: list[Stretch] = []
    nodes: list[ir.Node] = []
    waists: list[ir.Value] = []
    end = 0
    shapes = {v.name: v.shape for node in original.graph for v in node.outputs}
    for node, waist in _affected(model, cut):
        starts_anew = any(value.name in cut.kept for value in node.outputs)
        if starts_anew and waists:
            found.append(_stretch(nodes[:end], waists))
            nodes, waists = nodes[end:], []
        nodes.append(node)
        if waist is not None and _comparable(waist, shapes.get(waist.name), cut):
            waists.append(waist)
            end = len(nodes)
    if waists:
        found.append(_stretch(nodes[:end], waists))
    return found


def first_stretch(original: ir.Model, model: ir.Model, cut: Cut, waists: int) -> Stretch | None:
    """What lies behind a cut up to the waist of that number, or to the last one; None without any.

    Args:
        original: what the cut was made in, with inferred shapes.
        model: the cut model, with inferred shapes.
        cut: what was cut.
        waists: how many of them at most.
    """
    nodes: list[ir.Node] = []
    found: list[ir.Value] = []
    end = 0
    shapes = {v.name: v.shape for node in original.graph for v in node.outputs}
    for node, waist in _affected(model, cut):
        nodes.append(node)
        # Only sums count: between them a transformer passes through a normalisation.
        if waist is not None and _is_sum(waist) and _comparable(waist, shapes.get(waist.name), cut):
            found.append(waist)
            end = len(nodes)
            if len(found) == waists:
                break
    return _stretch(nodes[:end], found) if found else None


def _stretch(nodes: list[ir.Node], waists: list[ir.Value]) -> Stretch:
    """The last waist is the end; where that is no sum, the last sum before it is a goal as well."""
    end = waists[-1]
    sums = [value for value in waists if _is_sum(value)]
    if not sums or _is_sum(end):
        return Stretch(tuple(nodes), (end,))
    last = next(place for place, node in enumerate(nodes) if sums[-1] in node.outputs)
    return Stretch(tuple(nodes), (sums[-1], end), frozenset(nodes[last + 1 :]))


def _is_sum(value: ir.Value) -> bool:
    node = value.producer()
    return is_op(node, "Add") and node is not None and not any(map(is_constant, node.inputs))


def _affected(model: ir.Model, cut: Cut) -> Iterator[tuple[ir.Node, ir.Value | None]]:
    """The nodes whose values a cut changes, each with the waist that it completes."""
    changed: set[ir.Value] = set()
    left: dict[ir.Value, int] = {}
    for node in model.graph:
        read = {value for value in node.inputs if value is not None} & changed
        for value in read:
            left[value] -= sum(one is value for one in node.inputs)
            if not left[value]:
                del left[value]
        if not read and not any(value.name in cut.kept for value in node.outputs):
            continue
        changed.update(node.outputs)
        for value in node.outputs:
            uses = len(value.uses()) + int(value.is_graph_output())
            if uses:
                left[value] = uses
        yield node, next(iter(left)) if len(left) == 1 else None


def _comparable(value: ir.Value, before: ir.Shape | None, cut: Cut) -> bool:
    """Is it the same numbers in the original, none of them cut out?"""
    if value.dtype != ir.DataType.FLOAT or value.name in cut.kept:
        return False
    if value.shape is None or before is None or not 2 <= len(value.shape) == len(before):
        return False
    pairs = zip(value.shape, before, strict=True)
    return all(one == other for one, other in pairs if isinstance(other, int))
