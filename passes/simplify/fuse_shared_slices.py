"""Drops a Slice that is only cut further, along other axes, by several readers.

Before::

    a = Slice (x, <0>, <9>, <1>, <2>)          # every second row
    b = Slice (a, <0>, <9>, <2>, <2>)          # its even columns
    c = Slice (a, <1>, <9>, <2>, <2>)          # its odd columns

After::

    b = Slice (x, <0, 0>, <9, 9>, <1, 2>, <2, 2>)
    c = Slice (x, <0, 1>, <9, 9>, <1, 2>, <2, 2>)

Patch merging of vision transformers is written this way. (One reader is what `run-onnxoptimizer`
takes.)

Holds only if:

1. all bounds are constant inputs (opset 10), and the axes of each reader are others than those of
   the first;
2. every reader of the first is such a Slice in the same graph, and it is no graph output;
3. taken together the file does not grow by the new lists, of which equal ones are shared.

Exactness: exact.

Source: Slice of the ONNX operators, since opset 10.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxslim.ir.edit import remove
from onnxslim.ir.schema import is_op
from onnxslim.ir.traversal import graphs
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.place_constant import add_constant, discard_unused, needs_node
from onnxslim.rewrite.slices import Cut, cuts_of
from onnxslim.rewrite.stored_bytes import node_bytes

# Bytes of a stored list of a few integers beside the numbers: name, dims, type.
_LIST = 40
# More readers would only store more lists.
_READERS = 8


@dataclass(frozen=True)
class _Group:
    first: ir.Node
    readers: list[tuple[ir.Node, list[Cut]]]


@dataclass(frozen=True)
class FuseSharedSlices(Pass):
    """A change is one Slice less."""

    name: ClassVar[str] = "fuse-shared-slices"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    roots: ClassVar[frozenset[str]] = frozenset({"Slice"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        changes = 0
        for graph in graphs(model):
            groups = list(_groups(graph))
            if not groups:
                continue
            made: dict[tuple[int, ...], ir.Value] = {}
            share = not needs_node(model, graph)
            freed = sum(node_bytes(group.first) for group in groups)
            if _added(groups, share) > freed:
                for group in groups:
                    context.refuse(self, _site(group), "kept because the new lists take more bytes")
                continue
            for group in groups:
                if context.allow(self, _site(group), f"{len(group.readers)} readers"):
                    for reader, cuts in group.readers:
                        _rewrite(group.first, reader, cuts, made if share else {}, model, context)
                    _remove(group.first)
                    changes += 1
        return PassResult(changes)


def _site(group: _Group) -> str:
    return group.first.outputs[0].name or ""


def _groups(graph: ir.Graph) -> Iterator[_Group]:
    """Slices with two or more readers that can take them over; none inside another one."""
    taken: set[ir.Node] = set()
    for node in graph:
        if not is_op(node, "Slice") or node in taken or len(node.inputs) < 3:
            continue
        group = _group(node)
        if group is not None:
            taken.update(reader for reader, _ in group.readers)
            yield group


def _group(first: ir.Node) -> _Group | None:
    value = first.outputs[0]
    users = value.consumers()
    if value.is_graph_output() or not 2 <= len(users) <= _READERS:
        return None
    own = cuts_of(first)
    if own is None or len(value.uses()) != len(users):
        return None
    readers = []
    for user in users:
        cuts = cuts_of(user) if user.graph is first.graph and len(user.inputs) >= 3 else None
        if cuts is None or user.inputs[0] is not value:
            return None
        if {cut.axis for cut in cuts} & {cut.axis for cut in own}:  # (1)
            return None
        readers.append((user, sorted([*own, *cuts], key=lambda cut: cut.axis)))
    return _Group(first, readers)


def _lists(cuts: list[Cut]) -> list[tuple[int, ...]]:
    return [
        tuple(cut.start for cut in cuts),
        tuple(cut.end for cut in cuts),
        tuple(cut.axis for cut in cuts),
        tuple(cut.step for cut in cuts),
    ]


def _added(groups: list[_Group], share: bool) -> int:
    lists = [item for group in groups for _, cuts in group.readers for item in _lists(cuts)]
    return sum(_LIST + 8 * len(item) for item in (set(lists) if share else lists))


def _rewrite(
    first: ir.Node,
    reader: ir.Node,
    cuts: list[Cut],
    made: dict[tuple[int, ...], ir.Value],
    model: ir.Model,
    context: Context,
) -> None:
    """Lets the reader cut along all axes at once."""
    former = [value for value in reader.inputs[1:] if value is not None]
    reader.resize_inputs(5)
    reader.replace_input_with(0, first.inputs[0])
    for slot, numbers in enumerate(_lists(cuts), start=1):
        if numbers not in made:
            tensor = ir.tensor(np.array(numbers, dtype=np.int64))
            name = context.fresh_name(f"{reader.outputs[0].name}_{slot}")
            made[numbers] = add_constant(model, reader, tensor, name)
        reader.replace_input_with(slot, made[numbers])
    for value in dict.fromkeys(former):
        discard_unused(value)


def _remove(first: ir.Node) -> None:
    constants = [value for value in first.inputs[1:] if value is not None]
    remove(first)
    for value in dict.fromkeys(constants):
        discard_unused(value)
