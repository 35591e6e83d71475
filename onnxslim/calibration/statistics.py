"""What is known about the values of one tensor: exact, small, and the same however it was gathered.

The histogram counts ``trunc(value / width)`` with ``width = 2**exponent / 2048``, where the
exponent is the smallest that holds every value seen. Widths are powers of two, so dividing by them
is exact, and when the range grows, pairs of bins become one bin exactly. Every field is a count, a
smallest or a largest value: adding and comparing have no order. So statistics of a data set are
the same bits for any split of it into shards and any order of merging. Sums are left out on
purpose, floating-point sums depend on their order; means are read off the histogram.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from onnxslim.errors import DataError
from onnxslim.runtime.specs import Array

HALF_BINS = 2048
"""Bins on either side of zero; the two that touch zero are one bin."""

BINS = 2 * HALF_BINS
"""Length of the array of counts: element ``HALF_BINS + k`` counts bin ``k``, 0 is unused."""

LOWEST_EXPONENT = -100
"""All values smaller than ``2**LOWEST_EXPONENT`` fall into the middle of this histogram."""

_CHUNK = 16384  # elements that are binned at a time: their buffers stay in the cache


@dataclass
class TensorStatistics:
    """Counts of the values of one tensor.

    Attributes:
        count: finite elements seen.
        nan: elements that were NaN.
        inf: elements that were infinite.
        zeros: finite elements that were exactly zero.
        low: smallest finite element; infinity when there is none.
        high: largest finite element; minus infinity when there is none.
        exponent: the histogram holds magnitudes below ``2**exponent``.
        bins: counts, int64 of length ``BINS``.
        channel_axis: axis along which ``channel_max`` runs; None when it is not kept.
        channel_max: largest magnitude per channel, float32; None before the first element.
    """

    count: int = 0
    nan: int = 0
    inf: int = 0
    zeros: int = 0
    low: float = math.inf
    high: float = -math.inf
    exponent: int = LOWEST_EXPONENT
    bins: Array = field(default_factory=lambda: np.zeros(BINS, np.int64))
    channel_axis: int | None = None
    channel_max: Array | None = None

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent) / HALF_BINS

    @property
    def largest(self) -> float:
        """Largest magnitude; 0 when there are no elements."""
        return max(-self.low, self.high, 0.0) if self.count else 0.0

    def add(self, values: Array) -> None:
        """Takes in all elements of an array of any shape; wider floats are rounded to float32."""
        flat = _flat(values)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            flat = self._without_bad(flat)
            if not flat.size:
                return
            low, high = float(flat.min()), float(flat.max())
        self.widen(low, high)
        self.count_bins(flat)

    def widen(self, low: float, high: float) -> None:
        """Makes room for finite values from ``low`` to ``high``."""
        # adding 0.0 makes 0 of -0, which is equal to it but not the same bits
        self.low, self.high = min(self.low, low) + 0.0, max(self.high, high) + 0.0
        self.grow(exponent_of(max(-low, high)))

    def grow(self, exponent: int) -> None:
        """Raises the exponent, merging bins; a lower exponent changes nothing."""
        if exponent > self.exponent:
            self.bins = rescaled(self.bins, exponent - self.exponent)
            self.exponent = exponent

    def count_bins(self, flat: Array) -> None:
        """Counts finite float32 values, for which `widen` has made room, in their bins."""
        scale = np.float32(math.ldexp(HALF_BINS, -self.exponent))
        scaled, codes = np.empty(_CHUNK, np.float32), np.empty(_CHUNK, np.int16)
        is_zero = np.empty(_CHUNK, np.bool_)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            size = part.size
            # exact, but for results below the smallest normal number, which fall into bin 0 anyway
            np.multiply(part, scale, out=scaled[:size])
            codes[:size] = scaled[:size]  # rounds towards zero
            codes[:size] += HALF_BINS
            self.bins += np.bincount(codes[:size], minlength=BINS)
            np.equal(part, 0, out=is_zero[:size])
            self.zeros += int(np.count_nonzero(is_zero[:size]))
        self.count += flat.size

    def add_channels(self, values: Array, axis: int, name: str = "") -> None:
        """Takes the largest magnitude per channel; elements that are not finite are passed over.

        Raises:
            DataError: another number of channels than before, or no such axis.
        """
        if not -values.ndim <= axis < values.ndim:
            raise DataError(
                f"tensor {name!r} has shape {list(values.shape)}, which has no axis {axis} of "
                "channels; choose another axis"
            )
        if not values.size:
            return
        moved = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
        finite = np.isfinite(moved)
        sizes = np.abs(moved, where=finite, out=np.zeros(moved.shape, np.float32))
        found = sizes.max(axis=1).astype(np.float32)
        self.channel_axis = axis
        self._merge_channels(found, name)

    def merged(self, other: TensorStatistics, name: str = "") -> TensorStatistics:
        """Statistics of both together; neither is changed.

        Raises:
            DataError: channels were kept along different axes or in different numbers.
        """
        axes = {self.channel_axis, other.channel_axis} - {None}
        if len(axes) > 1:
            raise DataError(
                f"tensor {name!r}: channels were kept along axis {self.channel_axis} in one part "
                f"and {other.channel_axis} in the other; calibrate both alike"
            )
        result = TensorStatistics(
            self.count, self.nan, self.inf, self.zeros, self.low, self.high, self.exponent,
            self.bins.copy(), next(iter(axes), None), self.channel_max,
        )  # fmt: skip
        result.count += other.count
        result.zeros += other.zeros
        result.nan += other.nan
        result.inf += other.inf
        result.low, result.high = min(self.low, other.low), max(self.high, other.high)
        result.grow(other.exponent)
        result.bins += rescaled(other.bins, result.exponent - other.exponent)
        if other.channel_max is not None:
            result._merge_channels(other.channel_max, name)
        return result

    def mean(self) -> float:
        """Mean to within half a bin width; 0 when there are no elements."""
        return float(self.bins @ self.centres()) / self.count if self.count else 0.0

    def mean_square(self) -> float:
        """Mean of the squares, values taken at the middle of their bins."""
        return float(self.bins @ np.square(self.centres())) / self.count if self.count else 0.0

    def centres(self) -> Array:
        """Middle of every bin, float64, kept between ``low`` and ``high``; 0 for bin 0."""
        index = np.arange(BINS) - HALF_BINS
        middle = (index + 0.5 * np.sign(index)) * self.width
        return np.clip(middle, self.low, self.high) if self.count else middle

    def _without_bad(self, flat: Array) -> Array:
        nan = int(np.count_nonzero(np.isnan(flat)))
        good = flat[np.isfinite(flat)]
        self.nan += nan
        self.inf += flat.size - good.size - nan
        return good

    def _merge_channels(self, found: Array, name: str) -> None:
        if self.channel_max is None:
            self.channel_max = found.copy()
            return
        if len(found) != len(self.channel_max):
            raise DataError(
                f"tensor {name!r} has {len(found)} channels in one sample and "
                f"{len(self.channel_max)} in another; choose an axis of constant length"
            )
        self.channel_max = np.maximum(self.channel_max, found)


def exponent_of(magnitude: float) -> int:
    """The smallest ``e`` with ``magnitude < 2**e``, at least ``LOWEST_EXPONENT``."""
    return max(math.frexp(magnitude)[1], LOWEST_EXPONENT) if magnitude else LOWEST_EXPONENT


def rescaled(bins: Array, octaves: int) -> Array:
    """The counts in bins ``2**octaves`` times as wide; a copy."""
    if octaves <= 0:
        return bins.copy()
    result = np.zeros(BINS, np.int64)
    if octaves >= HALF_BINS.bit_length() - 1:
        result[HALF_BINS] = bins.sum()
        return result
    step = 1 << octaves
    kept = HALF_BINS >> octaves
    right = bins[HALF_BINS:].reshape(kept, step).sum(axis=1)
    # mirrored, so that bin -k stands at k; element 0 is bin 0, which is counted on the right
    mirrored = bins[HALF_BINS:0:-1].copy()
    mirrored[0] = 0
    left = mirrored.reshape(kept, step).sum(axis=1)
    result[HALF_BINS : HALF_BINS + kept] = right
    result[HALF_BINS] += left[0]
    result[HALF_BINS - kept + 1 : HALF_BINS] = left[:0:-1]
    return result


def _flat(values: Array) -> Array:
    if values.dtype != np.float32:
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
    return values.reshape(-1)
