"""Random access to a packed file: the tensors it holds, and the values of one of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from onnxslim.errors import ModelLoadError, PackError
from onnxslim.io.source import FileSource
from onnxslim.packing.checks import check_frame, check_table, decode_frame, frame_name
from onnxslim.packing.decode import CHEAP
from onnxslim.packing.dtypes import numpy_dtype
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
from onnxslim.packing.listing import PackedModel, PackedTensor
from onnxslim.packing.manifest import Blob, Manifest
from onnxslim.packing.planes import Bytes
from onnxslim.packing.transpose import transposed
from onnxslim.packing.walk import FoundTensor


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
        self.model = PackedModel(manifest, frames, self._label)
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

    def _frame(self, kind: int, number: int, start: int, length: int) -> Bytes:
        """Decode one chunk; the last one stays at hand."""
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
        chunk = decode_frame(header, memoryview(data)[HEADER_SIZE:], where, other)
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
        blob = self.model.manifest.blobs[number]
        frames = self.model.blob_frames(number)
        cheap = all(codec in CHEAP for codec, _ in frames)
        packed = sum(length for _, length in frames)
        if not cheap and blob.length > RATIO_LIMIT * packed + RATIO_SLACK:
            raise PackError(f"{self._label}: tensor #{number} expands over {RATIO_LIMIT} times")
        out = bytearray() if blob.chunk else self._derived(blob)
        start = 0
        for length in blob.chunks():
            out += self._frame(TENSOR, number, start, length).data
            start += length
        if hashlib.sha256(out).digest() != blob.sha256:
            raise PackError(f"{self._label}: tensor #{number} does not match its hash")
        return out

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
        manifest = self.model.manifest
        if offset < 0 or length < 0 or offset + length > manifest.files[file].size:
            raise PackError(f"{self._label}: bytes beyond the end of file #{file} are asked for")
        out = bytearray()
        while length:
            segment = manifest.segments(file)[manifest.segment_at(file, offset)]
            inside = offset - segment.start
            size = min(length, segment.length - inside)
            if segment.blob is None:
                total = manifest.files[file].rest
                place = FILE_BYTES, file, segment.rest_start + inside
                part = self._chunk_part(place, (MAX_CHUNK, total), size)
            else:
                part = self._blob_part(segment.blob, inside, size)
            out += part.data
            offset, length = offset + part.size, length - part.size
        return bytes(out)

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


class RestoredFile:
    """The bytes of one restored file, decoded where they are read."""

    def __init__(self, reader: PackedReader, number: int) -> None:
        """``number`` 0 is the model, others are its data files."""
        self._reader = reader
        self._number = number
        self.size = reader.model.manifest.files[number].size

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes."""
        return self._reader.read_file(self._number, offset, length)

    def peek(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes, but none of another tensor."""
        manifest = self._reader.model.manifest
        segment = manifest.segments(self._number)[manifest.segment_at(self._number, offset)]
        return self.read(offset, min(length, segment.start + segment.length - offset))


def open_packed(source: str | os.PathLike[str] | BinaryIO) -> PackedReader:
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


def list_tensors(source: str | os.PathLike[str] | BinaryIO) -> list[PackedTensor]:
    """List the tensors of a packed model, those of subgraphs and data files too.

    A tensor in the attribute of a node goes by the name of the node's first output if it has
    none of its own.

    Raises:
        PackError: not a sound packed file.
    """
    reader = open_packed(source)
    return list(reader.model.tensors(reader.file(0)))


def read_tensor(source: str | os.PathLike[str] | BinaryIO, name: str) -> npt.NDArray[Any] | bytes:
    """Read one tensor of a packed model, decoding nothing but the graph and its own bytes.

    Returns:
        An array of the tensor's shape; or its bytes as they stand in the model, for types that
        are not a whole number of bytes.

    Raises:
        PackError: no such tensor, several different ones, or values that are not raw data.
    """
    reader = open_packed(source)
    found = [item for item in reader.model.find(reader.file(0)) if item[0].name == name]
    label = reader.model.label
    if not found:
        raise PackError(f"{label} has no tensor '{name}'; list them to see the names")
    contents = {_content(reader, item, name) for item in found}
    if len(contents) > 1:
        raise PackError(f"{label} has {len(contents)} different tensors named '{name}'")
    return _values(contents.pop(), found[0][0], label)


def _content(
    reader: PackedReader, item: tuple[FoundTensor, tuple[int, int, int] | None], name: str
) -> bytes:
    place = item[1]
    if place is None:
        raise PackError(
            f"{reader.model.label}: tensor '{name}' is not stored as raw data; unpack the model "
            "to read it"
        )
    blob = reader.model.blob_of(place)
    return bytes(reader.read_file(*place) if blob is None else reader.read_blob(blob))


def _values(data: bytes, tensor: FoundTensor, label: str) -> npt.NDArray[Any] | bytes:
    dtype = numpy_dtype(tensor.dtype)
    if dtype is None:
        return data
    array: npt.NDArray[Any] = np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)
    try:
        return array.view(dtype).reshape(tensor.shape)
    except ValueError:
        raise PackError(
            f"{label}: tensor '{tensor.name}' of shape {tensor.shape[:16]} has {len(data)} bytes, "
            "which do not fit; the model is invalid"
        ) from None
