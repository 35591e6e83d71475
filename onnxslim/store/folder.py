"""The folder of a store: where things are, which models it lists, and its locks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager

from onnxslim.errors import StoreError
from onnxslim.io.atomic import AtomicFile
from onnxslim.store.lock import locked
from onnxslim.store.names import version_key
from onnxslim.store.objects import Objects
from onnxslim.store.record import Record

MARKER = "onnxslim-store.json"
_CONTENT = b'{"format": 1}\n'
_RECORD = re.compile(r"([^.@][^@]*)@([^@]+)\.json")


class Folder:
    """Paths and locks of one store."""

    def __init__(self, path: str) -> None:
        self.path = os.path.realpath(path)
        self.shown = path
        self.models = os.path.join(self.path, "models")
        self.temporary = os.path.join(self.path, "tmp")
        self.objects = Objects(os.path.join(self.path, "objects"), self.temporary)

    def open(self, *, create: bool) -> None:
        """Check that this is a store; make one of a missing or empty folder if asked to.

        Raises:
            StoreError: it is not a store and cannot become one, or of a newer version.
        """
        marker = os.path.join(self.path, MARKER)
        try:
            if create and not os.path.exists(marker):
                os.makedirs(self.path, exist_ok=True)
                used = [name for name in os.listdir(self.path) if not name.startswith(".")]
                if used and not os.path.exists(marker):
                    raise StoreError(
                        f"folder '{self.shown}' is not a store, and not empty; give a new folder"
                    )
                with AtomicFile(marker) as file:
                    os.write(file.fd, _CONTENT)
                    file.commit()
            with open(marker, "rb") as stream:
                content = stream.read(1000)
            for folder in (self.models, self.temporary, os.path.join(self.path, "objects")):
                os.makedirs(folder, exist_ok=True)
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(
                f"'{self.shown}' is not a store; `onnxslim store add` makes one"
            ) from None
        except OSError as error:
            raise StoreError(f"store '{self.shown}': {error.strerror}") from error
        if content != _CONTENT:
            raise StoreError(f"store '{self.shown}' has a format that this version cannot read")

    def used(self) -> AbstractContextManager[None]:
        """Keep everything in its place while others may add, too."""
        return locked(os.path.join(self.path, "lock"), alone=False)

    def alone(self) -> AbstractContextManager[None]:
        """Be the only one at work."""
        return locked(os.path.join(self.path, "lock"), alone=True)

    def naming(self) -> AbstractContextManager[None]:
        """Be the only one who gives or takes names."""
        return locked(os.path.join(self.path, "names.lock"), alone=True)

    def record_path(self, name: str, version: str) -> str:
        """Return the path of a record; name and version have been checked."""
        return os.path.join(self.models, f"{name}@{version}.json")

    def references(self) -> list[tuple[str, str]]:
        """Return name and version of all listed models, in order."""
        matches = (_RECORD.fullmatch(name) for name in os.listdir(self.models))
        found = [(match[1], match[2]) for match in matches if match]
        return sorted(found, key=lambda item: (item[0], version_key(item[1])))

    def versions(self, name: str) -> list[str]:
        """Return the versions of a name, in order."""
        return [version for other, version in self.references() if other == name]

    def record(self, name: str, version: str) -> Record:
        """Read the record of a model.

        Raises:
            StoreError: there is none, or it is damaged.
        """
        path = self.record_path(name, version)
        try:
            with open(path, "rb") as stream:
                data = stream.read()
        except FileNotFoundError:
            raise StoreError(f"store '{self.shown}' has no model {name}@{version}") from None
        except OSError as error:
            raise StoreError(f"record '{path}' cannot be read: {error.strerror}") from error
        record = Record.decode(data, f"record '{path}'")
        if (record.name, record.version) != (name, version):
            raise StoreError(f"record '{path}' is that of {record.reference}; it was moved")
        return record

    def records(self) -> Iterator[Record]:
        """Yield the records of all models.

        Raises:
            StoreError: one is damaged.
        """
        for name, version in self.references():
            yield self.record(name, version)

    def write_record(self, record: Record) -> int:
        """Write a record; return its bytes."""
        data = record.encode()
        with AtomicFile(self.record_path(record.name, record.version)) as file:
            with os.fdopen(os.dup(file.fd), "wb") as stream:
                stream.write(data)
            file.commit()
        return len(data)
