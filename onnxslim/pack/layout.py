"""What stands where in a packed file: frame headers, manifest, index and footer.

``docs/format.md`` is the specification; this module is the only one that knows the byte layout.
Everything here is given bytes of unknown origin, so every number is checked before it is used.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from onnxslim.errors import PackError
from onnxslim.pack.names import check_side_names

MAGIC = b"ONNXZ\x00v1"
END_MAGIC = b"v1\x00ZXNNO"

MANIFEST, FILE_BYTES, TENSOR, INDEX = 1, 2, 3, 4
"""Kinds of frames, in the order in which they stand in a file."""

MAX_CHUNK = 1 << 22
"""No frame of data decodes to more bytes than this."""

MIN_CHUNK = 1 << 16
"""Only the last chunk of a tensor may be shorter; it bounds the number of frames."""

MAX_ENTRIES = 1 << 20
"""Tensors and places of tensors in one packed file."""

MAX_TABLE = 1 << 28
"""Bytes of the manifest or the index."""

TOTAL_LIMIT = 64 << 30
"""Default limit of the restored bytes."""

RATIO_LIMIT = 1000
"""Restored bytes for each packed byte, except for constants and runs."""

RATIO_SLACK = 64 << 20
"""Restored bytes to which the ratio is not applied."""

_HEADER = struct.Struct("<BBHIIIII")
HEADER_SIZE = _HEADER.size
_FOOTER = struct.Struct("<QQ32s8s")
FOOTER_SIZE = _FOOTER.size


@dataclass(frozen=True)
class FrameHeader:
    """The 24 bytes before each payload; ``crc`` is that of the decoded data."""

    kind: int
    codec: int
    number: int
    raw_length: int
    packed_length: int
    crc: int

    def encode(self) -> bytes:
        """Return the header as bytes, its own checksum last."""
        fields = (self.kind, self.codec, 0, self.number, self.raw_length, self.packed_length)
        body = _HEADER.pack(*fields, self.crc, 0)[:-4]
        return body + zlib.crc32(body).to_bytes(4, "little")

    @classmethod
    def decode(cls, data: bytes, where: str) -> FrameHeader:
        """Read a header.

        Raises:
            PackError: its checksum is wrong, or it uses flags this version does not know.
        """
        kind, codec, flags, number, raw, packed, crc, own = _HEADER.unpack(data)
        if zlib.crc32(data[:-4]) != own:
            raise PackError(f"{where}: the frame header is damaged; get the file again")
        if flags:
            raise PackError(f"{where}: unknown frame flags {flags:#x}; a newer version may read it")
        return cls(kind, codec, number, raw, packed, crc)


@dataclass(frozen=True)
class Blob:
    """The bytes of one distinct tensor, in chunks of ``chunk`` bytes."""

    length: int
    chunk: int
    sha256: bytes

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
    for start in range(0, length, chunk):
        yield min(chunk, length - start)


@dataclass
class Manifest:
    """The files and the distinct tensors they are made of."""

    files: list[PackedFile]
    blobs: list[Blob]
    _segments: dict[int, list[Segment]] = field(default_factory=dict, repr=False)
    _rests: dict[int, list[Segment]] = field(default_factory=dict, repr=False)

    @property
    def total(self) -> int:
        """Bytes of all restored files."""
        return sum(file.size for file in self.files)

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
        out += varint(len(self.blobs))
        for blob in self.blobs:
            out += varint(blob.length) + varint(blob.chunk) + blob.sha256
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
        cursor = _Cursor(data, f"{where}: the manifest")
        blobs = [_decode_blob(cursor) for _ in range(cursor.count("tensors"))]
        files = [_decode_file(cursor, blobs) for _ in range(cursor.count("files"))]
        cursor.finish()
        manifest = cls(files, blobs)
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


def _decode_blob(cursor: _Cursor) -> Blob:
    length, chunk = cursor.number(), cursor.number()
    if not length or not chunk or chunk > MAX_CHUNK or (chunk < MIN_CHUNK and chunk < length):
        raise cursor.error(f"has a tensor of {length} bytes in chunks of {chunk}")
    return Blob(length, chunk, cursor.take(32))


def _decode_file(cursor: _Cursor, blobs: list[Blob]) -> PackedFile:
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


def encode_index(frames: list[tuple[int, int]]) -> bytes:
    """Return the index of data frames, given (codec, packed length) of each in order."""
    out = bytearray()
    for codec, length in frames:
        out.append(codec)
        out += varint(length)
    return bytes(out)


def decode_index(data: bytes, count: int, where: str) -> list[tuple[int, int]]:
    """Return (codec, packed length) of each of ``count`` data frames.

    Raises:
        PackError: there are more or fewer entries.
    """
    cursor = _Cursor(data, f"{where}: the index")
    if count * 2 > len(data):
        raise cursor.error(f"is too short for {count} frames")
    frames = [(cursor.take(1)[0], cursor.number()) for _ in range(count)]
    cursor.finish()
    return frames


@dataclass(frozen=True)
class Footer:
    """The last 56 bytes: where the index frame is, and a hash of manifest and index."""

    index_offset: int
    index_length: int
    sha256: bytes

    def encode(self) -> bytes:
        """Return the footer as bytes."""
        return _FOOTER.pack(self.index_offset, self.index_length, self.sha256, END_MAGIC)

    @classmethod
    def decode(cls, data: bytes, where: str) -> Footer:
        """Read a footer.

        Raises:
            PackError: this is not one.
        """
        offset, length, sha, magic = _FOOTER.unpack(data)
        if magic != END_MAGIC:
            raise PackError(f"{where} is cut short or damaged at its end; get the file again")
        return cls(offset, length, sha)


def table_hash(manifest: bytes, index: bytes) -> bytes:
    """Return the hash that stands in the footer."""
    return hashlib.sha256(manifest + index).digest()


def varint(value: int) -> bytes:
    """Encode a non-negative integer, seven bits a byte, lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class _Cursor:
    """Reads numbers and bytes from a table, never past its end."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self._position = 0

    def error(self, text: str) -> PackError:
        """Return the error to raise."""
        return PackError(f"{self._what} {text}; the file is damaged or hostile")

    def take(self, length: int) -> bytes:
        """Return the next ``length`` bytes."""
        start, self._position = self._position, self._position + length
        if self._position > len(self._data):
            raise self.error("ends too early")
        return self._data[start : self._position]

    def number(self) -> int:
        """Return the next number, at most 2**63 - 1."""
        value = 0
        for shift in range(0, 63, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise self.error("has a number that is too long")

    def count(self, what: str) -> int:
        """Return the next number, checked as a count of entries."""
        value = self.number()
        if value > MAX_ENTRIES:
            raise self.error(f"has {value} {what}, over the limit of {MAX_ENTRIES}")
        return value

    def finish(self) -> None:
        """Check that nothing is left."""
        if self._position != len(self._data):
            raise self.error("has bytes after its last entry")
