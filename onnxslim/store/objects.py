"""The objects of a store: the frames of one tensor, or of the rest of one file, each in a file.

An object is called after the SHA-256 of its content, so equal content is stored once, and whatever
its file holds can be compared with its name. The ending is the codec that most of it is packed
with, or ``graph`` for the rest of a file; it says nothing that a reader needs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from onnxslim.errors import PackError, StoreError
from onnxslim.packing.checks import decode_frame
from onnxslim.packing.decode import NAMES
from onnxslim.packing.layout import (
    FILE_BYTES,
    HEADER_SIZE,
    MAX_CHUNK,
    TENSOR,
    FrameHeader,
)
from onnxslim.store.record import Key

_GRAPH = "graph"
_NAME = re.compile(r"([0-9a-f]{64})\.([a-z0-9+-]+)", re.ASCII)


@dataclass(frozen=True)
class StoredObject:
    """An object on disk."""

    path: str
    key: Key
    stored_bytes: int


class Objects:
    """The folder of objects. Writing needs the lock of the store, in whatever way."""

    def __init__(self, folder: str, temporary: str) -> None:
        self._folder = folder
        self._temporary = temporary
        self._touched: set[str] = set()

    def find(self, key: Key) -> str | None:
        """Return the path of an object, or None. Of several with the same content, any will do."""
        sha, is_rest = key[0].hex(), key[1]
        try:
            names = os.listdir(os.path.join(self._folder, sha[:2]))
        except FileNotFoundError:
            return None
        for name in sorted(names):
            match = _NAME.fullmatch(name)
            if match and match[1] == sha and (match[2] == _GRAPH) == is_rest:
                return os.path.join(self._folder, sha[:2], name)
        return None

    def every(self) -> Iterator[StoredObject | str]:
        """Yield all objects; the path alone of a file that is none."""
        for part in sorted(os.listdir(self._folder)):
            folder = os.path.join(self._folder, part)
            if not os.path.isdir(folder):
                yield folder
                continue
            for name in sorted(os.listdir(folder)):
                path = os.path.join(folder, name)
                match = _NAME.fullmatch(name)
                if match is None or match[1][:2] != part:
                    yield path
                    continue
                key = bytes.fromhex(match[1]), match[2] == _GRAPH
                yield StoredObject(path, key, os.path.getsize(path))

    def writer(self, key: Key) -> ObjectWriter:
        """Return something to write a new object with."""
        return ObjectWriter(self, key, os.path.join(self._temporary, secrets.token_hex(12)))

    def place(self, temporary: str, key: Key, codec: str) -> None:
        """Move a complete file to where the object belongs."""
        folder = os.path.join(self._folder, key[0].hex()[:2])
        os.makedirs(folder, exist_ok=True)
        os.replace(temporary, os.path.join(folder, f"{key[0].hex()}.{codec}"))
        self._touched.update((folder, self._folder))

    def sync(self) -> None:
        """Bring the new names to the disk."""
        for folder in self._touched:
            sync_folder(folder)
        self._touched.clear()


class ObjectWriter:
    """Writes the frames of one object; it appears when it is complete."""

    def __init__(self, objects: Objects, key: Key, path: str) -> None:
        self._objects = objects
        self._key = key
        self._path = path
        self._sizes: dict[int, int] = {}
        self._stream = open(path, "xb")  # noqa: SIM115  (closed by finish or discard)
        self.stored_bytes = 0

    def write(self, header: FrameHeader, payload: bytes) -> None:
        """Write one frame; those of an object come in order."""
        kind = FILE_BYTES if self._key[1] else TENSOR
        plain = FrameHeader(
            kind, header.codec, 0, header.raw_length, header.packed_length, header.crc
        )
        self._stream.write(plain.encode())
        self._stream.write(payload)
        self.stored_bytes += HEADER_SIZE + len(payload)
        self._sizes[header.codec] = self._sizes.get(header.codec, 0) + len(payload)

    def finish(self) -> None:
        """Bring the bytes to the disk, then give the object its name."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        codec = max(sorted(self._sizes), key=lambda item: self._sizes[item])
        self._objects.place(self._path, self._key, _GRAPH if self._key[1] else NAMES[codec])

    def discard(self) -> None:
        """Remove what was written so far."""
        self._stream.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


def frames(path: str, length: int) -> Iterator[tuple[FrameHeader, bytes]]:
    """Yield the frames of an object with ``length`` bytes of content.

    Raises:
        StoreError: it cannot be read, or is not of this length.
        PackError: a damaged header.
    """
    try:
        stream = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise StoreError(f"object '{path}' cannot be opened: {error.strerror}") from None
    with stream:
        found = 0
        while head := stream.read(HEADER_SIZE):
            header = _header(head, path)
            payload = stream.read(header.packed_length)
            found += header.raw_length
            if len(payload) != header.packed_length or found > length:
                raise _damaged(path)
            yield header, payload
        if found != length:
            raise _damaged(path)


def first_header(path: str) -> FrameHeader:
    """Return the header of the first frame, which tells how the content is cut.

    Raises:
        StoreError: it cannot be read.
        PackError: damaged.
    """
    try:
        with open(path, "rb") as stream:
            return _header(stream.read(HEADER_SIZE), path)
    except OSError as error:
        raise StoreError(f"object '{path}' cannot be opened: {error.strerror}") from None


def _header(data: bytes, path: str) -> FrameHeader:
    if len(data) != HEADER_SIZE:
        raise _damaged(path)
    header = FrameHeader.decode(data, f"object '{path}'")
    if not 0 < header.packed_length <= header.raw_length <= MAX_CHUNK:
        raise _damaged(path)
    return header


def _damaged(path: str) -> PackError:
    return PackError(f"object '{path}' is damaged: its frames do not fit")


def verify(path: str, key: Key) -> None:
    """Decode an object and compare it with its name.

    Raises:
        StoreError: it cannot be read.
        PackError: damaged.
    """
    digest = hashlib.sha256()
    try:
        size = os.path.getsize(path)
        stream = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise StoreError(f"object '{path}' cannot be opened: {error.strerror}") from None
    with stream:
        while stream.tell() < size:
            header = _header(stream.read(HEADER_SIZE), path)
            payload = stream.read(header.packed_length)
            if len(payload) != header.packed_length:
                raise _damaged(path)
            digest.update(decode_frame(header, payload, f"object '{path}'").data)
    if digest.digest() != key[0]:
        raise PackError(f"object '{path}' is damaged: its content does not match its name")


def sync_folder(path: str) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some file systems refuse it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
