"""A packed model, open for reading: nothing is decoded before it is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.errors import PackError
from onnxslim.io import detach, load_given
from onnxslim.packing.base import Base
from onnxslim.packing.dtypes import name_of, numpy_dtype
from onnxslim.packing.fetch import Fetch
from onnxslim.packing.listing import PackedTensor
from onnxslim.packing.parallel import Progress, no_progress, thread_count
from onnxslim.packing.planes import Bytes
from onnxslim.packing.reader import PackedReader, open_reader
from onnxslim.packing.restored import RestoredFile
from onnxslim.packing.walk import FoundTensor

Found = tuple[FoundTensor, tuple[int, int, int] | None]
"""A tensor and (file, offset, length) of its bytes; None for values in typed fields."""


@dataclass(frozen=True)
class DecodedModel:
    """A model in memory, for a runtime.

    Attributes:
        data: the serialized graph.
        weights: bytes (as uint8) for each location of external data in it.
        verify: compares all weights with their SHA-256, or raises PackError. Their checksums agree
            already; this can be done while the runtime opens the model.
    """

    data: bytes
    weights: dict[str, Bytes]
    verify: Callable[[], None]


class PackedModel:
    """The tensors and the graph of a packed model."""

    def __init__(self, reader: PackedReader, threads: int) -> None:
        self._reader = reader
        self._threads = threads

    @property
    def label(self) -> str:
        """Name of the file for messages."""
        return self._reader.model.label

    @property
    def bytes_read(self) -> int:
        """Bytes of the packed file that were read so far."""
        return self._reader.bytes_read

    @cached_property
    def tensors(self) -> list[PackedTensor]:
        """All tensors with dtype, shape and sizes, those of subgraphs and data files too.

        A tensor in the attribute of a node goes by the name of the node's first output if it has
        none of its own.
        """
        return list(self._reader.model.tensors(self._reader.file(0)))

    @cached_property
    def _found(self) -> dict[str, list[Found]]:
        found: dict[str, list[Found]] = {}
        for item in self._reader.model.find(self._reader.file(0)):
            found.setdefault(item[0].name, []).append(item)
        return found

    @property
    def names(self) -> list[str]:
        """Names of the tensors in the order of the file, each once."""
        return list(self._found)

    def dtype(self, name: str) -> str:
        """Return the ONNX name of a tensor's element type, such as ``FLOAT``."""
        return name_of(self._named(name)[0][0].dtype)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the dimensions of a tensor."""
        return tuple(self._named(name)[0][0].shape)

    def read(self, name: str) -> npt.NDArray[Any] | bytes:
        """Decode one tensor; nothing but the graph and its own bytes is read.

        Returns:
            An array of the tensor's shape; or its bytes as they stand in the model, for types
            that are not a whole number of bytes.

        Raises:
            PackError: no such tensor, several different ones, or values that are not raw data.
        """
        found = self._named(name)
        contents = {self._content(item) for item in found}
        if len(contents) > 1:
            raise PackError(f"{self.label} has {len(contents)} different tensors named '{name}'")
        return _values(contents.pop(), found[0][0], self.label)

    def graph(self) -> ir.Model:
        """Return the model; its weights are decoded when they are read, each time."""
        main, files = self._sources()
        return load_given(main, files)

    def decoded(self, progress: Progress = no_progress) -> DecodedModel:
        """Return the model for a runtime: a message, and the weights it refers to, decoded.

        Raises:
            PackError: damaged.
            ModelLoadError: not an ONNX model, or over 2 GiB are in subgraphs or attributes.
        """
        main, files = self._sources()
        parts = detach(main, files)
        places = []
        for item in parts.weights.values():
            assert isinstance(item.source, RestoredFile)
            places.append(item.source.place(item.offset, item.length))
        found = Fetch(self._reader, places)
        found.decode(self._threads, progress)
        weights = dict(zip(parts.weights, found.data, strict=True))
        return DecodedModel(parts.data, weights, found.verify)

    def _sources(self) -> tuple[RestoredFile, dict[str, RestoredFile]]:
        files = self._reader.model.manifest.files
        sides = {files[n].name: self._reader.file(n) for n in range(1, len(files))}
        return self._reader.file(0), sides

    def _named(self, name: str) -> list[Found]:
        if name not in self._found:
            raise PackError(f"{self.label} has no tensor '{name}'; list them to see the names")
        return self._found[name]

    def _content(self, item: Found) -> bytes:
        found, place = item
        if place is None:
            raise PackError(
                f"{self.label}: tensor '{found.name}' is not stored as raw data; unpack the model "
                "to read it"
            )
        blob = self._reader.model.blob_of(place)
        data = self._reader.read_file(*place) if blob is None else self._reader.read_blob(blob)
        return bytes(data)


def open_packed(
    source: str | os.PathLike[str] | BinaryIO,
    *,
    base: str | os.PathLike[str] | None = None,
    threads: int | None = None,
) -> PackedModel:
    """Open a packed model for reading. Only its tables are read and checked.

    Args:
        source: Path of the packed file, or a stream that is a real, seekable file.
        base: The base version (a model or its packed form) that a difference was packed against;
            without it, only tensors that do not depend on it can be read.
        threads: How many threads decode; None means one for each core.

    Raises:
        PackError: it cannot be opened, is not a sound packed file, or this is another base.
    """
    count = thread_count(threads)
    reader = open_reader(source)
    manifest = reader.model.manifest
    if manifest.bases and base is not None:
        reader.base = Base(base, count).for_manifest(manifest, reader.model.label)
    return PackedModel(reader, count)


def list_tensors(source: str | os.PathLike[str] | BinaryIO) -> list[PackedTensor]:
    """List the tensors of a packed model, as `PackedModel.tensors` does; no base is needed.

    Raises:
        PackError: not a sound packed file.
    """
    return PackedModel(open_reader(source), 1).tensors


def read_tensor(
    source: str | os.PathLike[str] | BinaryIO,
    name: str,
    *,
    base: str | os.PathLike[str] | None = None,
) -> npt.NDArray[Any] | bytes:
    """Read one tensor of a packed model: `open_packed` and `PackedModel.read` in one.

    Raises:
        PackError: no such tensor, several different ones, or values that are not raw data.
    """
    return open_packed(source, base=base, threads=1).read(name)


def _values(data: bytes, tensor: FoundTensor, label: str) -> npt.NDArray[Any] | bytes:
    dtype = numpy_dtype(tensor.dtype)
    if dtype is None:
        return data
    array: npt.NDArray[Any] = np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)
    try:
        return array.view(dtype).reshape(tensor.shape)
    except ValueError:
        raise PackError(
            f"{label}: tensor '{tensor.name}' of shape {tensor.shape[:16]} has {len(data)} bytes, "
            "which do not fit; the model is invalid"
        ) from None
