"""What stands where in a packed file: limits, frame headers, index and footer.

``docs/format.md`` is the specification; this module and ``manifest`` are the only ones that know
the byte layout. Everything here is given bytes of unknown origin, so every number is checked
before it is used.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass

from onnxslim.errors import PackError

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
"""Decoded bytes for each packed byte, except for constants and runs."""

RATIO_SLACK = 64 << 20
"""Decoded bytes to which the ratio is not applied."""

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
    cursor = Cursor(data, f"{where}: the index")
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


class Cursor:
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
