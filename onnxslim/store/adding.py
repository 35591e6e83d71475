"""Takes a model apart into objects and writes those that a store lacks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from onnxslim.io.source import FileSource
from onnxslim.packing.encode import Profile
from onnxslim.packing.layout import FILE_BYTES, MAX_CHUNK, TENSOR, FrameHeader
from onnxslim.packing.parallel import Progress, in_order
from onnxslim.packing.plan import Plan, make_plan, relate
from onnxslim.packing.writer import rest_frame, tensor_frame
from onnxslim.store.objects import Objects, ObjectWriter
from onnxslim.store.record import Key, StoredFile, Tensor

# From so many bytes a tensor is an object of its own even if it packs better with the rest: in
# another model it may stand elsewhere. Smaller ones cost more as files than they save.
ALONE_FROM = 4096


def plan_of(source: FileSource, profile: Profile, threads: int) -> Plan:
    """Find and hash the tensors of a model.

    Raises:
        PackError: the file is not an ONNX model, or a data file is missing or unsafe to read.
    """
    plan = make_plan(source, profile, threads, relate=True, alone_from=ALONE_FROM)
    plan.shared = True
    relate(plan)
    return plan


def describe(plan: Plan) -> tuple[tuple[StoredFile, ...], tuple[Tensor, ...]]:
    """Return what a record says of the files and tensors of a plan."""
    files = tuple(
        StoredFile(
            file.name, file.size, file.sha256, _rest_hash(plan, number), file.rest, file.splices
        )
        for number, file in enumerate(plan.manifest.files)
    )
    blobs = plan.manifest.blobs
    return files, tuple(Tensor(blob.sha256, blob.length, blob.source) for blob in blobs)


def _rest_hash(plan: Plan, number: int) -> bytes:
    digest = hashlib.sha256()
    for offset, length in plan.manifest.rest(number, 0, plan.manifest.files[number].rest):
        for start in range(0, length, MAX_CHUNK):
            size = min(MAX_CHUNK, length - start)
            digest.update(plan.read(number, offset + start, size).data)
    return digest.digest()


@dataclass(frozen=True)
class _Missing:
    """An object to write: its key, and its kind, number and length in the plan."""

    key: Key
    kind: int
    number: int
    length: int


@dataclass(frozen=True)
class Written:
    """Bytes of the objects written, and raw bytes of the tensors that were there already."""

    stored_bytes: int
    shared_bytes: int


def write_missing(
    plan: Plan,
    files: tuple[StoredFile, ...],
    objects: Objects,
    threads: int,
    progress: Progress,
) -> Written:
    """Write the objects of a plan that are not there yet; they are on disk when this returns."""
    missing: list[_Missing] = []
    shared = 0
    for item in _needed(plan, files):
        if objects.find(item.key) is None:
            missing.append(item)
        else:
            shared += item.length
    stored = _write(plan, missing, objects, threads, progress)
    objects.sync()
    return Written(stored, shared)


def _needed(plan: Plan, files: tuple[StoredFile, ...]) -> Iterator[_Missing]:
    for number, file in enumerate(files):
        if file.rest_length:
            yield _Missing((file.rest, True), FILE_BYTES, number, file.rest_length)
    for number, blob in enumerate(plan.manifest.blobs):
        if blob.chunk:
            yield _Missing((blob.sha256, False), TENSOR, number, blob.length)


def _write(
    plan: Plan, missing: list[_Missing], objects: Objects, threads: int, progress: Progress
) -> int:
    done, total, stored = 0, max(1, sum(item.length for item in missing)), 0
    encoded = in_order(_tasks(plan, missing), threads)
    for item in missing:
        writer = objects.writer(item.key)
        try:
            left = item.length
            while left:
                header, payload = next(encoded)
                writer.write(header, payload)
                left -= header.raw_length
                done += header.raw_length
                progress("storing", done, total)
        except BaseException:
            writer.discard()
            raise
        _finish(writer)
        stored += writer.stored_bytes
    return stored


def _finish(writer: ObjectWriter) -> None:
    try:
        writer.finish()
    except BaseException:
        writer.discard()
        raise


def _tasks(
    plan: Plan, missing: list[_Missing]
) -> Iterator[Callable[[], tuple[FrameHeader, bytes]]]:
    def task(item: _Missing, start: int, length: int) -> Callable[[], tuple[FrameHeader, bytes]]:
        encoder = rest_frame if item.kind == FILE_BYTES else tensor_frame
        return lambda: encoder(plan, item.kind, item.number, start, length)

    for item in missing:
        whole = MAX_CHUNK if item.kind == FILE_BYTES else plan.manifest.blobs[item.number].chunk
        for start in range(0, item.length, whole):
            yield task(item, start, min(whole, item.length - start))
