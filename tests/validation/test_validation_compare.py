"""Comparing outputs, and what is accepted."""

import math

import ml_dtypes
import numpy as np
import pytest

from onnxslim.pipeline import Exactness
from onnxslim.validation.compare import Difference, compare, merge
from onnxslim.validation.verdict import Tolerance, explain, tolerance_for


def f32(*items):
    return np.array(items, np.float32)


def test_equal_arrays_are_exact():
    result = compare(f32(1, -2, np.nan, np.inf), f32(1, -2, np.nan, np.inf))
    assert result == Difference("float32", 0.0, 2.0, 1.0, True)


def test_figures_of_a_difference():
    result = compare(f32(3, 4), f32(3, 4.5))
    assert result.max_abs == 0.5
    assert result.scale == 4
    assert result.max_rel == 0.125
    assert result.cosine == pytest.approx((9 + 18) / 5 / math.hypot(3, 4.5))
    assert not result.exact
    assert not result.problem


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (f32(1, np.nan), f32(1, 2)),
        (f32(1, 2), f32(1, np.nan)),
        (f32(np.nan, 1), f32(1, np.nan)),
        (f32(np.inf), f32(-np.inf)),
        (f32(np.inf), f32(3e38)),
        (f32(np.nan), f32(np.inf)),
    ],
)
def test_nan_and_infinity_must_be_in_the_same_places(one, other):
    result = compare(one, other)
    assert "different places" in result.problem
    assert not Tolerance(1e9, 1e9).accepts(result)


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        (f32(1), np.array([1.0]), "dtype float64 instead of float32"),
        (f32(1), f32([1]), r"shape \[1, 1\]|shape"),
        (f32(1, 2), f32(1), "shape [1] instead of [2]"),
        ([f32(1)], f32(1), "sequence"),
        (f32(1), None, "optional"),
        ([f32(1)], [f32(1), f32(2)], "sequence of 2 instead of 1"),
        ([f32(1)], [f32(1, 2)], "shape [2] instead of [1]"),
        (np.array(["a"], object), np.array(["b"], object), "strings differ"),
        ({"a": 1.0}, {"b": 1.0}, "different keys"),
        ({"a": 1.0}, f32(1), "map"),
    ],
)
def test_differences_that_are_no_number(one, other, what):
    result = compare(one, other)
    assert what.split("|")[-1] in result.problem
    assert not result.exact


def test_other_kinds_that_are_equal():
    pairs = [
        (None, None),
        ([f32(1), f32(2, 3)], [f32(1), f32(2, 3)]),
        ([], []),
        (np.array(["a", "ü"], object), np.array(["a", "ü"], object)),
        ({"a": 1.0}, {"a": 1.0}),
        (f32(), f32()),
        (np.array([True, False]), np.array([True, False])),
    ]
    for one, other in pairs:
        result = compare(one, other)
        assert result.exact
        assert not result.problem


def test_integers_are_compared_as_integers():
    one, other = np.array([2**62], np.int64), np.array([2**62 + 1], np.int64)
    result = compare(one, other)
    assert result.max_abs == 1
    assert not tolerance_for("int64", Exactness.ROUNDING).accepts(result)
    assert compare(one, one.copy()).exact
    wrong = compare(np.array([0, 255], np.uint8), np.array([255, 255], np.uint8))
    assert wrong.max_abs == 255


def test_booleans_must_be_equal():
    result = compare(np.array([True, False]), np.array([True, True]))
    assert not tolerance_for("bool", Exactness.ROUNDING).accepts(result)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.float16])
def test_small_floats(dtype):
    one, other = np.array([1, 2], dtype), np.array([1, 4], dtype)
    assert compare(one, one.copy()).exact
    assert compare(one, other).max_abs == 2
    assert not tolerance_for(str(one.dtype), Exactness.ROUNDING).accepts(compare(one, other))


def test_large_arrays_are_compared_in_blocks(monkeypatch):
    monkeypatch.setattr("onnxslim.validation.compare._BLOCK", 7)
    one = np.random.default_rng(0).standard_normal((5, 11)).astype(np.float32)
    other = one.copy()
    other[4, 10] += 3
    result = compare(one, other)
    assert result.max_abs == pytest.approx(3, rel=1e-6)
    assert result.scale == np.abs(one).max()
    flat, wrong = one.ravel().astype(np.float64), other.ravel().astype(np.float64)
    cosine = flat @ wrong / np.linalg.norm(flat) / np.linalg.norm(wrong)
    assert result.cosine == pytest.approx(cosine)


def test_random_values_are_compared_by_form_only():
    assert not compare(f32(1, 2), f32(5, 6), values=False).problem
    assert "dtype" in compare(f32(1), np.array([1.0]), values=False).problem
    assert "shape" in compare(f32(1), f32([1]), values=False).problem


def test_a_zero_reference_has_no_relative_error():
    assert compare(f32(0, 0), f32(0, 1)).max_rel == math.inf
    assert compare(f32(0, 0), f32(0, 0)).max_rel == 0
    assert compare(f32(0, 0), f32(0, 1)).cosine == 0


def test_the_worst_is_kept():
    worst = merge([compare(f32(1), f32(1)), compare(f32(4), f32(5)), compare(f32(9), f32(9))])
    assert (worst.max_abs, worst.scale, worst.exact) == (1, 9, False)


@pytest.mark.parametrize(
    ("dtype", "exactness", "good", "bad"),
    [
        ("float32", Exactness.EXACT, 9e-7, 2e-6),
        ("float32", Exactness.ROUNDING, 9e-5, 2e-4),
        ("float16", Exactness.EXACT, 9e-4, 2e-3),
        ("float16", Exactness.ROUNDING, 9e-3, 2e-2),
        ("float64", Exactness.EXACT, 9e-15, 2e-14),
        ("float64", Exactness.ROUNDING, 9e-10, 2e-9),
    ],
)
def test_tolerance_by_dtype_and_promise(dtype, exactness, good, bad):
    tolerance = tolerance_for(dtype, exactness)
    scale = 100.0
    assert tolerance.accepts(Difference(dtype, good * scale, scale, 1.0, False))
    assert not tolerance.accepts(Difference(dtype, bad * scale, scale, 1.0, False))


def test_given_tolerances_override():
    tolerance = tolerance_for("float32", Exactness.EXACT, rtol=0.1, atol=2.0)
    assert tolerance == Tolerance(0.1, 2.0)
    assert tolerance_for("int32", Exactness.EXACT, rtol=0.1, atol=2.0) == Tolerance(0.0, 0.0)


def test_nothing_is_accepted_around_zero_by_exact():
    exact = tolerance_for("float32", Exactness.EXACT)
    assert not exact.accepts(compare(f32(0, 0), f32(0, 1e-9)))
    assert tolerance_for("float32", Exactness.ROUNDING).accepts(compare(f32(0, 0), f32(0, 1e-9)))


def test_the_explanation_names_output_and_feed():
    good, bad = compare(f32(1), f32(1)), compare(f32(1), f32(2))
    tolerance = Tolerance(1e-3, 0)
    assert explain("y", [good, good], tolerance) == ""
    assert explain("y", [good, bad], tolerance).startswith("output y, feed 2: differs by 1 ")
    assert "shape" in explain("y", [compare(f32(1), f32(1, 2))], tolerance)
