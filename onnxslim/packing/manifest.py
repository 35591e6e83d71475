"""The manifest of a packed file: which files to restore, and of which tensors they are made."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from onnxslim.errors import PackError
from onnxslim.packing.forms import BaseTensor, SliceOf, Source, decode_form, encode_form
from onnxslim.packing.layout import (
    FILE_BYTES,
    MAX_CHUNK,
    MAX_ENTRIES,
    MIN_CHUNK,
    TENSOR,
    TOTAL_LIMIT,
    Cursor,
    varint,
)
from onnxslim.packing.names import check_side_names


@dataclass(frozen=True)
class Blob:
    """The bytes of one distinct tensor, in chunks of ``chunk`` bytes.

    ``chunk`` is 0 for a tensor that has no chunks of its own: it is a copy of tensor ``base`` of
    the base version, or derived from its ``source``. With chunks, ``base`` is what they may be
    differences to.
    """

    length: int
    chunk: int
    sha256: bytes
    base: int | None = None
    source: Source | None = None

    def chunks(self) -> Iterator[int]:
        """Yield the length of each chunk in bytes."""
        yield from _chunk_lengths(self.length, self.chunk)


@dataclass(frozen=True)
class Segment:
    """Consecutive bytes of a restored file: of a tensor, or (``blob`` is None) of its rest."""

    start: int
    length: int
    blob: int | None
    rest_start: int
    """Bytes of the rest that stand before this segment."""


@dataclass(frozen=True)
class PackedFile:
    """One file to restore. ``splices`` are (rest bytes since the last tensor, number of blob)."""

    name: str
    size: int
    sha256: bytes
    splices: tuple[tuple[int, int], ...]
    rest: int
    """Bytes that belong to no tensor."""

    def rest_chunks(self) -> Iterator[int]:
        """Yield the length of each chunk of the rest in bytes."""
        yield from _chunk_lengths(self.rest, MAX_CHUNK)


def _chunk_lengths(length: int, chunk: int) -> Iterator[int]:
    for start in range(0, length if chunk else 0, chunk or 1):
        yield min(chunk, length - start)


@dataclass
class Manifest:
    """The files and the distinct tensors they are made of."""

    files: list[PackedFile]
    blobs: list[Blob]
    base_sha256: bytes = b""
    """Hash of the base version's model file; empty without a base."""
    bases: list[BaseTensor] = field(default_factory=list)
    """The tensors of the base version that are needed."""
    _segments: dict[int, list[Segment]] = field(default_factory=dict, repr=False)
    _rests: dict[int, list[Segment]] = field(default_factory=dict, repr=False)

    @property
    def total(self) -> int:
        """Bytes of all restored files."""
        return sum(file.size for file in self.files)

    @property
    def stored(self) -> int:
        """Bytes that all data frames decode to."""
        rests = sum(file.rest for file in self.files)
        return rests + sum(blob.length for blob in self.blobs if blob.chunk)

    def frames(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield (kind, number, start in its data, raw length) of the data frames, in order."""
        for number, file in enumerate(self.files):
            start = 0
            for length in file.rest_chunks():
                yield FILE_BYTES, number, start, length
                start += length
        for number, blob in enumerate(self.blobs):
            start = 0
            for length in blob.chunks():
                yield TENSOR, number, start, length
                start += length

    def segments(self, number: int) -> list[Segment]:
        """Return the segments of a file, in order, without empty ones."""
        if number not in self._segments:
            self._segments[number] = self._find_segments(self.files[number])
        return self._segments[number]

    def _find_segments(self, file: PackedFile) -> list[Segment]:
        found: list[Segment] = []
        position = rest = 0
        for gap, blob in file.splices:
            if gap:
                found.append(Segment(position, gap, None, rest))
            length = self.blobs[blob].length
            position, rest = position + gap + length, rest + gap
            found.append(Segment(position - length, length, blob, rest))
        if position < file.size:
            found.append(Segment(position, file.size - position, None, rest))
        return found

    def rest(self, number: int, start: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (position in the file, length) of bytes of the rest of a file, in order."""
        segments = self._rest_segments(number)
        index = bisect_right(segments, start, key=lambda item: item.rest_start) - 1
        while length:
            segment = segments[index]
            skipped = start - segment.rest_start
            size = min(length, segment.length - skipped)
            yield segment.start + skipped, size
            start, length, index = start + size, length - size, index + 1

    def _rest_segments(self, number: int) -> list[Segment]:
        if number not in self._rests:
            own = [item for item in self.segments(number) if item.blob is None]
            self._rests[number] = own
        return self._rests[number]

    def segment_at(self, number: int, position: int) -> int:
        """Return the index of the segment of a file that holds the byte at ``position``."""
        return bisect_right(self.segments(number), position, key=lambda item: item.start) - 1

    def encode(self) -> bytes:
        """Return the manifest as bytes."""
        out = bytearray()
        out += varint(len(self.bases))
        if self.bases:
            out += self.base_sha256
        for base in self.bases:
            out += varint(base.length) + base.sha256
        out += varint(len(self.blobs))
        for blob in self.blobs:
            out += varint(blob.length) + varint(blob.chunk) + blob.sha256
            out += encode_form(blob.chunk > 0, blob.base, blob.source)
        out += varint(len(self.files))
        for file in self.files:
            name = file.name.encode()
            out += varint(len(name)) + name + varint(file.size) + file.sha256
            out += varint(len(file.splices))
            for gap, number in file.splices:
                out += varint(gap) + varint(number)
        return bytes(out)

    @classmethod
    def decode(cls, data: bytes, where: str, limit: int = TOTAL_LIMIT) -> Manifest:
        """Read and check a manifest.

        Raises:
            PackError: numbers that contradict each other or exceed a limit, unsafe file names.
        """
        cursor = Cursor(data, f"{where}: the manifest")
        count = cursor.count("tensors of a base")
        base_sha = cursor.take(32) if count else b""
        bases = [BaseTensor(cursor.number(), cursor.take(32)) for _ in range(count)]
        blobs = [_decode_blob(cursor, bases) for _ in range(cursor.count("tensors"))]
        _check_sources(cursor, blobs)
        files = [_decode_file(cursor, blobs) for _ in range(cursor.count("files"))]
        cursor.finish()
        manifest = cls(files, blobs, base_sha, bases)
        if not files or files[0].name:
            raise PackError(f"{where}: the manifest names no model file; the file is damaged")
        check_side_names([file.name for file in files[1:]], where)
        used = {blob for file in files for _, blob in file.splices}
        if len(used) != len(blobs):
            raise PackError(f"{where}: the manifest has a tensor that no file contains")
        if sum(len(file.splices) for file in files) > MAX_ENTRIES:
            raise PackError(f"{where}: the manifest has over {MAX_ENTRIES} places of tensors")
        if manifest.total > limit:
            raise PackError(
                f"{where} claims to restore {manifest.total} bytes, over the limit of {limit}; "
                "unpack it only if you trust it, with a higher limit"
            )
        return manifest


def _decode_blob(cursor: Cursor, bases: list[BaseTensor]) -> Blob:
    length, chunk, sha = cursor.number(), cursor.number(), cursor.take(32)
    if not length or chunk > MAX_CHUNK or 0 < chunk < min(MIN_CHUNK, length):
        raise cursor.error(f"has a tensor of {length} bytes in chunks of {chunk}")
    return Blob(length, chunk, sha, *decode_form(cursor, chunk > 0, length, bases))


def _check_sources(cursor: Cursor, blobs: list[Blob]) -> None:
    """Check that tensors are derived from stored ones only, so that there are no cycles."""
    for blob in blobs:
        source = blob.source
        if source is None:
            continue
        if source.blob >= len(blobs) or not blobs[source.blob].chunk:
            raise cursor.error(f"derives a tensor from tensor {source.blob}, which is not stored")
        offset = source.offset if isinstance(source, SliceOf) else 0
        longest = blobs[source.blob].length
        whole = isinstance(source, SliceOf) or blob.length == longest
        if not whole or offset + blob.length > longest:
            raise cursor.error(
                f"derives {blob.length} bytes from tensor {source.blob} of {longest}"
            )


def _decode_file(cursor: Cursor, blobs: list[Blob]) -> PackedFile:
    try:
        name = cursor.take(cursor.number()).decode()
    except UnicodeDecodeError:
        raise cursor.error("has a file name that is not UTF-8") from None
    size, sha = cursor.number(), cursor.take(32)
    splices = []
    used = 0
    for _ in range(cursor.count("places")):
        gap, blob = cursor.number(), cursor.number()
        if blob >= len(blobs):
            raise cursor.error(f"refers to tensor {blob}, but there are only {len(blobs)}")
        used += gap + blobs[blob].length
        splices.append((gap, blob))
    if used > size:
        raise cursor.error(f"places {used} bytes in a file of {size}")
    rest = size - sum(blobs[blob].length for _, blob in splices)
    return PackedFile(name, size, sha, tuple(splices), rest)
