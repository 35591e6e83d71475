"""Channel rule of a group norm that an exporter wrote with InstanceNormalization.

Reshape to ``(n, groups, -1)``, InstanceNormalization over each group and Reshape back are one norm
of which a group goes as a whole. Its scale and shift by channel are a Mul and an Add behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import dim, rank
from onnxslim.rewrite.channels.atoms import Barrier, Channelled, Channels, Edits, constant_shape
from onnxslim.rewrite.channels.operators import reshape as reshaping
from onnxslim.rewrite.channels.operators import shuffle as shuffling
from onnxslim.rewrite.channels.operators import target as targets
from onnxslim.rewrite.channels.operators.mixing import mix


@dataclass(frozen=True)
class SplitNorm:
    """A group norm in three nodes.

    Attributes:
        split: the Reshape to groups.
        norm: the InstanceNormalization.
        join: the Reshape back.
        groups: how many groups.
        follows: the target of ``join`` is the shape of what enters, whatever that is.
    """

    split: ir.Node
    norm: ir.Node
    join: ir.Node
    groups: int
    follows: bool


def reshape(state: Channelled, node: ir.Node) -> None:
    """Reshape by itself, or as the first node of a group norm."""
    found = _split_norm(node)
    channels = state.of(node.inputs[0])
    if found is None or channels is None or channels.axis != 1:
        shuffling.reshape(state, node)
    else:
        _group_norm(state, found, channels)


def shape_of(state: Channelled, node: ir.Node) -> None:
    """Shape, which may tell the last node of a group norm what entered it."""
    uses = list(node.outputs[0].uses())
    channels = state.of(node.inputs[0])
    private = channels is not None and channels.axis == 1 and not node.outputs[0].is_graph_output()
    if uses and private and all(_restores(use.node, use.idx) for use in uses):
        return
    reshaping.shape_of(state, node)


def _restores(node: ir.Node, index: int) -> bool:
    """Is this the target of the last node of a group norm? Its first node ties the channels."""
    norm = _producer(node, "InstanceNormalization") if index == 1 else None
    split = _producer(norm, "Reshape")
    found = _split_norm(split) if split is not None else None
    return found is not None and found.join is node and found.follows


def _group_norm(state: Channelled, found: SplitNorm, channels: Channels) -> None:
    size, groups = len(channels.ids), found.groups
    if size % groups:
        raise Barrier("its groups do not divide the channels")
    width = size // groups
    each = channels.ids[::width]
    spell_groups = targets.spelled(found.split, 1, 1, groups, "the shape")
    spell_size = None
    if not found.follows:
        spell_size = targets.spelled(found.join, 1, 1, size, "the shape")
    scale, shift = (np.repeat(state.constant(found.norm, at, 0, each), width) for at in (1, 2))
    zeros = (channels.filled() == 0).reshape(groups, width).all(axis=1)
    known = np.where(np.repeat(zeros, width) | (scale == 0), shift, np.nan)
    why = f"takes its statistics over groups of {width} channels, and this group has one needed"
    outputs = mix(state, found.norm, channels, why, groups)
    state.track(found.join.outputs[0], 1, outputs, known, channels.dtype)
    state.handled.update((found.norm, found.join))
    state.fixes.append((each, spell_groups(lambda edits: int(edits.kept(each).sum()))))
    if spell_size is not None:
        kept = spell_size(lambda edits: int(edits.kept(channels.ids).sum()))
        state.fixes.append((channels.ids, kept))
    state.fixes.append((each, _inner_shapes(found, channels, width)))


def _inner_shapes(found: SplitNorm, channels: Channels, width: int) -> Callable[[Edits], None]:
    def fix(edits: Edits) -> None:
        for node in (found.split, found.norm):
            value = node.outputs[0]
            if value.shape is not None:
                sizes = list(value.shape)
                sizes[1] = int(edits.kept(channels.ids[::width]).sum())
                value.shape = ir.Shape(sizes)

    return fix


def _split_norm(split: ir.Node) -> SplitNorm | None:
    """The group norm that starts with this Reshape, or None when it is none for certain."""
    norm = shuffling.only_reader(split, "InstanceNormalization")
    join = shuffling.only_reader(norm, "Reshape")
    entering = split.inputs[0] if is_op(split, "Reshape") else None
    count = rank(entering)
    if norm is None or join is None or entering is None or count is None or count < 3:
        return None
    shapes = {constant_shape(value) for value in norm.inputs[1:]}
    source = [dim(entering, axis) for axis in range(count)]
    size = source[1]
    try:
        middle = targets.target_dims(split, list(source))
        last = targets.target_dims(join, list(middle))
    except Barrier:
        return None
    if len(middle) != 3 or not isinstance(size, int) or not isinstance(middle[1], int):
        return None
    follows = _is_shape_of(join.inputs[1], entering)
    if shapes != {(middle[1],)} or not _same_batch(split, source[0], middle[0]):
        return None
    if not follows and (last[:2] != [middle[0], size] or len(last) != count):
        return None
    return SplitNorm(split, norm, join, middle[1], follows)


def _same_batch(split: ir.Node, before: int | str | None, after: int | str | None) -> bool:
    """Does the Reshape leave axis 0 alone: by a 0 in its target, or as both are known?"""
    literals = targets.shape_literals(split) or [None]
    copies = literals[0] == 0 and not split.attributes.get_int("allowzero", 0)
    return copies or (before is not None and before == after)


def _is_shape_of(target: ir.Value | None, value: ir.Value) -> bool:
    producer = target.producer() if target is not None else None
    if producer is None or not is_op(producer, "Shape") or producer.inputs[0] is not value:
        return False
    return not any(name in producer.attributes for name in ("start", "end"))


def _producer(node: ir.Node | None, op_type: str) -> ir.Node | None:
    value = node.inputs[0] if node is not None and node.inputs else None
    producer = value.producer() if value is not None else None
    return producer if is_op(producer, op_type) else None
