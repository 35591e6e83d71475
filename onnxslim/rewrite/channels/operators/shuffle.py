"""Channel rule of the channel shuffle: Reshape, Transpose and Reshape that permute channels.

The three nodes are one permutation. What stays of it after a removal is rarely a shuffle again,
for each row may keep other channels, so a Gather of the channels takes their place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import dim, rank
from onnxslim.rewrite.channels.atoms import Barrier, Channelled, Channels, Edits, Ids
from onnxslim.rewrite.channels.operators.reshape import plain_reshape, unmatched
from onnxslim.rewrite.channels.operators.target import target_dims


@dataclass(frozen=True)
class Shuffle:
    """A permutation of channels in three nodes.

    Attributes:
        split: the Reshape of the channel axis to rows and columns.
        swap: the Transpose of these two axes.
        join: the Reshape of the two axes to one.
        channels: what enters.
        order: the channel that is found at each place of the result.
    """

    split: ir.Node
    swap: ir.Node
    join: ir.Node
    channels: Channels
    order: Ids


def reshape(state: Channelled, node: ir.Node) -> None:
    """Reshape by itself or as part of a shuffle, whose inner values are not tracked."""
    if _shuffle(state, node) is not None:
        return
    first = _producer(_producer(node, "Transpose"), "Reshape")
    found = _shuffle(state, first) if first is not None else None
    if found is None or found.join is not node:
        plain_reshape(state, node)
        return
    channels, order = found.channels, found.order
    known = None if channels.known is None else channels.known[order]
    try:
        state.track(node.outputs[0], channels.axis, channels.ids[order], known)
    except Barrier as barrier:
        state.pin(channels.ids, str(barrier))
        raise
    state.fixes.append((channels.ids, _gather(found)))


def _shuffle(state: Channelled, split: ir.Node) -> Shuffle | None:
    """The shuffle that starts with this Reshape, or None when it is none for certain."""
    swap = only_reader(split, "Transpose")
    join = only_reader(swap, "Reshape")
    channels = state.of(split.inputs[0] if is_op(split, "Reshape") else None)
    count = rank(split.inputs[0]) if channels is not None else None
    if swap is None or join is None or channels is None or count is None:
        return None
    axis = channels.axis
    rows = _pair(split, axis, splits=True)
    columns = _pair(join, axis, splits=False)
    order = list(range(count + 1))
    order[axis : axis + 2] = axis + 1, axis
    permutation = list(swap.attributes.get_ints("perm", ()))
    if rows is None or columns != rows[::-1] or permutation != order:
        return None
    if rows[0] * rows[1] != len(channels.ids):
        return None
    places = np.arange(len(channels.ids), dtype=np.int64).reshape(rows).T.reshape(-1)
    return Shuffle(split, swap, join, channels, places)


def _pair(node: ir.Node, axis: int, *, splits: bool) -> tuple[int, int] | None:
    """The sizes of the two axes that a Reshape makes of ``axis``, or makes one axis of."""
    count = rank(node.inputs[0])
    if count is None:
        return None
    source = [dim(node.inputs[0], place) for place in range(count)]
    try:
        target = target_dims(node, source)
    except Barrier:
        return None
    ranges = unmatched(source, target)
    one, two = ranges if splits else ranges[::-1]
    if one != (axis, axis + 1) or two != (axis, axis + 2):
        return None
    first, second = (target if splits else source)[axis : axis + 2]
    return (first, second) if isinstance(first, int) and isinstance(second, int) else None


def _producer(node: ir.Node | None, op_type: str) -> ir.Node | None:
    """The node that computes the first input, if it is of this type."""
    value = node.inputs[0] if node is not None else None
    producer = value.producer() if value is not None else None
    return producer if is_op(producer, op_type) else None


def only_reader(node: ir.Node | None, op_type: str) -> ir.Node | None:
    """The node that alone reads the output of ``node`` as its data, if it is of this type."""
    if node is None or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
        return None
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].idx != 0 or uses[0].node.graph is not node.graph:
        return None
    return uses[0].node if is_op(uses[0].node, op_type) else None


def _gather(found: Shuffle) -> Callable[[Edits], None]:
    def fix(edits: Edits) -> None:
        kept = edits.kept(found.channels.ids)
        content = (np.cumsum(kept) - 1)[found.order[kept[found.order]]].astype(np.int64)
        node, graph = found.join, found.join.graph
        assert graph is not None
        node.op_type = "Gather"
        node.attributes.clear()
        node.attributes["axis"] = ir.AttrInt64("axis", found.channels.axis)
        node.replace_input_with(0, found.split.inputs[0])
        node.replace_input_with(1, edits.initializer(content, f"{node.outputs[0].name}_order"))
        graph.remove([found.split, found.swap], safe=True)

    return fix
