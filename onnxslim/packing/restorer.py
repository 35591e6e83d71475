"""Decodes the frames of a packed file into open files."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from onnxslim.errors import ModelSaveError, PackError
from onnxslim.io.source import FileSource
from onnxslim.packing.checks import check_frame, decode_frame, frame_name
from onnxslim.packing.decode import CHEAP
from onnxslim.packing.finished import Finished
from onnxslim.packing.follow import HashFollower
from onnxslim.packing.forms import TransposeOf
from onnxslim.packing.forward import Forward
from onnxslim.packing.layout import (
    FILE_BYTES,
    FOOTER_SIZE,
    HEADER_SIZE,
    INDEX,
    MAX_CHUNK,
    RATIO_LIMIT,
    RATIO_SLACK,
    TENSOR,
    Footer,
    FrameHeader,
    encode_index,
    table_hash,
)
from onnxslim.packing.manifest import Blob, Manifest
from onnxslim.packing.parallel import Progress, in_order
from onnxslim.packing.plan import read_bytes
from onnxslim.packing.planes import Bytes
from onnxslim.packing.reader import BaseBytes, needs_base
from onnxslim.packing.transpose import transposed


class Output(Protocol):
    """An open file to restore into."""

    fd: int


class Spool:
    """A nameless temporary file."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  (closed by the exit stack)
        self.fd = self.file.fileno()


@dataclass(frozen=True)
class Work:
    """How to go about it, and whom to tell."""

    threads: int
    progress: Progress


class Restorer:
    """Decodes the frames of one pack into open files."""

    def __init__(
        self,
        source: Forward,
        manifest: Manifest,
        outputs: list[Output],
        base: BaseBytes | None = None,
    ) -> None:
        self._source = source
        self._manifest = manifest
        self._outputs = outputs
        self._base = base
        self._places: list[list[tuple[int, int]]] = [[] for _ in manifest.blobs]
        for number in range(len(manifest.files)):
            for segment in manifest.segments(number):
                if segment.blob is not None:
                    self._places[segment.blob].append((number, segment.start))
        self._frames: list[tuple[int, int]] = []
        self._restored = 0

    def run(self, manifest_bytes: bytes, work: Work) -> None:
        """Read all frames, the index and the footer, and compare the hash of each file."""
        with contextlib.ExitStack() as stack:
            followers = []
            for output, file in zip(self._outputs, self._manifest.files, strict=True):
                source = FileSource(os.dup(output.fd), None, "the restored file")
                followers.append(HashFollower(source, file.size))
                stack.callback(followers[-1].stop)
            self._write_all(followers, work)
            self._check_end(manifest_bytes)
            self._check_hashes(followers)

    def _write_all(self, followers: list[HashFollower], work: Work) -> None:
        finished = Finished(self._manifest)
        frames = self._manifest.frames()
        done, total = 0, max(1, self._manifest.stored)
        for _ in in_order(self._tasks(), work.threads):
            kind, number, _, length = next(frames)
            finished.add(kind, number, length)
            done += length
            work.progress("unpacking", done, total)
            files = [number] if kind == FILE_BYTES else {file for file, _ in self._places[number]}
            for file in files:
                followers[file].advance(finished.prefix(file))
        for number, blob in enumerate(self._manifest.blobs):
            if not blob.chunk:
                self._write_derived(number, blob)

    def _write_derived(self, number: int, blob: Blob) -> None:
        """Write a tensor that has no frames: what it is made of is already in a file."""
        position = 0
        for data in self._derived(blob):
            for file, start in self._places[number]:
                _write_at(self._outputs[file].fd, data.data, start + position)
            position += data.size

    def _derived(self, blob: Blob) -> Iterator[Bytes]:
        source, base = blob.source, blob.base
        if isinstance(source, TransposeOf):
            read = self._reader_of(source.blob)
            yield from transposed(read, source.width, source.shape, source.perm)
            return
        for start in range(0, blob.length, MAX_CHUNK):
            length = min(MAX_CHUNK, blob.length - start)
            if source is not None:
                yield self._reader_of(source.blob)(source.offset + start, length)
            else:
                assert base is not None
                yield self._base_bytes(base, start, length)

    def _reader_of(self, number: int) -> Callable[[int, int], Bytes]:
        file, place = self._places[number][0]
        source = FileSource(os.dup(self._outputs[file].fd), None, "the restored file")
        return lambda start, length: read_bytes(source, place + start, length)

    def _base_bytes(self, number: int, start: int, length: int) -> Bytes:
        if self._base is None:
            raise needs_base(self._manifest, self._source.label)
        return self._base.read(number, start, length)

    def _tasks(self) -> Iterator[Callable[[], None]]:
        for kind, number, start, length in self._manifest.frames():
            where = frame_name(self._source.label, kind, number, start)
            header = FrameHeader.decode(self._source.take(HEADER_SIZE), where)
            check_frame(header, (kind, number, length), length, where)
            payload = self._source.take(header.packed_length)
            self._frames.append((header.codec, header.packed_length))
            self._check_ratio(header, where)
            yield self._task(header, payload, start, where)

    def _check_ratio(self, header: FrameHeader, where: str) -> None:
        """Refuse what expands too far. Constants, runs and copies of a tensor may: they cost
        little to write, and the limit of all bytes together holds for them too."""
        if header.codec in CHEAP:
            return
        self._restored += header.raw_length
        if self._restored > RATIO_LIMIT * self._source.position + RATIO_SLACK:
            raise PackError(
                f"{where}: the file expands over {RATIO_LIMIT} times; refused as a likely bomb"
            )

    def _task(
        self, header: FrameHeader, payload: bytes, start: int, where: str
    ) -> Callable[[], None]:
        def task() -> None:
            base = None
            if header.kind == TENSOR:
                other = self._manifest.blobs[header.number].base
                if other is not None:
                    base = self._base_bytes(other, start, header.raw_length)
            data = decode_frame(header, payload, where, base)
            if header.kind == FILE_BYTES:
                self._write_rest(header.number, start, data)
                return
            for file, position in self._places[header.number]:
                _write_at(self._outputs[file].fd, data.data, position + start)

        return task

    def _write_rest(self, number: int, start: int, data: Bytes) -> None:
        view = data.data
        used = 0
        for position, size in self._manifest.rest(number, start, data.size):
            _write_at(self._outputs[number].fd, view[used : used + size], position)
            used += size

    def _check_end(self, manifest_bytes: bytes) -> None:
        source = self._source
        position = source.position
        index = source.table(INDEX)
        footer = Footer.decode(source.take(FOOTER_SIZE), source.label)
        source.expect_end()
        if (footer.index_offset, footer.index_length) != (position, len(index)):
            raise PackError(f"{source.label}: the footer does not fit the file; it is damaged")
        if index != encode_index(self._frames):
            raise PackError(f"{source.label}: frames and index differ; the file is damaged")
        if footer.sha256 != table_hash(manifest_bytes, index):
            raise PackError(f"{source.label}: the tables do not match their hash; it is damaged")

    def _check_hashes(self, followers: list[HashFollower]) -> None:
        for file, follower in zip(self._manifest.files, followers, strict=True):
            if follower.result() != file.sha256:
                what = f"data file '{file.name}'" if file.name else "the model"
                raise PackError(
                    f"{self._source.label}: {what} does not match its hash after unpacking; the "
                    "file is damaged or hostile, nothing was written"
                )


def _write_at(fd: int, view: memoryview, position: int) -> None:
    try:
        while view:
            done = os.pwrite(fd, view, position)
            view, position = view[done:], position + done
    except OSError as error:
        raise ModelSaveError(f"the restored file cannot be written: {error.strerror}") from error
