"""Calibration data for pruning: what weights are fitted on, and what the result is judged by.

The two are kept apart. With a labels file the judge has that file and the fit has all of the
calibration data; without one every fifth feed of the calibration data is held out for the judge.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim.calibration.readers import describe_inputs, input_specs, read_feeds
from onnxslim.errors import DataError, UsageError
from onnxslim.runtime.ranges import check_feed
from onnxslim.runtime.specs import Feed, InputSpec
from onnxslim.validation.accuracy import Labelled, read_labelled

_HELD_OUT = 5
# Feeds there should be at least, so that some can be held out, where the model takes any batch.
_FEEDS = 10
_BATCH = 32


@dataclass
class PruningData:
    """Data of one pruning run.

    Attributes:
        fit: feeds that weights are solved on; empty without calibration data.
        guard: feeds that no fit has seen, to judge by agreement with the original; empty when
            there is only one feed, or no calibration data.
        labels: labelled data to judge by instead, or None.
        max_drop: points that the judge may take off at most, or None for no limit.
        seed: of every random choice.
        notes: what was left out or assumed, one line each.
    """

    fit: list[Feed] = field(default_factory=list)
    guard: list[Feed] = field(default_factory=list)
    labels: Labelled | None = None
    max_drop: float | None = None
    seed: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def judged(self) -> bool:
        """Is there anything to judge a result by?"""
        return bool(self.guard) or self.labels is not None


def read_data(
    model: ir.Model,
    calibration: Any = None,
    labels: str | os.PathLike[str] | None = None,
    *,
    max_drop: float | None = None,
    seed: int = 0,
) -> PruningData:
    """Reads and splits the data.

    Args:
        model: what the data has to fit.
        calibration: a npz, a folder of them, an iterable of feeds, or None.
        labels: npz with the inputs by name and ``labels``: integers for top-1, floats of the
            output's shape for PSNR.
        max_drop: points; needs something to judge by.
        seed: of every random choice.

    Raises:
        DataError: the data does not fit the model, or holds NaN or infinity.
        UsageError: a limit that cannot be measured.
    """
    if max_drop is not None and not 0 <= max_drop < float("inf"):
        raise UsageError(f"max-drop {max_drop}: want points of 0 or more, such as 0.5")
    data = PruningData(max_drop=max_drop, seed=seed)
    if labels is not None:
        data.labels = read_labelled(model, labels)
        _no_bad_targets(data.labels)
    if calibration is not None:
        _split(data, _read(model, calibration, data.notes))
    if max_drop is not None and not data.judged:
        raise UsageError(
            "--max-drop needs data to measure the drop on: give --labels FILE.npz (inputs and "
            f"'labels'), or --calibration with more than one sample: "
            f"{describe_inputs(input_specs(model))}"
        )
    return data


def _split(data: PruningData, feeds: list[Feed]) -> None:
    if not feeds:
        raise DataError("the calibration data holds no samples; give some, or leave it out")
    if data.labels is not None:
        data.fit = feeds
    elif len(feeds) == 1:
        data.fit = feeds
        data.notes.append(
            "the calibration data is one sample only: nothing could be held out, so the result "
            "was not judged; a hundred samples or more make a better model"
        )
    else:
        period = min(_HELD_OUT, len(feeds))
        data.guard = feeds[period - 1 :: period]
        data.fit = [feed for number, feed in enumerate(feeds) if number % period != period - 1]


def _read(model: ir.Model, calibration: Any, notes: list[str]) -> list[Feed]:
    specs = input_specs(model)
    if not isinstance(calibration, str | os.PathLike):
        given = [check_feed(feed, specs, number) for number, feed in enumerate(calibration)]
        if len(given) == 1:
            given = list(_pieces(given[0], specs))
        for number, feed in enumerate(given):
            _no_bad_numbers(feed, number)
        return given
    feeds = read_feeds(calibration, specs, batch_size=_BATCH)
    if feeds.samples > 1 and len(feeds) < _FEEDS:
        feeds = read_feeds(calibration, specs, batch_size=max(1, feeds.samples // _FEEDS))
    notes.extend(feeds.notes)
    return list(feeds)


def _pieces(feed: Feed, specs: Sequence[InputSpec]) -> Iterator[Feed]:
    """A feed in smaller ones, where all inputs leave their first dimension open and agree on it."""
    shapes = {spec.name: spec.shape for spec in specs if spec.name in feed}
    sizes = {np.shape(content)[:1] for content in feed.values()}
    free = all(shape and not isinstance(shape[0], int) for shape in shapes.values())
    count = next(iter(sizes))[0] if len(sizes) == 1 and () not in sizes else 1
    if not free or count < 2:
        yield feed
        return
    length = -(-count // _FEEDS)
    for start in range(0, count, length):
        yield {name: content[start : start + length] for name, content in feed.items()}


def _no_bad_numbers(feed: Mapping[str, Any], number: int) -> None:
    for name, content in feed.items():
        if not isinstance(content, np.ndarray) or content.dtype.kind != "f":
            continue
        if not np.isfinite(content).all():
            what = "NaN" if np.isnan(content).any() else "infinity"
            raise DataError(f"calibration sample {number}: input {name} has {what}")


def _no_bad_targets(labels: Labelled) -> None:
    targets = labels.targets
    if targets.dtype.kind == "f" and not np.isfinite(targets).all():
        finite = np.isfinite(targets.reshape(len(targets), -1)).all(axis=1)
        number = int(np.argmin(finite))
        raise DataError(f"{labels.source}: array labels has NaN or infinity in sample {number}")


def wanted(model: ir.Model, what: str) -> UsageError:
    """The error for missing calibration data: says exactly what to give."""
    needed = describe_inputs(input_specs(model))
    return UsageError(f"{what} needs calibration data: give --calibration FILE.npz with {needed}")


def sample_count(feeds: Sequence[Mapping[str, Any]], model: ir.Model) -> int:
    """Samples in some feeds: the first dimension of the first input that has one."""
    total = 0
    for feed in feeds:
        shapes = [np.shape(feed[spec.name]) for spec in input_specs(model) if spec.name in feed]
        total += next((shape[0] for shape in shapes if shape), 1)
    return total
