"""Scores of candidates: labels, a metric of the user's, and the original as a stand-in."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from quantize_models import as_model

from onnxslim.errors import DataError, UsageError
from onnxslim.quantization.custom_metric import CustomMetric, find_metric
from onnxslim.quantization.metric import Judge, JudgeData

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3] x) => (float[N, 3] y) <float[3] shift = {%s}> { y = Add (x, shift) }
"""

SCORES = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2, 0, 1]]
FEEDS = [{"x": SCORES[:5]}, {"x": SCORES[5:]}]


def net(*shift: float) -> ir.Model:
    return as_model(onnx.parser.parse_model(TEXT % ", ".join(map(str, shift))))


def judge(targets: np.ndarray | None = None, metric: CustomMetric | None = None) -> Judge:
    return Judge(net(0, 0, 0), JudgeData(FEEDS, targets, "test data", metric))


def test_top1_counts_right_answers_and_flips() -> None:
    found = judge(np.array([0, 1, 2, 0, 1, 2, 0, 2]))
    assert found.baseline.value == pytest.approx(87.5)
    score = found.score(net(5, 0, 0))  # answers 0 always: right for samples 0, 3 and 6
    assert (score.metric, score.samples) == ("top1", 8)
    assert score.value == pytest.approx(37.5)
    assert score.drop == pytest.approx(50.0)
    assert score.flips == 5
    low, high = score.interval or (math.nan, math.nan)
    assert low < 50 < high
    assert score.outputs[0].top1 == pytest.approx(3 / 8)


def test_the_interval_of_equal_models_is_zero() -> None:
    score = judge(np.array([0, 1, 2, 0, 1, 2, 0, 2])).score(net(0, 0, 0))
    assert score.interval == (0.0, 0.0)
    assert (score.drop, score.flips) == (0.0, 0)
    assert score.closeness == 150.0


def test_psnr_is_relative_to_the_peak_of_the_labels() -> None:
    targets = 4 * SCORES
    found = judge(targets)
    # errors of 3 in one element of three, peak 4
    assert found.baseline.value == pytest.approx(-10 * math.log10(9 / 3 / 16))
    score = found.score(net(0.1, 0.1, 0.1))
    noise = float(np.square(targets - SCORES - np.float32(0.1)).mean())
    assert score.value == pytest.approx(-10 * math.log10(noise / 16), rel=1e-5)
    assert score.drop == pytest.approx(found.baseline.value - score.value)


def test_without_labels_top1_answers_of_the_original_count() -> None:
    found = judge()
    assert found.is_stand_in
    assert found.resolution == 12.5
    score = found.score(net(0, 5, 0))
    assert (score.metric, score.value, score.drop) == ("agreement", 37.5, 62.5)


def test_other_outputs_count_by_energy() -> None:
    text = TEXT.replace("[N, 3]", "[N, 3, 1]").replace("shift = {%s}", "shift = {%s}")
    models = [
        as_model(onnx.parser.parse_model(text % ", ".join(map(str, shift))))
        for shift in ((0, 0, 0), (0.1, 0.1, 0.1))
    ]
    feeds = [{"x": np.ones((4, 3, 1), np.float32)}]
    score = Judge(models[0], JudgeData(feeds)).score(models[1])
    assert score.metric == "fidelity"
    assert score.drop == pytest.approx(1.0, rel=1e-5)  # an error of 10 %: 20 dB
    assert score.closeness == pytest.approx(20, rel=1e-5)


def test_a_metric_with_one_parameter_goes_through_the_feeds() -> None:
    seen = []

    def metric(samples):
        for outputs, labels in samples:
            seen.append((outputs["y"].shape, labels.tolist()))
        return 4.0

    found = judge(np.arange(8), CustomMetric("m", metric))
    assert seen == [((5, 3), [0, 1, 2, 3, 4]), ((3, 3), [5, 6, 7])]
    assert found.baseline.value == 4.0
    score = found.score(net(0, 0, 0))
    assert (score.metric, score.drop, score.interval) == ("custom", 0.0, None)


def test_a_metric_per_sample_gets_an_interval_in_percent_of_the_original() -> None:
    def metric(outputs, labels):
        assert labels is None
        return 2.0 - outputs["y"][:, 0]

    found = judge(metric=CustomMetric("m", metric))
    base = 2 - 3 / 8
    score = found.score(net(0.1, 0, 0))
    assert found.baseline.value == pytest.approx(base)
    assert score.drop == pytest.approx(100 * 0.1 / base, rel=1e-5)
    assert score.interval is not None


@pytest.mark.parametrize(
    ("result", "words"),
    [(math.nan, "metric m returned nan"), ([1.0, math.inf], "NaN or infinite"), ([], "nothing")],
)
def test_a_metric_without_a_number_is_an_error(result, words) -> None:
    with pytest.raises(DataError, match=words):
        judge(metric=CustomMetric("m", lambda outputs, labels: result))


def test_a_metric_that_raises_is_an_error_in_one_line() -> None:
    def metric(outputs, labels):
        raise ValueError("no\nway")

    with pytest.raises(DataError, match="metric m raised ValueError: no way"):
        judge(metric=CustomMetric("m", metric))


@pytest.mark.parametrize("text", ["noname", "no_such_module_here:f", "math:no_such"])
def test_unknown_metrics_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError):
        find_metric(text)


def test_labels_that_do_not_fit_are_errors() -> None:
    with pytest.raises(DataError, match="do not fit the first output"):
        judge(np.zeros((8, 2), np.int64))
    with pytest.raises(DataError, match="float labels"):
        judge(np.zeros((8, 2), np.float32))
