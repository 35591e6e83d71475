"""How the bytes of a tensor are given in a packed file: stored, or derived from others."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxslim.packing.layout import Cursor, varint
from onnxslim.packing.transpose import MAX_RANK, row_bytes

STORED, DELTA, BASE_COPY, SLICE, TRANSPOSED = range(5)

MAX_ROW = 1 << 26
"""Bytes of the least piece in which a transposed tensor can be restored."""

MAX_TRANSPOSED = 1 << 32
"""Bytes of a transposed tensor: it is restored in several passes over its source."""


@dataclass(frozen=True)
class SliceOf:
    """The bytes from ``offset`` of a stored tensor."""

    blob: int
    offset: int


@dataclass(frozen=True)
class TransposeOf:
    """A stored tensor of ``shape``, with its axes in the order ``perm``."""

    blob: int
    width: int
    shape: tuple[int, ...]
    perm: tuple[int, ...]


Source = SliceOf | TransposeOf


@dataclass(frozen=True)
class BaseTensor:
    """A tensor of the base version, known by its bytes."""

    length: int
    sha256: bytes


def encode_form(stored: bool, base: int | None, source: Source | None) -> bytes:
    """Return the form of a tensor as bytes; see the specification."""
    if isinstance(source, SliceOf):
        return bytes([SLICE]) + varint(source.blob) + varint(source.offset)
    if isinstance(source, TransposeOf):
        head = bytes([TRANSPOSED]) + varint(source.blob)
        dims = b"".join(varint(size) for size in source.shape)
        return head + bytes([source.width, len(source.shape)]) + dims + bytes(source.perm)
    if base is not None:
        return bytes([DELTA if stored else BASE_COPY]) + varint(base)
    return bytes([STORED])


def decode_form(
    cursor: Cursor, stored: bool, length: int, bases: list[BaseTensor]
) -> tuple[int | None, Source | None]:
    """Read a form; return the number in the base and the source, where there are any.

    Raises:
        PackError: an unknown form, or one that does not fit the tensor.
    """
    form = cursor.take(1)[0]
    if form > TRANSPOSED or stored != (form in (STORED, DELTA)):
        raise cursor.error(f"has a tensor of form {form} that does not fit it")
    if form in (DELTA, BASE_COPY):
        base = cursor.number()
        if base >= len(bases) or bases[base].length != length:
            raise cursor.error(f"refers to tensor {base} of the base, which does not fit")
        return base, None
    if form == SLICE:
        return None, SliceOf(cursor.number(), cursor.number())
    if form == TRANSPOSED:
        return None, _decode_transpose(cursor, length)
    return None, None


def _decode_transpose(cursor: Cursor, length: int) -> TransposeOf:
    blob, (width, rank) = cursor.number(), cursor.take(2)
    if not 1 <= rank <= MAX_RANK or not 1 <= width <= 16:
        raise cursor.error(f"has a transposed tensor of rank {rank} and width {width}")
    shape = tuple(cursor.number() for _ in range(rank))
    perm = tuple(cursor.take(rank))
    fits = math.prod(shape) * width == length and sorted(perm) == list(range(rank))
    if not fits or length > MAX_TRANSPOSED or row_bytes(length, shape, perm) > MAX_ROW:
        raise cursor.error(f"has a transposed tensor of shape {shape} that does not fit")
    return TransposeOf(blob, width, shape, perm)
