"""The codecs of packages that are not always there: pcodec and brotli (extra ``pack``)."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from onnxslim.errors import PackError
from onnxslim.packing.planes import Bytes

PACKAGES = ("pcodec", "brotli")

PCO_TYPES = ("<u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8")
"""What pcodec takes the elements for; the first byte of its payload is an index into this."""

_PIECE = 1 << 20


def package(name: str, where: str) -> Any:
    """Import an optional package.

    Raises:
        PackError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise PackError(
            f"{where} needs the package '{name}'; install it with pip install 'onnxslim[pack]'"
        ) from None


def check_available() -> None:
    """Raise PackError if a package that writing with the profile ``max`` needs is missing."""
    for name in PACKAGES:
        package(name, "profile 'max'")


def pco_compress(data: Bytes, type_number: int) -> bytes:
    """Return a payload of elements of type ``PCO_TYPES[type_number]``."""
    pcodec = package("pcodec", "profile 'max'")
    values = data.view(PCO_TYPES[type_number])
    config = pcodec.ChunkConfig(compression_level=8, enable_8_bit=True)
    body: bytes = importlib.import_module("pcodec.standalone").simple_compress(values, config)
    return bytes([type_number]) + body


def pco_decompress(payload: memoryview, length: int, where: str) -> Bytes | None:
    """Decode into memory of exactly ``length`` bytes; None if the payload does not fit."""
    package("pcodec", where)
    kind = payload[0]
    if kind >= len(PCO_TYPES) or length % np.dtype(PCO_TYPES[kind]).itemsize:
        return None
    out = np.zeros(length, np.uint8)
    values = out.view(PCO_TYPES[kind])
    into = importlib.import_module("pcodec.standalone").simple_decompress_into
    try:
        progress = into(bytes(payload[1:]), values)
    except (RuntimeError, TypeError, ValueError):
        return None
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # how the package reports some damage
            return None
        raise
    if progress.n_processed != values.size or not progress.finished:
        return None
    return out


def brotli_compress(data: Bytes) -> bytes:
    """Return the bytes as a brotli stream of the highest quality."""
    packed: bytes = package("brotli", "profile 'max'").compress(
        data.tobytes(), quality=11, lgwin=22
    )
    return packed


def brotli_decompress(payload: memoryview, length: int, where: str) -> Bytes | None:
    """Decode at most ``length`` bytes; None if the stream is another length or damaged."""
    brotli = package("brotli", where)
    machine = brotli.Decompressor()
    out = bytearray()
    data = bytes(payload)
    try:
        while not machine.is_finished():
            piece = machine.process(data, output_buffer_limit=min(_PIECE, length + 1 - len(out)))
            out += piece
            if len(out) > length or (not piece and not machine.is_finished()):
                return None
            data = b""
    except brotli.error:
        return None
    return np.frombuffer(bytes(out), np.uint8) if len(out) == length else None
