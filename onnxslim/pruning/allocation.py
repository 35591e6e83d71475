"""How many units of each group go: the same share everywhere, or by measured sensitivity.

A *plan* is the number of units that go, per group. Greedy allocation orders small steps (some units
of one group) by the drift that they cause per cost that they save, as measured group by group with
the repair on, and as many steps are taken from the front of that order as a target needs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnxslim.pruning.groups import Group

Plan = tuple[int, ...]

LEVELS = (0.125, 0.25, 0.5, 0.75)
# No group loses more than this share.
LARGEST_SHARE = 0.9
# A group goes in so many steps at most.
_STEPS = 16


def most(group: Group, align: int = 1) -> int:
    """Units that may go at most: 10 % stay, ``align`` at least, and one of each bin."""
    floor = max(group.step, min(align, group.size), round((1 - LARGEST_SHARE) * group.size))
    return _whole(group, group.size - floor)


def uniform(groups: Sequence[Group], amount: float, align: int = 1) -> Plan:
    """The same share of every group, rounded; what stays is a multiple of ``align``."""
    return tuple(
        aligned(group, min(round(amount * group.size), most(group, align)), align)
        for group in groups
    )


def aligned(group: Group, count: int, align: int) -> int:
    """At most ``count``, so that a multiple of ``align`` stays where that is possible."""
    stays = -(-(group.size - count) // align) * align
    return _whole(group, max(0, group.size - stays)) if align > 1 else _whole(group, count)


def _whole(group: Group, count: int) -> int:
    return max(0, count) // group.step * group.step


@dataclass(frozen=True)
class Move:
    """So many more units of one group go.

    Attributes:
        group: its number.
        units: how many.
    """

    group: int
    units: int


def greedy(
    groups: Sequence[Group],
    drifts: Sequence[Mapping[int, float]],
    saved: Callable[[Plan], float],
    align: int = 1,
) -> list[Move]:
    """Steps in the order in which they are worth taking.

    Args:
        groups: the groups.
        drifts: per group, the measured drift of the outputs by the number of units that go.
        saved: cost that a plan saves.
        align: every step leaves a multiple of it.
    """
    plan = [0] * len(groups)
    moves: list[Move] = []
    while True:
        best: tuple[float, int, int] | None = None
        base = saved(tuple(plan))
        for number, group in enumerate(groups):
            target = _next(group, plan[number], align)
            if target <= plan[number]:
                continue
            trial = [*plan]
            trial[number] = target
            gain = saved(tuple(trial)) - base
            worse = _at(drifts[number], target) - _at(drifts[number], plan[number])
            price = max(worse, 0.0) / gain if gain > 0 else float("inf")
            if best is None or price < best[0]:
                best = (price, number, target)
        if best is None:
            return moves
        moves.append(Move(best[1], best[2] - plan[best[1]]))
        plan[best[1]] = best[2]


def _next(group: Group, gone: int, align: int) -> int:
    """Where the next step of a group ends."""
    step = max(group.step, align, group.size // _STEPS)
    return min(aligned(group, min(gone + step, most(group, align)), align), most(group, align))


def _at(drifts: Mapping[int, float], count: int) -> float:
    """The drift at a number of units, between and beyond what was measured on straight lines."""
    known = sorted({0: 0.0, **drifts}.items())
    highest = 0.0
    rising = []
    for units, drift in known:
        highest = max(highest, drift)
        rising.append((units, highest))
    for (low, first), (high, second) in itertools.pairwise(rising):
        if count <= high:
            return first + (second - first) * (count - low) / (high - low)
    if len(rising) < 2:
        return float(count)
    (low, first), (high, second) = rising[-2:]
    return second + (second - first) * (count - high) / (high - low)


def applied(moves: Sequence[Move], count: int, groups: int) -> Plan:
    """The plan after the first ``count`` moves."""
    plan = [0] * groups
    for move in moves[:count]:
        plan[move.group] += move.units
    return tuple(plan)
