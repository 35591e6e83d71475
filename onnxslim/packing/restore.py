"""Restores a packed model, reading the pack forward only."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

from onnxslim.errors import ModelSaveError, PackError
from onnxslim.io.atomic import AtomicFile, check_target
from onnxslim.io.source import FileSource
from onnxslim.packing.base import Base
from onnxslim.packing.checks import check_frame, check_table, decode_frame, frame_name
from onnxslim.packing.decode import CHEAP
from onnxslim.packing.finished import Finished
from onnxslim.packing.follow import HashFollower
from onnxslim.packing.forms import TransposeOf
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
    encode_index,
    table_hash,
)
from onnxslim.packing.manifest import Blob, Manifest
from onnxslim.packing.names import safe_path
from onnxslim.packing.parallel import in_order, thread_count
from onnxslim.packing.plan import hash_range, read_bytes
from onnxslim.packing.planes import Bytes
from onnxslim.packing.reader import BaseBytes, needs_base
from onnxslim.packing.transpose import transposed

_PIECE = 1 << 20


class _Forward:
    """Reads a stream of unknown length; nothing is allocated before its bytes have come."""

    def __init__(self, stream: BinaryIO, label: str) -> None:
        self._stream = stream
        self.label = label
        self.position = 0

    def take(self, length: int) -> bytes:
        """Return exactly ``length`` bytes."""
        pieces: list[bytes] = []
        missing = length
        while missing:
            piece = self._stream.read(min(missing, _PIECE))
            if not piece:
                raise PackError(
                    f"{self.label} is cut short after byte {self.position}; get the file again"
                )
            pieces.append(piece)
            missing -= len(piece)
            self.position += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def table(self, kind: int) -> bytes:
        """Return the manifest or the index, whose frame comes next."""
        where = f"{self.label}: {'index' if kind == INDEX else 'manifest'}"
        header = FrameHeader.decode(self.take(HEADER_SIZE), where)
        check_table(header, kind, where)
        data = self.take(header.raw_length)
        if zlib.crc32(data) != header.crc:
            raise PackError(f"{where}: checksum mismatch; the file is damaged, get it again")
        return data

    def expect_end(self) -> None:
        """Check that nothing follows."""
        if self._stream.read(1):
            raise PackError(f"{self.label} has bytes after its end; the file is damaged")


class _Output(Protocol):
    """An open file to restore into."""

    fd: int


class _Spool:
    """A nameless temporary file."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  (closed by the exit stack)
        self.fd = self.file.fileno()


class _Restorer:
    """Decodes the frames of one pack into open files."""

    def __init__(
        self,
        source: _Forward,
        manifest: Manifest,
        outputs: list[_Output],
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

    def run(self, manifest_bytes: bytes, threads: int) -> None:
        """Read all frames, the index and the footer, and compare the hash of each file."""
        with contextlib.ExitStack() as stack:
            followers = []
            for output, file in zip(self._outputs, self._manifest.files, strict=True):
                source = FileSource(os.dup(output.fd), None, "the restored file")
                followers.append(HashFollower(source, file.size))
                stack.callback(followers[-1].stop)
            self._write_all(followers, threads)
            self._check_end(manifest_bytes)
            self._check_hashes(followers)

    def _write_all(self, followers: list[HashFollower], threads: int) -> None:
        finished = Finished(self._manifest)
        frames = self._manifest.frames()
        for _ in in_order(self._tasks(), threads):
            kind, number, _, length = next(frames)
            finished.add(kind, number, length)
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


def unpack(
    source: str | os.PathLike[str] | BinaryIO,
    target: str | os.PathLike[str] | BinaryIO,
    *,
    base: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    limit: int = TOTAL_LIMIT,
) -> list[str]:
    """Restore a packed model byte for byte, and its data files beside it.

    The files appear only when every byte has been compared with the stored hashes.

    Args:
        source: Path of the packed file, or a binary stream, which is only read forward.
        target: Path of the model to write, or a binary stream (for models without data files).
        base: The base version (a model or its packed form) that a difference was packed against.
        threads: How many threads to use; None means one for each core.
        limit: Refuse to restore more bytes than this.

    Returns:
        The paths written, the model first; none for a stream.

    Raises:
        PackError: the pack is damaged, hostile, over the limit, or would overwrite other files;
            or its base is missing or another one.
        ModelSaveError: the target cannot be written.
    """
    count = thread_count(threads)
    path = check_target(target) if isinstance(target, (str, os.PathLike)) else None
    with contextlib.ExitStack() as stack:
        forward = _open(source, stack)
        if forward.take(len(MAGIC)) != MAGIC:
            raise PackError(f"{forward.label} is not a packed model (.onnxz)")
        table = forward.table(MANIFEST)
        manifest = Manifest.decode(table, forward.label, limit)
        other = _base_for(manifest, base, forward.label, count)
        if path is None:
            assert not isinstance(target, (str, os.PathLike))
            _to_stream(forward, table, manifest, target, other, count)
            return []
        return _to_files(forward, table, manifest, path, other, count)


def _base_for(
    manifest: Manifest, base: str | os.PathLike[str] | None, label: str, threads: int
) -> BaseBytes | None:
    if not manifest.bases:
        return None
    if base is None:
        raise needs_base(manifest, label)
    return Base(base, threads).for_manifest(manifest, label)


def _open(source: str | os.PathLike[str] | BinaryIO, stack: contextlib.ExitStack) -> _Forward:
    if not isinstance(source, (str, os.PathLike)):
        return _Forward(source, "the input stream")
    path = os.fspath(source)
    try:
        stream = stack.enter_context(open(path, "rb"))  # noqa: SIM115
    except OSError as error:
        raise PackError(f"'{path}' cannot be opened: {error.strerror}") from None
    return _Forward(stream, f"'{path}'")


def _to_stream(
    forward: _Forward,
    table: bytes,
    manifest: Manifest,
    target: BinaryIO,
    base: BaseBytes | None,
    threads: int,
) -> None:
    """Restore into a temporary file first: a pipe cannot take back a wrong byte."""
    if len(manifest.files) > 1:
        names = ", ".join(file.name for file in manifest.files[1:4])
        raise PackError(
            f"{forward.label} has data files ({names}); give a path to unpack to, not a stream"
        )
    spool = _Spool()
    with spool.file:
        _Restorer(forward, manifest, [spool], base).run(table, threads)
        spool.file.seek(0)
        shutil.copyfileobj(spool.file, target, _PIECE)
    target.flush()


def _to_files(
    forward: _Forward,
    table: bytes,
    manifest: Manifest,
    path: str,
    base: BaseBytes | None,
    threads: int,
) -> list[str]:
    folder = os.path.dirname(path)
    paths = [path]
    for file in manifest.files[1:]:
        beside = safe_path(folder, file.name, forward.label)
        _check_free(beside, path, file.size, file.sha256, forward.label)
        paths.append(beside)
    made: list[str] = []
    try:
        with contextlib.ExitStack() as stack:
            for beside in paths[1:]:
                _make_folders(folder, os.path.dirname(beside), made)
            files = [stack.enter_context(AtomicFile(item)) for item in paths]
            _Restorer(forward, manifest, list(files), base).run(table, threads)
            for output in files:
                output.flush()
            for output in reversed(files):  # the model last: it is of no use without its data
                output.commit()
    except BaseException:
        for item in reversed(made):
            with contextlib.suppress(OSError):  # not empty: a data file was already in place
                os.rmdir(item)
        raise
    return paths


def _make_folders(base: str, folder: str, made: list[str]) -> None:
    missing = []
    while folder != base and not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for item in reversed(missing):
        try:
            os.mkdir(item)
        except OSError as error:
            raise ModelSaveError(f"folder '{item}' cannot be made: {error.strerror}") from error
        made.append(item)


def _check_free(path: str, model: str, size: int, sha: bytes, label: str) -> None:
    """Refuse to replace a file that is anything but this very data file."""
    if os.path.normcase(path) == os.path.normcase(model):
        raise PackError(f"{label}: a data file has the name of the model; choose another target")
    if not os.path.lexists(path):
        return
    if os.path.isfile(path):
        existing = FileSource.open(path, f"'{path}'")
        if existing.size == size and hash_range(existing, 0, size) == sha:
            return
    raise PackError(
        f"{label}: '{path}' exists and is not the data file to restore there; move it away or "
        "unpack into another folder"
    )
