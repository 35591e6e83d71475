"""Choice of ranges: the expected error is the real one, and the best range wins."""

from __future__ import annotations

import numpy as np
import pytest

from onnxslim.calibration.ranges import (
    Choice,
    choose,
    choose_ranges,
    entropy,
    expected_error,
    least_squares,
    percentile,
)
from onnxslim.calibration.statistics import TensorStatistics
from onnxslim.errors import UsageError

RNG = np.random.default_rng(7)
METHODS = ["minmax", "percentile", "entropy", "mse", "auto"]

NORMAL = RNG.standard_normal(50_000)
DISTRIBUTIONS = {
    "normal": NORMAL,
    "relu": np.maximum(NORMAL, 0),
    "laplace": RNG.laplace(size=50_000),
    "uniform": RNG.uniform(-1, 3, 50_000),
    "negative": -np.abs(NORMAL) - 0.5,
    "far from zero": NORMAL * 0.01 + 5,
    "one outlier": np.append(NORMAL, 60.0),
    "heavy": RNG.standard_t(2, 50_000),
    "two clusters": np.append(NORMAL * 0.01 - 1, NORMAL * 0.01 + 1),
    "sigmoid": 1 / (1 + np.exp(-4 * NORMAL)),
}


def of(values: np.ndarray) -> TensorStatistics:
    found = TensorStatistics()
    found.add(np.asarray(values, np.float32))
    return found


def real_error(values: np.ndarray, low: float, high: float, levels: int = 256) -> float:
    """What QuantizeLinear and DequantizeLinear do to the values."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (levels - 1)
    zero = round(-low / scale)
    codes = np.clip(np.rint(np.float32(values).astype(np.float64) / scale) + zero, 0, levels - 1)
    return float(np.mean(np.square((codes - zero) * scale - np.float32(values))))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("share", [1.0, 0.8, 0.4])
@pytest.mark.parametrize("levels", [256, 128])
def test_the_expected_error_is_the_real_one(name: str, share: float, levels: int) -> None:
    values = DISTRIBUTIONS[name]
    low, high = float(values.min()) * share, float(values.max()) * share
    found = expected_error(of(values), (low, high), levels)
    assert found == pytest.approx(real_error(values, low, high, levels), rel=0.05)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_range_in_the_data_with_zero(name: str, method: str) -> None:
    found = of(DISTRIBUTIONS[name])
    choice = choose(found, method)
    assert min(found.low, 0) <= choice.low <= 0 <= choice.high <= max(found.high, 0)
    assert choice.low < choice.high
    assert choice.error == expected_error(found, choice.range)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_auto_is_never_really_worse_than_min_max(name: str) -> None:
    values = DISTRIBUTIONS[name]
    choice = choose(of(values))
    whole = real_error(values, float(values.min()), float(values.max()))
    assert real_error(values, *choice.range) <= whole * 1.01
    fixed = [choose(of(values), method).error for method in METHODS[:-1]]
    assert choice.error <= min(fixed) / 0.98  # ties within 2 % go to min-max


def test_outliers_are_clipped_where_that_gains() -> None:
    values = np.append(np.tile(NORMAL, 4), 60.0)
    choice = choose(of(values))
    assert choice.method != "minmax"
    assert choice.high < 60
    assert real_error(values, *choice.range) < 0.8 * real_error(values, values.min(), 60.0)


def test_ties_go_to_min_max() -> None:
    assert choose(of(DISTRIBUTIONS["uniform"])).method == "minmax"
    assert choose(of(DISTRIBUTIONS["two clusters"])).method == "minmax"


def test_min_max_is_exact() -> None:
    found = of(np.array([-0.123, 0.7]))
    assert choose(found, "minmax").range == (np.float32(-0.123), np.float32(0.7))


@pytest.mark.parametrize("share", [99.9, 99.99, 99.999, 90.0])
@pytest.mark.parametrize("name", ["normal", "relu", "laplace", "heavy", "negative"])
def test_percentiles_keep_their_share(name: str, share: float) -> None:
    values = np.float32(DISTRIBUTIONS[name])
    found = of(values)
    low, high = percentile(found, share)
    kept = np.mean((values >= low) & (values <= high)) * 100
    assert kept >= share - 1e-9
    part = (100 - share) / 2
    exact_low, exact_high = np.percentile(values, [part, 100 - part])
    # no wider than the exact one by more than a bin, and the gap between neighbouring elements
    above = values[values >= exact_high]
    assert high <= np.sort(above)[min(1, len(above) - 1)] + 2 * found.width
    below = values[values <= exact_low]
    assert low >= -np.sort(-below)[min(1, len(below) - 1)] - 2 * found.width


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_least_squares_finds_what_a_full_search_finds(name: str) -> None:
    found = of(DISTRIBUTIONS[name])
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    factors = 0.93 ** np.arange(0, 40, 2)
    best = min(expected_error(found, (low * a, high * b)) for a in factors for b in factors)
    assert expected_error(found, least_squares(found)) <= best * 1.03


def test_entropy_keeps_a_clean_range_and_cuts_a_long_tail() -> None:
    low, high = entropy(of(DISTRIBUTIONS["uniform"]))
    assert (low, high) == pytest.approx((-1, 3), rel=0.02)
    tail = np.append(np.tile(NORMAL, 4), RNG.uniform(20, 60, 20))
    low, high = entropy(of(tail))
    assert high < 20
    assert low < -3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([], (0.0, 0.0)),
        ([0.0, -0.0], (0.0, 0.0)),
        ([2.5] * 9, (0.0, 2.5)),
        ([-2.5], (-2.5, 0.0)),
        ([np.nan, np.inf], (0.0, 0.0)),
        ([1e-42, 0.0], (0.0, float(np.float32(1e-42)))),
    ],
)
def test_tensors_with_nothing_to_choose(method: str, values: list[float], wanted) -> None:
    choice = choose(of(np.array(values)), method)
    assert choice.range == wanted
    assert np.isfinite(choice.error)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e30])
def test_the_unit_does_not_matter(method: str, scale: float) -> None:
    values = NORMAL[:5000]
    exponent = round(np.log2(scale))
    one = choose(of(values), method)
    other = choose(of(np.ldexp(values, exponent)), method)
    assert other.method == one.method
    assert np.ldexp(other.range, -exponent) == pytest.approx(one.range)


def test_sides_are_chosen_on_their_own() -> None:
    values = np.append(np.tile(np.abs(NORMAL), 40), -40.0)
    low, high = choose(of(values), "mse").range
    assert low > -20
    assert high > 3


def test_many_tensors() -> None:
    found = choose_ranges({"a": of(NORMAL), "b": TensorStatistics()}, "mse")
    assert found["a"].method == "mse"
    assert found["b"] == Choice(0.0, 0.0, "empty", 0.0, 0.0)


def test_unknown_methods() -> None:
    with pytest.raises(UsageError, match="called 'kl'; known: minmax, percentile, entropy, mse"):
        choose(of(NORMAL), "kl")
