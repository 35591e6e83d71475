"""The networks of models/ whose channels were zeroed in training lose every one of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graph_check import run
from prune_models import count_parameters

from onnxslim.io import load
from onnxslim.ir import shapes
from onnxslim.ir.verify import verify
from onnxslim.passes.prune.eliminate_zeroed_channels import EliminateZeroedChannels
from onnxslim.passes.simplify.eliminate_identity import EliminateIdentity
from onnxslim.pipeline import Context

MODELS = Path(__file__).parents[2] / "models"
# Layer widths that training left alive, from the script that made the models.
ALIVE = {
    "stem.0.weight": 16,
    "stage1.0.conv1.weight": 14,
    "stage1.1.conv1.weight": 14,
    "stage2.0.conv1.weight": 29,
    "stage2.0.conv2.weight": 32,
    "stage2.1.conv1.weight": 29,
}


def prune(name: str) -> ir.Model:
    model = load(MODELS / name)
    shapes.set_aside_declared(model)
    shapes.infer(model)
    EliminateIdentity()(model, Context(model))
    shapes.infer(model)
    EliminateZeroedChannels()(model, Context(model))
    verify(model)
    return model


@pytest.mark.parametrize("name", ["digits_resnet_pruned.onnx", "digits_resnet_pruned_dynamo.onnx"])
def test_resnet_loses_every_zeroed_filter(name):
    before, after = load(MODELS / name), prune(name)
    weights = after.graph.initializers
    for weight, alive in ALIVE.items():
        assert weights[weight].const_value.shape[0] == alive
    filters = [value.const_value.numpy() for value in weights.values() if len(value.shape) == 4]
    assert all(content.any(axis=(1, 2, 3)).all() for content in filters)
    assert count_parameters(after) < 0.25 * count_parameters(before)
    images = np.load(MODELS / "digits_test.npz")
    feeds = {value.name: images[value.name] for value in before.graph.inputs}
    expected, found = run(before, feeds)[0], run(after, feeds)[0]
    assert np.abs(found - expected).max() <= 1e-5
    labels = np.load(MODELS / "digits_labels.npz")["labels"]
    assert (found.argmax(axis=1) == labels).mean() == (expected.argmax(axis=1) == labels).mean()


@pytest.mark.parametrize(
    "name", ["digits_mobilenet_keras.onnx", "digits_transformer.onnx", "digits_lstm.onnx"]
)
def test_dense_models_stay_as_they_are(name):
    before, after = load(MODELS / name), prune(name)
    assert count_parameters(after) == count_parameters(before)
