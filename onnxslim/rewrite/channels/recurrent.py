"""Channel rules of LSTM, GRU and RNN: hidden units and input features.

A hidden unit is one row of every gate in W, R, B and P, one column of R, and one coordinate of the
states and outputs. It is needed when it is read behind the operator or by another needed unit. The
two directions of a bidirectional operator lose the same units, since their outputs share an axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import is_constant
from onnxslim.rewrite.channels.atoms import (
    Array,
    Barrier,
    Channelled,
    Channels,
    Contraction,
    Edits,
    Ids,
    Known,
    constant_shape,
    label,
)
from onnxslim.rewrite.channels.emit import store
from onnxslim.rewrite.channels.linear import add_contraction, optional_input, tensor_of
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
    cell = _CELLS[node.op_type]
    w, r, bias = _parameters(node, cell)
    units, features = state.fresh(r.shape[3]), w.shape[3]
    inputs = state.on_axis(node.inputs[0], 2, features)
    starts = [_initial(state, node, index, units) for index in cell.states]
    reads = _reads(w), _reads(r)
    known = _zeros(node, cell, inputs, (w, r, bias), starts)
    tensor = tensor_of(node, _W)
    hidden = Channels(2, units, known, tensor.dtype)
    for index, output in enumerate(node.outputs):
        state.track(output, 3 if index == 0 else 2, units, known, tensor.dtype)
    no_fold = f"enters a {node.op_type}"
    add_contraction(
        state, Contraction(node, _Pattern(tensor, reads[0]), inputs, units, None, no_fold)
    )
    state.contractions.append(
        Contraction(node, _Pattern(tensor, reads[1]), hidden, units, None, no_fold)
    )
    both = np.concatenate([inputs.ids, units])
    state.fixes.append((both, _cut(node, cell, inputs.ids, units)))


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
    """What is known of an initial state; it loses the units that the operator loses."""
    value = optional_input(node, index)
    if value is None:
        return np.zeros(len(units))
    if is_constant(value):
        shape = constant_shape(value)
        if shape is None or len(shape) != 3 or shape[2] != len(units):
            raise Barrier(f"{label(value)} is no initial state")
        return state.constant(node, index, 2, units)
    channels = state.on_axis(value, 2, len(units))
    state.unite(units, channels.ids)
    return channels.filled()


def _reads(weight: Array) -> Mask:
    """``(outputs, inputs)``: is the weight of any direction and gate not zero?"""
    return np.asarray((weight != 0).any(axis=(0, 1)), dtype=np.bool_)


def _zeros(
    node: ir.Node,
    cell: _Cell,
    inputs: Channels,
    weights: tuple[Array, Array, Array],
    starts: list[Known],
) -> Known:
    """0 for the units that stay zero from the first step to the last, NaN for the others."""
    w, r, bias = weights
    given = tuple(name.lower() for name in node.attributes.get_strings("activations", ()))
    if given and given not in [names * _directions(node) for names in cell.activations]:
        return np.full(r.shape[-1], np.nan)
    gate = cell.candidate
    moves = (w[:, gate][:, :, inputs.filled() != 0] != 0).any(axis=(0, 2))
    moves |= (r[:, gate] != 0).any(axis=(0, 2)) | (bias[:, :, gate] != 0).any(axis=(0, 1))
    for start in starts:
        moves |= ~(start == 0)
    return np.where(moves, np.nan, 0.0)


def _cut(node: ir.Node, cell: _Cell, features: Ids, units: Ids) -> Callable[[Edits], None]:
    def fix(edits: Edits) -> None:
        columns, rows = edits.kept(features), edits.kept(units)
        gates = np.tile(rows, cell.gates)
        masks: dict[int, tuple[Mask, Mask | None]] = {
            _W: (gates, columns),
            _R: (gates, rows),
            _B: (np.tile(gates, 2), None),
            _P: (np.tile(rows, 3), None),
        }
        for index, (along, across) in masks.items():
            if optional_input(node, index) is not None:
                content = np.compress(along, tensor_of(node, index).numpy(), axis=1)
                if across is not None:
                    content = np.compress(across, content, axis=2)
                _put(node, index, content, edits)
        node.attributes["hidden_size"] = ir.AttrInt64("hidden_size", int(rows.sum()))

    return fix


def _put(node: ir.Node, index: int, content: Array, edits: Edits) -> None:
    """Gives an input another content, for this node alone."""
    value = node.inputs[index]
    assert value is not None
    if len(value.uses()) == 1 and not value.is_graph_output():
        dtype = tensor_of(node, index).dtype
        store(value, ir.tensor(np.ascontiguousarray(content), dtype=dtype, name=value.name))
    else:
        node.replace_input_with(index, edits.initializer(content, f"{value.name}_cut"))
