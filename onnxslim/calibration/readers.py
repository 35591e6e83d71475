"""Reads feeds and labelled data into memory; `calibration.streams` reads what does not fit."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np
import onnx_ir as ir

from onnxslim.calibration.arrays import load_problem
from onnxslim.calibration.batches import Layout, cut
from onnxslim.calibration.checks import batch_of, kind_of
from onnxslim.calibration.streams import describe_inputs, open_feeds
from onnxslim.errors import DataError
from onnxslim.runtime.specs import Array, Feed, InputSpec, input_specs

__all__ = ["FeedSet", "describe_inputs", "input_specs", "load_arrays", "read_feeds"]


@dataclass
class FeedSet(Sequence[Feed]):
    """Feeds in order, and what was left out while reading them.

    Attributes:
        feeds: inputs by name, views into the arrays that were read.
        samples: number of samples in all feeds together.
        notes: what was left out or assumed, one line each.
    """

    feeds: list[Feed] = field(default_factory=list)
    samples: int = 0
    notes: list[str] = field(default_factory=list)

    @overload
    def __getitem__(self, index: int) -> Feed: ...
    @overload
    def __getitem__(self, index: slice) -> list[Feed]: ...
    def __getitem__(self, index: int | slice) -> Feed | list[Feed]:
        return self.feeds[index]

    def __len__(self) -> int:
        return len(self.feeds)


def read_feeds(
    path: str | os.PathLike[str], specs: Sequence[InputSpec], *, batch_size: int = 32
) -> FeedSet:
    """Reads feeds for a model.

    The first axis of every array counts samples. An input whose own first dimension is open gets
    ``batch_size`` samples at a time; one whose first dimension is fixed gets as many as it wants,
    and a rest that does not fill it is left out (`FeedSet.notes`). An array with one axis more than
    the input holds one whole input per sample. A folder is read file by file, sorted by name.

    Args:
        path: a ``.npz`` with one array per input name, a folder of them, or (for a model with one
            input) a ``.npy``; or what else `onnxslim.calibration.streams.open_feeds` takes.
        specs: the inputs of the model; arrays for inputs with a default value may be missing.
        batch_size: samples per feed where the model leaves that open.

    Raises:
        DataError: the data is missing, damaged, or does not fit the model; one line.
    """
    source = Path(path)
    if source.is_file():
        return _read_file(source, specs, batch_size)
    files = sorted(source.glob("*.npz"))
    total = FeedSet()
    if not files:
        stream = open_feeds(str(path), specs, batch_size=batch_size)
        total.feeds = list(stream)
        total.samples = sum(batch_of(feed, specs) for feed in total.feeds)
        total.notes = stream.notes
    for file in files:
        part = _read_file(file, specs, batch_size)
        total.feeds.extend(part.feeds)
        total.samples += part.samples
        total.notes.extend(note for note in part.notes if note not in total.notes)
    return total


def _read_file(source: Path, specs: Sequence[InputSpec], batch_size: int) -> FeedSet:
    arrays = load_arrays(source, specs)
    wanted = {spec.name: spec for spec in specs if spec.required or spec.name in arrays}
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise DataError(
            f"{source} has no array {missing[0]!r} (it has: {', '.join(arrays) or 'none'}); "
            f"wanted: {describe_inputs(specs)}"
        )
    layouts = [
        Layout(spec, checked(arrays[name], spec, str(source)), str(source))
        for name, spec in wanted.items()
    ]
    feeds, samples, notes = cut(layouts, batch_size, str(source))
    spare = [name for name in arrays if name not in wanted and name != "labels"]
    if spare:
        notes.append(f"arrays that are no inputs were left out: {', '.join(spare)}")
    return FeedSet(feeds, samples, notes)


def load_arrays(
    path: str | os.PathLike[str], specs: Sequence[InputSpec] = ()
) -> Mapping[str, Array]:
    """The arrays of an npz by name; a npy is the array of the only required input.

    Raises:
        DataError: missing, not an npz or npy, damaged, or holding pickled objects.
    """
    source = Path(path)
    if not source.exists():
        raise DataError(f"{source} does not exist; give a .npz file or a folder of them")
    try:
        with source.open("rb") as stream:  # opened here: numpy leaves damaged files open
            loaded = np.load(stream, allow_pickle=False)
            if not isinstance(loaded, np.ndarray):
                return {name: loaded[name] for name in loaded.files}
    except (ValueError, EOFError, OSError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(load_problem(source, error)) from error
    names = [spec.name for spec in specs if spec.required]
    if len(names) != 1:
        raise DataError(
            f"{source} holds one unnamed array; give a .npz with {describe_inputs(specs)}"
        )
    return {names[0]: loaded}


def checked(array: Array, spec: InputSpec, source: str) -> Array:
    """The array in the dtype of the input.

    Conversions are made within a kind (float64 to float32, int64 to int32) and only when every
    value survives; other kinds mean that the data was prepared for another model.

    Raises:
        DataError: another kind of numbers, values out of range, NaN or infinity.
    """
    if spec.kind != "tensor" or spec.dtype is None:
        raise DataError(
            f"input {spec.name} is a {spec.kind} value, which a .npz cannot hold; "
            "call the library with feeds of your own"
        )
    where = f"{source}: array {spec.name}"
    _no_bad_numbers(array, where)
    target = spec.numpy_dtype
    if array.dtype == target:
        return array
    if spec.dtype == ir.DataType.STRING and array.dtype.kind in "US":
        return array.astype(np.str_).astype(object)
    if kind_of(array.dtype) != kind_of(target):
        raise DataError(
            f"{where} is {array.dtype} but the model wants {target}; convert it (and scale it, if "
            "the model wants that) before saving"
        )
    with np.errstate(all="ignore"):
        converted = array.astype(target)
    if kind_of(target) == "integer":
        if not np.array_equal(converted, array):
            raise DataError(f"{where} has values that do not fit {target}")
    else:
        _no_bad_numbers(converted, f"{where} as {target}")
    return converted


def _no_bad_numbers(array: Array, where: str) -> None:
    if kind_of(array.dtype) != "float" or not array.size:
        return
    for number, sample in _samples(array):
        if not np.isfinite(sample.astype(np.float64) if array.dtype.kind == "V" else sample).all():
            what = "NaN" if np.isnan(sample.astype(np.float64)).any() else "infinity"
            raise DataError(f"{where} has {what} in sample {number}; clean the data")


def _samples(array: Array) -> Iterator[tuple[int, Array]]:
    if array.ndim == 0:
        yield 0, array
        return
    yield from enumerate(array)
