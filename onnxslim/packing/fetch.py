"""Decodes many tensors of a packed file at once, on all cores, each chunk into its place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from onnxslim.packing.parallel import Progress, in_order, no_progress
from onnxslim.packing.planes import Bytes
from onnxslim.packing.reader import PackedReader

Place = tuple[int, int, int]
"""File, offset and length of bytes in it."""


def fetch(
    reader: PackedReader,
    places: Sequence[Place],
    threads: int,
    progress: Progress = no_progress,
) -> list[Bytes]:
    """Return the bytes of ranges of the restored files, in order.

    Ranges that are whole tensors are compared with their hashes; equal ones share their memory.

    Raises:
        PackError: damaged, or far more than so few bytes should hold.
    """
    return _Fetch(reader, places).run(threads, progress)


class _Fetch:
    def __init__(self, reader: PackedReader, places: Sequence[Place]) -> None:
        self._reader = reader
        self._places = places
        self._blobs = [reader.model.blob_of(place) for place in places]
        self._out: dict[int, Bytes] = {}  # of tensors, by number
        self._plain: dict[int, Bytes] = {}  # of other ranges, by position
        self._missing: dict[int, int] = {}  # chunks that are still to come
        self._whole: deque[int] = deque()  # tensors that can be compared with their hash

    def run(self, threads: int, progress: Progress) -> list[Bytes]:
        done, total = 0, max(1, sum(length for _, _, length in self._places))
        for number, size in in_order(self._tasks(), threads):
            done += size
            progress("unpacking", min(done, total), total)
            if number is not None:
                self._missing[number] -= 1
                if not self._missing[number]:
                    self._whole.append(number)
        for _ in in_order((self._checking(number) for number in self._whole), threads):
            pass
        return [
            self._plain[position] if blob is None else self._out[blob]
            for position, blob in enumerate(self._blobs)
        ]

    def _tasks(self) -> Iterator[Callable[[], tuple[int | None, int]]]:
        """Yield tasks; each returns the tensor of which it decoded a chunk, and how many bytes."""
        blobs = self._reader.model.manifest.blobs
        for position, number in enumerate(self._blobs):
            if number is None or not blobs[number].chunk:
                yield self._reading(position)
            elif number not in self._out:
                self._reader.check_expansion(number)
                self._out[number] = np.empty(blobs[number].length, np.uint8)
                lengths = list(blobs[number].chunks())
                self._missing[number] = len(lengths)
                start = 0
                for length in lengths:
                    while self._whole:  # what is complete is hashed while the next is decoded
                        yield self._checking(self._whole.popleft())
                    yield self._decoding(number, start, length)
                    start += length

    def _reading(self, position: int) -> Callable[[], tuple[int | None, int]]:
        """Read what is no tensor with chunks of its own: other bytes, or a derived tensor."""
        place, number = self._places[position], self._blobs[position]

        def task() -> tuple[int | None, int]:
            if number is None:
                self._plain[position] = np.frombuffer(self._reader.read_file(*place), np.uint8)
            else:
                self._out[number] = np.frombuffer(self._reader.read_blob(number), np.uint8)
            return None, place[2]

        return task

    def _decoding(self, number: int, start: int, length: int) -> Callable[[], tuple[int, int]]:
        def task() -> tuple[int, int]:
            part = self._reader.chunk(number, start, length)
            self._out[number][start : start + length] = part
            return number, length

        return task

    def _checking(self, number: int) -> Callable[[], tuple[None, int]]:
        def task() -> tuple[None, int]:
            self._reader.check_hash(number, self._out[number])
            return None, 0

        return task
