"""Decodes many tensors of a packed file at once, on all cores, each chunk into its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import numpy as np

from onnxslim.packing.parallel import Progress, in_order, no_progress
from onnxslim.packing.planes import Bytes
from onnxslim.packing.reader import PackedReader

_ALIGNMENT = 64
_LITTLE = 4 << 20  # bytes up to which threads cost more than they save

Place = tuple[int, int, int]
"""File, offset and length of bytes in it."""


class Fetch:
    """Ranges of the restored files, decoded together."""

    def __init__(self, reader: PackedReader, places: Sequence[Place]) -> None:
        """Name the ranges; nothing is decoded yet."""
        self._reader = reader
        self._places = places
        self._blobs = [reader.model.blob_of(place) for place in places]
        self._out: dict[int, Bytes] = {}  # of tensors, by number
        self._plain: dict[int, Bytes] = {}  # of other ranges, by position

    @property
    def data(self) -> list[Bytes]:
        """The bytes of each range, in the order asked for; equal tensors share their memory."""
        return [
            self._plain[position] if blob is None else self._out[blob]
            for position, blob in enumerate(self._blobs)
        ]

    def decode(self, threads: int, progress: Progress = no_progress) -> None:
        """Decode everything; each chunk is compared with its checksum.

        Raises:
            PackError: damaged, or far more than so few bytes should hold.
        """
        done, total = 0, max(1, sum(length for _, _, length in self._places))
        threads = threads if total > _LITTLE else 1
        self._reserve()
        for size in in_order(self._tasks(), threads):
            done += size
            progress("unpacking", min(done, total), total)

    def _reserve(self) -> None:
        """Take the memory of all tensors at once: the system then hands it out in large pages."""
        blobs = self._reader.model.manifest.blobs
        numbers = [number for number in dict.fromkeys(self._blobs) if number is not None]
        numbers = [number for number in numbers if blobs[number].chunk]
        for number in numbers:
            self._reader.check_expansion(number)
        sizes = [-(-blobs[number].length // _ALIGNMENT) * _ALIGNMENT for number in numbers]
        memory = np.empty(sum(sizes), np.uint8)
        for number, start in zip(numbers, accumulate(sizes, initial=0), strict=False):
            self._out[number] = memory[start : start + blobs[number].length]

    def verify(self) -> None:
        """Compare each tensor with its SHA-256 as well.

        Raises:
            PackError: one differs.
        """
        for number, data in self._out.items():
            self._reader.check_hash(number, data.data)

    def _tasks(self) -> Iterator[Callable[[], int]]:
        """Yield tasks; each returns how many bytes it decoded."""
        blobs = self._reader.model.manifest.blobs
        started = set()
        for position, number in enumerate(self._blobs):
            if number is None or not blobs[number].chunk:
                yield self._reading(position)
            elif number not in started:
                started.add(number)
                yield from self._chunks(number)

    def _chunks(self, number: int) -> Iterator[Callable[[], int]]:
        start = 0
        for length in self._reader.model.manifest.blobs[number].chunks():
            yield self._decoding(number, start, length)
            start += length

    def _decoding(self, number: int, start: int, length: int) -> Callable[[], int]:
        def task() -> int:
            self._reader.chunk_into(number, start, self._out[number][start : start + length])
            return length

        return task

    def _reading(self, position: int) -> Callable[[], int]:
        """Read what is no tensor with chunks of its own: other bytes, or a derived tensor."""
        place, number = self._places[position], self._blobs[position]

        def task() -> int:
            if number is None:
                self._plain[position] = np.frombuffer(self._reader.read_file(*place), np.uint8)
            else:
                self._out[number] = np.frombuffer(self._reader.read_blob(number), np.uint8)
            return place[2]

        return task
