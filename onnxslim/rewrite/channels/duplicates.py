"""Channels that hold the same for every input: one of them can stand for all.

Two channels are the same when every constant along their way is: the filters that make them, the
biases, the rows of a BatchNormalization. Where nothing but matrix operators reads them in the end,
the weights for all of them can be summed for the first one. The others are unread then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.schema import is_op
from onnxslim.rewrite.channels.atoms import Array, Channelled, Contraction, Ids
from onnxslim.rewrite.channels.emit import store
from onnxslim.rewrite.channels.operators import elementwise
from onnxslim.rewrite.channels.operators.quantized import is_stored
from onnxslim.rewrite.channels.weight import Weight

# Operators that do the same to every channel but for constants that the walk has recorded.
_EVEN = (
    *elementwise.BROADCASTING,
    *elementwise.CONTINUOUS,
    *elementwise.JUMPING,
    *elementwise.REDUCTIONS,
    *("AveragePool", "BatchNormalization", "Cast", "Concat", "DequantizeLinear", "Dropout"),
    *("Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity", "InstanceNormalization"),
    *("MaxPool", "Pad", "QuantizeLinear", "Reshape", "Resize", "Softmax", "Squeeze", "Transpose"),
    *("Unsqueeze", "Conv", "ConvTranspose", "Gemm", "MatMul"),
)


@dataclass
class Duplicates:
    """Output channels of one matrix operator that hold the same.

    Attributes:
        part: the operator that makes them.
        roots: one atom for each, of which the first one stands for the others.
    """

    part: Contraction
    roots: list[int]


@dataclass
class _Places:
    """Where an atom occurs, in the order of the walk.

    Attributes:
        constants: constant, axis and coordinates.
        reads: index of a reading contraction, and the coordinates of its input.
        counts: how often it occurs in each value.
    """

    constants: list[tuple[ir.Value, int, Ids]] = field(default_factory=list)
    reads: list[tuple[int, Ids]] = field(default_factory=list)
    counts: list[tuple[int, int]] = field(default_factory=list)


def find_duplicates(state: Channelled) -> list[Duplicates]:
    """All sets of equal channels that one of them may stand for.

    Weights are compared only where the first numbers of two filters agree.
    """
    groups = [(part, group) for part in state.contractions for group in _alike(part)]
    if not groups:
        return []
    roots = state.roots()
    barred = _barred(state, roots)
    candidate = np.zeros(len(roots), dtype=np.bool_)
    for part, group in groups:
        candidate[roots[part.outputs[group]]] = True
    places = _index(state, roots, candidate & ~barred)
    found = []
    for part, group in groups:
        classes: dict[bytes, list[int]] = {}
        for root in dict.fromkeys(roots[part.outputs[group]].tolist()):
            if root in places:
                classes.setdefault(_signature(places[root]), []).append(root)
        for same in classes.values():
            if len(same) > 1 and _any_read(state, places, same):
                found.append(Duplicates(part, same))
                for root in same:
                    del places[root]
    return found


def merge_duplicates(state: Channelled, found: list[Duplicates]) -> None:
    """Sums the weights for equal channels; those of all but the first one become zero.

    Formula: ``w[o, first] = sum(w[o, c])`` in float64, rounded once.

    Args:
        state: the walked graph; the walk is stale afterwards.
        found: what `find_duplicates` gave, or some of it.
    """
    roots = state.roots()
    for part in state.contractions:
        if not part.merge:
            continue
        inputs = roots[part.inputs.ids]
        moves = [
            [np.flatnonzero(inputs == root) for root in same.roots]
            for same in found
            if (inputs == same.roots[0]).any()
        ]
        value = part.node.inputs[1]
        if moves and value is not None:
            tensor = part.weight.tensor
            content = np.array(tensor.numpy())
            channels = np.moveaxis(content, 1 - part.weight.out_axis, 0)
            for columns in moves:
                channels[columns[0]] = _summed(channels, columns)
                channels[np.concatenate(columns[1:])] = 0
            store(value, ir.tensor(content, dtype=tensor.dtype, name=value.name))


def _summed(channels: Array, columns: list[Ids]) -> Array:
    total = sum(channels[column].astype(np.float64) for column in columns)
    with np.errstate(over="ignore"):
        return np.asarray(total).astype(channels.dtype)


def _alike(part: Contraction) -> Iterator[Ids]:
    """Groups of outputs whose filters start with the same numbers and are not all zero."""
    weight = part.weight
    if type(weight) is not Weight or weight.outputs < 2:
        return
    heads = np.ascontiguousarray(weight.heads())
    if not heads.size:
        return
    keys = heads.view(np.dtype((np.void, heads.dtype.itemsize * heads.shape[1]))).reshape(-1)
    _, back, counts = np.unique(keys, return_inverse=True, return_counts=True)
    if counts.max() == 1:
        return
    nonzero = weight.out_any()
    order = np.argsort(back, kind="stable")
    for group in np.split(order, np.cumsum(counts)[:-1]):
        living = group[nonzero[group]]
        if living.size > 1:
            yield living


def _barred(state: Channelled, roots: Ids) -> npt.NDArray[np.bool_]:
    """Per root: may it not be merged?"""
    barred = np.zeros(len(roots), dtype=np.bool_)
    for ids in (*_tied(state), *_handled_otherwise(state)):
        barred[roots[ids.reshape(-1)]] = True
    return barred


def _tied(state: Channelled) -> Iterator[Ids]:
    """Atoms that have to stay, or of which a certain number has to."""
    for pin in state.pins:
        yield pin.ids
    for balance in state.balances:
        yield balance.inputs.ids
        yield balance.outputs.ids
    for grid in state.grids:
        yield grid.ids
    for joint in state.joints.values():
        yield joint.ids


def _handled_otherwise(state: Channelled) -> Iterator[Ids]:
    """Atoms that are constant, or that an operator treats or reads in a way of its own."""
    for part in state.contractions:
        if not part.merge:
            yield part.inputs.ids
        if type(part.weight) is not Weight:
            yield part.outputs
    for node in state.graph:
        if is_op(node, *_EVEN):
            continue
        for value in (*node.inputs, *node.outputs):
            channels = state.of(value)
            if channels is not None:
                yield channels.ids
    for value, channels in state.values.items():
        if channels.known is not None and not is_stored(value):
            yield channels.ids[~np.isnan(channels.known)]


def _index(state: Channelled, roots: Ids, wanted: npt.NDArray[np.bool_]) -> dict[int, _Places]:
    """Where each wanted root occurs."""
    found: dict[int, _Places] = {}

    def each(ids: Ids) -> Iterator[tuple[_Places, Ids]]:
        here = roots[ids]
        where = np.flatnonzero(wanted[here])
        order = where[np.argsort(here[where], kind="stable")]
        starts = np.flatnonzero(np.diff(here[order])) + 1
        for coordinates in np.split(order, starts) if order.size else ():
            yield found.setdefault(int(here[coordinates[0]]), _Places()), coordinates

    for number, channels in enumerate(state.values.values()):
        for places, at in each(channels.ids):
            places.counts.append((number, len(at)))
    read: set[tuple[ir.Value | None, int]] = set()
    for number, part in enumerate(state.contractions):
        if part.merge:
            read.add((part.node.inputs[1], 1 - part.weight.out_axis))
            for places, at in each(part.inputs.ids):
                places.reads.append((number, at))
    for value, axis, ids in _constants(state):
        if (value, axis) not in read:
            for places, at in each(ids):
                places.constants.append((value, axis, at))
    return found


def _constants(state: Channelled) -> Iterator[tuple[ir.Value, int, Ids]]:
    """Every axis of a constant whose coordinates have atoms."""
    for value, slots in state.slots.items():
        for axis, ids in slots.items():
            yield value, axis, ids
    for (node, index), (axis, ids) in state.vectors.items():
        vector = node.inputs[index]
        if vector is not None:
            yield vector, axis, ids


def _signature(places: _Places) -> bytes:
    """Equal for atoms with the same constants at the same places, and for no others."""
    digest = hashlib.blake2b(repr(places.counts).encode(), digest_size=32)
    digest.update(repr([(number, len(at)) for number, at in places.reads]).encode())
    for value, axis, at in places.constants:
        tensor = constant_tensor(value)
        assert tensor is not None
        digest.update(f"{value.name} {axis} {len(at)}".encode())
        digest.update(np.ascontiguousarray(np.take(tensor.numpy(), at, axis=axis)).tobytes())
    return digest.digest()


def _any_read(state: Channelled, places: dict[int, _Places], same: list[int]) -> bool:
    """Is there a weight to sum? Are all sums within the range of their type?"""
    moved = False
    for turn, (number, _) in enumerate(places[same[0]].reads):
        weight = state.contractions[number].weight
        columns = [places[root].reads[turn][1] for root in same]
        channels = np.moveaxis(weight.tensor.numpy(), 1 - weight.out_axis, 0)
        if not np.isfinite(_summed(channels, columns)).all():
            return False
        moved |= bool(channels[np.concatenate(columns[1:])].any())
    return moved
