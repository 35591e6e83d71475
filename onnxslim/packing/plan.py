"""Decides, before anything is written, what of a model's files becomes a tensor of its own."""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Callable, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from onnxslim.errors import PackError
from onnxslim.io.source import FileSource
from onnxslim.packing.dtypes import bits_of, is_float
from onnxslim.packing.encode import Profile, Recipe, choose, encode, is_structured
from onnxslim.packing.layout import MAX_CHUNK, MAX_ENTRIES, RATIO_SLACK
from onnxslim.packing.manifest import Blob, Manifest, PackedFile
from onnxslim.packing.names import check_side_names, safe_path, side_name
from onnxslim.packing.parallel import in_order
from onnxslim.packing.planes import Bytes
from onnxslim.packing.related import HEAD, RowHeads, derive, head_keys, row_of
from onnxslim.packing.versions import Delta
from onnxslim.packing.walk import FoundTensor, Walk

if TYPE_CHECKING:
    from onnxslim.packing.base import BaseReader

CHUNK_ELEMENTS = 1 << 18
_SMALLEST = 1024
_ALWAYS = 1 << 17  # from here on the cost of an entry is below 0.1 %
_SOLID = 1 << 20  # up to here a tensor is worth unpacking its neighbours for
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
    name: str = ""
    shape: tuple[int, ...] = ()


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
    base: BaseReader | None = None
    deltas: dict[int, Delta] = field(default_factory=dict)
    """How the tensors that have a counterpart in the base are written."""
    row_heads: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """Where rows of tensors start like other tensors."""
    shared: bool = False
    """Frames may end up in packed files of any size."""
    _recipes: dict[int, tuple[Recipe, ...]] = field(default_factory=dict)

    def read(self, file: int, offset: int, length: int) -> Bytes:
        """Read bytes of a file."""
        return read_bytes(self.sources[file], offset, length)

    @property
    def guarded(self) -> bool:
        """Whether the model is so large that readers watch how far it expands."""
        return self.shared or self.manifest.total > RATIO_SLACK

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
    parts = [read_bytes(sources[cut.file], *place) for place in sample_places(cut)]
    return choose(np.concatenate(parts), width, cut.is_float and width > 1, profile)


def sample_places(cut: Cut) -> list[tuple[int, int]]:
    """Return (offset in the file, length) of the samples of a tensor."""
    size = _SAMPLE_ELEMENTS * cut.width
    if cut.length <= 3 * size:
        return [(cut.offset, cut.length)]
    middle = cut.length * 3 // 7 // cut.width * cut.width  # not where a second half starts
    return [(cut.offset + start, size) for start in (0, middle, cut.length - size)]


def find_cuts(main: FileSource) -> tuple[list[FileSource], list[str], list[Cut]]:
    """Return the files of a model, their names, and the tensors in them, without overlaps.

    Raises:
        PackError: the file is not an ONNX model, or a data file is missing or unsafe to read.
    """
    found = _walk(main)
    sources, names = [main], [""]
    cuts = [cut_of(0, item, item.raw) for item in found if item.raw is not None]
    for item in found:
        if item.external is not None:
            cuts.append(_external_cut(main, item, sources, names))
    check_side_names(names[1:], main.label)
    return sources, names, _disjoint(cuts)


def make_plan(
    main: FileSource,
    profile: Profile,
    threads: int,
    *,
    relate: bool = False,
    keep: Set[int] = frozenset(),
    alone_from: int | None = None,
) -> Plan:
    """Find the tensors of a model and of its data files, and hash them.

    Args:
        main: The model.
        profile: How hard to try.
        threads: How many threads to use.
        relate: Note on the way what :func:`relate` needs.
        keep: Tensors of these lengths are cut out however small they are.
        alone_from: Tensors of so many bytes are cut out even where they pack better with the rest.

    Raises:
        PackError: the file is not an ONNX model, or a data file is missing or unsafe to read.
    """
    sources, names, cuts = find_cuts(main)
    least = sys.maxsize if alone_from is None else alone_from

    def wanted(cut: Cut) -> bool:
        return cut.length in keep or cut.length >= least

    kept = _worthwhile(cuts, sources, profile, threads, wanted)
    watches: list[RowHeads | None] = [None] * len(kept)
    if relate:
        watches = _watches(kept, sources)
    file_hashes, hashes = _hashes(kept, sources, threads, watches)
    blobs, origins, numbers = _distinct(kept, hashes)
    files = [
        _packed_file(number, names[number], source.size, file_hashes[number], kept, numbers)
        for number, source in enumerate(sources)
    ]
    watching = dict(zip(kept, watches, strict=True))
    found = [(number, watching[cut]) for number, cut in enumerate(origins)]
    heads = {number: watch.found for number, watch in found if watch is not None}
    return Plan(sources, names, Manifest(files, blobs), origins, profile, row_heads=heads)


def _watches(cuts: list[Cut], sources: list[FileSource]) -> list[RowHeads | None]:
    """Return what looks for slices while a tensor is hashed; None where there can be none."""
    keys = [(cut.length, key) for cut in cuts if (key := _head(cut, sources)) is not None]
    shorter: list[RowHeads | None] = []
    for cut in cuts:
        row = row_of(cut.length, cut.shape)
        fitting = {key for length, key in keys if row and length < cut.length and not length % row}
        wanted = np.array(sorted(fitting), "<u8")
        shorter.append(RowHeads(row, wanted) if fitting else None)
    return shorter


def _head(cut: Cut, sources: list[FileSource]) -> int | None:
    data = read_bytes(sources[cut.file], cut.offset, HEAD)
    return None if np.all(data == data[0]) else int(head_keys(data.reshape(1, HEAD))[0])


def relate(plan: Plan) -> None:
    """Let tensors of the plan that are slices of others, or transposed, be derived from them."""

    def read(number: int, offset: int, length: int) -> Bytes:
        cut = plan.origins[number]
        return read_bytes(plan.sources[cut.file], cut.offset + offset, length)

    layouts = [(cut.width, cut.shape) for cut in plan.origins]
    heads = [_head(cut, plan.sources) for cut in plan.origins]
    plan.manifest.blobs = derive(plan.manifest.blobs, layouts, heads, plan.row_heads, read)


def _walk(main: FileSource) -> list[FoundTensor]:
    if not main.size:
        raise PackError(f"{main.label} is empty; give the path of an ONNX file")
    walk = Walk(ModelBytes(main), _SMALLEST)
    found = list(walk.tensors())
    if not walk.is_model:
        raise PackError(f"{main.label} is not an ONNX model (or is cut short); nothing was packed")
    return found


def cut_of(file: int, tensor: FoundTensor, place: tuple[int, int]) -> Cut:
    """Return the place (offset, length) of a tensor in a file."""
    bits = bits_of(tensor.dtype)
    width = bits // 8 if bits >= 8 else 1
    parts = 2 if tensor.dtype in (14, 15) else 1  # complex numbers are pairs of floats
    shape = (*tensor.shape, parts) if parts > 1 else tuple(tensor.shape)
    return Cut(file, *place, width // parts, is_float(tensor.dtype), tensor.name, shape)


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
    return cut_of(number, tensor, (offset, length))


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
    cuts: list[Cut],
    sources: list[FileSource],
    profile: Profile,
    threads: int,
    wanted: Callable[[Cut], bool],
) -> list[Cut]:
    """Leave small tensors with the graph when an entry of their own would not pay."""

    def task(cut: Cut) -> Callable[[], bool]:
        return lambda: wanted(cut) or _pays(cut, sources, profile)

    answers = in_order((task(cut) for cut in cuts), threads)
    kept = [cut for cut, pays in zip(cuts, answers, strict=True) if pays]
    if len(kept) > MAX_ENTRIES:  # the rest is packed with the graph
        kept = sorted(sorted(kept, key=lambda cut: -cut.length)[:MAX_ENTRIES], key=_place)
    return kept


def _place(cut: Cut) -> tuple[int, int]:
    return cut.file, cut.offset


def _pays(cut: Cut, sources: list[FileSource], profile: Profile) -> bool:
    if cut.length > _SOLID:
        return True
    if is_structured(recipes_for(sources, cut, profile.quick)):
        return False  # packed with the rest, repetitions across tensors are found too
    if cut.length >= _ALWAYS:
        return True
    data = read_bytes(sources[cut.file], cut.offset, cut.length)
    recipes = recipes_for(sources, cut, profile)
    alone = len(encode(data, cut.width, recipes, profile)[1]) + _ENTRY_COST
    return alone < min(profile.matches_quickly(data), (1 - 0.02) * cut.length)


def _hashes(
    cuts: list[Cut], sources: list[FileSource], threads: int, watches: list[RowHeads | None]
) -> tuple[list[bytes], list[bytes]]:
    """Return the hash of each file, and of each cut."""

    def task(cut: Cut, watch: RowHeads | None) -> Callable[[], bytes]:
        return lambda: hash_range(sources[cut.file], cut.offset, cut.length, watch)

    def files() -> list[bytes]:
        return [hash_range(source, 0, source.size) for source in sources]

    tasks = (task(cut, watch) for cut, watch in zip(cuts, watches, strict=True))
    if threads == 1:
        return files(), list(in_order(tasks, 1))
    with ThreadPoolExecutor(1) as side:  # files cannot be hashed in parts: a thread of their own
        future = side.submit(files)
        hashes = list(in_order(tasks, threads - 1))
        return future.result(), hashes


def hash_range(
    source: FileSource, offset: int, length: int, watch: RowHeads | None = None
) -> bytes:
    """Return the sha256 of a range, read in pieces, which ``watch`` sees too."""
    digest = hashlib.sha256()
    buffer = np.empty(min(length, _HASH_PIECE), np.uint8)
    for start in range(0, length, _HASH_PIECE):
        piece = buffer[: min(_HASH_PIECE, length - start)]
        source.read_into(offset + start, piece.data)
        digest.update(piece.data)
        if watch is not None:
            watch(start, piece)
    return digest.digest()


def _distinct(cuts: list[Cut], hashes: list[bytes]) -> tuple[list[Blob], list[Cut], dict[Cut, int]]:
    """Return one blob for each distinct content, where to read it, and the blob of each cut."""
    known: dict[tuple[bytes, int], int] = {}
    blobs: list[Blob] = []
    origins: list[Cut] = []
    numbers: dict[Cut, int] = {}
    for cut, sha in zip(cuts, hashes, strict=True):
        if (sha, cut.length) not in known:
            known[sha, cut.length] = len(blobs)
            chunk = chunk_of(cut.width)
            blobs.append(Blob(cut.length, chunk, sha))
            origins.append(cut)
        numbers[cut] = known[sha, cut.length]
    return blobs, origins, numbers


def chunk_of(width: int) -> int:
    """Return the bytes of a chunk of elements of ``width`` bytes."""
    # bytes gain by repetitions far apart; wider elements are cut to fit the caches
    return MAX_CHUNK if width == 1 else min(MAX_CHUNK, CHUNK_ELEMENTS * width)


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
