"""A stored model as the bytes of a packed file, put together from its objects."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from onnxslim.errors import StoreError
from onnxslim.packing.decode import RAW
from onnxslim.packing.layout import (
    FILE_BYTES,
    HEADER_SIZE,
    INDEX,
    MAGIC,
    MANIFEST,
    TENSOR,
    TOTAL_LIMIT,
    Footer,
    FrameHeader,
    encode_index,
    table_hash,
)
from onnxslim.packing.manifest import Manifest
from onnxslim.store.objects import Objects, first_header, frames
from onnxslim.store.record import Key, Record


class PackStream:
    """Reads forward like a file; nothing is decoded, and one frame is in memory at a time."""

    def __init__(self, record: Record, objects: Objects, label: str) -> None:
        """Look for all objects.

        Raises:
            StoreError: one is missing.
            PackError: one is damaged at its beginning, or the record contradicts itself.
        """
        self.label = label
        self._record = record
        self._paths: dict[Key, str] = {}
        for key, _ in record.objects():
            path = objects.find(key)
            if path is None:
                raise StoreError(
                    f"{label}: object {key[0].hex()} is missing; check the store (fsck), and add a "
                    "model that holds it again"
                )
            self._paths[key] = path
        chunks = {key[0]: first_header(self._paths[key]).raw_length for key in self._paths}
        self._manifest = record.manifest(chunks).encode()
        Manifest.decode(self._manifest, label, TOTAL_LIMIT)  # what a reader would refuse, now
        self._pieces = self._produce()
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes, none at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = piece
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def _produce(self) -> Iterator[bytes]:
        yield MAGIC
        position = len(MAGIC)
        packed: list[tuple[int, int]] = []
        yield _table(MANIFEST, 0, self._manifest)
        position += HEADER_SIZE + len(self._manifest)
        for kind, number, key, length in self._places():
            path = self._paths[key]
            for header, payload in frames(path, length):
                size = header.packed_length
                own = FrameHeader(kind, header.codec, number, header.raw_length, size, header.crc)
                packed.append((header.codec, size))
                position += HEADER_SIZE + size
                yield own.encode() + payload
        index = encode_index(packed)
        yield _table(INDEX, len(packed) & 0xFFFFFFFF, index)
        yield Footer(position, len(index), table_hash(self._manifest, index)).encode()

    def _places(self) -> Iterator[tuple[int, int, Key, int]]:
        for number, file in enumerate(self._record.files):
            if file.rest_length:
                yield FILE_BYTES, number, (file.rest, True), file.rest_length
        for number, tensor in enumerate(self._record.tensors):
            if tensor.source is None:
                yield TENSOR, number, (tensor.sha256, False), tensor.length


def _table(kind: int, number: int, payload: bytes) -> bytes:
    size = len(payload)
    return FrameHeader(kind, RAW, number, size, size, zlib.crc32(payload)).encode() + payload
