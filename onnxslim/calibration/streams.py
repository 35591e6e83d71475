"""Calibration data of any form as a stream of feeds: one in memory at a time, read as often as
wanted where the source can be read again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxslim.calibration.arrays import FileArray, Rows, open_arrays
from onnxslim.calibration.batches import Layout, cut
from onnxslim.calibration.checks import FeedChecker, Place, near_names
from onnxslim.calibration.image_options import ImageOptions
from onnxslim.calibration.images import find_images, image_feeds
from onnxslim.calibration.python_source import load_source, rows_of
from onnxslim.errors import DataError, UsageError
from onnxslim.io.tensor_file import read_tensor
from onnxslim.runtime.specs import Array, Feed, InputSpec

LoadFeed = Callable[[], Any]
Loaders = Callable[[], Iterable[tuple[Place, LoadFeed]]]


@dataclass
class FeedStream(Iterable[Feed]):
    """Feeds, made when they are asked for.

    Attributes:
        source: where they come from, for messages.
        specs: the inputs of the model.
        loaders: gives each feed's place and how it is loaded; loading is what costs.
        count: number of feeds; None when it is not known before the end.
        notes: what was left out or assumed, one line each.
        part: which feeds are taken: those whose number modulo the second is the first.
    """

    source: str
    specs: Sequence[InputSpec]
    loaders: Loaders
    count: int | None
    notes: list[str]
    part: tuple[int, int] = (0, 1)

    def raw(self) -> Iterator[tuple[Place, Any]]:
        """Feeds as they are stored, with their place; they have not been checked."""
        rest, parts = self.part
        for number, (place, load) in enumerate(self.loaders()):
            if number % parts == rest:
                yield place, load()

    def __iter__(self) -> Iterator[Feed]:
        """Feeds that fit the model.

        Raises:
            DataError: one does not fit, or holds NaN or infinity.
        """
        checker = FeedChecker(self.specs)
        for place, item in self.raw():
            feed = checker.feed(item, place)
            checker.finite(feed, place)
            yield feed
        self.notes.extend(note for note in checker.notes if note not in self.notes)

    def shard(self, number: int, total: int) -> FeedStream:
        """Every ``total``-th feed, beginning with feed ``number`` (from 1).

        Raises:
            UsageError: there is no such shard.
        """
        if not 1 <= number <= total:
            raise UsageError(f"shard {number}/{total}: want i/n with i from 1 to n")
        count = self.count
        if count is not None:
            count = len(range(number - 1, count, total))
        return FeedStream(
            self.source, self.specs, self.loaders, count, self.notes, (number - 1, total)
        )


def open_feeds(
    source: Any,
    specs: Sequence[InputSpec],
    *,
    batch_size: int = 8,
    images: ImageOptions | None = None,
) -> FeedStream:
    """Opens calibration data.

    Args:
        source: a path: npz with one array per input name (first axis: samples); npy for a model
            with one input; a folder of npz, of ``test_data_set_*`` or of images. Or
            ``module:function``, which returns an iterable. Or an iterable of samples: dicts by
            input name, tuples in the order of the inputs, or arrays for a model with one input.
        specs: the inputs of the model.
        batch_size: samples per feed, where data and model leave that open.
        images: how images become inputs; None derives it from the shape of the input.

    Raises:
        DataError: missing, damaged, of no known form, or not for this model.
        UsageError: a function that cannot be imported.
    """
    if isinstance(source, FeedStream):
        return source
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.exists() and isinstance(source, str) and ":" in source:
            return _from_iterable(load_source(source), specs, source)
        return _from_path(path, specs, batch_size, images)
    if callable(source) and not isinstance(source, Iterable):
        source = source()
    return _from_iterable(source, specs, type(source).__name__)


def _from_path(
    path: Path, specs: Sequence[InputSpec], batch_size: int, images: ImageOptions | None
) -> FeedStream:
    if not path.exists():
        raise DataError(
            f"{path} does not exist; give a .npz file, a folder of .npz files, of test_data_set_* "
            "or of images, or module:function"
        )
    if not path.is_dir():
        return _from_files([path], specs, batch_size, str(path))
    files = sorted(path.glob("*.npz"))
    if files:
        return _from_files(files, specs, batch_size, str(path))
    sets = _test_data_sets(path)
    if sets:
        return _from_test_data(sets, specs, str(path))
    pictures = find_images(path)
    if pictures:
        loaders, count, notes = image_feeds(pictures, specs, batch_size, images)
        return FeedStream(str(path), specs, loaders, count, notes)
    raise DataError(
        f"{path} holds no .npz file, no test_data_set_* folder and no image; "
        f"wanted: {describe_inputs(specs)}"
    )


def describe_inputs(specs: Sequence[InputSpec]) -> str:
    """What a data file must hold, in one line, with names, dtypes and shapes."""
    arrays = ", ".join(str(spec) for spec in specs if spec.required)
    wanted = arrays or "(the model has no inputs)"
    return f"one array per input, samples along the first axis: {wanted}"


def _from_files(
    files: Sequence[Path], specs: Sequence[InputSpec], batch_size: int, source: str
) -> FeedStream:
    feeds: list[tuple[Place, LoadFeed]] = []
    notes: list[str] = []
    number = 0
    for file in files:
        layouts = _layouts(file, specs, notes)
        parts, samples, found = cut(layouts, batch_size, str(file))
        notes.extend(note for note in found if note not in notes)
        each = max(samples // max(len(parts), 1), 1)
        batched = all(layout.way in ("open", "shared") for layout in layouts)
        size = batch_size if batched and len(parts) > 1 else each
        for index, part in enumerate(parts):
            feeds.append((Place(number + index * size, size > 1), _Materialise(part)))
        number += samples
    return FeedStream(source, specs, lambda: feeds, len(feeds), notes)


@dataclass(frozen=True)
class _Materialise:
    """Reads the arrays of one feed."""

    feed: Mapping[str, Any]

    def __call__(self) -> Feed:
        return {name: np.asarray(rows) for name, rows in self.feed.items()}


def _layouts(file: Path, specs: Sequence[InputSpec], notes: list[str]) -> list[Layout]:
    """The arrays of a file, each with the input it is for."""
    arrays = _named(file, open_arrays(file), specs)
    wanted = [spec for spec in specs if spec.required or spec.name in arrays]
    for spec in wanted:
        if spec.name not in arrays:
            others = [name for name in arrays if name != "labels"]
            raise DataError(
                f"{file} has no array {spec.name!r} (it has: {', '.join(others) or 'none'}"
                f"{near_names(spec.name, others)}); wanted: {describe_inputs(specs)}"
            )
        if spec.kind != "tensor" or spec.dtype is None:
            raise DataError(
                f"input {spec.name} is a {spec.kind} value, which a .npz cannot hold; "
                "give feeds by module:function"
            )
    spare = [name for name in arrays if name not in {spec.name for spec in wanted}]
    if spare := [name for name in spare if name != "labels"]:
        notes.append(f"arrays that are no inputs were left out: {', '.join(spare)}")
    return [Layout(spec, _as_rows(arrays[spec.name]), str(file)) for spec in wanted]


def _as_rows(rows: Rows) -> Array:
    """Layouts ask for shapes and slices only, which rows in a file have as well."""
    return rows  # type: ignore[return-value]


def _named(
    file: Path, arrays: Mapping[str, Rows], specs: Sequence[InputSpec]
) -> Mapping[str, Rows]:
    if set(arrays) != {""}:
        return arrays
    names = [spec.name for spec in specs if spec.required]
    if len(names) != 1:
        raise DataError(
            f"{file} holds one unnamed array; give a .npz with {describe_inputs(specs)}"
        )
    return {names[0]: arrays[""]}


def _test_data_sets(path: Path) -> list[Path]:
    """Folders with ``input_0.pb``: the folder itself, or those in it, in the order of numbers."""
    if (path / "input_0.pb").exists():
        return [path]
    found = [one for one in path.glob("test_data_set_*") if (one / "input_0.pb").exists()]
    return sorted(found, key=lambda one: (_number(one), one.name))


def _number(path: Path) -> int:
    digits = path.stem.rpartition("_")[2]
    return int(digits) if digits.isdigit() else 0


def _from_test_data(sets: Sequence[Path], specs: Sequence[InputSpec], source: str) -> FeedStream:
    feeds = [
        (Place(number, labels=(folder.name,)), _TestData(folder, tuple(specs)))
        for number, folder in enumerate(sets)
    ]
    return FeedStream(source, specs, lambda: feeds, len(feeds), [])


@dataclass(frozen=True)
class _TestData:
    """Reads the inputs of one ``test_data_set_*`` folder; file ``k`` is for input ``k``."""

    folder: Path
    specs: tuple[InputSpec, ...]

    def __call__(self) -> Feed:
        files = sorted(self.folder.glob("input_*.pb"), key=_number)
        names = [spec.name for spec in self.specs if spec.required]
        feed: Feed = {}
        for file in files:
            name, content = read_tensor(file)
            number = _number(file)
            if name not in {spec.name for spec in self.specs}:
                if number >= len(names):
                    raise DataError(
                        f"{file} is input {number} of a model with {len(names)} inputs: "
                        f"{', '.join(names)}"
                    )
                name = names[number]
            feed[name] = content
        return feed


def _from_iterable(source: Any, specs: Sequence[InputSpec], label: str) -> FeedStream:
    rows = rows_of(source, specs, label)
    try:
        count: int | None = len(source)
    except TypeError:
        count = None

    def loaders() -> Iterator[tuple[Place, LoadFeed]]:
        for number, item in enumerate(rows):
            yield Place(number), _Ready(item)

    return FeedStream(label, specs, loaders, count, [])


@dataclass(frozen=True)
class _Ready:
    """A feed that is there already."""

    item: Any

    def __call__(self) -> Any:
        return self.item


__all__ = ["FeedStream", "FileArray", "ImageOptions", "describe_inputs", "open_feeds"]
