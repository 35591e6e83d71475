"""Prunable groups: which channels of a graph can be cut out one by one.

A *unit* is the smallest cut that leaves a valid model: an atom of the channel analysis, or the head
of an attention with all atoms in it. Units that meet the same weights on the same sides are
interchangeable: they form a *group* (the filters of one Conv, the channels of a residual stream,
the units of an LSTM, the heads of an attention). How many units of a group go is a matter of
allocation; which ones, of a criterion.

Where a grouped operator wants equally many channels in every group, the units are divided into
*bins*, and a cut takes equally many out of each bin.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.errors import RuntimeRefusedError
from onnxslim.ir.schema import ONNX_DOMAINS
from onnxslim.rewrite.channels.atoms import Array, Channelled, Evaluate, Ids
from onnxslim.rewrite.channels.rules import MINIMUM_OPSET, walk

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Group:
    """Interchangeable units, each of which goes or stays as a whole.

    Attributes:
        name: the first weight that makes them, for reports and for excluding a group.
        units: the atoms of each unit: one for a channel, many for the head of an attention.
        bins: per unit, the bin out of which equally many have to go as out of every other.
        producers: indices of the contractions whose outputs they are.
        consumers: indices of the contractions that read them.
        kind: "channels", "units" of a recurrent operator, or "heads".
    """

    name: str
    units: tuple[Ids, ...]
    bins: Ids
    producers: tuple[int, ...]
    consumers: tuple[int, ...]
    kind: str = "channels"

    @property
    def size(self) -> int:
        """Number of units."""
        return len(self.units)

    @property
    def step(self) -> int:
        """So many units go at a time: one of each bin."""
        return int(self.bins.max()) + 1 if len(self.bins) else 1

    def owners(self, roots: Ids, ids: Ids) -> Ids:
        """The unit of each coordinate of an array of atoms; -1 for none of these."""
        owner = np.full(len(roots), -1, dtype=np.int64)
        for number, unit in enumerate(self.units):
            owner[unit] = number
        return np.asarray(owner[roots[ids]], dtype=np.int64)


@dataclass
class Analysis:
    """The walked graph of a model and its groups.

    Attributes:
        model: the model, unchanged.
        state: what the walk found.
        roots: the representative of each atom.
        groups: what can be pruned.
    """

    model: ir.Model
    state: Channelled
    roots: Ids
    groups: list[Group] = field(default_factory=list)


def analyse(model: ir.Model) -> Analysis:
    """Walks the main graph, with inferred shapes, and finds its groups."""
    state = walk_model(model)
    roots = state.roots() if state is not None else np.zeros(0, dtype=np.int64)
    if state is None:
        state = Channelled(model.graph, MINIMUM_OPSET, lambda node, arrays: None)
        return Analysis(model, state, roots)
    return Analysis(model, state, roots, list(_groups(state, roots)))


def walk_model(model: ir.Model) -> Channelled | None:
    """The channel analysis of the main graph; None for opsets that it does not know."""
    imports = model.graph.opset_imports
    versions = [imports[domain] for domain in ONNX_DOMAINS if domain in imports]
    if not versions or max(versions) < MINIMUM_OPSET:
        return None
    return walk(model.graph, max(versions), _evaluator(imports))


def _evaluator(imports: dict[str, int]) -> Evaluate:
    """Runs one node in onnxruntime, for constants that pass through it."""

    def run(node: ir.Node, inputs: list[Array | None]) -> Array | None:
        from onnxslim.runtime.evaluate import evaluate

        try:
            return evaluate(node, inputs, imports)[0]
        except RuntimeRefusedError:
            return None

    return run


_Signature = tuple[tuple[str, int, int], ...]


def _groups(state: Channelled, roots: Ids) -> Iterator[Group]:
    blocked = _blocked(state, roots)
    units = _units(state, roots, blocked)
    places = _places(state, roots)
    members: dict[_Signature, list[int]] = {}
    for root, atoms in units.items():
        signature = _signature(places, atoms)
        if any(side == "out" for side, _, _ in signature):
            members.setdefault(signature, []).append(root)
    balanced = _bins(state, roots, blocked)
    for signature, found in members.items():
        producers = tuple(index for side, index, _ in signature if side == "out")
        consumers = tuple(index for side, index, _ in signature if side == "in")
        bins = _common_bins([_bin_of(balanced, units[root]) for root in found])
        if bins is None:
            continue
        kind = "heads" if len(units[found[0]]) > 1 else "channels"
        if state.contractions[producers[0]].node.op_type in _RECURRENT:
            kind = "units"
        own = tuple(units[root] for root in found)
        yield Group(_site(state, producers[0]), own, bins, producers, consumers, kind)


_RECURRENT = ("GRU", "LSTM", "RNN")


def _units(state: Channelled, roots: Ids, blocked: Mask) -> dict[int, Ids]:
    """What goes as a whole, by its first atom: heads with all that is in them, then channels."""
    lines = _lines(state, roots, blocked)
    held: dict[int, int] = {}
    shared: set[int] = set()
    for line, atoms in lines.items():
        for atom in atoms:
            if held.setdefault(atom, line) != line:
                shared.update((line, held[atom]))
    units: dict[int, Ids] = {}
    for line, atoms in lines.items():
        ids = np.array(sorted({line, *atoms}), dtype=np.int64)
        if line not in shared and not blocked[ids].any():
            units[line] = ids
    inside = {*held, *lines}
    for root in np.unique(roots).tolist():
        if root not in inside and not blocked[root]:
            units[root] = np.array([root], dtype=np.int64)
    return dict(sorted(units.items()))


def _lines(state: Channelled, roots: Ids, blocked: Mask) -> dict[int, set[int]]:
    """Per line that can go (the head of an attention), the atoms that go with it."""
    lines: dict[int, set[int]] = {}
    arrays = [(grid.ids, grid.lines) for grid in state.grids]
    for ids, own in (*arrays, *((joint.ids, joint.lines) for joint in state.joints.values())):
        for place, line in enumerate(own):
            rows = np.moveaxis(ids, place, 0).reshape(ids.shape[place], -1)
            for root, row in zip(roots[line].tolist(), rows, strict=True):
                if not blocked[root]:
                    lines.setdefault(root, set()).update(roots[row].tolist())
    return lines


def _places(state: Channelled, roots: Ids) -> dict[int, list[tuple[str, int, int]]]:
    """Per atom: on which side of which contraction it is, and how often."""
    places: dict[int, list[tuple[str, int, int]]] = {}
    for index, part in enumerate(state.contractions):
        if part.why:
            continue
        for side, ids in (("out", part.outputs), ("in", part.inputs.ids)):
            found, counts = np.unique(roots[ids], return_counts=True)
            for root, count in zip(found.tolist(), counts.tolist(), strict=True):
                places.setdefault(root, []).append((side, index, count))
    return places


def _signature(places: dict[int, list[tuple[str, int, int]]], atoms: Ids) -> _Signature:
    total: dict[tuple[str, int], int] = {}
    for atom in atoms.tolist():
        for side, index, count in places.get(atom, ()):
            total[side, index] = total.get((side, index), 0) + count
    return tuple((side, index, count) for (side, index), count in sorted(total.items()))


def _site(state: Channelled, index: int) -> str:
    """The weight of a contraction, by name."""
    value = state.contractions[index].node.inputs[1]
    return (value.name if value is not None else None) or f"weight {index}"


def _blocked(state: Channelled, roots: Ids) -> Mask:
    """Atoms that must stay: pinned, normalised together, or constants that stand for others."""
    blocked = np.zeros(len(roots), dtype=np.bool_)
    for pin in state.pins:
        blocked[roots[pin.ids]] = True
    for part in state.contractions:
        known = part.inputs.known
        if part.why:
            blocked[roots[part.inputs.ids]] = True
            blocked[roots[part.outputs]] = True
        elif known is not None:
            blocked[roots[part.inputs.ids[~np.isnan(known) & (known != 0)]]] = True
    return blocked


def _bins(state: Channelled, roots: Ids, blocked: Mask) -> dict[int, set[tuple[int, ...]]]:
    """Per atom, in which groups of which grouped operators it lies, and in which rows of grids."""
    found: dict[int, set[tuple[int, ...]]] = {}
    for index, part in enumerate(state.balances):
        for side, channels in enumerate((part.inputs, part.outputs)):
            size = len(channels.ids) // part.groups
            for place, root in enumerate(roots[channels.ids].tolist()):
                found.setdefault(root, set()).add((index, side, place // size))
    for index, grid in enumerate(state.grids):
        for place, line in enumerate(grid.lines):
            rows = np.moveaxis(grid.ids, place, 0).reshape(grid.ids.shape[place], -1)
            for number, row in enumerate(rows):
                if blocked[roots[line[number]]]:
                    for root in roots[row].tolist():
                        found.setdefault(root, set()).add((-1 - index, place, number))
    return found


def _bin_of(balanced: dict[int, set[tuple[int, ...]]], atoms: Ids) -> tuple[tuple[int, ...], ...]:
    """What a unit counts in; a head counts in nothing, since all its rows go with it."""
    if len(atoms) > 1:
        return ()
    return tuple(sorted(balanced.get(int(atoms[0]), ())))


def _common_bins(keys: list[tuple[tuple[int, ...], ...]]) -> Ids | None:
    """Bin numbers per unit; None when the bins are not equally large, or hold one unit each."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    bins = np.array([numbers[key] for key in keys], dtype=np.int64)
    counts = np.bincount(bins)
    return bins if (counts == counts[0]).all() and counts[0] > 1 else None


def choose(group: Group, order: Ids, count: int) -> Ids:
    """The atoms of the units of a group that go, equally many out of each bin.

    Args:
        group: the group.
        order: unit numbers, the least important first.
        count: how many are to go, rounded down to a multiple of ``group.step``.
    """
    each = count // group.step
    taken: list[int] = []
    for number in range(group.step):
        inside = order[group.bins[order] == number]
        taken.extend(inside[:each].tolist())
    return np.concatenate([group.units[one] for one in sorted(taken)] or [group.bins[:0]])


def axes_emptied(state: Channelled, roots: Ids, dead: Ids) -> Iterator[Ids]:
    """The axes on which a cut would leave nothing."""
    gone = np.zeros(len(roots), dtype=np.bool_)
    gone[dead] = True
    slots: list[Any] = [channels.ids for channels in state.values.values()]
    slots += [ids for axes in state.slots.values() for ids in axes.values()]
    slots += [ids for _, ids in state.vectors.values()]
    for ids in slots:
        if len(ids) and gone[roots[ids]].all():
            yield roots[ids]
