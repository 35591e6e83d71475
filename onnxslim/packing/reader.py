"""Random access to a packed file: the tensors it holds, and the values of one of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import accumulate
from typing import BinaryIO, Protocol

import numpy as np

from onnxslim.errors import ModelLoadError, PackError
from onnxslim.io.source import FileSource
from onnxslim.packing.checks import check_frame, check_table, decode_frame, frame_name
from onnxslim.packing.decode import CHEAP
from onnxslim.packing.forms import SliceOf
from onnxslim.packing.layout import (
    FILE_BYTES,
    FOOTER_SIZE,
    HEADER_SIZE,
    INDEX,
    MAGIC,
    MANIFEST,
    MAX_CHUNK,
    RATIO_LIMIT,
    RATIO_SLACK,
    TENSOR,
    TOTAL_LIMIT,
    Footer,
    FrameHeader,
    decode_index,
    table_hash,
)
from onnxslim.packing.listing import PackTables
from onnxslim.packing.manifest import Blob, Manifest
from onnxslim.packing.planes import Bytes
from onnxslim.packing.restored import RestoredFile
from onnxslim.packing.transpose import transposed


class BaseBytes(Protocol):
    """The tensors of the base version that a packed file refers to."""

    def read(self, number: int, offset: int, length: int) -> Bytes:
        """Return bytes of tensor ``number`` of the base."""
        ...


class PackedReader:
    """An open packed file. Reads only the tables and the frames it is asked for."""

    def __init__(self, source: FileSource, limit: int = TOTAL_LIMIT) -> None:
        """Read and check manifest, index and footer.

        Raises:
            PackError: not a packed file, damaged, or over a limit.
        """
        self._source = source
        self._label = source.label
        self.bytes_read = 0
        self._last: tuple[int, Bytes] | None = None
        self._last_derived: tuple[int, bytearray] | None = None
        self.base: BaseBytes | None = None
        manifest, index = self._tables(limit)
        count = sum(1 for _ in _bounded(manifest, len(index), self._label))
        frames = decode_index(index, count, self._label)
        self.model = PackTables(manifest, frames, self._label)
        start = self._data_start
        lengths = (HEADER_SIZE + length for _, length in frames)
        self._offsets = list(accumulate(lengths, initial=start))
        if self._offsets[-1] != self._footer.index_offset:
            raise PackError(f"{self._label}: the index does not cover the file; it is damaged")

    def _tables(self, limit: int) -> tuple[Manifest, bytes]:
        size = self._source.size
        if size < len(MAGIC) + 2 * HEADER_SIZE + FOOTER_SIZE or self._read(0, 8) != MAGIC:
            raise PackError(f"{self._label} is not a packed model (.onnxz), or it is cut short")
        footer = Footer.decode(self._read(size - FOOTER_SIZE, FOOTER_SIZE), self._label)
        self._footer = footer
        if footer.index_offset + HEADER_SIZE + footer.index_length + FOOTER_SIZE != size:
            raise PackError(f"{self._label}: the footer does not fit the file; it is damaged")
        index = self._table(footer.index_offset, INDEX)
        manifest = self._table(len(MAGIC), MANIFEST)
        self._data_start = len(MAGIC) + HEADER_SIZE + len(manifest)
        if table_hash(manifest, index) != footer.sha256:
            raise PackError(f"{self._label}: the tables do not match their hash; it is damaged")
        return Manifest.decode(manifest, self._label, limit), index

    def _table(self, offset: int, kind: int) -> bytes:
        where = f"{self._label}: {'index' if kind == INDEX else 'manifest'}"
        header = FrameHeader.decode(self._read(offset, HEADER_SIZE), where)
        check_table(header, kind, where)
        return self._read(offset + HEADER_SIZE, header.raw_length)

    def _read(self, offset: int, length: int) -> bytes:
        if offset + length > self._source.size:
            raise PackError(f"{self._label} is cut short or damaged; get the file again")
        self.bytes_read += length
        try:
            return self._source.read(offset, length)
        except ModelLoadError as error:
            raise PackError(str(error)) from error

    def _frame(
        self, kind: int, number: int, start: int, length: int, target: Bytes | None = None
    ) -> Bytes:
        """Decode one chunk; the last one stays at hand, unless it may be in ``target``."""
        position = self.model.frame_at(kind, number, start)
        last = self._last  # read once: another thread may replace it
        if last is not None and last[0] == position:
            return last[1]
        where = frame_name(self._label, kind, number, start)
        codec, packed = self.model.frames[position]
        if packed > length:
            raise PackError(f"{where}: a payload of {packed} bytes is not possible")
        data = self._read(self._offsets[position], HEADER_SIZE + packed)
        header = FrameHeader.decode(data[:HEADER_SIZE], where)
        check_frame(header, (kind, number, length), length, where)
        if (header.codec, header.packed_length) != (codec, packed):
            raise PackError(f"{where}: frame and index differ; the file is damaged or hostile")
        other = None
        if kind == TENSOR and (base := self.model.manifest.blobs[number].base) is not None:
            other = self._base_bytes(base, start, length)
        chunk = decode_frame(header, memoryview(data)[HEADER_SIZE:], where, other, target)
        if target is None:
            self._last = position, chunk
        return chunk

    def _base_bytes(self, number: int, start: int, length: int) -> Bytes:
        if self.base is None:
            raise needs_base(self.model.manifest, self._label)
        return self.base.read(number, start, length)

    def read_blob(self, number: int) -> bytearray:
        """Return the bytes of a tensor, compared with its hash.

        Raises:
            PackError: damaged, far more than so small a file should hold, or a base is missing.
        """
        self.check_expansion(number)
        blob = self.model.manifest.blobs[number]
        out = bytearray() if blob.chunk else self._derived(blob)
        start = 0
        for length in blob.chunks():
            out += self.chunk(number, start, length).data
            start += length
        self.check_hash(number, out)
        return out

    def check_expansion(self, number: int) -> None:
        """Check, before memory is taken for a tensor, that its frames may hold so much.

        Raises:
            PackError: far more than so few bytes should hold.
        """
        length = self.model.manifest.blobs[number].length
        frames = self.model.blob_frames(number)
        cheap = all(codec in CHEAP for codec, _ in frames)
        packed = sum(size for _, size in frames)
        if not cheap and length > RATIO_LIMIT * packed + RATIO_SLACK:
            raise PackError(f"{self._label}: tensor #{number} expands over {RATIO_LIMIT} times")

    def chunk(self, number: int, start: int, length: int) -> Bytes:
        """Return the chunk of a tensor that starts at byte ``start`` and has ``length`` bytes."""
        return self._frame(TENSOR, number, start, length)

    def chunk_into(self, number: int, start: int, target: Bytes) -> None:
        """Decode the chunk of a tensor that starts at byte ``start`` and fills ``target``."""
        chunk = self._frame(TENSOR, number, start, target.size, target)
        if not np.may_share_memory(chunk, target):
            target[:] = chunk

    def check_hash(self, number: int, data: bytearray | memoryview) -> None:
        """Compare all bytes of a tensor with its hash.

        Raises:
            PackError: they differ.
        """
        if hashlib.sha256(data).digest() != self.model.manifest.blobs[number].sha256:
            raise PackError(f"{self._label}: tensor #{number} does not match its hash")

    def _derived(self, blob: Blob) -> bytearray:
        """Make a tensor that has no frames of its own."""
        source = blob.source
        if source is None:
            assert blob.base is not None
            return bytearray(self._base_bytes(blob.base, 0, blob.length).data)
        whole = self.read_blob(source.blob)
        if isinstance(source, SliceOf):
            return whole[source.offset : source.offset + blob.length]
        view = np.frombuffer(whole, np.uint8)
        parts = transposed(
            lambda start, size: view[start : start + size],
            source.width,
            source.shape,
            source.perm,
        )
        out = bytearray()
        for part in parts:
            out += part.data
        return out

    def read_file(self, file: int, offset: int, length: int) -> bytes:
        """Return a range of a restored file, decoding only the chunks that cover it."""
        if length < 0 or length > self.model.manifest.files[file].size:
            raise PackError(f"{self._label}: bytes beyond the end of file #{file} are asked for")
        out = bytearray(length)
        self.read_file_into(file, offset, memoryview(out))
        return bytes(out)

    def read_file_into(self, file: int, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from a restored file, decoding only the chunks that cover it."""
        manifest = self.model.manifest
        if offset < 0 or offset + len(buffer) > manifest.files[file].size:
            raise PackError(f"{self._label}: bytes beyond the end of file #{file} are asked for")
        done = 0
        while done < len(buffer):
            place = offset + done
            segment = manifest.segments(file)[manifest.segment_at(file, place)]
            inside = place - segment.start
            size = min(len(buffer) - done, segment.length - inside)
            if segment.blob is None:
                total = manifest.files[file].rest
                start = FILE_BYTES, file, segment.rest_start + inside
                part = self._chunk_part(start, (MAX_CHUNK, total), size)
            else:
                part = self._blob_part(segment.blob, inside, size)
            buffer[done : done + part.size] = part.data
            done += part.size

    def _blob_part(self, number: int, start: int, length: int) -> Bytes:
        """Return bytes of a tensor from ``start``: up to ``length`` of them, at least one."""
        blob = self.model.manifest.blobs[number]
        if blob.chunk:
            return self._chunk_part((TENSOR, number, start), (blob.chunk, blob.length), length)
        if isinstance(blob.source, SliceOf):
            return self._blob_part(blob.source.blob, blob.source.offset + start, length)
        if blob.base is not None:
            return self._base_bytes(blob.base, start, min(length, MAX_CHUNK))
        last = self._last_derived
        if last is None or last[0] != number:
            self._last_derived = last = number, self.read_blob(number)
        return np.frombuffer(last[1], np.uint8)[start : start + length]

    def _chunk_part(
        self, place: tuple[int, int, int], sizes: tuple[int, int], length: int
    ) -> Bytes:
        """Return bytes of one chunk; ``sizes`` are those of a chunk and of all of them."""
        kind, number, start = place
        first = start // sizes[0] * sizes[0]
        data = self._frame(kind, number, first, min(sizes[0], sizes[1] - first))
        return data[start - first : start - first + length]

    def file(self, number: int) -> RestoredFile:
        """Return a restored file as something to read from."""
        return RestoredFile(self, number)

    def check_unchanged(self) -> None:
        """Raise ModelLoadError if the packed file was modified since it was opened."""
        self._source.check_unchanged()


def _bounded(manifest: Manifest, index_length: int, label: str) -> Iterator[None]:
    """Count frames, but stop where the index cannot name so many."""
    for count, _ in enumerate(manifest.frames()):
        if 2 * count > index_length:
            raise PackError(f"{label}: the index is too short; the file is damaged or hostile")
        yield None


def needs_base(manifest: Manifest, label: str) -> PackError:
    """Return the error for a packed file whose base was not given."""
    return PackError(
        f"{label} was packed against a base version (SHA-256 of its model "
        f"{manifest.base_sha256.hex()[:16]}…); give that model too (--base)"
    )


def open_reader(source: str | os.PathLike[str] | BinaryIO) -> PackedReader:
    """Open a packed file for random access; a stream must be a real, seekable file.

    Raises:
        PackError: it cannot be opened or is not a sound packed file.
    """
    if not isinstance(source, (str, os.PathLike)):
        try:
            descriptor = os.dup(source.fileno())
        except OSError:
            raise PackError("this stream is not a file; save it and give its path") from None
        return PackedReader(FileSource(descriptor, None, "the input stream"))
    path = os.fspath(source)
    try:
        return PackedReader(FileSource.open(os.path.realpath(path), f"'{path}'"))
    except ModelLoadError as error:
        raise PackError(str(error)) from None


def is_packed(path: str | os.PathLike[str]) -> bool:
    """Whether a file starts like a packed model. False for what cannot be opened."""
    try:
        with open(path, "rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False
