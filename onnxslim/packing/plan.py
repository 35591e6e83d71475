"""Decides, before anything is written, what of a model's files becomes a tensor of its own."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from onnxslim.errors import PackError
from onnxslim.io.source import FileSource
from onnxslim.packing.dtypes import bits_of, is_float
from onnxslim.packing.encode import Profile, Recipe, choose, encode
from onnxslim.packing.layout import MAX_CHUNK, MAX_ENTRIES, RATIO_SLACK
from onnxslim.packing.manifest import Blob, Manifest, PackedFile
from onnxslim.packing.names import check_side_names, safe_path, side_name
from onnxslim.packing.parallel import in_order
from onnxslim.packing.planes import Bytes
from onnxslim.packing.walk import FoundTensor, Walk

CHUNK_ELEMENTS = 1 << 18
_SMALLEST = 1024
_ALWAYS = 1 << 17  # from here on the cost of an entry is below 0.1 %
_ENTRY_COST = 96
_SAMPLE_ELEMENTS = 1 << 14
_HASH_PIECE = 1 << 20


@dataclass(frozen=True)
class Cut:
    """A tensor's bytes in a file. ``width`` is that of an element in bytes."""

    file: int
    offset: int
    length: int
    width: int
    is_float: bool


class ModelBytes:
    """A source as something to walk over."""

    def __init__(self, source: FileSource) -> None:
        self.size = source.size
        self.read = source.read
        self.peek = source.read


@dataclass
class Plan:
    """Everything the writer needs. ``origins`` says, for each blob, where its bytes are."""

    sources: list[FileSource]
    names: list[str]
    manifest: Manifest
    origins: list[Cut]
    profile: Profile
    _recipes: dict[int, tuple[Recipe, ...]] = field(default_factory=dict)

    def read(self, file: int, offset: int, length: int) -> Bytes:
        """Read bytes of a file."""
        return read_bytes(self.sources[file], offset, length)

    @property
    def guarded(self) -> bool:
        """Whether the model is so large that readers watch how far it expands."""
        return self.manifest.total > RATIO_SLACK

    def recipes(self, blob: int) -> tuple[Recipe, ...]:
        """Return the recipes for the chunks of a blob; the same whichever thread asks first."""
        if blob not in self._recipes:
            self._recipes[blob] = recipes_for(self.sources, self.origins[blob], self.profile)
        return self._recipes[blob]


def read_bytes(source: FileSource, offset: int, length: int) -> Bytes:
    """Read a range of a source into a fresh array."""
    data = np.empty(length, np.uint8)
    source.read_into(offset, data.data)
    return data


def recipes_for(sources: list[FileSource], cut: Cut, profile: Profile) -> tuple[Recipe, ...]:
    """Choose recipes on three samples: from the start, the middle and the end of the tensor."""
    width = cut.width if cut.length % cut.width == 0 else 1
    size = _SAMPLE_ELEMENTS * width
    starts = [0, (cut.length // 2 - size // 2) // width * width, cut.length - size]
    if cut.length <= 3 * size:
        starts, size = [0], cut.length
    source = sources[cut.file]
    parts = [read_bytes(source, cut.offset + start, size) for start in starts]
    return choose(np.concatenate(parts), width, cut.is_float and width > 1, profile)


def make_plan(main: FileSource, profile: Profile, threads: int) -> Plan:
    """Find the tensors of a model and of its data files, and hash them.

    Raises:
        PackError: the file is not an ONNX model, or a data file is missing or unsafe to read.
    """
    found = _walk(main)
    sources, names = [main], [""]
    cuts = [_cut(0, item, item.raw) for item in found if item.raw is not None]
    for item in found:
        if item.external is not None:
            cuts.append(_external_cut(main, item, sources, names))
    check_side_names(names[1:], main.label)
    kept = _worthwhile(_disjoint(cuts), sources, profile, threads)
    hashes = _hashes(kept, sources, threads)
    blobs, origins, numbers = _distinct(kept, hashes[len(sources) :], profile)
    files = [
        _packed_file(number, names[number], source.size, hashes[number], kept, numbers)
        for number, source in enumerate(sources)
    ]
    return Plan(sources, names, Manifest(files, blobs), origins, profile)


def _walk(main: FileSource) -> list[FoundTensor]:
    if not main.size:
        raise PackError(f"{main.label} is empty; give the path of an ONNX file")
    walk = Walk(ModelBytes(main), _SMALLEST)
    found = list(walk.tensors())
    if not walk.is_model:
        raise PackError(f"{main.label} is not an ONNX model (or is cut short); nothing was packed")
    return found


def _cut(file: int, tensor: FoundTensor, place: tuple[int, int]) -> Cut:
    bits = bits_of(tensor.dtype)
    width = bits // 8 if bits >= 8 else 1
    parts = 2 if tensor.dtype in (14, 15) else 1  # complex numbers are pairs of floats
    return Cut(file, *place, width // parts, is_float(tensor.dtype))


def _external_cut(
    main: FileSource, tensor: FoundTensor, sources: list[FileSource], names: list[str]
) -> Cut:
    entries = tensor.external or {}
    where = f"{main.label}: tensor '{tensor.name}'"
    if main.path is None:
        raise PackError(f"{where} is in a data file; give the path of the model, not a stream")
    name = side_name(entries.get("location", ""), where)
    if name not in names:
        path = safe_path(os.path.dirname(main.path), name, where)
        if not os.path.exists(path):
            raise PackError(f"{where}: data file '{name}' is missing; put it beside the model")
        source = FileSource.open(path, f"data file '{name}'")
        if any(source.identity == other.identity for other in sources):
            raise PackError(f"{where}: data file '{name}' is also another file of this model")
        sources.append(source)
        names.append(name)
    number = names.index(name)
    offset, length = _number(entries, "offset", where), _number(entries, "length", where)
    if length is None:
        length = -(-math.prod(tensor.shape) * bits_of(tensor.dtype) // 8)
    offset = offset or 0
    if length < 0 or offset + length > sources[number].size:
        raise PackError(f"{where} needs bytes beyond the end of data file '{name}'")
    return _cut(number, tensor, (offset, length))


def _number(entries: dict[str, str], key: str, where: str) -> int | None:
    text = entries.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise PackError(f"{where}: external {key} '{text[:40]}' is not a number")
    return int(text)


def _disjoint(cuts: list[Cut]) -> list[Cut]:
    """Return the cuts in order of place; of overlapping ones (tied weights) only the first."""
    kept: list[Cut] = []
    for cut in sorted(cuts, key=lambda item: (item.file, item.offset, -item.length, item.width)):
        last = kept[-1] if kept else None
        if cut.length < _SMALLEST:
            continue
        if last and last.file == cut.file and cut.offset < last.offset + last.length:
            continue
        kept.append(cut)
    return kept


def _worthwhile(
    cuts: list[Cut], sources: list[FileSource], profile: Profile, threads: int
) -> list[Cut]:
    """Leave small tensors with the graph when an entry of their own would not pay."""

    def task(cut: Cut) -> Callable[[], bool]:
        return lambda: cut.length >= _ALWAYS or _pays(cut, sources, profile)

    answers = in_order((task(cut) for cut in cuts), threads)
    kept = [cut for cut, pays in zip(cuts, answers, strict=True) if pays]
    if len(kept) > MAX_ENTRIES:  # the rest is packed with the graph
        kept = sorted(sorted(kept, key=lambda cut: -cut.length)[:MAX_ENTRIES], key=_place)
    return kept


def _place(cut: Cut) -> tuple[int, int]:
    return cut.file, cut.offset


def _pays(cut: Cut, sources: list[FileSource], profile: Profile) -> bool:
    data = read_bytes(sources[cut.file], cut.offset, cut.length)
    recipes = recipes_for(sources, cut, profile)
    alone = len(encode(data, cut.width, recipes, profile)[1]) + _ENTRY_COST
    return alone < min(len(profile.matches(data)[1]), (1 - 0.02) * cut.length)


def _hashes(cuts: list[Cut], sources: list[FileSource], threads: int) -> list[bytes]:
    """Return the hash of each file, then of each cut."""

    def task(source: FileSource, offset: int, length: int) -> Callable[[], bytes]:
        return lambda: hash_range(source, offset, length)

    def tasks() -> Iterator[Callable[[], bytes]]:
        for source in sources:
            yield task(source, 0, source.size)
        for cut in cuts:
            yield task(sources[cut.file], cut.offset, cut.length)

    return list(in_order(tasks(), threads))


def hash_range(source: FileSource, offset: int, length: int) -> bytes:
    """Return the sha256 of a range, read in pieces."""
    digest = hashlib.sha256()
    for start in range(0, length, _HASH_PIECE):
        digest.update(read_bytes(source, offset + start, min(_HASH_PIECE, length - start)).data)
    return digest.digest()


def _distinct(
    cuts: list[Cut], hashes: list[bytes], profile: Profile
) -> tuple[list[Blob], list[Cut], dict[Cut, int]]:
    """Return one blob for each distinct content, where to read it, and the blob of each cut."""
    known: dict[tuple[bytes, int], int] = {}
    blobs: list[Blob] = []
    origins: list[Cut] = []
    numbers: dict[Cut, int] = {}
    for cut, sha in zip(cuts, hashes, strict=True):
        if (sha, cut.length) not in known:
            known[sha, cut.length] = len(blobs)
            chunk = MAX_CHUNK if profile.exhaustive and cut.width == 1 else _chunk_of(cut.width)
            blobs.append(Blob(cut.length, chunk, sha))
            origins.append(cut)
        numbers[cut] = known[sha, cut.length]
    return blobs, origins, numbers


def _chunk_of(width: int) -> int:
    return min(MAX_CHUNK, CHUNK_ELEMENTS * width)


def _packed_file(
    number: int, name: str, size: int, sha: bytes, cuts: list[Cut], numbers: dict[Cut, int]
) -> PackedFile:
    splices = []
    position = rest = 0
    for cut in cuts:
        if cut.file == number:
            splices.append((cut.offset - position, numbers[cut]))
            rest += cut.offset - position
            position = cut.offset + cut.length
    return PackedFile(name, size, sha, tuple(splices), rest + size - position)
