"""The outcome of a calibration: statistics by tensor, as a file that merges with its like."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from onnxslim.calibration.statistics import BINS, HALF_BINS, TensorStatistics, exponent_of
from onnxslim.errors import DataError
from onnxslim.io.atomic import AtomicFile, check_target
from onnxslim.runtime.specs import Array

_FORMAT = "onnxslim-calibration"
_VERSION = 1

FEW_SAMPLES = 8
"""Fewer samples than this get a warning."""

_MOST_BAD = 0.05  # share of samples that may be left out

_ARRAYS: dict[str, np.dtype[Any]] = {
    "counts": np.dtype("<i8"),
    "nans": np.dtype("<i8"),
    "infs": np.dtype("<i8"),
    "zeros": np.dtype("<i8"),
    "lows": np.dtype("<f8"),
    "highs": np.dtype("<f8"),
    "exponents": np.dtype("<i2"),
    "first_bins": np.dtype("<i4"),
    "bin_lengths": np.dtype("<i4"),
    "bins": np.dtype("<i8"),
    "channel_lengths": np.dtype("<i4"),
    "channel_max": np.dtype("<f4"),
}
_PER_TENSOR = [name for name in _ARRAYS if name not in ("bins", "channel_max")]


@dataclass
class Calibration:
    """What calibration data showed, by tensor.

    Attributes:
        key: sha256 in hex over the model and the plan; only equal keys merge.
        tensors: statistics by tensor name.
        feeds: feeds that were run.
        samples: samples in them.
        skipped: samples left out for NaN or infinite values.
        notes: conversions and warnings, one line each; not part of the file.
    """

    key: str
    tensors: dict[str, TensorStatistics]
    feeds: int = 0
    samples: int = 0
    skipped: int = 0
    notes: list[str] = field(default_factory=list)

    def merge(self, *others: Calibration) -> Calibration:
        """Everything together. The same bits for every order and grouping.

        Raises:
            DataError: another model or plan.
        """
        return reduce(_merged, others, self)

    def to_bytes(self) -> bytes:
        """An npz that depends on nothing but the content; see `from_bytes`."""
        names = sorted(self.tensors)
        found = [self.tensors[name] for name in names]
        header = {
            "format": _FORMAT,
            "version": _VERSION,
            "key": self.key,
            "feeds": self.feeds,
            "samples": self.samples,
            "skipped": self.skipped,
            "names": names,
            "channel_axes": [one.channel_axis for one in found],
        }
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        arrays = {"header": np.frombuffer(text, np.uint8), **_arrays_of(found)}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                member = io.BytesIO()
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
                # a ZipInfo by name alone bears a fixed date
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, label: str = "calibration") -> Calibration:
        """Reads what `to_bytes` wrote.

        Args:
            data: the file.
            label: its name, for messages.

        Raises:
            DataError: anything in it is not as it is written.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as loaded:
                arrays = {name: loaded[name] for name in loaded.files}
            return _parsed(arrays)
        except _DamageError as damage:
            raise DataError(f"{label}: {damage}; calibrate again") from None
        except Exception as error:  # zipfile, zlib, numpy and json raise a dozen types
            raise DataError(
                f"{label} is not a complete calibration file; write it with onnxslim calibrate"
            ) from error

    def save(self, target: str | os.PathLike[str]) -> None:
        """Writes the file, whole or not at all.

        Raises:
            ModelSaveError: it cannot be written.
        """
        data = self.to_bytes()
        with AtomicFile(check_target(target)) as file:
            view = memoryview(data)
            while view:
                view = view[os.write(file.fd, view) :]
            file.commit()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Reads a file.

        Raises:
            DataError: missing or damaged.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        return cls.from_bytes(data, str(path))


def merge_all(parts: Iterable[Calibration]) -> Calibration:
    """All parts together, with the warnings that hold for the whole.

    Raises:
        DataError: none, parts of different models or plans, or too many bad samples in them.
    """
    found = list(parts)
    if not found:
        raise DataError("there is nothing to merge; name at least one calibration file")
    whole = found[0].merge(*found[1:])
    refuse_too_many_bad(whole.skipped, whole.samples + whole.skipped)
    if not whole.samples:
        raise DataError("there are no calibration samples in any of the parts; give data")
    whole.notes.extend(few_samples(whole.samples))
    return whole


def few_samples(samples: int) -> list[str]:
    """The warning about too few samples, where there are."""
    if samples >= FEW_SAMPLES:
        return []
    plural = "" if samples == 1 else "s"
    return [f"only {samples} calibration sample{plural}: ranges may be too narrow"]


def refuse_too_many_bad(skipped: int, total: int, messages: Sequence[str] = ()) -> None:
    """Raises DataError when more than 5 percent of the samples had to be left out."""
    if skipped > _MOST_BAD * total:
        first = f"; first: {messages[0]}" if messages else ""
        raise DataError(
            f"{skipped} of {total} calibration samples hold NaN or infinite values, more than "
            f"{_MOST_BAD:.0%}: clean the data{first}"
        )


def _merged(one: Calibration, other: Calibration) -> Calibration:
    if one.key != other.key or one.tensors.keys() != other.tensors.keys():
        raise DataError(
            f"calibrations of different models or plans do not merge: {one.key[:12]} and "
            f"{other.key[:12]}; calibrate all parts with the same model and options"
        )
    return Calibration(
        one.key,
        {name: found.merged(other.tensors[name], name) for name, found in one.tensors.items()},
        one.feeds + other.feeds,
        one.samples + other.samples,
        one.skipped + other.skipped,
        list(dict.fromkeys((*one.notes, *other.notes))),
    )


def _arrays_of(found: list[TensorStatistics]) -> dict[str, Array]:
    spans = [_span(one.bins) for one in found]
    channels = [one.channel_max for one in found]
    columns: dict[str, Any] = {
        "counts": [one.count for one in found],
        "nans": [one.nan for one in found],
        "infs": [one.inf for one in found],
        "zeros": [one.zeros for one in found],
        "lows": [one.low for one in found],
        "highs": [one.high for one in found],
        "exponents": [one.exponent for one in found],
        "first_bins": [start for start, _ in spans],
        "bin_lengths": [stop - start for start, stop in spans],
        "bins": _joined([one.bins[slice(*span)] for one, span in zip(found, spans, strict=True)]),
        "channel_lengths": [0 if array is None else len(array) for array in channels],
        "channel_max": _joined([array for array in channels if array is not None]),
    }
    return {name: np.asarray(columns[name], dtype) for name, dtype in _ARRAYS.items()}


def _joined(parts: list[Array]) -> Array:
    return np.concatenate(parts) if parts else np.zeros(0)


def _span(bins: Array) -> tuple[int, int]:
    """First and last bin that holds something; the rest is not stored."""
    used = np.flatnonzero(bins)
    return (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)


class _DamageError(Exception):
    """What is wrong with a file."""


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise _DamageError(what)


def _parsed(arrays: Mapping[str, Array]) -> Calibration:
    header = json.loads(bytes(arrays["header"]).decode())
    _require(header.get("format") == _FORMAT, "is no calibration file")
    version = header.get("version")
    _require(version == _VERSION, f"has version {version}, this release reads {_VERSION}")
    _require(set(arrays) == {"header", *_ARRAYS}, "has missing or unknown parts")
    names, axes = header["names"], header["channel_axes"]
    _require(names == sorted(set(names)), "names tensors twice or out of order")
    _require(len(axes) == len(names), "has parts of different length")
    numbers = [header[name] for name in ("feeds", "samples", "skipped")]
    _require(all(type(n) is int and n >= 0 for n in numbers), "has counts that are no numbers")
    for name, dtype in _ARRAYS.items():
        _require(arrays[name].dtype == dtype and arrays[name].ndim == 1, f"has odd {name}")
    for name in _PER_TENSOR:
        _require(len(arrays[name]) == len(names), "has parts of different length")
    tensors = dict(zip(names, _tensors(arrays, axes), strict=True))
    return Calibration(str(header["key"]), tensors, *numbers)


def _tensors(arrays: Mapping[str, Array], axes: list[int | None]) -> list[TensorStatistics]:
    found = []
    bin_end = channel_end = 0
    for index, axis in enumerate(axes):
        row = {name: arrays[name][index].item() for name in _PER_TENSOR}
        bin_start, bin_end = bin_end, bin_end + row["bin_lengths"]
        channel_start, channel_end = channel_end, channel_end + row["channel_lengths"]
        first, length = row["first_bins"], row["bin_lengths"]
        _require(0 <= first <= BINS and 0 <= length <= BINS - first, "has bins out of range")
        _require(row["channel_lengths"] >= 0, "has odd channel_lengths")
        _require(bin_end <= len(arrays["bins"]), "has too few bins")
        bins = np.zeros(BINS, np.int64)
        bins[first : first + length] = arrays["bins"][bin_start:bin_end]
        channels = arrays["channel_max"][channel_start:channel_end]
        one = TensorStatistics(
            row["counts"], row["nans"], row["infs"], row["zeros"], row["lows"], row["highs"],
            row["exponents"], bins, axis, channels.copy() if len(channels) else None,
        )  # fmt: skip
        _check(one)
        found.append(one)
    _require(bin_end == len(arrays["bins"]), "has too many bins")
    _require(channel_end == len(arrays["channel_max"]), "has too many channels")
    return found


def _check(one: TensorStatistics) -> None:
    _require(min(one.nan, one.inf, int(one.bins.min())) >= 0, "has negative counts")
    _require(int(one.bins.sum()) == one.count and one.bins[0] == 0, "has counts that do not add up")
    _require(0 <= one.zeros <= one.bins[HALF_BINS], "has counts that do not add up")
    _require(one.exponent == exponent_of(one.largest), "has a histogram of another range")
    if one.count:
        finite = np.isfinite([one.low, one.high]).all()
        _require(bool(finite) and one.low <= one.high, "has an impossible range")
    else:
        _require((one.low, one.high) == (np.inf, -np.inf), "has an impossible range")
    _require(one.channel_axis is None or type(one.channel_axis) is int, "has odd channel_axes")
    _require(one.channel_max is None or one.channel_axis is not None, "has odd channel_axes")
