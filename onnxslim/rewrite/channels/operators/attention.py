"""Rules of operators that are no products for values with several tracked axes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import int_list, scalar
from onnxslim.ir.determinism import is_deterministic
from onnxslim.ir.shapes import dim, rank
from onnxslim.rewrite.channels.atoms import (
    Barrier,
    Channelled,
    Channels,
    Edits,
    Ids,
    Joint,
    Known,
    in_dtype,
)
from onnxslim.rewrite.channels.joint import (
    collapse,
    joint_of,
    length_along,
    track_joint,
)
from onnxslim.rewrite.channels.operators import elementwise
from onnxslim.rewrite.channels.operators.target import spelled


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
