"""Finds tensors that are transposed copies or slices of others, by their bytes alone.

Exact duplicates are found by their hash; these need a guess first. A slice starts like one of the
rows of the larger tensor. A transposed tensor has the same dimensions in another order and the
same first and last element. What is guessed is then compared byte by byte.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations

import numpy as np

from onnxslim.packing.forms import MAX_ROW, MAX_TRANSPOSED, SliceOf, Source, TransposeOf
from onnxslim.packing.manifest import Blob
from onnxslim.packing.planes import Bytes, Words
from onnxslim.packing.transpose import row_bytes, transposed

Reader = Callable[[int, int, int], Bytes]
"""Reads (number of the tensor, offset, length)."""

HEAD = 16
_LEAST_ROW = 256
_MAX_TRIES = 4
_MAX_PERMUTED = 4
_SAMPLES = 32
_PIECE = 1 << 22


class RowHeads:
    """Looks, while a tensor is read from start to end, for rows that start like other tensors."""

    def __init__(self, row: int, wanted: Words) -> None:
        """``row`` is the bytes of a row, ``wanted`` are sorted keys (:func:`head_keys`)."""
        self._row = row
        self._wanted = wanted
        self.found: list[tuple[int, int]] = []
        """(key, offset in the tensor)."""

    def __call__(self, position: int, data: Bytes) -> None:
        """Take the next bytes of the tensor, which stand at ``position``."""
        first = -position % self._row
        count = (data.size - first - HEAD) // self._row + 1 if data.size >= first + HEAD else 0
        if count < 1:
            return
        ends = np.lib.stride_tricks.as_strided(data[first:], (count, HEAD), (self._row, 1))
        keys = head_keys(np.ascontiguousarray(ends))
        for index in np.flatnonzero(np.isin(keys, self._wanted)):
            self.found.append((int(keys[index]), position + first + int(index) * self._row))


def head_keys(heads: Bytes) -> Words:
    """Return a number for the first :data:`HEAD` bytes of each tensor or row."""
    words: Words = heads.view("<u8")
    keys: Words = words[:, 0] ^ (words[:, 1] * np.array(0x9E3779B97F4A7C15, "<u8"))
    return keys


def row_of(length: int, shape: tuple[int, ...]) -> int:
    """Return the bytes of a row in which slices may start, or 0."""
    if len(shape) < 2 or shape[0] < 2 or length % shape[0]:
        return 0
    row = length // shape[0]
    return row if row >= _LEAST_ROW else 0


def derive(
    blobs: list[Blob],
    layouts: list[tuple[int, tuple[int, ...]]],
    heads: list[int | None],
    rows: dict[int, list[tuple[int, int]]],
    read: Reader,
) -> list[Blob]:
    """Return the blobs with those derived that others contain.

    Args:
        blobs: The distinct tensors.
        layouts: Bytes of an element, and shape, of each.
        heads: Key of the first bytes of each; None where it says nothing (all bytes equal).
        rows: For tensors with rows, what :class:`RowHeads` found.
        read: Reads the tensors.
    """
    places: dict[int, list[tuple[int, int]]] = {}
    for number in sorted(rows):
        for key, offset in rows[number]:
            places.setdefault(key, []).append((number, offset))
    sources: dict[int, Source] = {}
    for number in sorted(range(len(blobs)), key=lambda index: (blobs[index].length, index)):
        head = heads[number] if blobs[number].chunk else None
        candidates = places.get(head, []) if head is not None else []
        found = _slice(number, blobs, candidates, read)
        if found is not None:
            sources[number] = found
    _add_transposed(blobs, layouts, sources, read)
    return [
        replace(blob, chunk=0, source=sources[number]) if number in sources else blob
        for number, blob in enumerate(blobs)
    ]


def _slice(
    number: int, blobs: list[Blob], candidates: list[tuple[int, int]], read: Reader
) -> Source | None:
    length = blobs[number].length
    fitting = [
        (other, offset)
        for other, offset in candidates
        if other != number
        and blobs[other].chunk
        and blobs[other].length > length
        and offset + length <= blobs[other].length
    ]
    # the longest: it is not itself a slice of a longer one that was found, so chains stay short
    fitting.sort(key=lambda item: (-blobs[item[0]].length, item))
    for other, offset in fitting[:_MAX_TRIES]:
        digest = hashlib.sha256()
        for start in range(0, length, _PIECE):
            digest.update(read(other, offset + start, min(_PIECE, length - start)).data)
        if digest.digest() == blobs[number].sha256:
            return SliceOf(other, offset)
    return None


def _add_transposed(
    blobs: list[Blob],
    layouts: list[tuple[int, tuple[int, ...]]],
    sources: dict[int, Source],
    read: Reader,
) -> None:
    """Find transposed pairs; drop what would make a chain of two steps."""
    sourced = {source.blob for source in sources.values()}
    for number in [number for number in sources if number in sourced]:
        del sources[number]
    known: dict[tuple[object, ...], list[int]] = {}
    for number, (width, shape) in enumerate(layouts):
        length = blobs[number].length
        dims = tuple(size for size in shape if size != 1)
        if (
            not blobs[number].chunk
            or length > MAX_TRANSPOSED
            or not 2 <= len(dims) <= _MAX_PERMUTED
        ):
            continue
        if math.prod(dims) * width != length:
            continue
        ends = read(number, 0, width).tobytes() + read(number, length - width, width).tobytes()
        mates = known.setdefault((width, tuple(sorted(dims)), ends), [])
        if number in sources:
            continue
        for other in mates[:_MAX_TRIES]:
            found = _transpose(number, other, blobs, layouts, read)
            if found is not None and number not in sourced:
                sources[number] = found
                break
        else:
            mates.append(number)


def _transpose(
    number: int,
    other: int,
    blobs: list[Blob],
    layouts: list[tuple[int, tuple[int, ...]]],
    read: Reader,
) -> Source | None:
    width = layouts[number][0]
    length = blobs[number].length
    target = tuple(size for size in layouts[number][1] if size != 1)
    shape = tuple(size for size in layouts[other][1] if size != 1)
    for perm in permutations(range(len(shape))):
        turned = tuple(shape[axis] for axis in perm)
        if turned != target or row_bytes(length, shape, perm) > MAX_ROW:
            continue
        if perm == tuple(range(len(shape))):
            continue
        if not _samples_agree((number, other), width, shape, perm, read):
            continue
        digest = hashlib.sha256()
        for piece in _pieces(other, width, shape, perm, read):
            digest.update(piece.data)
        if digest.digest() == blobs[number].sha256:
            return TransposeOf(other, width, shape, perm)
    return None


def _pieces(
    number: int, width: int, shape: tuple[int, ...], perm: tuple[int, ...], read: Reader
) -> Iterator[Bytes]:
    return transposed(lambda start, size: read(number, start, size), width, shape, perm)


def _samples_agree(
    pair: tuple[int, int], width: int, shape: tuple[int, ...], perm: tuple[int, ...], read: Reader
) -> bool:
    """Whether some elements of the result stand where the transposition would put them."""
    target = tuple(shape[axis] for axis in perm)
    count = math.prod(shape)
    for index in np.linspace(0, count - 1, _SAMPLES).astype(np.int64):
        place = np.unravel_index(int(index), target)
        origin = [0] * len(shape)
        for axis, value in zip(perm, place, strict=True):
            origin[axis] = int(value)
        start = int(np.ravel_multi_index(tuple(origin), shape))
        mine = read(pair[0], int(index) * width, width)
        if not np.array_equal(mine, read(pair[1], start * width, width)):
            return False
    return True
