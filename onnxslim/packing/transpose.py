"""Transposes tensors that need not fit in memory, piece by piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from onnxslim.packing.planes import Bytes

Read = Callable[[int, int], Bytes]
"""Reads (offset, length) of the source tensor."""

MAX_RANK = 8
SLAB = 1 << 25
"""Bytes of the result that are made at once, unless one row of it is longer."""

_BLOCK = 1 << 22
_LONG_RUN = 1 << 16


def row_bytes(length: int, shape: tuple[int, ...], perm: tuple[int, ...]) -> int:
    """Return the bytes of the result for one index of its first axis: the least piece."""
    return length // shape[perm[0]]


def transposed(
    read: Read, width: int, shape: tuple[int, ...], perm: tuple[int, ...]
) -> Iterator[Bytes]:
    """Yield the bytes of the transposed tensor in order, in pieces of at most :data:`SLAB`.

    Args:
        read: Reads the source tensor.
        width: Bytes of an element.
        shape: Dimensions of the source, none of them 0.
        perm: Axis of the source that each axis of the result comes from.
    """
    axis = perm[0]
    outer, inner = math.prod(shape[:axis]), width * math.prod(shape[axis + 1 :])
    rows = max(1, SLAB // row_bytes(width * math.prod(shape), shape, perm))
    for start in range(0, shape[axis], rows):
        count = min(rows, shape[axis] - start)
        slab = _slab(read, outer, shape[axis] * inner, (start * inner, count * inner))
        parts = (*shape[:axis], count, *shape[axis + 1 :], width)
        turned = slab.reshape(parts).transpose(*perm, len(perm))
        yield _gather(turned, width)


def _gather(turned: Bytes, width: int) -> Bytes:
    if width in (1, 2, 4, 8):  # whole elements are copied faster than their bytes
        words = turned.view(f"<u{width}")
        return np.ascontiguousarray(words).reshape(-1).view(np.uint8)
    return np.ascontiguousarray(turned).reshape(-1)


def _slab(read: Read, outer: int, stride: int, part: tuple[int, int]) -> Bytes:
    """Return bytes ``part`` (offset, length) of each of ``outer`` records of ``stride`` bytes."""
    offset, length = part
    if length == stride:
        return read(0, outer * stride)
    slab = np.empty((outer, length), np.uint8)
    if length >= _LONG_RUN or stride > _BLOCK:
        for index in range(outer):
            slab[index] = read(index * stride + offset, length)
        return slab.reshape(-1)
    step = max(1, _BLOCK // stride)
    for index in range(0, outer, step):
        count = min(step, outer - index)
        block = read(index * stride, count * stride).reshape(count, stride)
        slab[index : index + count] = block[:, offset : offset + length]
    return slab.reshape(-1)
