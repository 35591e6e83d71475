"""Chooses the range that a tensor's 8-bit grid spans, from its statistics.

Every candidate is judged by the mean squared error that the actual grid would make on the
histogram: affine, 256 levels, zero among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from onnxslim.calibration.statistics import BINS, HALF_BINS, TensorStatistics
from onnxslim.errors import UsageError
from onnxslim.runtime.specs import Array

Method = Literal["minmax", "percentile", "entropy", "mse", "auto"]
Range = tuple[float, float]

_LEVELS = 256
_PERCENTILES = (99.9, 99.99, 99.999)
_DEFAULT_PERCENTILE = 99.99

# The search over clipped ranges: this many steps, each this much narrower than the one before.
_MSE_STEPS, _MSE_RATIO = 40, 0.93

# The search along a side ends where the error is this many times the least so far.
_HOPELESS = 4.0

# Bins narrower than this many steps are taken as points.
_NARROW = 1e-3

# A narrower range must gain this share of the error: histograms know no more than that.
_GAIN = 0.02


@dataclass(frozen=True)
class Choice:
    """A range and why it was taken.

    Attributes:
        low: lowest value, at most 0.
        high: highest value, at least 0.
        method: what proposed it: ``minmax``, ``percentile 99.99``, ``entropy``, ``mse``, or
            ``empty`` for tensors that held no finite element.
        error: expected mean squared error of 8 bits on that range.
        minmax_error: the same for the whole range.
    """

    low: float
    high: float
    method: str
    error: float
    minmax_error: float

    @property
    def range(self) -> Range:
        """Lowest and highest value."""
        return self.low, self.high


def choose_ranges(
    tensors: Mapping[str, TensorStatistics], method: str = "auto", *, levels: int = _LEVELS
) -> dict[str, Choice]:
    """`choose` for every tensor.

    Raises:
        UsageError: no such method.
    """
    check_method(method)
    return {name: choose(found, method, levels=levels) for name, found in tensors.items()}


def check_method(method: str) -> None:
    """Raises UsageError when no method is called that."""
    if method not in get_args(Method):
        raise UsageError(
            f"no calibration method is called {method!r}; known: {', '.join(get_args(Method))}"
        )


def choose(found: TensorStatistics, method: str = "auto", *, levels: int = _LEVELS) -> Choice:
    """The range for one tensor.

    Args:
        found: its statistics.
        method: ``minmax``, ``percentile`` (99.99), ``entropy``, ``mse``, or ``auto``: of all
            these, and of percentiles 99.9 and 99.999, the one with the least expected error;
            min-max where none is clearly better.
        levels: points of the grid.

    Raises:
        UsageError: no such method.
    """
    check_method(method)
    if not found.count:
        return Choice(0.0, 0.0, "empty", 0.0, 0.0)
    whole = _with_zero(found.low, found.high)
    expected = _Expected(found, levels)
    base = expected.error(whole)
    # Tensors of one value, and of values too small for any bin, leave nothing to choose.
    if method == "minmax" or found.low == found.high or found.largest < found.width:
        return Choice(*whole, "minmax", base, base)
    best = Choice(*whole, "minmax", base, base)
    fixed: list[Choice] = []
    for name, propose in _proposals(method).items():
        low, high = _with_zero(*propose(found, levels))
        low, high = max(low, whole[0]), min(high, whole[1])
        error = expected.error((low, high))
        fixed.append(Choice(low, high, name, error, base))
    if method != "auto":
        return fixed[0]
    for choice in fixed:
        needed = base * (1 - _GAIN) if best.method == "minmax" else best.error
        if choice.error < needed:
            best = choice
    return best


def expected_error(found: TensorStatistics, limits: Range, levels: int = _LEVELS) -> float:
    """Mean squared error of rounding the values to a grid over ``limits``, by the histogram.

    The grid has ``levels`` points and zero is one of them, as onnxruntime lays it.
    """
    return _Expected(found, levels).error(limits)


class _Expected:
    """The occupied bins of a histogram, ready to be asked for the error of many ranges."""

    def __init__(self, found: TensorStatistics, levels: int) -> None:
        self._found, self._levels = found, levels
        counts = found.bins.astype(np.float64)
        counts[HALF_BINS] -= found.zeros  # zeros (all of bin 0 after a Relu) are exact
        used = np.flatnonzero(counts)
        index = used - HALF_BINS
        # where every bin begins and ends, no farther out than the data
        left = np.where(index > 0, index, index - 1) * found.width
        right = np.where(index >= 0, index + 1, index) * found.width
        self._left, self._right = (np.clip(edge, found.low, found.high) for edge in (left, right))
        self._counts = counts[used]
        self._middle = (self._left + self._right) / 2
        self._spread = np.square(self._right - self._left) / 12

    def error(self, limits: Range) -> float:
        """The mean squared error."""
        if not len(self._counts):
            return 0.0
        scale, zero = _grid(limits, self._levels)
        if scale == 0:
            return self._found.mean_square()
        lowest, highest = -zero * scale, (self._levels - 1 - zero) * scale
        # outside: the distance of the middle to the end of the grid, and the spread about it
        error = np.square(self._middle - np.clip(self._middle, lowest, highest)) + self._spread
        inside = (self._left >= lowest - scale / 2) & (self._right <= highest + scale / 2)
        error[inside] = _rounding(self._left[inside], self._right[inside], scale)
        return float(self._counts @ error) / self._found.count


def _rounding(left: Array, right: Array, scale: float) -> Array:
    """Mean squared distance to the nearest multiple of ``scale``, from ``left`` to ``right``."""
    # in steps, for which squares neither vanish nor overflow
    low, high = left / scale, right / scale
    span = high - low
    middle = (low + high) / 2
    found = np.square(middle - np.rint(middle))
    wide = span > _NARROW
    found[wide] = (_integral(high[wide]) - _integral(low[wide])) / span[wide]
    return found * scale**2


def _integral(x: Array) -> Array:
    """Integral from 0 to ``x`` of the squared distance to the nearest integer."""
    whole = np.rint(x)
    part: Array = whole / 12 + (x - whole) ** 3 / 3
    return part


def _grid(limits: Range, levels: int) -> tuple[float, int]:
    """Step and the index of zero."""
    low, high = _with_zero(*limits)
    scale = (high - low) / (levels - 1)
    return (scale, round(-low / scale)) if scale > 0 else (0.0, 0)


def _with_zero(low: float, high: float) -> Range:
    return min(low, 0.0), max(high, 0.0)


# Mass where a model has none counts as if it had this share.
_LEAST = 1e-12
_LOG_LEAST = float(np.log(_LEAST))

_Propose = Callable[[TensorStatistics, int], Range]


def _proposals(method: str) -> dict[str, _Propose]:
    percentiles = {f"percentile {share}": _percentile_of(share) for share in _PERCENTILES}
    match method:
        case "percentile":
            name = f"percentile {_DEFAULT_PERCENTILE}"
            return {name: percentiles[name]}
        case "entropy":
            return {"entropy": entropy}
        case "mse":
            return {"mse": least_squares}
    return {**percentiles, "entropy": entropy, "mse": least_squares}


def _percentile_of(share: float) -> _Propose:
    return lambda found, levels: percentile(found, share)


def percentile(found: TensorStatistics, share: float) -> Range:
    """The range without the ``100 - share`` percent of elements that lie farthest out, an equal
    part on either side; whole bins, so at least ``share`` percent is kept. Zero is always in."""
    cut = found.count * (1 - share / 100) / 2
    # tolerance: a share such as 99.9 has no exact binary form
    budget = cut * (1 + 1e-9)
    running = np.cumsum(found.bins)
    first = int(np.searchsorted(running, budget, side="right"))
    backwards = np.cumsum(found.bins[::-1])
    last = BINS - 1 - int(np.searchsorted(backwards, budget, side="right"))
    low_edge, high_edge = _edges(first, found)[0], _edges(last, found)[1]
    return max(low_edge, found.low), min(high_edge, found.high)


def _edges(index: int, found: TensorStatistics) -> Range:
    """Where a bin begins and ends; the one at zero spans two widths."""
    bin_number = index - HALF_BINS
    low = bin_number if bin_number > 0 else bin_number - 1
    high = bin_number + 1 if bin_number >= 0 else bin_number
    return low * found.width, high * found.width


def least_squares(found: TensorStatistics, levels: int = _LEVELS) -> Range:
    """The range of least expected error among ever narrower ones, each side on its own."""
    expected = _Expected(found, levels)
    best = _with_zero(found.low, found.high)
    error = expected.error(best)
    for side in (0, 1, 0):  # the second look at the first side uses what the other became
        start = best
        for step in range(1, _MSE_STEPS):
            factor = _MSE_RATIO**step
            tried = (start[0] * factor, start[1]) if side == 0 else (start[0], start[1] * factor)
            if tried == start:
                break
            now = expected.error(tried)
            if now < error:
                best, error = tried, now
            elif now > _HOPELESS * error:
                break
    return best


def entropy(found: TensorStatistics, levels: int = _LEVELS) -> Range:
    """The range whose quantized distribution tells least apart from the true one.

    Each candidate keeps the bins out to some magnitude. ``P`` is the histogram with what lies
    outside added to the outermost bins; ``Q`` is the histogram inside, averaged over the bins that
    share a level, where it is not zero. The candidate of least Kullback-Leibler divergence of Q
    from P wins, the widest of equals. Bins at zero are exact and stay out of it.
    """
    counts = found.bins.astype(np.float64)
    counts[HALF_BINS] = 0.0
    used = np.flatnonzero(counts)
    if not used.size:
        return found.low, found.high
    left, right = max(HALF_BINS - int(used[0]), 0), max(int(used[-1]) - HALF_BINS, 0)
    reach = max(left, right)
    start = min(levels // 2, reach)
    out = np.arange(reach, start - 1, -max(reach // 128, 1))
    firsts, lasts = HALF_BINS - np.minimum(left, out), HALF_BINS + np.minimum(right, out)
    divergences = _divergences(counts, firsts, lasts, levels)
    best = int(np.argmin(divergences))
    if not np.isfinite(divergences[best]):
        return found.low, found.high
    low, high = _edges(int(firsts[best]), found)[0], _edges(int(lasts[best]), found)[1]
    return max(low, found.low), min(high, found.high)


def _divergences(counts: Array, firsts: Array, lasts: Array, levels: int) -> Array:
    """Kullback-Leibler divergence in nats for every range of bins that is kept.

    Sums over bins are differences of running sums, so a candidate costs as much as it has levels.
    """
    running, occupied = _running(counts), _running(counts > 0)
    information = _running(_x_log_x(counts))
    lengths = (lasts - firsts + 1)[:, None]
    # level g begins at the first bin i with i * levels // length == g
    edges = firsts[:, None] - (-np.arange(levels + 1) * lengths // levels)
    mass = np.diff(running[edges], axis=1)
    filled = np.diff(occupied[edges], axis=1)
    inside, whole = mass.sum(axis=1), running[-1]
    share = mass / np.maximum(filled, 1) / np.maximum(inside, 1)[:, None]
    likely = np.log(np.maximum(share, _LEAST))
    crossed = (mass * likely).sum(axis=1)
    own = information[lasts + 1] - information[firsts]
    below, above = running[firsts], whole - running[lasts + 1]
    one = firsts == lasts  # then both ends are the same bin
    ends = ((firsts, np.where(one, below + above, below)), (lasts, np.where(one, 0.0, above)))
    rows = np.arange(len(firsts))
    for bins, more in ends:
        here = counts[bins]
        own += _x_log_x(here + more) - _x_log_x(here)
        at = likely[rows, (bins - firsts) * levels // lengths[:, 0]]
        crossed += more * np.where(here > 0, at, _LOG_LEAST)
    result = (own - crossed) / whole - np.log(whole)
    return np.where(inside > 0, result, np.inf)


def _running(values: Array) -> Array:
    """Sums before every element, and of all."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _x_log_x(values: Array) -> Array:
    return np.asarray(values * np.log(np.where(values > 0, values, 1.0)))
