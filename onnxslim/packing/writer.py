"""Packs a model: the file's bytes with its tensors cut out, and each distinct tensor once."""

from __future__ import annotations

import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from onnxslim.io.atomic import AtomicFile, check_target
from onnxslim.io.source import FileSource
from onnxslim.packing.against import apply_base
from onnxslim.packing.base import Base
from onnxslim.packing.decode import RAW
from onnxslim.packing.encode import encode, encode_rest, profile_named
from onnxslim.packing.layout import (
    FILE_BYTES,
    HEADER_SIZE,
    INDEX,
    MAGIC,
    MANIFEST,
    Footer,
    FrameHeader,
    encode_index,
    table_hash,
)
from onnxslim.packing.listing import PackedTensor, PackTables
from onnxslim.packing.parallel import Progress, in_order, no_progress, thread_count
from onnxslim.packing.plan import ModelBytes, Plan, make_plan, relate
from onnxslim.packing.planes import Bytes

_MUCH_REST = 2 << 20  # bytes besides tensors, from which on speed counts more than their size


@dataclass(frozen=True)
class PackReport:
    """Result of :func:`pack`: bytes of the model with its data files, and of the packed file."""

    raw_bytes: int
    packed_bytes: int
    profile: str
    tensors: tuple[PackedTensor, ...]

    @property
    def ratio(self) -> float:
        """Raw bytes for each packed byte."""
        return self.raw_bytes / self.packed_bytes


def pack(
    source: str | os.PathLike[str] | BinaryIO,
    target: str | os.PathLike[str] | BinaryIO,
    *,
    profile: str = "default",
    base: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> PackReport:
    """Pack an ONNX file and its external data files into one ``.onnxz`` file, without loss.

    The result depends only on the bytes, the profile and the versions of the compressors, not
    on the number of threads. Memory stays within a few chunks of 4 MiB for each thread.

    Args:
        source: Path of the model, or an open binary stream (which cannot have data files).
        target: Path to write (it appears complete or not at all), or an open binary stream.
        profile: ``default`` (fast), ``max`` (smallest, slow) or ``stdlib`` (can be read without
            the package zstandard).
        base: An earlier version of the model, or its packed form: tensors are stored as
            references and differences to it where that is shorter, and unpacking needs it again.
        threads: How many threads to use; None means one for each core.
        progress: Told how many bytes are done.

    Raises:
        PackError: the source is not an ONNX model or its data files are missing or unsafe.
        ModelLoadError: the source cannot be read, or it changed meanwhile.
        ModelSaveError: the target cannot be written.
        UsageError: an unknown profile.
    """
    chosen = profile_named(profile)
    count = thread_count(threads)
    path = check_target(target) if isinstance(target, (str, os.PathLike)) else None
    progress("reading", 0, 1)
    main = _open(source)
    old = None if base is None else Base(base, count)
    lengths = {item.cut.length for item in old.items} if old else set()
    plan = make_plan(main, chosen, count, relate=True, keep=lengths)
    if old is not None:
        apply_base(plan, old, count)
    relate(plan)
    if path is None:
        assert not isinstance(target, (str, os.PathLike))
        return _write(plan, target, count, progress)
    with AtomicFile(path) as file:
        with os.fdopen(os.dup(file.fd), "wb") as stream:
            report = _write(plan, stream, count, progress)
        file.commit()
    return report


def _open(source: str | os.PathLike[str] | BinaryIO) -> FileSource:
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        return FileSource.open(os.path.realpath(path), f"'{path}'")
    with tempfile.TemporaryFile() as spool:  # the walk needs to skip, a pipe cannot
        shutil.copyfileobj(source, spool, 1 << 20)
        spool.flush()
        return FileSource(os.dup(spool.fileno()), None, "the input stream")


def _write(plan: Plan, stream: BinaryIO, threads: int, progress: Progress) -> PackReport:
    """Write the packed file in one pass."""
    manifest = plan.manifest.encode()
    stream.write(MAGIC)
    position = len(MAGIC) + _write_frame(stream, *_table_frame(MANIFEST, 0, manifest))
    frames: list[tuple[int, int]] = []
    done, total = 0, max(1, plan.manifest.stored)
    for header, payload in in_order(_tasks(plan), threads):
        frames.append((header.codec, len(payload)))
        done += header.raw_length
        progress("packing", done, total)
        position += _write_frame(stream, header, payload)
    index = encode_index(frames)
    footer = Footer(position, len(index), table_hash(manifest, index)).encode()
    position += _write_frame(stream, *_table_frame(INDEX, len(frames) & 0xFFFFFFFF, index))
    stream.write(footer)
    stream.flush()
    for source in plan.sources:
        source.check_unchanged()
    model = PackTables(plan.manifest, frames, plan.sources[0].label)
    return PackReport(
        raw_bytes=plan.manifest.total,
        packed_bytes=position + len(footer),
        profile=plan.profile.name,
        tensors=tuple(model.tensors(ModelBytes(plan.sources[0]))),
    )


def _table_frame(kind: int, number: int, payload: bytes) -> tuple[FrameHeader, bytes]:
    size = len(payload)
    return FrameHeader(kind, RAW, number, size, size, zlib.crc32(payload)), payload


def _write_frame(stream: BinaryIO, header: FrameHeader, payload: bytes) -> int:
    stream.write(header.encode())
    stream.write(payload)
    return HEADER_SIZE + len(payload)


def _tasks(plan: Plan) -> Iterator[Callable[[], tuple[FrameHeader, bytes]]]:
    def task(kind: int, number: int, start: int, length: int) -> Callable[[], _Frame]:
        encoder = rest_frame if kind == FILE_BYTES else tensor_frame
        return lambda: encoder(plan, kind, number, start, length)

    for frame in plan.manifest.frames():
        yield task(*frame)


_Frame = tuple[FrameHeader, bytes]


def _frame(kind: int, number: int, data: Bytes, encoded: tuple[int, bytes]) -> _Frame:
    codec, payload = encoded
    crc = zlib.crc32(data.data)
    return FrameHeader(kind, codec, number, data.size, len(payload), crc), payload


def rest_frame(plan: Plan, kind: int, number: int, start: int, length: int) -> _Frame:
    """Encode bytes ``start`` to ``start + length`` of what is left of file ``number``."""
    parts = [
        plan.read(number, place, size) for place, size in plan.manifest.rest(number, start, length)
    ]
    data = np.concatenate(parts)
    hurried = plan.manifest.files[number].rest > _MUCH_REST and not plan.profile.exhaustive
    encoded = encode_rest(data, plan.profile, hurried=hurried, guarded=plan.guarded)
    return _frame(kind, number, data, encoded)


def tensor_frame(plan: Plan, kind: int, number: int, start: int, length: int) -> _Frame:
    """Encode bytes ``start`` to ``start + length`` of tensor ``number``."""
    origin = plan.origins[number]
    data = plan.read(origin.file, origin.offset + start, length)
    delta, encoded = plan.deltas.get(number), None
    if delta is not None:
        base = plan.manifest.blobs[number].base
        assert plan.base is not None and base is not None  # noqa: PT018
        encoded = delta.encode(data, plan.base.read(base, start, length), plan.profile)
    if encoded is None:
        encoded = encode(
            data, origin.width, plan.recipes(number), plan.profile, guarded=plan.guarded
        )
    return _frame(kind, number, data, encoded)
