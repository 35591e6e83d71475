"""Ranges over feeds: right for every grouping and shape, and errors that name the tensor."""

from __future__ import annotations

import numpy as np
import pytest
from graph_check import parse

from onnxslim.errors import DataError, UsageError
from onnxslim.runtime.ranges import RangeMeter, measure_ranges

MODEL = """
net (float[N,M] x, int64[N] ids) => (float[N,M] y, float z) {
   a = Neg (x)
   b = Exp (a)
   c = Sqrt (a)
   y = Add (b, x)
   k = Cast <to = 1> (ids)
   z = ReduceSum <keepdims = 0> (k)
}
"""
NAMES = ["x", "a", "b", "y", "k", "z"]


def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {
            "x": rng.standard_normal((n, m)).astype(np.float32),
            "ids": rng.integers(0, 9, n),
        }
        for n, m in ((4, 3), (4, 3), (1, 7), (5, 2))
    ]


@pytest.mark.parametrize("budget", [1, 100, 1 << 20])
def test_ranges_are_those_of_all_values(budget: int) -> None:
    meter = RangeMeter(parse(MODEL), NAMES, budget)
    for feed in feeds():
        meter.add(feed)
    x = np.concatenate([feed["x"].ravel() for feed in feeds()])
    ids = [feed["ids"] for feed in feeds()]
    wanted = {
        "x": x,
        "a": -x,
        "b": np.exp(-x),
        "y": np.exp(-x) + x,
        "k": np.concatenate(ids),
        "z": np.array([item.sum() for item in ids]),
    }
    found = meter.ranges()
    assert list(found) == [name for name in NAMES if name in found]
    assert meter.feeds == 4
    for name, values in wanted.items():
        assert found[name] == pytest.approx((values.min(), values.max()), rel=1e-6), name


def test_values_nobody_asked_for_are_not_looked_at() -> None:
    # c is NaN wherever x is positive; only who asks for it hears of it
    RangeMeter(parse(MODEL), ["a", "b"]).add(feeds()[0])
    with pytest.raises(DataError, match="calibration sample 0: tensor 'c' holds .* NaN"):
        RangeMeter(parse(MODEL), ["a", "c"]).add(feeds()[0])


def test_the_model_stays_as_it_is() -> None:
    model = parse(MODEL)
    measure_ranges(model, NAMES, feeds())
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
    assert len(model.graph) == 6


def test_empty_tensors_have_no_range() -> None:
    empty = {"x": np.zeros((0, 3), np.float32), "ids": np.zeros(0, np.int64)}
    meter = measure_ranges(parse(MODEL), NAMES, [empty])
    assert meter.ranges() == {"z": (0.0, 0.0)}


def test_feeds_are_taken_one_at_a_time() -> None:
    seen: list[tuple[int, int]] = []

    def stream():
        for number, feed in enumerate(feeds()):
            assert len(seen) == number
            yield feed

    measure_ranges(parse(MODEL), NAMES, stream(), lambda *pair: seen.append(pair))
    assert seen == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_no_feeds() -> None:
    with pytest.raises(DataError, match="no calibration samples"):
        measure_ranges(parse(MODEL), NAMES, [])


def test_what_the_runtime_refuses_is_told_with_the_sample() -> None:
    bad = {**feeds()[0], "ids": np.zeros((2, 2), np.int64)}
    with pytest.raises(DataError, match="sample 0: input ids has shape"):
        measure_ranges(parse(MODEL), NAMES, [bad])
    clash = """
    net (float[N] x, float[M] w) => (float[K] y) { y = Add (x, w) }
    """
    pair = {"x": np.zeros(3, np.float32), "w": np.zeros(2, np.float32)}
    with pytest.raises(DataError, match="calibration sample 0: onnxruntime cannot run"):
        measure_ranges(parse(clash), ["y"], [pair])


TAIL = """
net (float[N,M] x) => (float[N,M] y, float[N,M] p) {
   a = Neg (x)
   y = Mul (a, a)
   s = Mul (a, x)
   p = Softmax (s)
}
"""


def test_methods_narrow_ranges_but_not_those_of_scores() -> None:
    x = np.random.default_rng(0).standard_normal((100, 2000)).astype(np.float32)
    x[0, 0] = 60
    names = ["x", "a", "y", "s", "p"]
    whole = measure_ranges(parse(TAIL), names, [{"x": x}]).ranges()
    meter = measure_ranges(parse(TAIL), names, [{"x": x}], method="auto")
    found = meter.ranges()
    assert found["x"][1] < 60 == whole["x"][1]
    assert found["a"][0] > -60
    assert meter.choices()["x"].method != "minmax"
    for name in ("y", "s", "p"):  # the last value, what is squashed at the end, and its result
        assert found[name] == pytest.approx((min(whole[name][0], 0), max(whole[name][1], 0)))
    assert list(found) == names


def test_unknown_methods() -> None:
    with pytest.raises(UsageError, match="no calibration method is called 'best'"):
        RangeMeter(parse(TAIL), ["x"], method="best")
