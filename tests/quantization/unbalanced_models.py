"""Networks with channels of very different ranges, which compute what they computed before."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxslim.io import load
from onnxslim.pipeline import Context
from onnxslim.presets import simplify

MODELS = Path(__file__).resolve().parents[2] / "models"


def images(count: int, start: int = 0, name: str = "input") -> list[dict[str, np.ndarray]]:
    """Calibration images, eight at a time."""
    found = np.load(MODELS / "digits_calibration.npz")[name][start : start + count]
    return [{name: found[index : index + 8]} for index in range(0, count, 8)]


def top1(model: ir.Model) -> float:
    """Share of the 450 held-out images that are classified rightly."""
    from onnxslim.runtime.session import open_session

    data = np.load(MODELS / "digits_labels.npz")
    (scores,) = open_session(model, optimize=True).run({"input": data["input"]})
    return float((scores.argmax(axis=1) == data["labels"]).mean())


def _numbers(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


def _put(value: ir.Value, array: np.ndarray) -> None:
    value.const_value = ir.tensor(array.astype(np.float32), name=value.name)


def depthwise(octaves: int, seed: int = 0) -> ir.Model:
    """The depthwise network; every channel scaled by 2**-octaves ... 2**octaves, undone behind."""
    model = load(MODELS / "digits_depthwise.onnx")
    rng = np.random.default_rng(seed)
    layers = [node for node in model.graph if node.op_type in ("Conv", "Gemm")]
    for one, other in pairwise(layers):
        weight, bias, behind = (_numbers(v) for v in (*one.inputs[1:3], other.inputs[1]))
        factors = np.exp2(rng.integers(-octaves, octaves + 1, len(weight)))
        _put(one.inputs[1], weight * factors.reshape(-1, 1, 1, 1))
        _put(one.inputs[2], bias * factors)
        is_depthwise = behind.ndim == 4 and behind.shape[1] == 1 and len(behind) > 1
        shape = (
            (-1,) + (1,) * (behind.ndim - 1) if is_depthwise else (1, -1, *[1] * (behind.ndim - 2))
        )
        _put(other.inputs[1], behind / factors.reshape(shape))
    return model


def transformer(factor: float, outliers: int = 2, seed: int = 0) -> ir.Model:
    """The transformer with outliers behind every LayerNormalization, undone in its readers."""
    model = load(MODELS / "digits_transformer.onnx")
    simplify()(model, Context(model))
    rng = np.random.default_rng(seed)
    for node in list(model.graph):
        if node.op_type != "LayerNormalization":
            continue
        gamma = _numbers(node.inputs[1])
        factors = np.ones(gamma.shape, np.float64)
        factors[rng.choice(len(gamma), outliers, replace=False)] = factor
        for value in node.inputs[1:3]:
            _put(value, _numbers(value) * factors)
        for reader, _ in node.outputs[0].uses():
            weight = _numbers(reader.inputs[1])
            rows = reader.op_type == "MatMul" or not reader.attributes.get_int("transB", 0)
            _put(reader.inputs[1], weight / (factors[:, None] if rows else factors[None, :]))
    return model
