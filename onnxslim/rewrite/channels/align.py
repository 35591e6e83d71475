"""Which removable channels are better held back, so that no layer gets slower by its new count.

Removable atoms that occur in the same layers equally often are interchangeable: a class. For each
class the number that is held back is the one with the least summed cost of the layers it touches;
of equal costs the smallest number. Other classes stand at what was chosen for them so far, and the
classes are gone through twice, for one may touch the layers of another.

The choice depends on what has to stay and on the candidates alone, and a number that was chosen is
chosen again among fewer candidates; so a second run changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from onnxslim.rewrite.channels.atoms import Channelled, Ids, node_label
from onnxslim.rewrite.channels.costs import TARGETS, Cost, Counts, Target, cost
from onnxslim.rewrite.channels.layers import Layer, layers
from onnxslim.rewrite.channels.need import Need

_ROUNDS = 2


@dataclass
class _Class:
    """Interchangeable atoms.

    Attributes:
        bundles: roots that are held back together, in the order in which they are.
        adds: per touched layer, how many input and output channels one bundle adds.
        chosen: how many bundles are held back.
    """

    bundles: list[Ids]
    adds: dict[int, tuple[int, int]]
    chosen: int = 0


@dataclass
class _Plan:
    """All layers, and per layer, for its inputs and its outputs:

    Attributes:
        counts: the channels that the choices so far leave.
        shares: how many classes occur there.
    """

    all_layers: list[Layer]
    counts: npt.NDArray[np.int64]
    shares: npt.NDArray[np.int64]
    classes: list[_Class] = field(default_factory=list)


def hold_back(state: Channelled, need: Need, align: int | None, target: str = "cpu") -> None:
    """Keeps removable channels for the sake of better counts.

    Args:
        state: the walked graph.
        need: what has to stay; gets the channels that are held back, with the reason.
        align: N for multiples of N, None for the cheapest counts on the target; 1 holds nothing.
        target: a key of `costs.TARGETS`.
    """
    if align == 1 or not need.any_removed():
        return
    table = TARGETS[target]
    plan = _plan(state, need, table if align is None else None)
    for _ in range(_ROUNDS):
        for item in plan.classes:
            _choose(plan, item, table, align)
    for item in plan.classes:
        if item.chosen:
            need.hold(
                np.concatenate(item.bundles[: item.chosen]), _reason(plan, item, table, align)
            )


def _plan(state: Channelled, need: Need, table: Target | None) -> _Plan:
    found = list(layers(state, need.roots))
    free = ~need.live[need.roots]
    counts = np.array([layer.counts for layer in found], dtype=np.int64).reshape(-1, 2)
    memory = []
    for index, layer in enumerate(found):
        for side, ids in enumerate(layer.sides):
            if ids is None:
                continue
            own, times = np.unique(ids[free[ids]], return_counts=True)
            counts[index, side] -= int(times.sum())
            memory.append((np.full(len(own), 2 * index + side), own, times))
    plan = _Plan(found, counts, np.zeros_like(counts))
    if memory:
        sides, atoms, times = (np.concatenate(part) for part in zip(*memory, strict=True))
        stepped = [table is None or layer.kind != "plain" for layer in found]
        plan.classes = list(_classes(state, need, stepped, (sides, atoms, times)))
    for item in plan.classes:
        for index, adds in item.adds.items():
            plan.shares[index] += np.array(adds) > 0
    return plan


def _classes(
    state: Channelled, need: Need, stepped: Sequence[bool], places: tuple[Ids, Ids, Ids]
) -> Iterator[_Class]:
    """Groups the atoms by the layers that they occur in; those without a step are left out."""
    sides, atoms, times = places
    order = np.lexsort((sides, atoms))
    sides, atoms, times = sides[order], atoms[order], times[order]
    starts = np.flatnonzero(np.r_[True, atoms[1:] != atoms[:-1]])
    groups = _group_of(state, need)
    members: dict[bytes, list[int]] = {}
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(atoms)], strict=True):
        key = sides[start:stop].tobytes() + times[start:stop].tobytes()
        members.setdefault(key, []).append(start)
    ends = dict(zip(starts.tolist(), [*starts[1:].tolist(), len(atoms)], strict=True))
    for rows in members.values():
        span = slice(rows[0], ends[rows[0]])
        if not any(stepped[side // 2] for side in sides[span].tolist()):
            continue
        bundles = _bundles(need, atoms[rows], groups)
        if bundles:
            width = len(bundles[0])
            adds: dict[int, tuple[int, int]] = {}
            for side, count in zip(sides[span].tolist(), times[span].tolist(), strict=True):
                one, other = adds.get(side // 2, (0, 0))
                more = count * width
                adds[side // 2] = (one, other + more) if side % 2 else (one + more, other)
            yield _Class(bundles, adds)


def _group_of(state: Channelled, need: Need) -> dict[int, tuple[int, int, int]]:
    """Per root in a grouped operator: which operator, which group of it, how many groups stay.

    Roots of groups that go as a whole get group -1.
    """
    found: dict[int, tuple[int, int, int]] = {}
    for index, part in enumerate(state.balances):
        kept = [
            need.kept(side.ids).reshape(part.groups, -1) for side in (part.inputs, part.outputs)
        ]
        stays = np.logical_or(kept[0].any(axis=1), kept[1].any(axis=1)) | (not part.may_go)
        for side in (part.inputs, part.outputs):
            rows = need.roots[side.ids].reshape(part.groups, -1)
            for group, row in enumerate(rows):
                place = (index, group if stays[group] else -1, int(stays.sum()))
                for root in row.tolist():
                    found.setdefault(root, place)
    return found


def _bundles(need: Need, roots: Ids, groups: dict[int, tuple[int, int, int]]) -> list[Ids]:
    """Roots in the order in which they are held back: one of every group that stays at a time."""
    ranked = roots[np.argsort(need.burden()[roots], kind="stable")]
    if not any(root in groups for root in ranked.tolist()):
        return [ranked[index : index + 1] for index in range(len(ranked))]
    queues: dict[int, list[int]] = {}
    wanted = 0
    for root in ranked.tolist():
        operator, group, stays = groups.get(root, (-1, -1, 0))
        if operator >= 0 and group >= 0:
            queues.setdefault(group, []).append(root)
            wanted = stays
    if len(queues) < wanted:
        return []
    return [np.array(row, dtype=np.int64) for row in zip(*queues.values(), strict=False)]


def _choose(plan: _Plan, item: _Class, table: Target, align: int | None) -> None:
    """Sets how many bundles of a class are held back."""
    held = np.arange(len(item.bundles) + 1, dtype=np.int64)
    price = np.zeros(len(held))
    for index, adds in item.adds.items():
        plan.counts[index] -= item.chosen * np.array(adds)
        inputs, outputs = (plan.counts[index][side] + held * adds[side] for side in (0, 1))
        price += _price(plan, index, inputs, outputs, adds, table, align)
    best = int(price.argmin())
    gain = price[0] - price[best]
    if align is None and gain < max(table.floor, table.noise * price[best]):
        best = 0
    item.chosen = best
    for index, adds in item.adds.items():
        plan.counts[index] += best * np.array(adds)


def _price(
    plan: _Plan,
    index: int,
    inputs: Counts,
    outputs: Counts,
    adds: tuple[int, int],
    table: Target,
    align: int | None,
) -> Cost:
    """What a layer costs; with a given N: how many of its changing counts are no multiple of N.

    A count that several classes add to weighs less, for each of them is to be a multiple first.
    """
    if align is None:
        layer = plan.all_layers[index]
        return cost(table, layer.kind, layer.taps, inputs, outputs, layer.groups)
    price = np.zeros(np.shape(inputs))
    for count, add, share in zip((inputs, outputs), adds, plan.shares[index], strict=True):
        if add:
            price += (count % align != 0) / share
    return price


def _reason(plan: _Plan, item: _Class, table: Target, align: int | None) -> str:
    """Names the layer that gains most from the channels that are held back."""
    gains: list[tuple[float, int, int, int]] = []
    for index, adds in item.adds.items():
        now = plan.counts[index]
        before = now - item.chosen * np.array(adds)
        pairs = [
            _price(plan, index, counts[:1], counts[1:], adds, table, align)
            for counts in (before, now)
        ]
        side = int(adds[1] > adds[0])
        gains.append((float(pairs[0][0] - pairs[1][0]), -index, int(now[side]), int(before[side])))
    _, index, now_count, old_count = max(gains)
    where = node_label(plan.all_layers[-index].node)
    if align is None:
        return f"{now_count} channels are faster than {old_count} in {where}"
    return f"{now_count} instead of {old_count} is a multiple of {align} in {where}"
