"""Statistics: the same bits for every split and order, counts that are right, files that are
strict."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxslim.calibration.statistics import (
    BINS,
    HALF_BINS,
    LOWEST_EXPONENT,
    TensorStatistics,
    exponent_of,
    rescaled,
)
from onnxslim.calibration.store import Calibration, merge_all
from onnxslim.errors import DataError, ModelSaveError

FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)
ARRAYS = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=1, max_dims=2, min_side=0), elements=FLOATS
)


def of(*arrays: np.ndarray) -> TensorStatistics:
    found = TensorStatistics()
    for array in arrays:
        found.add(np.asarray(array, np.float32))
    return found


def as_bytes(found: TensorStatistics) -> bytes:
    return Calibration("key", {"t": found}).to_bytes()


@given(arrays=st.lists(ARRAYS, max_size=6), data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_split_and_any_order_give_the_same_bytes(arrays, data) -> None:
    whole = of(*arrays)
    order = data.draw(st.permutations(range(len(arrays))))
    cuts = data.draw(st.lists(st.integers(0, len(arrays)), max_size=3).map(sorted))
    parts = [
        of(*(arrays[index] for index in order[start:stop]))
        for start, stop in zip([0, *cuts], [*cuts, len(arrays)], strict=True)
    ]
    left = TensorStatistics()
    for part in parts:
        left = left.merged(part)
    right = TensorStatistics()
    for part in reversed(parts):
        right = part.merged(right)
    assert as_bytes(left) == as_bytes(right) == as_bytes(whole)


@given(values=hnp.arrays(np.float32, st.integers(0, 40), elements=FLOATS), cut=st.integers(0, 40))
@settings(max_examples=150, deadline=None)
def test_a_split_inside_an_array_gives_the_same_bytes(values, cut) -> None:
    assert as_bytes(of(values)) == as_bytes(of(values[cut:], values[:cut]))


@given(parts=st.tuples(ARRAYS, ARRAYS, ARRAYS))
@settings(max_examples=100, deadline=None)
def test_merging_is_associative_and_commutative(parts) -> None:
    a, b, c = map(of, parts)
    assert as_bytes(a.merged(b).merged(c)) == as_bytes(a.merged(b.merged(c)))
    assert as_bytes(a.merged(b)) == as_bytes(b.merged(a))


@given(values=hnp.arrays(np.float32, st.integers(0, 60), elements=FLOATS))
@settings(max_examples=150, deadline=None)
def test_every_element_is_in_its_bin(values) -> None:
    found = of(values)
    finite = [float(value) for value in values if math.isfinite(value)]
    wanted = np.zeros(BINS, np.int64)
    for value in finite:
        wanted[HALF_BINS + int(value / found.width)] += 1
    np.testing.assert_array_equal(found.bins, wanted)
    assert found.count == len(finite)
    assert found.nan == int(np.isnan(values).sum())
    assert found.inf == int(np.isinf(values).sum())
    assert found.zeros == finite.count(0.0)
    if finite:
        assert (found.low, found.high) == (min(finite), max(finite))
        assert found.largest < 2.0**found.exponent
        assert found.exponent in (LOWEST_EXPONENT, math.frexp(found.largest)[1])


def test_growing_merges_pairs() -> None:
    bins = np.zeros(BINS, np.int64)
    bins[HALF_BINS - 5 : HALF_BINS + 6] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    once = rescaled(bins, 1)
    assert once[HALF_BINS - 2 : HALF_BINS + 3].tolist() == [3, 12, 16 + 32 + 64, 384, 1536]
    np.testing.assert_array_equal(rescaled(rescaled(bins, 1), 2), rescaled(bins, 3))
    assert rescaled(bins, 11)[HALF_BINS] == rescaled(bins, 200)[HALF_BINS] == bins.sum()
    np.testing.assert_array_equal(rescaled(bins, 0), bins)


def test_exponents() -> None:
    assert exponent_of(0.0) == LOWEST_EXPONENT
    assert (exponent_of(0.99), exponent_of(1.0), exponent_of(3.5)) == (0, 1, 2)
    assert exponent_of(float(np.finfo(np.float32).max)) == 128
    assert exponent_of(1e-45) == LOWEST_EXPONENT


def test_wider_and_narrower_floats() -> None:
    found = TensorStatistics()
    found.add(np.array([1.0, 1e300, -2.0]))
    found.add(np.array([0.5], np.float16))
    assert (found.count, found.inf, found.low, found.high) == (3, 1, -2.0, 1.0)


def test_large_arrays_are_counted_whole() -> None:
    values = np.random.default_rng(0).standard_normal(100_003).astype(np.float32)
    found = of(values.reshape(1, -1))
    assert found.count == int(found.bins.sum()) == values.size
    edges = (np.arange(BINS + 1) - HALF_BINS) * found.width
    wanted = np.histogram(values[values > found.width], edges)[0]
    np.testing.assert_array_equal(found.bins[HALF_BINS + 1 :], wanted[HALF_BINS + 1 :])


def test_means_are_right_to_a_bin() -> None:
    values = np.random.default_rng(0).normal(0.3, 1.0, 20_000).astype(np.float32)
    found = of(values)
    assert found.mean() == pytest.approx(float(values.mean()), abs=found.width)
    assert found.mean_square() == pytest.approx(float(np.square(values).mean()), rel=1e-3)
    assert (TensorStatistics().mean(), TensorStatistics().mean_square()) == (0.0, 0.0)


def test_channels() -> None:
    one, other = TensorStatistics(), TensorStatistics()
    one.add_channels(np.array([[[1, -2]], [[3, np.nan]]], np.float32), 2)
    other.add_channels(np.array([[[-9, 1]]], np.float32), 2)
    both = one.merged(other)
    assert both.channel_max is not None
    assert both.channel_max.tolist() == [9, 2]
    assert other.merged(one).channel_max.tolist() == [9, 2]  # type: ignore[union-attr]
    with pytest.raises(DataError, match="'t' has 3 channels in one sample and 2 in another"):
        one.add_channels(np.zeros((1, 1, 3), np.float32), 2, "t")
    with pytest.raises(DataError, match=r"shape \[2\], which has no axis 1"):
        one.add_channels(np.zeros(2, np.float32), 1, "t")
    third = TensorStatistics()
    third.add_channels(np.zeros((1, 2, 1), np.float32), 1)
    with pytest.raises(DataError, match="along axis 2 in one part and 1"):
        one.merged(third)


def sample_calibration() -> Calibration:
    rng = np.random.default_rng(0)
    tensors = {
        "β/x": of(rng.standard_normal(50)),
        "a": of(np.array([np.nan, np.inf, -0.0])),
        "empty": TensorStatistics(),
    }
    tensors["a"].add_channels(np.ones((2, 3), np.float32), 1)
    return Calibration("0f" * 32, tensors, feeds=3, samples=70, skipped=1)


def test_a_file_holds_everything(tmp_path) -> None:
    found = sample_calibration()
    found.save(tmp_path / "c.npz")
    again = Calibration.load(tmp_path / "c.npz")
    assert again.to_bytes() == found.to_bytes()
    assert (again.key, again.feeds, again.samples, again.skipped) == ("0f" * 32, 3, 70, 1)
    assert again.tensors["empty"].count == 0
    np.testing.assert_array_equal(again.tensors["β/x"].bins, found.tensors["β/x"].bins)
    assert again.tensors["a"].channel_max.tolist() == [1, 1, 1]
    assert math.copysign(1, again.tensors["a"].low) == 1  # -0 is 0


def test_merging_files() -> None:
    one, two = sample_calibration(), sample_calibration()
    both = merge_all([one, two])
    assert (both.feeds, both.samples, both.skipped) == (6, 140, 2)
    assert both.tensors["β/x"].count == 100
    assert one.tensors["β/x"].count == 50
    two.key = "other"
    with pytest.raises(DataError, match="different models or plans do not merge"):
        one.merge(two)
    with pytest.raises(DataError, match="nothing to merge"):
        merge_all([])


def damaged(**changes) -> bytes:
    with np.load(io.BytesIO(sample_calibration().to_bytes())) as loaded:
        arrays = {name: loaded[name] for name in loaded.files}
    header = json.loads(bytes(arrays["header"]).decode())
    header.update({k: v for k, v in changes.items() if k in header})
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    for name, change in changes.items():
        if name not in header:
            arrays[name] = change(arrays[name].copy()) if name in arrays else change
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in arrays.items() if array is not None})
    return buffer.getvalue()


def put(index: int, value: float):
    def change(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return change


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"format": "other"}, "is no calibration file"),
        ({"version": 2}, "has version 2, this release reads 1"),
        ({"extra": np.zeros(1)}, "missing or unknown parts"),
        ({"nans": lambda array: None}, "missing or unknown parts"),
        ({"names": ["a", "a", "b"]}, "names tensors twice"),
        ({"names": ["a", "b"]}, "different length"),
        ({"feeds": -1}, "counts that are no numbers"),
        ({"samples": 1.5}, "counts that are no numbers"),
        ({"counts": lambda array: array.astype(np.int32)}, "odd counts"),
        ({"counts": put(0, 99)}, "do not add up"),
        ({"zeros": put(0, 50)}, "do not add up"),
        ({"bins": put(0, -5)}, "negative counts"),
        ({"bins": lambda array: array[:-1]}, "too few bins"),
        ({"bins": lambda array: np.append(array, 1)}, "too many bins"),
        ({"first_bins": put(0, 5000)}, "bins out of range"),
        ({"exponents": put(2, 9)}, "histogram of another range"),
        ({"highs": put(1, 5.0)}, "impossible range"),
        ({"lows": put(2, np.nan)}, "impossible range|another range"),
        ({"channel_axes": [None, None, None]}, "odd channel_axes"),
        ({"channel_lengths": put(0, 1)}, "too many channels"),
    ],
)
def test_files_that_were_tampered_with(changes, what) -> None:
    with pytest.raises(DataError, match=what) as caught:
        Calibration.from_bytes(damaged(**changes), "c.npz")
    assert "\n" not in str(caught.value)
    assert "c.npz" in str(caught.value)


def test_the_damaging_itself_is_harmless() -> None:
    assert Calibration.from_bytes(damaged()).to_bytes() == sample_calibration().to_bytes()


@pytest.mark.parametrize("length", [0, 10, 200, 3000])
def test_files_that_are_cut_off(length) -> None:
    with pytest.raises(DataError, match="not a complete calibration file"):
        Calibration.from_bytes(sample_calibration().to_bytes()[:length])


def test_where_nothing_can_be_read_or_written(tmp_path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        Calibration.load(tmp_path / "none.npz")
    with pytest.raises(ModelSaveError):
        sample_calibration().save(tmp_path / "no" / "c.npz")
    with pytest.raises(ModelSaveError):
        sample_calibration().save(tmp_path)
    assert list(tmp_path.iterdir()) == []
