"""Static int8 on the trained models: accuracy in the session that users deploy, and size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from onnxslim.io import load, save
from onnxslim.quantization.engine import quantize_model

MODELS = Path(__file__).resolve().parents[2] / "models"
FOUND = sorted(MODELS.glob("digits_*.onnx"))

# Points of accuracy that int8 may cost.
ALLOWED = 0.01


def data(kind: str, name: str) -> dict[str, np.ndarray]:
    for path in sorted(MODELS.glob(f"digits_{kind}*.npz")):
        with np.load(path) as arrays:
            if name in arrays.files:
                return {key: arrays[key] for key in arrays.files}
    raise AssertionError(f"no digits_{kind}*.npz has an array {name!r}")


def accuracy(path: Path, inputs: np.ndarray, labels: np.ndarray) -> float:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    first = session.get_inputs()[0]
    size = first.shape[0] if isinstance(first.shape[0], int) else 50
    starts = range(0, len(inputs) - size + 1, size)
    outputs = [session.run(None, {first.name: inputs[i : i + size]})[0] for i in starts]
    guesses = np.concatenate(outputs).argmax(-1)
    return float((guesses == labels[: len(guesses)]).mean())


def test_models_are_there() -> None:
    assert len(FOUND) >= 4


@pytest.mark.parametrize("preset", ["auto", "portable"])
@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_accuracy_stays(path: Path, preset: str, tmp_path: Path) -> None:
    model = load(path)
    name = model.graph.inputs[0].name or ""
    samples, labelled = data("calibration", name)[name], data("labels", name)
    dims = model.graph.inputs[0].shape
    size = dims[0] if dims is not None and isinstance(dims[0], int) else 50
    last = len(samples) - len(samples) % size if size != 50 else len(samples)
    feeds = [{name: samples[i : i + size]} for i in range(0, last, size)]
    result, report = quantize_model(model, feeds, preset=preset)
    save(result, tmp_path / "int8.onnx")
    before = accuracy(path, labelled[name], labelled["labels"])
    after = accuracy(tmp_path / "int8.onnx", labelled[name], labelled["labels"])
    assert before > 0.9
    assert after >= before - ALLOWED
    assert sum(report.quantized.values()) > 0
    if report.quantized["Conv"] > 5:  # weights are nearly all there is
        assert (tmp_path / "int8.onnx").stat().st_size < 0.55 * path.stat().st_size
