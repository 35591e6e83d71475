"""Channel rules of LSTM, GRU and RNN: hidden units and input features.

A hidden unit is one row of every gate in W, R, B and P, one column of R, and one coordinate of the
states and outputs. It is needed when it is read behind the operator or by another needed unit. The
two directions of a bidirectional operator lose equally many units, though not the same ones where
what follows keeps the directions apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor, is_constant
from onnxslim.rewrite.channels.atoms import (
    Array,
    Barrier,
    Channelled,
    Channels,
    Contraction,
    Edits,
    Ids,
    Joint,
    Known,
    constant_shape,
    label,
)
from onnxslim.rewrite.channels.emit import store
from onnxslim.rewrite.channels.joint import joint_of, track_joint
from onnxslim.rewrite.channels.operators.linear import optional_input, tensor_of
from onnxslim.rewrite.channels.weight import Mask, Weight


@dataclass(frozen=True)
class _Cell:
    """What a recurrent operator has.

    Attributes:
        gates: number of gates, which is the number of blocks in W and R.
        candidate: the gate that keeps a unit at zero when all its weights are zero.
        activations: the activations (in lower case) with which it does.
        states: the inputs that hold initial states, and must be zero for that.
    """

    gates: int
    candidate: int
    activations: tuple[tuple[str, ...], ...]
    states: tuple[int, ...]


_CELLS = {
    "LSTM": _Cell(4, 3, (("sigmoid", "tanh", "tanh"),), (5, 6)),
    "GRU": _Cell(3, 2, (("sigmoid", "tanh"),), (5,)),
    "RNN": _Cell(1, 0, (("tanh",), ("relu",)), (5,)),
}
_W, _R, _B, _P = 1, 2, 3, 7


class _Pattern(Weight):
    """Which input any gate of an output reads.

    Args:
        tensor: the weight, for its type.
        matrix: ``(outputs, inputs)``.
    """

    def __init__(self, tensor: ir.TensorProtocol, matrix: Mask) -> None:
        super().__init__(tensor, out_axis=0)
        self._matrix = matrix
        self._any = np.asarray(matrix.any(axis=1)), np.asarray(matrix.any(axis=0))


def recurrent(state: Channelled, node: ir.Node) -> None:
    """LSTM, GRU or RNN with constant weights that nothing else reads."""
    try:
        _recurrent(state, node, _CELLS[node.op_type])
    except Barrier as barrier:
        if _has_zeros(node):
            site = node.inputs[_W]
            name = (site.name if site is not None else None) or ""
            state.notes.append((name, f"zeroed units or features stay: {barrier}"))
        raise


def _recurrent(state: Channelled, node: ir.Node, cell: _Cell) -> None:
    w, r, bias = _parameters(node, cell)
    directions, _, size, features = w.shape
    units = state.fresh(directions * size).reshape(directions, size)
    if size == 1:  # no axis may become empty, and one of length 1 is not told from the other
        state.pin(units.reshape(-1), f"one unit of each direction of {node.op_type} has to stay")
    inputs = state.on_axis(node.inputs[0], 2, features)
    starts = [_initial(state, node, index, units) for index in cell.states]
    known = _zeros(node, cell, inputs, (w, r, bias), starts)
    _note_starts(state, node, cell, known, _zeros(node, cell, inputs, (w, r, bias), []))
    dtype = tensor_of(node, _W).dtype
    for index, output in enumerate(node.outputs):
        axes = (1, 3) if index == 0 else (0, 2)
        track_joint(state, node, output, Joint(axes, units, (), known, dtype))
        made = state.joints.get(output)
        if made is not None:
            state.pin(made.lines[0], f"both directions of {node.op_type} stay, equally long")
    hidden = Channels(2, units.reshape(-1), known.reshape(-1), dtype)
    _contract(state, node, inputs, hidden, (w, r))
    _add_source(state, node, hidden)
    both = np.concatenate([inputs.ids, hidden.ids])
    state.fixes.append((both, _cut(node, cell, inputs.ids, units)))


def _add_source(state: Channelled, node: ir.Node, hidden: Channels) -> None:
    """Names what the operator makes; for two directions a value on one axis stands for it."""
    site, made = node.inputs[_W], node.outputs[0]
    assert site is not None
    if state.of(made) is None:
        made = ir.Value(name=made.name)
        state.values[made] = hidden
    state.sources.append((site.name or "", made))


def _contract(
    state: Channelled,
    node: ir.Node,
    inputs: Channels,
    hidden: Channels,
    weights: tuple[Array, Array],
) -> None:
    """The units need the features and, in their own direction, the units that they read."""
    w, r = weights
    directions, _, size, features = w.shape
    tensor, no_fold = tensor_of(node, _W), f"enters a {node.op_type}"
    entering = (w != 0).any(axis=1).reshape(directions * size, features)
    among = np.zeros((directions * size, directions * size), dtype=np.bool_)
    for direction in range(directions):
        span = slice(direction * size, (direction + 1) * size)
        among[span, span] = (r[direction] != 0).any(axis=0)
    for reads, read in ((entering, inputs), (among, hidden)):
        pattern = _Pattern(tensor, reads)
        state.contractions.append(Contraction(node, pattern, read, hidden.ids, None, no_fold))


def _has_zeros(node: ir.Node) -> bool:
    """Is any row of W or any column of R zero? Only then a refusal is worth a line."""
    contents = [constant_tensor(optional_input(node, index)) for index in (_W, _R)]
    for tensor, along in zip(contents, (2, 1), strict=True):
        whole = tensor is not None and len(tensor.shape) == 3
        if tensor is not None and whole and bool((tensor.numpy() == 0).all(axis=along).any()):
            return True
    return False


def _note_starts(
    state: Channelled, node: ir.Node, cell: _Cell, known: Known, without: Known
) -> None:
    """Says which initial state keeps units alive that would be zero."""
    count = int((np.isnan(known) & (without == 0)).any(axis=0).sum())
    given = [value for index in cell.states if (value := optional_input(node, index)) is not None]
    computed = [value for value in given if not is_constant(value)]
    site = node.inputs[_W]
    if count and computed and site is not None:
        names = " and ".join(label(value) for value in computed)
        reason = f"{count} zeroed units stay: the initial state {names} is not zero for certain"
        state.notes.append((site.name or "", reason))


def _parameters(node: ir.Node, cell: _Cell) -> tuple[Array, Array, Array]:
    """W, R and B, with the blocks that they consist of on axes of their own.

    Returns:
        W ``(directions, gates, units, features)``, R ``(directions, gates, units, units)`` and
        B ``(directions, 2, gates, units)``.

    Raises:
        Barrier: this form of the operator is not pruned.
    """
    if node.attributes.get_int("layout", 0) != 0:
        raise Barrier(f"{node.op_type} with the batch first is not pruned")
    for index in (_W, _R):
        value = node.inputs[index]
        if value is None or len(value.uses()) != 1 or value.is_graph_output():
            raise Barrier(f"its weight {label(value)} has other readers")
    w, r = tensor_of(node, _W).numpy(), tensor_of(node, _R).numpy()
    directions, units = _directions(node), r.shape[-1]
    rows = (directions, cell.gates * units)
    if w.ndim != 3 or w.shape[:2] != rows or r.shape != (*rows, units) or not w.size:
        raise Barrier("its weights are of another shape than its gates tell")
    bias = np.zeros((directions, 2 * rows[1]))
    if optional_input(node, _B) is not None:
        bias = tensor_of(node, _B).numpy()
    if bias.shape != (directions, 2 * rows[1]):
        raise Barrier("its bias is of another shape than its gates tell")
    has_peepholes = optional_input(node, _P) is not None
    if has_peepholes and constant_shape(node.inputs[_P]) != (directions, 3 * units):
        raise Barrier("its peepholes are of another shape than its gates tell")
    blocks = (directions, cell.gates, units, -1)
    return w.reshape(blocks), r.reshape(blocks), bias.reshape(directions, 2, cell.gates, units)


def _directions(node: ir.Node) -> int:
    return 2 if node.attributes.get_string("direction", "forward") == "bidirectional" else 1


def _initial(state: Channelled, node: ir.Node, index: int, units: Ids) -> Known:
    """What is known of an initial state, by direction; it loses the units that the operator loses.

    A constant is cut with the weights (`_cut`).
    """
    value = optional_input(node, index)
    directions, size = units.shape
    if value is None:
        return np.zeros(units.shape)
    if not is_constant(value):
        joint = joint_of(state, value)
        if joint is not None and joint.axes == (0, 2) and joint.ids.shape == units.shape:
            state.unite(units.reshape(-1), joint.ids.reshape(-1))
            return joint.known
        channels = state.on_axis(value, 2, size)
        for row in units:
            state.unite(row, channels.ids)
        return np.tile(channels.filled(), (directions, 1))
    content = tensor_of(node, index).numpy()
    if content.ndim != 3 or content.shape[::2] != units.shape or not content.size:
        raise Barrier(f"{label(value)} is no initial state")
    same = (content == content[:, :1]).all(axis=1)
    return np.asarray(np.where(same, content[:, 0], np.nan), dtype=np.float64)


def _zeros(
    node: ir.Node,
    cell: _Cell,
    inputs: Channels,
    weights: tuple[Array, Array, Array],
    starts: list[Known],
) -> Known:
    """``(directions, units)``: 0 for units that are zero from first step to last, or NaN."""
    w, r, bias = weights
    given = tuple(name.lower() for name in node.attributes.get_strings("activations", ()))
    if given and given not in [names * _directions(node) for names in cell.activations]:
        return np.full((r.shape[0], r.shape[-1]), np.nan)
    gate = cell.candidate
    moves = (w[:, gate][:, :, inputs.filled() != 0] != 0).any(axis=2)
    moves |= (r[:, gate] != 0).any(axis=2) | (bias[:, :, gate] != 0).any(axis=1)
    for start in starts:
        moves |= ~(start == 0)
    return np.where(moves, np.nan, 0.0)


def _cut(node: ir.Node, cell: _Cell, features: Ids, units: Ids) -> Callable[[Edits], None]:
    def fix(edits: Edits) -> None:
        columns = edits.kept(features)
        rows = edits.kept(units.reshape(-1)).reshape(units.shape)
        gates = np.tile(rows, cell.gates)
        masks: list[tuple[int, Mask, Mask | None]] = [
            (_W, gates, np.tile(columns, (len(rows), 1))),
            (_R, gates, rows),
            (_B, np.tile(gates, 2), None),
            (_P, np.tile(rows, 3), None),
        ]
        for index, along, across in masks:
            if optional_input(node, index) is not None:
                content = _compress(tensor_of(node, index).numpy(), along, across)
                _put(node, index, content, edits)
        for index in cell.states:
            if is_constant(optional_input(node, index)):
                every = np.ones((len(rows), tensor_of(node, index).shape.numpy()[1]), np.bool_)
                content = _compress(tensor_of(node, index).numpy(), every, rows)
                _put(node, index, content, edits)
        node.attributes["hidden_size"] = ir.AttrInt64("hidden_size", int(rows[0].sum()))

    return fix


def _compress(content: Array, along: Mask, across: Mask | None) -> Array:
    """Cuts axis 1, and axis 2 if there is a mask for it, by direction (axis 0)."""
    parts = [part[kept] for part, kept in zip(content, along, strict=True)]
    if across is not None:
        parts = [part[:, kept] for part, kept in zip(parts, across, strict=True)]
    return np.stack(parts)


def _put(node: ir.Node, index: int, content: Array, edits: Edits) -> None:
    """Gives an input another content, for this node alone."""
    value = node.inputs[index]
    assert value is not None
    if len(value.uses()) == 1 and not value.is_graph_output():
        dtype = tensor_of(node, index).dtype
        store(value, ir.tensor(np.ascontiguousarray(content), dtype=dtype, name=value.name))
    else:
        node.replace_input_with(index, edits.initializer(content, f"{value.name}_cut"))
