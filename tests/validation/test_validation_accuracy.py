"""Figures for lossy steps."""

import json
import math

import numpy as np
import pytest
from graph_check import parse

from onnxslim.errors import DataError
from onnxslim.runtime.session import open_session
from onnxslim.validation.accuracy import AgreementMeter, accuracy, agreement, compare_accuracy

NOOP = "agraph (float[N, 3] x) => (float[N, 3] y) { y = Identity(x) }"
ROUGH = "agraph (float[N, 3] x) => (float[N, 3] y) { y = Round(x) }"


def rows(*items):
    return np.array(items, np.float32)


@pytest.fixture
def labelled(tmp_path):
    def write(x, labels):
        path = tmp_path / "labels.npz"
        np.savez(path, x=x, labels=labels)
        return path

    return write


def test_top1_and_noise():
    one = rows([1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1])
    other = rows([1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1.1, 1])
    (figures,) = agreement(["y"], [one], [other])
    assert figures.top1 == 0.75
    assert figures.sqnr_db == pytest.approx(10 * math.log10(4 / 1.21))


def test_where_the_original_is_not_finite_nothing_is_lost():
    one = rows([np.nan, 2, 0], [np.inf, 0, 0])
    (figures,) = agreement(["y"], [one], [rows([5, 2, 0], [np.nan, 0, 0.2])])
    assert figures.sqnr_db == pytest.approx(20)
    (figures,) = agreement(["y"], [one], [rows([5, np.nan, 0], [1, 0, 0])])
    assert figures.sqnr_db == -math.inf


def test_equal_outputs_have_no_noise():
    (figures,) = agreement(["y"], [rows([1, 2])], [rows([1, 2])])
    assert (figures.top1, figures.sqnr_db) == (1.0, math.inf)


def test_outputs_that_are_no_scores():
    figures = agreement(
        ["i", "one", "s"],
        [np.arange(3), rows([1], [2]), [rows([1])]],
        [np.arange(3), rows([1], [2]), [rows([1])]],
    )
    assert [one.top1 for one in figures] == [None, None, None]
    assert [one.sqnr_db for one in figures] == [None, math.inf, None]


def test_feeds_add_up():
    meter = AgreementMeter(["y"])
    meter.add([rows([1, 0])], [rows([1, 0])])
    meter.add([rows([1, 0], [1, 0], [1, 0])], [rows([0, 1], [1, 0], [1, 0])])
    assert meter.result()[0].top1 == 0.75


def test_top1_against_labels(labelled):
    x = rows([1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0])
    figure = accuracy(open_session(parse(NOOP), optimize=True), labelled(x, np.array([0, 1, 2, 2])))
    assert (figure.metric, figure.value, figure.samples) == ("top1", 0.75, 4)
    column = labelled(x, np.array([[0], [1], [2], [2]]))
    small = accuracy(open_session(parse(NOOP), optimize=True), column, batch_size=3)
    assert small == figure


def test_psnr_against_target_outputs(labelled):
    x = rows([4, 0, 0], [0, 2, 0])
    targets = x + np.float32(0.5)
    figure = accuracy(open_session(parse(NOOP), optimize=True), labelled(x, targets), batch_size=1)
    assert figure.metric == "psnr"
    assert figure.value == pytest.approx(10 * math.log10(4.5**2 / 0.25))


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        (np.zeros(3, np.int64), "3 labels"),
        (np.zeros((2, 2), np.float32), "do not fit"),
        (np.zeros((2, 5, 2), np.int64), "do not fit"),
        (np.array(["a", "b"]), "labels are"),
        (np.zeros(0, np.int64), "labels are"),
    ],
)
def test_labels_that_do_not_fit(labelled, labels, what):
    session = open_session(parse(NOOP), optimize=True)
    with pytest.raises(DataError, match=what) as caught:
        accuracy(session, labelled(rows([1, 0, 0], [0, 1, 0]), labels))
    assert "\n" not in str(caught.value)


def test_missing_labels(tmp_path):
    np.savez(tmp_path / "data.npz", x=rows([1, 0, 0]))
    with pytest.raises(DataError, match="no array 'labels'"):
        accuracy(open_session(parse(NOOP), optimize=True), tmp_path / "data.npz")


def test_two_models_side_by_side(labelled):
    x = rows([0.9, 0.2, 0.1], [0.4, 0.45, 0.3], [0.1, 0.2, 0.8])
    report = compare_accuracy(
        parse(NOOP), parse(ROUGH), feeds=[{"x": x}], labels=labelled(x, np.array([0, 1, 2]))
    )
    assert report.before.value == 1
    assert report.after.value == pytest.approx(2 / 3)
    assert report.outputs[0].top1 == pytest.approx(2 / 3)
    assert report.summary().startswith("top1 100.00% -> 66.67% on 3 samples, y agrees 66.67%")
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["after"]["samples"] == 3
    assert compare_accuracy(parse(NOOP), parse(NOOP), feeds=[]).summary() == "nothing to measure"
