"""Decoders of all codecs. Each payload must give exactly the announced number of bytes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np

from onnxslim.errors import PackError
from onnxslim.packing import delta, zstd
from onnxslim.packing.optional import brotli_decompress, pco_decompress
from onnxslim.packing.planes import WIDTHS, Bytes, join, rotate_back

RAW, FILL, RLE, ZLIB_HUFFMAN, ZLIB_RLE, ZSTD, PLANES, BITMAP, PCO, BROTLI = range(10)
XOR, DIFF, CODEBOOK, ZLIB = range(10, 14)

NAMES = {
    RAW: "raw",
    FILL: "fill",
    RLE: "rle",
    ZLIB_HUFFMAN: "zlib-huffman",
    ZLIB_RLE: "zlib-rle",
    ZSTD: "zstd",
    PLANES: "rot-planes",
    BITMAP: "bitmap+values",
    PCO: "pcodec",
    BROTLI: "brotli",
    XOR: "xor-delta",
    DIFF: "int-diff",
    CODEBOOK: "codebook",
    ZLIB: "zlib",
}

SIMPLE = frozenset((RAW, FILL, ZLIB_HUFFMAN, ZLIB_RLE, ZSTD, ZLIB))
"""Codecs of plain bytes; only these may stand inside planes, bitmaps and palettes."""

_VALUES = SIMPLE | {PLANES, PCO, BROTLI}

DELTAS = frozenset((XOR, DIFF))
"""Codecs that need the bytes of a base version."""

CHEAP = frozenset((FILL, RLE)) | DELTAS
"""Codecs whose frames may expand as far as they like: runs, and differences to bytes at hand."""

MAX_FILL = 16

_INNER = struct.Struct("<BI")

Decoder = Callable[[memoryview, int, str], Bytes]


def decode(
    codec: int,
    payload: bytes | memoryview,
    length: int,
    where: str,
    base: Bytes | None = None,
    target: Bytes | None = None,
) -> Bytes:
    """Decode a payload to ``length`` bytes.

    Args:
        codec: Number of the codec.
        payload: The packed bytes, of any origin.
        length: Bytes of the result; the caller has checked that so many may be allocated.
        where: Names file, tensor and chunk in messages.
        base: The ``length`` bytes of the base version that stand in the same place, if any.
        target: Memory of ``length`` bytes that may be used for the result, or may not.

    Raises:
        PackError: a codec that is unknown or needs a package or a base that is missing, or a
            payload that does not fit.
    """
    if codec not in NAMES:
        raise PackError(f"{where}: unknown codec {codec}; a newer version may read this file")
    if not payload or not length:
        raise _damaged(where, codec)
    if codec in DELTAS:
        data = _delta(codec, memoryview(payload), length, where, base)
    elif codec == PLANES:
        data = _planes(memoryview(payload), length, where, target)
    else:
        data = _DECODERS[codec](memoryview(payload), length, where)
    if data.nbytes != length:
        raise _damaged(where, codec)
    return data


def _delta(codec: int, payload: memoryview, length: int, where: str, base: Bytes | None) -> Bytes:
    if base is None:
        raise PackError(f"{where}: a difference to a base stands here, but the tensor has none")
    start = 0 if codec == XOR else 2
    if len(payload) <= start:
        raise _damaged(where, codec)
    width, is_float = (payload[0], payload[1]) if start else (1, 0)
    if width not in (1, *WIDTHS) or length % width or is_float > (width > 1):
        raise _damaged(where, codec)
    data, position = _inner(payload, start, length, _DIFFERENCES, where)
    if position != len(payload):
        raise _damaged(where, codec)
    if codec == XOR:
        return delta.xor(data, base)
    return delta.restored(data, base, width, bool(is_float))


def _damaged(where: str, codec: int) -> PackError:
    return PackError(f"{where}: the {NAMES[codec]} payload is damaged; get the file again")


def _raw(payload: memoryview, length: int, where: str) -> Bytes:
    return np.frombuffer(payload, np.uint8)


def _fill(payload: memoryview, length: int, where: str) -> Bytes:
    size = len(payload)
    if not 1 <= size <= MAX_FILL or length % size:
        raise _damaged(where, FILL)
    if size == 1:
        return np.full(length, payload[0], np.uint8)
    return np.tile(np.frombuffer(payload, np.uint8), length // size)


def _rle(payload: memoryview, length: int, where: str) -> Bytes:
    if len(payload) < 5:
        raise _damaged(where, RLE)
    width, count = payload[0], int.from_bytes(payload[1:5], "little")
    if not width or not count or len(payload) != 5 + count * (4 + width) or length % width:
        raise _damaged(where, RLE)
    runs = np.frombuffer(payload[5 : 5 + 4 * count], "<u4")
    if int(runs.sum(dtype=np.uint64)) != length // width:
        raise _damaged(where, RLE)
    values = np.frombuffer(payload[5 + 4 * count :], np.uint8).reshape(count, width)
    return np.repeat(values, runs.astype(np.int64), axis=0).reshape(-1)


def _inflate(payload: memoryview, length: int, where: str) -> Bytes:
    machine = zlib.decompressobj()
    try:
        data = machine.decompress(payload, length + 1)
    except zlib.error as error:
        raise PackError(f"{where}: the zlib data is damaged ({error})") from None
    if len(data) != length or not machine.eof or machine.unused_data:
        raise _damaged(where, ZLIB)
    return np.frombuffer(data, np.uint8)


def _zstd(payload: memoryview, length: int, where: str) -> Bytes:
    return np.frombuffer(zstd.decompress(payload, length, where), np.uint8)


def _inner(
    payload: memoryview, position: int, length: int, allowed: frozenset[int], where: str
) -> tuple[Bytes, int]:
    """Decode an embedded payload; return its bytes and the position after it."""
    if position + _INNER.size > len(payload):
        raise PackError(f"{where}: the payload ends too early")
    codec, size = _INNER.unpack_from(payload, position)
    start = position + _INNER.size
    if codec not in allowed or start + size > len(payload):
        raise PackError(f"{where}: codec {codec} cannot stand here, or its payload is cut short")
    return decode(codec, payload[start : start + size], length, where), start + size


def _planes(payload: memoryview, length: int, where: str, target: Bytes | None = None) -> Bytes:
    if len(payload) < 2 or payload[0] not in WIDTHS or payload[1] > 1 or length % payload[0]:
        raise _damaged(where, PLANES)
    width, turned = payload[0], payload[1]
    groups: list[tuple[int, int, Bytes]] = []
    plane, position = 0, 2
    while plane < width:
        count = payload[position] if position < len(payload) else 0
        if count not in (1, 2) or plane % count or plane + count > width:
            raise _damaged(where, PLANES)
        data, position = _inner(payload, position + 1, length // width * count, SIMPLE, where)
        groups.append((plane, count, data))
        plane += count
    if position != len(payload):
        raise _damaged(where, PLANES)
    words = join(groups, width, length, target)
    if turned:
        rotate_back(words)
    return words.view(np.uint8)


def _bitmap(payload: memoryview, length: int, where: str) -> Bytes:
    if len(payload) < 6 or payload[0] not in (1, *WIDTHS) or length % payload[0] or payload[1] > 1:
        raise _damaged(where, BITMAP)
    width, signed, count = payload[0], payload[1], int.from_bytes(payload[2:6], "little")
    total = length // width
    if not 1 <= count <= total - signed:
        raise _damaged(where, BITMAP)
    bits, position = _inner(payload, 6, (total + 7) // 8, SIMPLE, where)
    mask = np.unpackbits(bits, count=total).view(np.bool_)
    out = np.zeros(total, f"<u{width}")
    if signed:
        signs, position = _inner(payload, position, (total - count + 7) // 8, SIMPLE, where)
    values, position = _inner(payload, position, count * width, _VALUES, where)
    if position != len(payload) or int(np.count_nonzero(mask)) != count:
        raise _damaged(where, BITMAP)
    if signed:
        negative = np.unpackbits(signs, count=total - count).astype(out.dtype)
        out[~mask] = negative << np.array(8 * width - 1, out.dtype)
    out[mask] = values.view(f"<u{width}")
    return out.view(np.uint8)


def _codebook(payload: memoryview, length: int, where: str) -> Bytes:
    if len(payload) < 2 or payload[0] not in WIDTHS or length % payload[0]:
        raise _damaged(where, CODEBOOK)
    width, count = payload[0], payload[1] + 1
    start = 2 + count * width
    if start > len(payload):
        raise _damaged(where, CODEBOOK)
    table = np.frombuffer(payload[2:start], f"<u{width}")
    indices, position = _inner(payload, start, length // width, SIMPLE, where)
    if position != len(payload) or (indices.size and int(indices.max()) >= count):
        raise _damaged(where, CODEBOOK)
    return table[indices].view(np.uint8)


def _pco(payload: memoryview, length: int, where: str) -> Bytes:
    data = pco_decompress(payload, length, where)
    if data is None:
        raise _damaged(where, PCO)
    return data


def _brotli(payload: memoryview, length: int, where: str) -> Bytes:
    data = brotli_decompress(payload, length, where)
    if data is None:
        raise _damaged(where, BROTLI)
    return data


_DECODERS: dict[int, Decoder] = {
    RAW: _raw,
    FILL: _fill,
    RLE: _rle,
    ZLIB_HUFFMAN: _inflate,
    ZLIB_RLE: _inflate,
    ZSTD: _zstd,
    PLANES: _planes,
    BITMAP: _bitmap,
    PCO: _pco,
    BROTLI: _brotli,
    CODEBOOK: _codebook,
    ZLIB: _inflate,
}
_DIFFERENCES = frozenset(_DECODERS)


def inner(codec: int, payload: bytes) -> bytes:
    """Return an embedded payload with its head."""
    return _INNER.pack(codec, len(payload)) + payload
