"""Restores a packed model, reading the pack forward only."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import BinaryIO

from onnxslim.errors import ModelSaveError, PackError
from onnxslim.io.atomic import AtomicFile, check_target
from onnxslim.io.source import FileSource
from onnxslim.packing.base import Base
from onnxslim.packing.forward import Forward
from onnxslim.packing.layout import (
    MAGIC,
    MANIFEST,
    TOTAL_LIMIT,
)
from onnxslim.packing.manifest import Manifest
from onnxslim.packing.names import safe_path
from onnxslim.packing.parallel import Progress, no_progress, thread_count
from onnxslim.packing.plan import hash_range
from onnxslim.packing.reader import BaseBytes, needs_base
from onnxslim.packing.restorer import Restorer, Spool, Work

_PIECE = 1 << 20


def unpack(
    source: str | os.PathLike[str] | BinaryIO,
    target: str | os.PathLike[str] | BinaryIO,
    *,
    base: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    limit: int = TOTAL_LIMIT,
    progress: Progress = no_progress,
) -> list[str]:
    """Restore a packed model byte for byte, and its data files beside it.

    The files appear only when every byte has been compared with the stored hashes.

    Args:
        source: Path of the packed file, or a binary stream, which is only read forward.
        target: Path of the model to write, or a binary stream (for models without data files).
        base: The base version (a model or its packed form) that a difference was packed against.
        threads: How many threads to use; None means one for each core.
        limit: Refuse to restore more bytes than this.
        progress: Told how many bytes are done.

    Returns:
        The paths written, the model first; none for a stream.

    Raises:
        PackError: the pack is damaged, hostile, over the limit, or would overwrite other files;
            or its base is missing or another one.
        ModelSaveError: the target cannot be written.
    """
    work = Work(thread_count(threads), progress)
    path = check_target(target) if isinstance(target, (str, os.PathLike)) else None
    with contextlib.ExitStack() as stack:
        forward = _open(source, stack)
        if forward.take(len(MAGIC)) != MAGIC:
            raise PackError(f"{forward.label} is not a packed model (.onnxz)")
        table = forward.table(MANIFEST)
        manifest = Manifest.decode(table, forward.label, limit)
        other = _base_for(manifest, base, forward.label, work.threads)
        if path is None:
            assert not isinstance(target, (str, os.PathLike))
            _to_stream(forward, table, manifest, target, other, work)
            return []
        return _to_files(forward, table, manifest, path, other, work)


def _base_for(
    manifest: Manifest, base: str | os.PathLike[str] | None, label: str, threads: int
) -> BaseBytes | None:
    if not manifest.bases:
        return None
    if base is None:
        raise needs_base(manifest, label)
    return Base(base, threads).for_manifest(manifest, label)


def _open(source: str | os.PathLike[str] | BinaryIO, stack: contextlib.ExitStack) -> Forward:
    if not isinstance(source, (str, os.PathLike)):
        return Forward(source, getattr(source, "label", "the input stream"))
    path = os.fspath(source)
    try:
        stream = stack.enter_context(open(path, "rb"))  # noqa: SIM115
    except OSError as error:
        raise PackError(f"'{path}' cannot be opened: {error.strerror}") from None
    return Forward(stream, f"'{path}'")


def _to_stream(
    forward: Forward,
    table: bytes,
    manifest: Manifest,
    target: BinaryIO,
    base: BaseBytes | None,
    work: Work,
) -> None:
    """Restore into a temporary file first: a pipe cannot take back a wrong byte."""
    if len(manifest.files) > 1:
        names = ", ".join(file.name for file in manifest.files[1:4])
        raise PackError(
            f"{forward.label} has data files ({names}); give a path to unpack to, not a stream"
        )
    spool = Spool()
    with spool.file:
        Restorer(forward, manifest, [spool], base).run(table, work)
        spool.file.seek(0)
        shutil.copyfileobj(spool.file, target, _PIECE)
    target.flush()


def _to_files(
    forward: Forward,
    table: bytes,
    manifest: Manifest,
    path: str,
    base: BaseBytes | None,
    work: Work,
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
            Restorer(forward, manifest, list(files), base).run(table, work)
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
