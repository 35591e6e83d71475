"""Rules of operators between heads: products of two computed values, and what works on joint axes.

An attention makes heads of channels by a Reshape, multiplies queries by keys over the dimensions of
each head, and the weights that come of it by values. A dimension of queries and keys adds nothing
to the products where either of the two is zero; a dimension of the values goes where it is zero or
where nobody reads it; a head goes when no dimension of its values is left. A head of whose queries
nothing is left still averages its values, so it stays.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.ir.constants import int_list, is_constant, scalar
from onnxslim.ir.determinism import is_deterministic
from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import dim, rank
from onnxslim.rewrite.channels import elementwise, linear
from onnxslim.rewrite.channels.atoms import (
    Barrier,
    Channelled,
    Channels,
    Edits,
    Grid,
    Ids,
    Joint,
    Known,
    in_dtype,
    label,
)
from onnxslim.rewrite.channels.joint import (
    as_joint,
    collapse,
    joint_of,
    length_along,
    track_joint,
    unite_joints,
)
from onnxslim.rewrite.channels.reshape import spelled
from onnxslim.rewrite.channels.transposed import turned_weight

# -- products -------------------------------------------------------------------------------------


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


# -- joint axes in operators that are not products ------------------------------------------------


def transpose(state: Channelled, node: ir.Node, joint: Joint) -> bool:
    """Transpose moves the tracked axes."""
    count = rank(node.inputs[0]) or 0
    order = list(node.attributes.get_ints("perm", tuple(reversed(range(count)))))
    return _moved(state, node, joint, [order.index(axis) for axis in joint.axes])


def unsqueeze(state: Channelled, node: ir.Node, joint: Joint) -> bool:
    """Unsqueeze shifts the tracked axes."""
    total = rank(node.outputs[0])
    axes = elementwise.reduced_axes(node, total) if total is not None else None
    if not axes or total is None:
        return False
    old = [axis for axis in range(total) if axis not in axes]
    if len(old) != rank(node.inputs[0]):
        return False
    return _moved(state, node, joint, [old[axis] for axis in joint.axes])


def squeeze(state: Channelled, node: ir.Node, joint: Joint) -> bool:
    """Squeeze of other axes shifts the tracked ones."""
    axes = elementwise.reduced_axes(node, rank(node.inputs[0]) or 0)
    if not axes or set(axes) & set(joint.axes):
        return False
    shifted = [axis - sum(other < axis for other in axes) for axis in joint.axes]
    return _moved(state, node, joint, shifted)


def _moved(state: Channelled, node: ir.Node, joint: Joint, axes: list[int]) -> bool:
    made = Joint(tuple(axes), joint.ids, joint.lines, joint.known, joint.dtype)
    for axis, size in zip(axes, joint.ids.shape, strict=True):
        inferred = dim(node.outputs[0], axis)
        if isinstance(inferred, int) and inferred != size:
            raise Barrier("its output has another number of channels than its inputs tell")
    state.joints[node.outputs[0]] = made
    return True


def unary(state: Channelled, node: ir.Node, joint: Joint) -> bool:
    """One data input whose elements are changed one by one."""
    if any(value is not None and scalar(value) is None for value in node.inputs[1:]):
        return False
    flat = Channels(0, joint.ids.reshape(-1), joint.known.reshape(-1), joint.dtype)
    known = None
    if node.op_type in elementwise.CONTINUOUS:
        known = elementwise.evaluated(state, node, flat)
    return _same_axes(state, node, joint, known)


def passing(state: Channelled, node: ir.Node, joint: Joint) -> bool:
    """Identity, Dropout in inference, Cast between floats."""
    if node.op_type == "Dropout":
        if not is_deterministic(node):
            return False
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            return False
    target = node.outputs[0].dtype
    if node.op_type == "Cast" and (target is None or not target.is_floating_point()):
        return _same_axes(state, node, joint, None)
    return _same_axes(state, node, joint, joint.known)


def _same_axes(state: Channelled, node: ir.Node, joint: Joint, known: Known | None) -> bool:
    output = node.outputs[0]
    filled = np.full(joint.ids.shape, np.nan) if known is None else known.reshape(joint.ids.shape)
    dtype = output.dtype if output.dtype is not None else joint.dtype
    filled = in_dtype(dtype, filled)
    filled = np.where(np.isfinite(filled), filled, np.nan)
    state.joints[output] = Joint(joint.axes, joint.ids, joint.lines, filled, dtype)
    return True


def broadcasting(state: Channelled, node: ir.Node, joint: Joint) -> bool:
    """Mul, Div, Add, Sub with something that has one coordinate on all tracked axes."""
    if len(node.inputs) != 2 or node.inputs[0] is node.inputs[1]:
        return False
    index = 0 if node.inputs[0] in state.joints else 1
    other, own = node.inputs[1 - index], node.inputs[index]
    counts = rank(other), rank(own)
    if counts[0] is None or counts[1] is None or counts[0] > counts[1]:
        return False
    shift = counts[0] - counts[1]
    if any(axis + shift >= 0 and dim(other, axis + shift) != 1 for axis in joint.axes):
        return False
    if joint_of(state, other) is not None:
        return False
    number = scalar(other)
    value = np.full(joint.ids.shape, np.nan if number is None else float(number))
    operands = (joint.known, value) if index == 0 else (value, joint.known)
    with np.errstate(all="ignore"):
        known = _ARITHMETIC[node.op_type](*operands)
    return _same_axes(state, node, joint, known)


def _divided(first: Known, second: Known) -> Known:
    """A quotient; zero by anything that is not said to be zero is zero."""
    return np.where(second == 0, np.nan, np.where(first == 0, 0.0, first / second))


_ARITHMETIC: dict[str, Callable[[Known, Known], Known]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": lambda first, second: np.where((first == 0) | (second == 0), 0.0, first * second),
    "Div": _divided,
}


def split(state: Channelled, node: ir.Node, joint: Joint) -> bool:
    """Split of other axes, or of queries, keys and values that share an array."""
    axis = node.attributes.get_int("axis", 0) % (rank(node.inputs[0]) or 1)
    if axis not in joint.axes:
        for output in node.outputs:
            state.joints[output] = joint
        return True
    place = joint.axes.index(axis)
    sizes = [dim(output, axis) for output in node.outputs]
    numbers = [size for size in sizes if isinstance(size, int)]
    if place == len(joint.lines) or sum(numbers) != joint.ids.shape[place]:
        return False
    if len(numbers) != len(sizes):
        return False
    state.pin(joint.lines[place], "it is dealt out by number")
    start = 0
    for output, size in zip(node.outputs, numbers, strict=True):
        _picked(state, node, output, joint, place, np.arange(start, start + size), joint.axes)
        start += size
    return True


def slice_(state: Channelled, node: ir.Node, joint: Joint) -> bool:
    """Slice of other axes, or of one of the axes that only say what is a query, key or value."""
    if state.opset < 10:
        return False
    bounds = [None if value is None else int_list(value) for value in node.inputs[1:]]
    if len(bounds) < 3 or any(part is None or len(part) != 1 for part in bounds):
        return False
    starts, ends, axes, *steps = (part[0] for part in bounds if part)
    axis = axes % (rank(node.inputs[0]) or 1)
    if axis not in joint.axes:
        state.joints[node.outputs[0]] = joint
        return True
    place = joint.axes.index(axis)
    picked = np.arange(joint.ids.shape[place])[starts:ends]
    if steps not in ([], [1]) or place == len(joint.lines) or not picked.size:
        return False
    state.pin(joint.lines[place], "it is picked by number")
    _picked(state, node, node.outputs[0], joint, place, picked, joint.axes)
    return True


def gather(state: Channelled, node: ir.Node, joint: Joint) -> bool:
    """Gather along other axes, or of an axis that says what is a query, key or value."""
    axis = node.attributes.get_int("axis", 0) % (rank(node.inputs[0]) or 1)
    width = rank(node.inputs[1])
    if width is None or node.inputs[1] in state.joints:
        return False
    shifted = tuple(other + (width - 1 if other > axis else 0) for other in joint.axes)
    if axis not in joint.axes:
        return _moved(state, node, joint, list(shifted))
    place, indices = joint.axes.index(axis), int_list(node.inputs[1])
    if place == len(joint.lines) or width > 1 or not indices:
        return False
    picked = np.array(indices) % joint.ids.shape[place]
    _picked(state, node, node.outputs[0], joint, place, picked, shifted, drop=width == 0)
    made = state.joints.get(node.outputs[0])
    if width == 0 or made is None or made.ids.ndim != joint.ids.ndim:
        state.pin(joint.lines[place], "it is picked by number")
        return True
    for level, (old, new) in enumerate(zip(joint.lines, made.lines, strict=True)):
        state.unite(new, old[picked] if level == place else old)
    line = joint.lines[place]

    def fix(edits: Edits) -> None:
        old = node.inputs[1]
        assert old is not None
        kept = edits.kept(line)
        content = (np.cumsum(kept) - 1)[picked[kept[picked]]].astype(np.int64)
        node.replace_input_with(1, edits.initializer(content, f"{old.name}_cut"))

    state.fixes.append((line, fix))
    return True


def _picked(
    state: Channelled,
    node: ir.Node,
    output: ir.Value,
    joint: Joint,
    place: int,
    picked: Ids,
    axes: tuple[int, ...],
    *,
    drop: bool = False,
) -> None:
    ids: Ids = np.take(joint.ids, picked, axis=place)
    known: Known = np.take(joint.known, picked, axis=place)
    if drop:
        ids, known = ids.squeeze(place), known.squeeze(place)
        axes = axes[:place] + axes[place + 1 :]
    track_joint(state, node, output, Joint(axes, ids, (), known, joint.dtype))


def expand(state: Channelled, node: ir.Node, joint: Joint) -> bool:
    """Expand of other axes, as that of keys and values which several heads of queries share."""
    total, own = rank(node.outputs[0]), rank(node.inputs[0])
    if total is None or own is None:
        return False
    axes = [axis + total - own for axis in joint.axes]
    numbers = int_list(node.inputs[1])
    for place, axis in enumerate(axes):
        spot = axis if numbers is None else axis - total + len(numbers)
        if spot >= 0 and (numbers is None or numbers[spot] != 1):
            fix = spelled(node, 1, spot, joint.ids.shape[place], "the shape")
            change = fix(length_along(joint, place))
            state.fixes.append((joint.ids.reshape(-1), change))
    return _moved(state, node, joint, axes)


def tile(state: Channelled, node: ir.Node, joint: Joint) -> bool:
    """Tile along other axes."""
    repeats = int_list(node.inputs[1])
    if repeats is None or any(repeats[axis] != 1 for axis in joint.axes):
        return False
    return _moved(state, node, joint, list(joint.axes))


JOINT_RULES: dict[str, Callable[[Channelled, ir.Node, Joint], bool]] = {
    "Cast": passing,
    "Dropout": passing,
    "Expand": expand,
    "Gather": gather,
    "Identity": passing,
    "Slice": slice_,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
    **dict.fromkeys(_ARITHMETIC, broadcasting),
    **dict.fromkeys(elementwise.CONTINUOUS, unary),
    **dict.fromkeys(elementwise.JUMPING, unary),
}
# These look for joint axes themselves.
AWARE = ("GRU", "LSTM", "MatMul", "RNN", "Reshape", "Shape")


def followed(state: Channelled, node: ir.Node) -> bool:
    """Follows joint axes through a node, or makes one axis of them for its usual rule.

    Args:
        state: the walk.
        node: any standard operator.

    Returns:
        True when the node is done with.
    """
    joints = [value for value in node.inputs if value is not None and value in state.joints]
    if not joints or node.op_type in AWARE:
        return False
    rule = JOINT_RULES.get(node.op_type)
    if rule is not None and len(joints) == 1 and rule(state, node, state.joints[joints[0]]):
        return True
    for value in joints:
        collapse(state, value)
    return False
