"""The base version that a packed file stores differences to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from onnxslim.errors import ModelLoadError, PackError
from onnxslim.io.source import FileSource
from onnxslim.packing.forms import BaseTensor
from onnxslim.packing.manifest import Manifest
from onnxslim.packing.parallel import in_order, thread_count
from onnxslim.packing.plan import Cut, cut_of, find_cuts, hash_range, read_bytes
from onnxslim.packing.planes import Bytes
from onnxslim.packing.reader import PackedReader, is_packed, open_reader


@dataclass(frozen=True)
class BaseItem:
    """A tensor of the base: where it is, and the hash of its bytes."""

    cut: Cut
    sha256: bytes

    @property
    def tensor(self) -> BaseTensor:
        """Its identity."""
        return BaseTensor(self.cut.length, self.sha256)


class Base:
    """The tensors of a model or of a packed model, to be read in any order."""

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        """Find and hash the tensors.

        Raises:
            PackError: not a model or a sound packed file, or itself a difference to a base.
        """
        self._path = os.fspath(path)
        self._reader: PackedReader | None = None
        self._sources: list[FileSource] = []
        count = thread_count(threads)
        if is_packed(path):
            self._reader = open_reader(path)
            if self._reader.model.manifest.bases:
                raise PackError(f"'{self._path}' is itself packed against a base; unpack it first")
            self.sha256 = self._reader.model.manifest.files[0].sha256
            self.items = list(self._packed_items(count))
            return
        try:
            main = FileSource.open(os.path.realpath(path), f"base '{self._path}'")
        except ModelLoadError as error:
            raise PackError(str(error)) from None
        self._sources, _, cuts = find_cuts(main)
        self.sha256 = hash_range(main, 0, main.size)
        hashes = in_order((self._hashing(cut) for cut in cuts), count)
        self.items = [BaseItem(cut, sha) for cut, sha in zip(cuts, hashes, strict=True)]

    def _hashing(self, cut: Cut) -> Callable[[], bytes]:
        return lambda: hash_range(self._sources[cut.file], cut.offset, cut.length)

    def _packed_items(self, threads: int) -> Iterator[BaseItem]:
        reader = self._reader
        assert reader is not None
        blobs = reader.model.manifest.blobs
        for found, place in reader.model.find(reader.file(0)):
            blob = None if place is None else reader.model.blob_of(place)
            if blob is not None and place is not None:
                cut = cut_of(place[0], found, (place[1], place[2]))
                yield BaseItem(cut, blobs[blob].sha256)

    def read(self, cut: Cut, offset: int, length: int) -> Bytes:
        """Return bytes of a tensor of the base."""
        if self._reader is not None:
            data = self._reader.read_file(cut.file, cut.offset + offset, length)
            return np.frombuffer(data, np.uint8)
        return read_bytes(self._sources[cut.file], cut.offset + offset, length)

    def for_manifest(self, manifest: Manifest, label: str) -> BaseReader:
        """Return the tensors that a packed file needs, by their number there.

        Raises:
            PackError: one of them is missing; this is another base.
        """
        known = {item.tensor: item.cut for item in self.items}
        cuts = [known.get(tensor) for tensor in manifest.bases]
        missing = sum(cut is None for cut in cuts)
        if missing:
            raise PackError(
                f"{label} was packed against another base (SHA-256 of its model "
                f"{manifest.base_sha256.hex()[:16]}…): {missing} of the {len(cuts)} tensors it "
                f"needs are not in '{self._path}'; give the base it was packed with"
            )
        return BaseReader(self, [cut for cut in cuts if cut is not None])


class BaseReader:
    """The tensors of a base that one packed file refers to."""

    def __init__(self, base: Base, cuts: list[Cut]) -> None:
        self._base = base
        self._cuts = cuts

    def read(self, number: int, offset: int, length: int) -> Bytes:
        """Return bytes of tensor ``number`` of the base."""
        return self._base.read(self._cuts[number], offset, length)
