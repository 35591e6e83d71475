"""The store: add, get, list, remove, collect, check."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from onnxslim.errors import ModelLoadError, PackError, StoreError, UsageError
from onnxslim.io.atomic import AtomicFile, check_target
from onnxslim.io.source import FileSource
from onnxslim.packing import is_packed, unpack
from onnxslim.packing.encode import profile_named
from onnxslim.packing.parallel import Progress, no_progress, thread_count
from onnxslim.store import upkeep
from onnxslim.store.adding import describe, plan_of, write_missing
from onnxslim.store.folder import Folder
from onnxslim.store.names import check_name, default_name, split_reference
from onnxslim.store.objects import sync_folder
from onnxslim.store.record import Record
from onnxslim.store.report import Added, Check, Collected, Listing
from onnxslim.store.stream import PackStream

PACKED_SUFFIX = ".onnxz"


class Store:
    """Models in a folder, by name and version; equal tensors are stored once.

    Any number of processes may add, get and remove at the same time. A process that is killed
    leaves a valid store.
    """

    def __init__(self, path: str | os.PathLike[str], *, create: bool = True) -> None:
        """Open a store.

        Args:
            path: Its folder.
            create: Make a missing or empty folder a store.

        Raises:
            StoreError: the folder is not a store and cannot become one.
        """
        self._folder = Folder(os.fspath(path))
        self._folder.open(create=create)

    def add(
        self,
        source: str | os.PathLike[str],
        name: str | None = None,
        version: str | None = None,
        *,
        profile: str = "default",
        base: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        progress: Progress = no_progress,
    ) -> Added:
        """Add a model with its data files.

        Args:
            source: Path of the model; of a packed model, the files it holds are added.
            name: Its name; that of the file if None. ``NAME@VERSION`` is possible.
            version: Its version; if None, the next number, or the version that holds the same
                files already.
            profile: How tensors are packed that are new: ``default``, ``max`` or ``stdlib``.
            base: The base version that a packed difference needs.
            threads: How many threads to use; None means one for each core.
            progress: Told how many bytes are done.

        Raises:
            PackError: the source is not an ONNX model, or its data files are missing or unsafe.
            ModelLoadError: the source cannot be read, or changed meanwhile.
            StoreError: the version holds other files.
            UsageError: a name that cannot be used.
        """
        name, version = _named(source, name, version)
        chosen, count = profile_named(profile), thread_count(threads)
        with self._folder.used(), self._plain(source, base, count) as path:
            progress("reading", 0, 1)
            plan = plan_of(_open(path, source), chosen, count)
            files, tensors = describe(plan)
            written = write_missing(plan, files, self._folder.objects, count, progress)
            for item in plan.sources:
                item.check_unchanged()
            with self._folder.naming():
                record, known = self._number(Record(name, version or "", files, tensors))
                size = 0 if known else self._folder.write_record(record)
        return Added(
            name=record.name,
            version=record.version,
            raw_bytes=record.raw_bytes,
            new_bytes=written.stored_bytes + size,
            shared_bytes=written.shared_bytes,
            known=known,
        )

    def _number(self, record: Record) -> tuple[Record, bool]:
        """Give a record its version; say whether the store has it already."""
        versions = self._folder.versions(record.name)
        candidates = [record.version] if record.version else versions
        for version in candidates:
            if version in versions:
                other = self._folder.record(record.name, version)
                if other.same_files(record):
                    return other, True
                if record.version:
                    raise StoreError(
                        f"store '{self._folder.shown}' has another model {record.reference}; give "
                        "another version, or remove that one first"
                    )
        number = max((int(item) for item in versions if item.isdecimal()), default=0) + 1
        version = record.version or str(number)
        return Record(record.name, version, record.files, record.tensors), False

    @contextmanager
    def _plain(
        self,
        source: str | os.PathLike[str],
        base: str | os.PathLike[str] | None,
        threads: int,
    ) -> Iterator[str]:
        """Yield the path of the model itself: a packed one is unpacked for as long as it takes."""
        if not is_packed(source):
            yield os.fspath(source)
            return
        folder = tempfile.mkdtemp(dir=self._folder.temporary)
        try:
            path = os.path.join(folder, "model.onnx")
            unpack(source, path, base=base, threads=threads)
            yield path
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def get(
        self,
        reference: str,
        target: str | os.PathLike[str] | BinaryIO,
        *,
        threads: int | None = None,
        progress: Progress = no_progress,
    ) -> list[str]:
        """Give a model back, byte for byte, with its data files beside it.

        Args:
            reference: ``NAME@VERSION``, or ``NAME`` for the latest version.
            target: Where to write; a path ending in ``.onnxz`` gets a packed model. Or a binary
                stream, for models without data files.
            threads: How many threads to use; None means one for each core.
            progress: Told how many bytes are done.

        Returns:
            The paths written, the model first; none for a stream.

        Raises:
            StoreError: no such model, or an object is missing.
            PackError: an object is damaged, or a data file would replace another file.
            ModelSaveError: the target cannot be written.
        """
        name, version = split_reference(reference)
        with self._folder.used():
            record = self._find(name, version)
            label = f"{record.reference} of store '{self._folder.shown}'"
            stream = PackStream(record, self._folder.objects, label)
            if isinstance(target, (str, os.PathLike)):
                path = os.fspath(target)
                if path.endswith(PACKED_SUFFIX):
                    return [_write_packed(stream, path)]
            return unpack(cast(BinaryIO, stream), target, threads=threads, progress=progress)

    def _find(self, name: str, version: str | None) -> Record:
        versions = self._folder.versions(name)
        if not versions:
            known = sorted({other for other, _ in self._folder.references()})
            hint = f"; it has {', '.join(known[:5])}" if known else "; it is empty"
            raise StoreError(f"store '{self._folder.shown}' has no model '{name}'{hint}")
        if version is not None and version not in versions:
            raise StoreError(
                f"store '{self._folder.shown}' has no version '{version}' of '{name}'; it has "
                f"{', '.join(versions[-5:])}"
            )
        return self._folder.record(name, version or versions[-1])

    def models(self) -> Listing:
        """List the models, and how many bytes they take.

        Raises:
            StoreError: a record is damaged.
        """
        with self._folder.used():
            return upkeep.listing(self._folder)

    def remove(self, reference: str) -> list[str]:
        """Take a model off the list; its objects stay until `collect`.

        Args:
            reference: ``NAME@VERSION``; ``NAME`` alone if there is one version only.

        Returns:
            The references removed.

        Raises:
            StoreError: no such model.
            UsageError: the name has several versions.
        """
        name, version = split_reference(reference)
        with self._folder.used(), self._folder.naming():
            versions = self._folder.versions(name)
            if version is None and len(versions) > 1:
                raise UsageError(
                    f"'{name}' has {len(versions)} versions; say which: {name}@{versions[-1]}"
                )
            if not versions or (version is not None and version not in versions):
                raise StoreError(f"store '{self._folder.shown}' has no model '{reference}'")
            chosen = version or versions[0]
            os.unlink(self._folder.record_path(name, chosen))
            sync_folder(self._folder.models)
        return [f"{name}@{chosen}"]

    def collect(self) -> Collected:
        """Remove objects that no model needs; waits until nobody else uses the store.

        Raises:
            StoreError: a record is damaged, so that nothing can be said to be unused.
        """
        with self._folder.alone():
            return upkeep.collect(self._folder)

    def check(
        self,
        *,
        remove_damaged: bool = False,
        threads: int | None = None,
        progress: Progress = no_progress,
    ) -> Check:
        """Decode every object, compare it with its hash, and say which models are hit.

        Args:
            remove_damaged: Remove damaged objects, so that adding a model that holds their content
                mends the store.
            threads: How many threads to use; None means one for each core.
            progress: Told how many bytes are done.
        """
        count = thread_count(threads)
        with self._folder.alone() if remove_damaged else self._folder.used():
            result = upkeep.check(self._folder, count, progress)
            if remove_damaged:
                upkeep.remove_damaged(self._folder, result)
        return result


def _named(
    source: str | os.PathLike[str], name: str | None, version: str | None
) -> tuple[str, str | None]:
    if name is None:
        name = default_name(os.fspath(source))
    elif "@" in name:
        if version is not None:
            raise UsageError(f"'{name}' names a version already; leave out version {version!r}")
        name, version = split_reference(name)
    return check_name(name), None if version is None else check_name(version, "version")


def _open(path: str, shown: str | os.PathLike[str]) -> FileSource:
    try:
        return FileSource.open(os.path.realpath(path), f"'{os.fspath(shown)}'")
    except ModelLoadError as error:
        raise PackError(str(error)) from None


def _write_packed(stream: PackStream, target: str) -> str:
    path = check_target(target)
    with AtomicFile(path) as file:
        with os.fdopen(os.dup(file.fd), "wb") as out:
            while piece := stream.read(1 << 20):
                out.write(piece)
        file.commit()
    return path
