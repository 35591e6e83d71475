"""The record of a stored model: its files, and the objects they are made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from onnxslim.errors import PackError, StoreError
from onnxslim.packing.forms import SliceOf, Source, TransposeOf
from onnxslim.packing.manifest import Blob, Manifest, PackedFile
from onnxslim.store.names import check_name

FORMAT = 1


@dataclass(frozen=True)
class Tensor:
    """A tensor of a model: an object, or derived from another tensor of the same model."""

    sha256: bytes
    length: int
    source: Source | None = None


@dataclass(frozen=True)
class StoredFile:
    """A file. ``rest`` is the hash of the bytes that belong to no tensor."""

    name: str
    size: int
    sha256: bytes
    rest: bytes
    rest_length: int
    splices: tuple[tuple[int, int], ...]


Key = tuple[bytes, bool]
"""Of an object: the hash of its content, and whether it is the rest of a file."""


@dataclass(frozen=True)
class Record:
    """Everything needed to give a model back, besides the objects."""

    name: str
    version: str
    files: tuple[StoredFile, ...]
    tensors: tuple[Tensor, ...]

    @property
    def reference(self) -> str:
        """Return ``name@version``."""
        return f"{self.name}@{self.version}"

    @property
    def raw_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def objects(self) -> Iterator[tuple[Key, int]]:
        """Yield each object it needs, and the bytes of its content."""
        for file in self.files:
            if file.rest_length:
                yield (file.rest, True), file.rest_length
        for tensor in self.tensors:
            if tensor.source is None:
                yield (tensor.sha256, False), tensor.length

    def same_files(self, other: Record) -> bool:
        """Whether both give back the same bytes under the same names."""
        own, its = (
            [(file.name, file.size, file.sha256) for file in record.files]
            for record in (self, other)
        )
        return own == its

    def manifest(self, chunks: dict[bytes, int]) -> Manifest:
        """Return the manifest of a packed file; ``chunks`` says how each object is cut."""
        blobs = [
            Blob(
                item.length,
                0 if item.source is not None else chunks[item.sha256],
                item.sha256,
                source=item.source,
            )
            for item in self.tensors
        ]
        files = [
            PackedFile(file.name, file.size, file.sha256, file.splices, file.rest_length)
            for file in self.files
        ]
        return Manifest(files, blobs)

    def encode(self) -> bytes:
        """Return the record as JSON, its own hash in it."""
        body = self._body()
        return json.dumps({"sha256": _hash(body), **body}, separators=(",", ":")).encode() + b"\n"

    def _body(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "name": self.name,
            "version": self.version,
            "files": [
                {
                    "name": file.name,
                    "bytes": file.size,
                    "sha256": file.sha256.hex(),
                    "rest": file.rest.hex(),
                    "rest_bytes": file.rest_length,
                    "splices": [list(splice) for splice in file.splices],
                }
                for file in self.files
            ],
            "tensors": [
                {"sha256": item.sha256.hex(), "bytes": item.length, **_form(item.source)}
                for item in self.tensors
            ],
        }

    @classmethod
    def decode(cls, data: bytes, where: str) -> Record:
        """Read a record and compare it with its hash.

        Raises:
            StoreError: damaged, or written by a newer version.
        """
        try:
            body = json.loads(data)
            claimed = body.pop("sha256")
            if body["format"] != FORMAT:
                raise StoreError(
                    f"{where} has format {body['format']}; a newer version may read it"
                )
            if _hash(body) != claimed:
                raise StoreError(f"{where} does not match its own hash; it is damaged")
            return cls(
                name=check_name(body["name"]),
                version=check_name(body["version"], "version"),
                files=tuple(_file(item) for item in body["files"]),
                tensors=tuple(_tensor(item) for item in body["tensors"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, PackError):
            raise StoreError(f"{where} is damaged: it is not the record of a model") from None


def _hash(body: dict[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _file(item: dict[str, Any]) -> StoredFile:
    return StoredFile(
        name=item["name"],
        size=item["bytes"],
        sha256=bytes.fromhex(item["sha256"]),
        rest=bytes.fromhex(item["rest"]),
        rest_length=item["rest_bytes"],
        splices=tuple((gap, tensor) for gap, tensor in item["splices"]),
    )


def _tensor(item: dict[str, Any]) -> Tensor:
    source: Source | None = None
    if "slice_of" in item:
        source = SliceOf(item["slice_of"], item["offset"])
    elif "transpose_of" in item:
        source = TransposeOf(
            item["transpose_of"], item["width"], tuple(item["shape"]), tuple(item["perm"])
        )
    return Tensor(bytes.fromhex(item["sha256"]), item["bytes"], source)


def _form(source: Source | None) -> dict[str, Any]:
    if isinstance(source, SliceOf):
        return {"slice_of": source.blob, "offset": source.offset}
    if isinstance(source, TransposeOf):
        return {
            "transpose_of": source.blob,
            "width": source.width,
            "shape": list(source.shape),
            "perm": list(source.perm),
        }
    return {}
