"""Upkeep of a store: what it holds, what can go, and whether everything is sound."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Callable

from onnxslim.errors import PackError, StoreError
from onnxslim.packing.parallel import Progress, in_order
from onnxslim.store.folder import Folder
from onnxslim.store.objects import StoredObject, sync_folder, verify
from onnxslim.store.record import Key, Record
from onnxslim.store.report import Check, Collected, Listing, StoredModel


def listing(folder: Folder) -> Listing:
    """Return what a store holds; the caller holds its lock.

    Raises:
        StoreError: a damaged record.
    """
    sizes = {item.key: item.stored_bytes for item in _objects(folder)}
    records = list(folder.records())
    users = Counter(key for record in records for key in {key for key, _ in record.objects()})
    models = []
    stored = sum(sizes.values())
    for record in records:
        keys = {key for key, _ in record.objects()}
        own = os.path.getsize(folder.record_path(record.name, record.version))
        stored += own
        needed = sum(sizes.get(key, 0) for key in keys)
        alone = sum(sizes.get(key, 0) for key in keys if users[key] == 1)
        names = tuple(file.name for file in record.files[1:])
        models.append(
            StoredModel(
                record.name, record.version, record.raw_bytes, needed + own, alone + own, names
            )
        )
    return Listing(tuple(models), sum(record.raw_bytes for record in records), stored)


def _objects(folder: Folder) -> list[StoredObject]:
    return [item for item in folder.objects.every() if isinstance(item, StoredObject)]


def collect(folder: Folder) -> Collected:
    """Remove what no model needs; the caller holds the lock alone.

    Nothing is removed before every record has been read: an unreadable one may need anything.

    Raises:
        StoreError: a damaged record.
    """
    needed = {key for record in folder.records() for key, _ in record.objects()}
    removed = freed = 0
    seen: set[Key] = set()
    for item in _objects(folder):
        if item.key in needed and item.key not in seen:
            seen.add(item.key)
            continue
        os.unlink(item.path)  # not needed, or a second copy from two adds at once
        removed, freed = removed + 1, freed + item.stored_bytes
    leftovers = 0
    for path in _leftovers(folder):
        freed += _size(path)
        shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        leftovers += 1
    sync_folder(folder.temporary)
    return Collected(removed, leftovers, freed)


def _leftovers(folder: Folder) -> list[str]:
    """Return temporary files of processes that were killed (others hold the lock)."""
    found = [os.path.join(folder.temporary, name) for name in sorted(os.listdir(folder.temporary))]
    for place in (folder.models, folder.path):
        names = (name for name in sorted(os.listdir(place)) if name.startswith("."))
        found += [os.path.join(place, name) for name in names if name.endswith(".tmp")]
    return found


def _size(path: str) -> int:
    if not os.path.isdir(path):
        return os.path.getsize(path)
    return sum(
        os.path.getsize(os.path.join(place, name))
        for place, _, names in os.walk(path)
        for name in names
    )


def check(folder: Folder, threads: int, progress: Progress) -> Check:
    """Decode every object and compare it with its name; the caller holds the lock."""
    result = Check()
    records: list[Record] = []
    for name, version in folder.references():
        try:
            records.append(folder.record(name, version))
        except StoreError as error:
            path = os.path.relpath(folder.record_path(name, version), folder.path)
            result.damaged[path] = str(error)
            result.models[f"{name}@{version}"] = [path]
    good, bad = _verified(folder, threads, progress, result)
    needed: set[Key] = set()
    missing: set[str] = set()
    for record in records:
        keys = dict(record.objects())
        needed.update(keys)
        faults = sorted(_fault(key, bad) for key in keys if key not in good)
        missing.update(key[0].hex() for key in keys if key not in good and key not in bad)
        if faults:
            result.models[record.reference] = faults
    result.missing = sorted(missing)
    result.unused = len((good | set(bad)) - needed)
    return result


def _fault(key: Key, bad: dict[Key, str]) -> str:
    return bad.get(key, f"missing: {key[0].hex()}")


def _verified(
    folder: Folder, threads: int, progress: Progress, result: Check
) -> tuple[set[Key], dict[Key, str]]:
    """Return the sound objects, and the path of a damaged copy of each other."""

    def task(item: StoredObject) -> Callable[[], tuple[StoredObject, str]]:
        def run() -> tuple[StoredObject, str]:
            try:
                verify(item.path, item.key)
            except (PackError, StoreError) as error:
                return item, str(error)
            return item, ""

        return run

    found = list(folder.objects.every())
    for item in found:
        if isinstance(item, str):
            result.damaged[os.path.relpath(item, folder.path)] = "this is no object of a store"
    items = [item for item in found if isinstance(item, StoredObject)]
    good: set[Key] = set()
    bad: dict[Key, str] = {}
    done, total = 0, max(1, sum(item.stored_bytes for item in items))
    for item, fault in in_order(map(task, items), threads):
        done += item.stored_bytes
        progress("checking", done, total)
        result.objects += 1
        if not fault:
            good.add(item.key)
            continue
        path = os.path.relpath(item.path, folder.path)
        result.damaged[path] = fault
        bad[item.key] = path
    return good - set(bad), bad


def remove_damaged(folder: Folder, result: Check) -> int:
    """Remove the damaged objects that a check found, so that adding their content writes them anew.

    Records are left alone. Returns the number of objects removed.
    """
    removed = 0
    for path in result.damaged:
        if path.startswith("objects" + os.sep):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder.path, path))
                removed += 1
    return removed
