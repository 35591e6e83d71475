"""Goes through calibration samples and looks out for bad ones and useless data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from onnxslim.calibration.checks import BadNumbersError, Place, batch_of, kind_of
from onnxslim.calibration.collect import Collector
from onnxslim.calibration.store import few_samples, refuse_too_many_bad
from onnxslim.calibration.streams import FeedStream
from onnxslim.errors import DataError
from onnxslim.runtime.specs import Feed, InputSpec


class SampleRun:
    """Goes through the samples, and looks out for signs of useless data."""

    def __init__(self, collector: Collector, skip_bad: bool) -> None:
        self._collector = collector
        self._skip_bad = skip_bad
        self._bad: list[str] = []
        self.skipped = 0
        self._first: Feed | None = None
        self._all_same = True
        self._all_constant = True

    def add(self, item: Any, where: Place) -> None:
        """Runs one feed, or what is good in it."""
        try:
            feed = self._collector.add(item, where)
        except BadNumbersError as error:
            if not self._skip_bad:
                raise
            self._without_bad(item, where, error)
            return
        self._all_constant = self._all_constant and _is_zero(feed)
        if self._first is None:
            self._first = feed
        elif self._all_same:
            self._all_same = _same(self._first, feed)

    def _without_bad(self, item: Any, where: Place, error: BadNumbersError) -> None:
        """Leaves out the bad rows where rows are samples, else the whole feed."""
        specs = self._collector.checker.specs.values()
        feed = error.feed
        if feed is None:  # an inner tensor: which row it was shows when each runs by itself
            feed = self._collector.checker.feed(item, where)
        total = batch_of(feed, specs)
        if total < 2 or not _has_rows(feed, specs, total):
            self.skipped += total
            self._bad.append(str(error))
            return
        if error.feed is None:
            for row in range(total):
                part = {name: array[row : row + 1] for name, array in feed.items()}
                self.add(part, Place(where.number + row, labels=where.labels[row : row + 1]))
            return
        bad = _bad_rows(feed, total)
        self._bad.append(str(error))
        self.skipped += len(bad)
        if len(bad) < total:
            kept = {name: np.delete(array, bad, axis=0) for name, array in feed.items()}
            self.add(kept, Place(where.number))

    def notes(self, stream: FeedStream, *, is_part: bool) -> list[str]:
        """Warnings about the data as a whole; of a part only what holds for parts.

        Raises:
            DataError: no samples, or too many bad ones.
        """
        samples = self._collector.samples
        found = [*stream.notes, *self._collector.checker.notes]
        if self.skipped:
            found.append(f"{self.skipped} bad samples were left out; first: {self._bad[0]}")
        if is_part:
            return found
        refuse_too_many_bad(self.skipped, samples + self.skipped, self._bad)
        if not samples:
            raise DataError(
                f"{stream.source}: there are no calibration samples; static int8 needs some to "
                "find ranges"
            )
        return [*found, *self._warnings()]

    def _warnings(self) -> list[str]:
        found = few_samples(self._collector.samples)
        if self._all_constant:
            found.append("all calibration samples are zero: ranges will be useless")
        elif self._all_same and self._collector.feeds > 1:
            found.append("all calibration samples are the same: ranges may be too narrow")
        return found


def _has_rows(feed: Feed, specs: Iterable[InputSpec], total: int) -> bool:
    """True when every input has one row per sample, and any number of rows will do."""
    return all(
        isinstance(feed.get(spec.name), np.ndarray)
        and feed[spec.name].ndim > 0
        and len(feed[spec.name]) == total
        and not (spec.shape and isinstance(spec.shape[0], int))
        for spec in specs
        if spec.required or spec.name in feed
    )


def _bad_rows(feed: Feed, total: int) -> list[int]:
    floats = [array for array in feed.values() if kind_of(array.dtype) == "float" and array.size]
    finite = [np.isfinite(array).reshape(total, -1).all(axis=1) for array in floats]
    return np.flatnonzero(~np.logical_and.reduce(finite)).tolist()


def _is_zero(feed: Feed) -> bool:
    arrays = [v for v in feed.values() if isinstance(v, np.ndarray) and v.dtype.kind == "f"]
    return bool(arrays) and not any(array.any() for array in arrays)


def _same(one: Feed, other: Feed) -> bool:
    return one.keys() == other.keys() and all(
        isinstance(value, np.ndarray) and np.array_equal(value, other[name])
        for name, value in one.items()
    )
