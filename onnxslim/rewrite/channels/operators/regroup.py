"""Which axes before a Reshape become which axes after it, and what becomes of tracked atoms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from onnxslim.rewrite.channels.atoms import Array, Barrier, Joint

Dim = int | str | None
Block = tuple[tuple[int, int], tuple[int, int]]
"""A range of axes before, and the range of axes after that holds the same elements."""

# An array of atoms with more elements than this is not followed through a Reshape.
_MOST_ATOMS = 1 << 24


def blocks(source: Sequence[Dim], target: Sequence[Dim]) -> list[Block]:
    """The finest ranges of axes that are sure to hold the same elements, in order.

    From the end, and then from the start, ranges with equal products are taken off. Since all
    elements keep their order and number, what is left in between makes one more pair of ranges.

    Args:
        source: the dimensions before; a name stands for an unknown number, None for any.
        target: the dimensions after; equal names stand for equal numbers.
    """
    back = _bounds(list(source), list(target))
    last, end = back[-1]
    ahead = _bounds(list(source[:last])[::-1], list(target[:end])[::-1])
    marks = [(last - left, end - right) for left, right in ahead] + back[::-1]
    marks = sorted(set(marks))
    return [
        ((first[0], second[0]), (first[1], second[1]))
        for first, second in itertools.pairwise(marks)
    ]


def _bounds(source: list[Dim], target: list[Dim]) -> list[tuple[int, int]]:
    """Pairs of positions behind which, counted from the end, equally many elements lie."""
    place: tuple[int, int] | None = (len(source), len(target))
    found = []
    while place is not None:
        found.append(place)
        place = _next_bound(source, target, *place)
    return found


def _next_bound(
    source: list[Dim], target: list[Dim], left: int, right: int
) -> tuple[int, int] | None:
    if left and right and source[left - 1] is not None and source[left - 1] == target[right - 1]:
        return left - 1, right - 1
    if left and source[left - 1] == 1:
        return left - 1, right
    if right and target[right - 1] == 1:
        return left, right - 1
    products = [1, 1]
    places = [left, right]
    while places == [left, right] or products[0] != products[1]:
        side = 0 if products[0] <= products[1] else 1
        dims = (source, target)[side]
        size = dims[places[side] - 1] if places[side] else None
        if not isinstance(size, int) or size < 1:
            return None
        places[side] -= 1
        products[side] *= size
    return places[0], places[1]


def regroup(joint: Joint, source: Sequence[Dim], target: Sequence[Dim]) -> Joint:
    """The tracked axes behind a Reshape; lines are left out, they have to be made anew.

    Raises:
        Barrier: sizes are unknown, or the axes do not lie in the order of the array.
    """
    ids, known = joint.ids, joint.known
    places: list[tuple[bool, int]] = [(False, axis) for axis in joint.axes]
    for before, after in blocks(source, target):
        inside = [
            place
            for place, (done, axis) in enumerate(places)
            if not done and before[0] <= axis < before[1]
        ]
        if not inside:
            continue
        span = slice(inside[0], inside[-1] + 1)
        positions = [axis for _, axis in places[span]]
        if len(positions) != len(inside) or positions != sorted(positions):
            raise Barrier("it joins axes in another order than that of the channels")
        if before[1] - before[0] > 1 or after[1] - after[0] > 1:
            own = dict(zip(positions, ids.shape[span], strict=True))
            sizes = _sizes_before(source, before, own)
            result = _sizes_after(target, after, math.prod(sizes))
            shape = [own.get(axis, 1) for axis in range(*before)]
            ids = np.asarray(_moved(ids, span, shape, sizes, result), dtype=np.int64)
            known = np.asarray(_moved(known, span, shape, sizes, result), dtype=np.float64)
        places[span] = [(True, axis) for axis in range(*after)]
    if not places:
        raise Barrier("it drops the axis of the channels")
    return Joint(tuple(axis for _, axis in places), ids, (), known, joint.dtype)


def _moved(
    content: Array, span: slice, shape: list[int], sizes: list[int], result: list[int]
) -> Array:
    first, last = content.shape[: span.start], content.shape[span.stop :]
    spread = np.broadcast_to(content.reshape(*first, *shape, *last), (*first, *sizes, *last))
    return np.ascontiguousarray(spread.reshape(*first, *result, *last))


def _sizes_before(source: Sequence[Dim], span: tuple[int, int], own: dict[int, int]) -> list[int]:
    dims = [own.get(axis, source[axis]) for axis in range(*span)]
    sizes = [size for size in dims if isinstance(size, int)]
    if len(sizes) != len(dims):
        raise Barrier("it joins or splits an axis of unknown size")
    if math.prod(sizes) > _MOST_ATOMS:
        raise Barrier("it joins the channels with too many other coordinates")
    return sizes


def _sizes_after(target: Sequence[Dim], span: tuple[int, int], total: int) -> list[int]:
    dims = list(target[slice(*span)])
    open_places = [place for place, size in enumerate(dims) if not isinstance(size, int)]
    known = math.prod(size for size in dims if isinstance(size, int))
    if len(open_places) == 1 and known > 0:
        dims[open_places[0]] = total // known
    sizes = [size for size in dims if isinstance(size, int)]
    if len(sizes) != len(dims) or math.prod(sizes) != total:
        raise Barrier("it joins or splits an axis of unknown size")
    return sizes
