"""Taps give what the model computes, within their budget; sums are those of a plain formula."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxslim import io
from onnxslim.errors import DataError
from onnxslim.ir import shapes
from onnxslim.pruning.gram import Gram
from onnxslim.pruning.layers import layers_of
from onnxslim.pruning.taps import Taps
from onnxslim.runtime.session import open_session

MODELS = Path(__file__).resolve().parents[2] / "models"
Array = np.ndarray[Any, Any]


def digits(count: int) -> dict[str, Array]:
    return {"input": np.load(MODELS / "digits_calibration.npz")["input"][:count]}


def cnn() -> ir.Model:
    model = io.load(MODELS / "digits_cnn.onnx")
    shapes.infer(model)
    return model


def bundles(model: ir.Model) -> list[tuple[str, ...]]:
    return [(layer.source.name or "", layer.output.name or "") for layer in layers_of(model.graph)]


def test_inner_values_reproduce_the_layers() -> None:
    """Rows of the tapped input times the weights are the tapped output: the taps, the unfolding
    and the reading of weights together."""
    model = cnn()
    layers = layers_of(model.graph)
    assert len(layers) == 5
    taps = Taps(model, bundles(model))
    for layer, found in zip(layers, taps.run(digits(4)), strict=True):
        source, output = found[layer.source.name or ""], found[layer.output.name or ""]
        places = np.arange(layer.places(output))
        rows = layer.rows(source, places)
        answer = np.einsum("ngu,gou->ngo", rows, layer.weights()).reshape(len(rows), -1)
        np.testing.assert_allclose(
            answer + layer.bias(), layer.targets(output, places), rtol=1e-3, atol=1e-4
        )


def test_outputs_and_inputs_can_be_tapped() -> None:
    model = cnn()
    name = model.graph.outputs[0].name or ""
    feed = digits(3)
    (found,) = Taps(model, [("input", name)]).run(feed)
    np.testing.assert_array_equal(found["input"], feed["input"])
    wanted = open_session(model, optimize=False).run(feed)[0]
    np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("budget", "runs"), [(1 << 30, 1), (1, 5)])
def test_budget_decides_the_number_of_runs(budget: int, runs: int) -> None:
    model = cnn()
    taps = Taps(model, bundles(model), budget=budget)
    wide = Taps(model, bundles(model))
    feed = digits(2)
    for one, other in itertools.zip_longest(taps.run(feed), wide.run(feed)):
        assert list(one) == list(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    assert taps.runs == runs


def test_no_more_than_the_budget_is_held() -> None:
    model = cnn()
    feed = digits(8)
    sizes = [
        sum(2 * array.nbytes for array in found.values())
        for found in Taps(model, bundles(model)).run(feed)
    ]
    taps = Taps(model, bundles(model), budget=max(sizes))
    list(taps.run(feed))
    assert 1 < taps.runs < len(sizes)


def test_shapes_may_change_from_feed_to_feed() -> None:
    model = cnn()
    taps = Taps(model, bundles(model))
    for count in (1, 5, 2):
        assert all(
            len(found["input"]) == count for found in taps.run(digits(count)) if "input" in found
        )


def test_the_model_is_not_touched() -> None:
    model = cnn()
    outputs = [value.name for value in model.graph.outputs]
    nodes = len(model.graph)
    list(Taps(model, bundles(model)).run(digits(1)))
    assert [value.name for value in model.graph.outputs] == outputs
    assert len(model.graph) == nodes


def test_unknown_names_are_refused() -> None:
    with pytest.raises(DataError, match="'nowhere' is no value"):
        Taps(cnn(), [("nowhere",)])


@pytest.mark.parametrize("centred", [True, False])
def test_sums_over_batches_are_those_of_all_rows(centred: bool) -> None:
    rng = np.random.default_rng(0)
    rows, missing = rng.normal(1, 1, size=(90, 2, 3)), rng.normal(2, 1, size=(90, 8))
    gram = Gram(2, 3, 8)
    for start in range(0, 90, 25):
        gram.add(rows[start : start + 25], missing[start : start + 25])
    assert gram.count == 90
    found = gram.moments(centred=centred)
    for group in range(2):
        x, m = rows[:, group], missing[:, 4 * group : 4 * group + 4]
        np.testing.assert_allclose(found.row[group], x.mean(0))
        np.testing.assert_allclose(found.missing[group], m.mean(0))
        x, m = (x - x.mean(0), m - m.mean(0)) if centred else (x, m)
        np.testing.assert_allclose(found.square[group], x.T @ x / 90, atol=1e-12)
        np.testing.assert_allclose(found.cross[group], x.T @ m / 90, atol=1e-12)


def test_rows_that_are_not_finite_are_left_out() -> None:
    rows, missing = np.ones((4, 1, 2)), np.ones((4, 1))
    rows[1, 0, 1], missing[2, 0] = np.nan, np.inf
    gram = Gram(1, 2, 1)
    gram.add(rows, missing)
    assert gram.count == 2
    np.testing.assert_array_equal(gram.moments(centred=False).square, np.ones((1, 2, 2)))
