"""The tables of a packed file, and the tensors they describe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnxslim.errors import PackError
from onnxslim.packing.decode import NAMES
from onnxslim.packing.dtypes import name_of
from onnxslim.packing.forms import SliceOf
from onnxslim.packing.layout import HEADER_SIZE, MAX_CHUNK, TENSOR
from onnxslim.packing.manifest import Manifest
from onnxslim.packing.names import side_name
from onnxslim.packing.walk import FoundTensor, Readable, Walk

WITH_GRAPH = "graph"
"""Shown as the codec of tensors that are packed together with the graph."""

FROM_BASE, FROM_SLICE, FROM_TRANSPOSE = "base", "slice", "transposed"
"""Shown as the codec of tensors that are equal to one of the base, or derived from another."""


@dataclass(frozen=True)
class PackedTensor:
    """A tensor of a packed model.

    ``packed_bytes`` is 0 and ``sha256`` empty for tensors packed together with the graph
    (``codec`` is then "graph"), and 0 for those that are derived from another tensor ("slice",
    "transposed") or equal to one of the base ("base"). Tensors with equal bytes are stored once,
    but listed each.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    raw_bytes: int
    packed_bytes: int
    codec: str
    sha256: str


class PackTables:
    """The tables of a packed file, without its data."""

    def __init__(self, manifest: Manifest, frames: list[tuple[int, int]], label: str) -> None:
        """``frames`` are (codec, packed length) of all data frames, in order."""
        self.manifest = manifest
        self.label = label
        self.frames = frames
        self._first: dict[tuple[int, int], int] = {}
        for position, (kind, number, start, _) in enumerate(manifest.frames()):
            if not start:
                self._first[kind, number] = position

    def frame_at(self, kind: int, number: int, start: int) -> int:
        """Return the position of the frame with byte ``start`` of a blob or of a file's rest."""
        size = self.manifest.blobs[number].chunk if kind == TENSOR else MAX_CHUNK
        return self._first[kind, number] + start // size

    def blob_frames(self, number: int) -> list[tuple[int, int]]:
        """Return (codec, packed length) of the chunks of a blob."""
        blob = self.manifest.blobs[number]
        if not blob.chunk:
            return []
        first = self._first[TENSOR, number]
        return self.frames[first : first + -(-blob.length // blob.chunk)]

    def tensors(self, model: Readable) -> Iterator[PackedTensor]:
        """Yield the tensors found in the bytes of the restored model."""
        for found, place in self.find(model):
            yield self._describe(found, place)

    def find(self, model: Readable) -> Iterator[tuple[FoundTensor, tuple[int, int, int] | None]]:
        """Yield each tensor with (file, offset, length) of its bytes; None for typed fields."""
        walk = Walk(model)
        for found in walk.tensors():
            if found.external is not None:
                yield found, self._external(found)
            elif found.raw is not None:
                yield found, (0, *found.raw)
            else:
                yield found, None
        if not walk.is_model:
            raise PackError(f"{self.label} does not contain an ONNX model")

    def _external(self, found: FoundTensor) -> tuple[int, int, int] | None:
        entries = found.external or {}
        name = side_name(entries.get("location", ""), self.label)
        names = [file.name for file in self.manifest.files]
        numbers = [entries.get("offset", "0"), entries.get("length", "")]
        if name not in names or not numbers[0].isdecimal():
            return None
        file = names.index(name)
        offset = int(numbers[0][:18])
        if numbers[1].isdecimal():
            length = int(numbers[1][:18])
        else:
            length = self._spliced_length(file, offset)
        if offset + length > self.manifest.files[file].size:
            return None
        return file, offset, length

    def _spliced_length(self, file: int, offset: int) -> int:
        if offset >= self.manifest.files[file].size:
            return 0
        segment = self.manifest.segments(file)[self.manifest.segment_at(file, offset)]
        return segment.length if segment.start == offset and segment.blob is not None else 0

    def blob_of(self, place: tuple[int, int, int]) -> int | None:
        """Return the blob that is exactly these bytes of a file."""
        file, offset, length = place
        if not length or offset + length > self.manifest.files[file].size:
            return None
        segment = self.manifest.segments(file)[self.manifest.segment_at(file, offset)]
        return segment.blob if (segment.start, segment.length) == (offset, length) else None

    def _describe(self, found: FoundTensor, place: tuple[int, int, int] | None) -> PackedTensor:
        blob = None if place is None else self.blob_of(place)
        packed, codec, sha = 0, WITH_GRAPH, ""
        if blob is not None:
            frames = self.blob_frames(blob)
            packed = sum(length + HEADER_SIZE for _, length in frames)
            codec = NAMES.get(_most_used(frames), "unknown") if frames else self._derived(blob)
            sha = self.manifest.blobs[blob].sha256.hex()
        return PackedTensor(
            name=found.name,
            dtype=name_of(found.dtype),
            shape=tuple(found.shape),
            raw_bytes=found.typed_bytes if place is None else place[2],
            packed_bytes=packed,
            codec=codec,
            sha256=sha,
        )

    def _derived(self, number: int) -> str:
        source = self.manifest.blobs[number].source
        if source is None:
            return FROM_BASE
        return FROM_SLICE if isinstance(source, SliceOf) else FROM_TRANSPOSE


def _most_used(frames: list[tuple[int, int]]) -> int:
    sizes: dict[int, int] = {}
    for codec, length in frames:
        sizes[codec] = sizes.get(codec, 0) + length
    return max(sizes, key=lambda codec: sizes[codec])
