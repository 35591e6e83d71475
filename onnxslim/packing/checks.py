"""Checks that both readers, forward and random access, make on each frame."""

from __future__ import annotations

import zlib

from onnxslim.errors import PackError
from onnxslim.packing.decode import RAW, decode
from onnxslim.packing.layout import FILE_BYTES, MAX_TABLE, FrameHeader
from onnxslim.packing.planes import Bytes


def check_frame(
    header: FrameHeader, expected: tuple[int, int, int], payload_limit: int, where: str
) -> None:
    """Compare a header with (kind, number, raw length) that must stand here.

    Raises:
        PackError: another frame, or a payload longer than ``payload_limit`` bytes.
    """
    if (header.kind, header.number, header.raw_length) != expected:
        raise PackError(f"{where}: another frame stands here; the file is damaged or hostile")
    if not 0 < header.packed_length <= payload_limit:
        raise PackError(f"{where}: a payload of {header.packed_length} bytes is not possible")


def check_table(header: FrameHeader, kind: int, where: str) -> None:
    """Check the header of a manifest or an index.

    Raises:
        PackError: another frame, packed, or too long.
    """
    plain = header.kind == kind and header.codec == RAW
    if not plain or header.raw_length != header.packed_length:
        raise PackError(f"{where}: another frame stands here; the file is damaged or hostile")
    if header.raw_length > MAX_TABLE:
        raise PackError(f"{where}: a table of {header.raw_length} bytes is over the limit")


def frame_name(label: str, kind: int, number: int, start: int) -> str:
    """Return the name of a data frame for messages."""
    what = "graph of file" if kind == FILE_BYTES else "tensor"
    return f"{label}: {what} #{number}, byte {start}"


def decode_frame(
    header: FrameHeader,
    payload: bytes | memoryview,
    where: str,
    base: Bytes | None = None,
    target: Bytes | None = None,
) -> Bytes:
    """Decode a payload and compare its checksum; ``base`` and ``target`` as for ``decode``.

    Raises:
        PackError: damaged.
    """
    data = decode(header.codec, payload, header.raw_length, where, base, target)
    if zlib.crc32(data.data) != header.crc:
        raise PackError(f"{where}: checksum mismatch; the file is damaged, get it again")
    return data
