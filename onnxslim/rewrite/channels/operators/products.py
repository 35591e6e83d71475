"""Rule of MatMul: products of two computed values, such as those between heads.

An attention makes heads of channels by a Reshape, multiplies queries by keys over the dimensions of
each head, and the weights that come of it by values. A dimension of queries and keys adds nothing
to the products where either of the two is zero; a dimension of the values goes where it is zero or
where nobody reads it; a head goes when no dimension of its values is left. A head of whose queries
nothing is left still averages its values, so it stays.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.ir.constants import is_constant
from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import dim, rank
from onnxslim.rewrite.channels.atoms import (
    Barrier,
    Channelled,
    Channels,
    Grid,
    Ids,
    Joint,
    Known,
    label,
)
from onnxslim.rewrite.channels.joint import (
    as_joint,
    collapse,
    joint_of,
    track_joint,
    unite_joints,
)
from onnxslim.rewrite.channels.operators import linear
from onnxslim.rewrite.channels.operators.transposed import turned_weight


def matmul(state: Channelled, node: ir.Node) -> None:
    """MatMul of two computed values, or with a constant matrix on the right."""
    left, right = node.inputs
    tops = rank(left), rank(right)
    forms = joint_of(state, left), joint_of(state, right)
    if forms[1] is None or None in tops or min(top or 0 for top in tops) < 2 or is_constant(left):
        if forms[1] is None and forms[0] is not None and _passes_left(state, node, forms[0]):
            return
        collapse(state, left)
        linear.matmul(state, node)
        return
    if _scores(state, node, *forms) or _weighted(state, node, *forms):
        return
    for value in (left, right):
        collapse(state, value)
    _plain(state, node)


def _from_end(value: ir.Value | None, joint: Joint) -> tuple[int, ...]:
    """The tracked axes, counted from the end, which is where the axes of two operands agree."""
    return tuple(axis - (rank(value) or 0) for axis in joint.axes)


def _top(node: ir.Node) -> int:
    return max(rank(value) or 0 for value in node.inputs)


def _scores(state: Channelled, node: ir.Node, left: Joint | None, right: Joint | None) -> bool:
    """Queries by keys: a product over the dimensions of each head, of which the heads are left."""
    if left is None or right is None or len(left.axes) != 2 or left.ids.shape != right.ids.shape:
        return False
    first, second = _from_end(node.inputs[0], left), _from_end(node.inputs[1], right)
    if first[1] != -1 or second[1] != -2 or first[0] != second[0] or first[0] >= -2:
        return False
    unite_joints(state, left, right)
    _need_products(state, node, left, right, left.lines)
    state.track(node.outputs[0], first[0] + _top(node), left.lines[0], None, left.dtype)
    return True


def _need_products(
    state: Channelled, node: ir.Node, left: Joint, right: Joint, lines: tuple[Ids, ...]
) -> None:
    """A coordinate that is summed over is needed unless it is zero on either side."""
    reads: npt.NDArray[np.bool_] = (left.known != 0) & (right.known != 0)
    known = np.where(reads, np.nan, 0.0)
    shape = (1, -1) if left.ids.ndim == 1 else left.ids.shape
    ids = left.ids.reshape(shape)
    part = Grid(node, ids, lines, reads.reshape(shape), known.reshape(shape))
    state.grids.append(part)


def _weighted(state: Channelled, node: ir.Node, left: Joint | None, right: Joint | None) -> bool:
    """Weights by values (or turned around): the heads meet, the dimensions of the values pass."""
    for index, joint in enumerate((left, right)):
        if joint is None or len(joint.axes) != 2:
            continue
        head, place = _from_end(node.inputs[index], joint)
        other = node.inputs[1 - index]
        if head >= -2 or place != index - 2 or other in state.joints:
            continue
        ids = _other_heads(state, other, head, len(joint.lines[0]))
        if ids is not None:
            state.unite(joint.lines[0], ids)
        axes = (head + _top(node), place + _top(node))
        known = _averaged(node, index, joint.known)
        result = Joint(axes, joint.ids, (), known, joint.dtype)
        track_joint(state, node, node.outputs[0], result)
        made = state.joints.get(node.outputs[0])
        if made is not None:
            unite_joints(state, joint, made)
        return True
    return False


def _other_heads(state: Channelled, value: ir.Value | None, axis: int, size: int) -> Ids | None:
    """The atoms of the other operand on an axis counted from the end; None for one coordinate."""
    own = (rank(value) or 0) + axis
    if own < 0 or dim(value, own) == 1:
        if state.of(value) is not None:
            raise Barrier(f"{label(value)} is joined along another axis")
        return None
    collapse(state, value)
    return state.on_axis(value, own, size).ids


def _averaged(node: ir.Node, index: int, known: Known) -> Known:
    """What sums of constant values are: zeros stay, and weights of a Softmax add up to one."""
    if index == 1 and _adds_up(node.inputs[0]):
        return known
    return np.where(known == 0, 0.0, np.nan)


def _adds_up(value: ir.Value | None) -> bool:
    """Is it a Softmax over the last axis?"""
    node = value.producer() if value is not None else None
    while node is not None and is_op(node, "Identity", "Dropout"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or not is_op(node, "Softmax"):
        return False
    count = rank(node.inputs[0])
    return count is not None and node.attributes.get_int("axis", -1) % count == count - 1


def _is_weight(node: ir.Node) -> bool:
    """Is the right operand a weight, by itself or behind a DequantizeLinear or Transpose?"""
    right = node.inputs[1]
    producer = right.producer() if right is not None else None
    behind = producer is not None and is_op(producer, "DequantizeLinear")
    if producer is not None and behind and is_constant(producer.inputs[0]):
        return True
    return is_constant(right) or turned_weight(node, 1) is not None


def _passes_left(state: Channelled, node: ir.Node, left: Joint) -> bool:
    """The channels of the left operand where the right one is computed and not tracked."""
    right = node.inputs[1]
    if _is_weight(node) or None in (rank(node.inputs[0]), rank(right)) or _top(node) < 2:
        return False
    if _weighted(state, node, left, None):
        return True
    collapse(state, node.inputs[0])
    _plain(state, node)
    return True


def _plain(state: Channelled, node: ir.Node) -> None:
    """One tracked axis at most on either side."""
    left, right = (state.of(value) for value in node.inputs)
    if min(rank(value) or 0 for value in node.inputs) < 2:
        raise Barrier("a product with a vector is not followed")
    places = [
        None if channels is None else channels.axis - (rank(value) or 0)
        for channels, value in zip((left, right), node.inputs, strict=True)
    ]
    if left is not None and right is not None and places == [-1, -2]:
        _contracted(state, node, left, right)
        return
    for index, channels in enumerate((left, right)):
        place = places[index]
        if channels is not None and place is not None and place < -2:
            ids = _other_heads(state, node.inputs[1 - index], place, len(channels.ids))
            if ids is not None:
                state.unite(channels.ids, ids)
            known = np.where(channels.filled() == 0, 0.0, np.nan)
            state.track(node.outputs[0], place + _top(node), channels.ids, known, channels.dtype)
            return
    _passed(state, node, left, right, places)


def _contracted(state: Channelled, node: ir.Node, left: Channels, right: Channels) -> None:
    """A product over the tracked axes of both operands; what comes of it is not tracked."""
    if len(left.ids) != len(right.ids):
        raise Barrier("its operands have different numbers of channels")
    state.unite(left.ids, right.ids)
    line = state.fresh(1)
    state.pin(line, "it is a sum over them")
    _need_products(state, node, as_joint(left), as_joint(right), (line,))


def _passed(
    state: Channelled,
    node: ir.Node,
    left: Channels | None,
    right: Channels | None,
    places: list[int | None],
) -> None:
    """The rows of the left operand, or the columns of the right one, if they alone are tracked."""
    index = 0 if right is None else 1
    channels = (left, right)[index]
    if channels is None or (left is not None and right is not None) or places[index] != index - 2:
        raise Barrier("its operands are tracked along axes that do not meet")
    known = _averaged(node, index, channels.filled())
    axis = (index - 2) + _top(node)
    state.track(node.outputs[0], axis, channels.ids, known, channels.dtype)
