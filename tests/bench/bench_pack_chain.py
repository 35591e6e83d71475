"""Size and accuracy along the chain: prune, refit, 4-bit weights, pack.

    python tests/bench/bench_pack_chain.py [--amounts 0.8,0.9] [MODEL ...]

For each model of handwritten digits: a share of the single weights goes, the others are refitted on
the calibration images, weights of Conv, Gemm and MatMul become INT4 with one scale for each output
channel, and the result is packed with the profile ``max``. Accuracy is top-1 on the held-out
digits in onnxruntime. Sizes are those of whole files, against the model as it came.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import onnxslim
from onnxslim.pruning.request import Pruning

MODELS = Path(__file__).parents[2] / "models"
_LEAST = 256  # weights from which a tensor is worth a scale for each channel
_OUTPUT_AXIS = {"Conv": 0, "Gemm": 0, "MatMul": 1}


def to_int4(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its larger weights as INT4, dequantized in front of their use."""
    model = onnx.version_converter.convert_version(model, 21)
    model.ir_version = max(model.ir_version, 10)
    constants = {item.name: item for item in model.graph.initializer}
    made: dict[str, onnx.NodeProto] = {}
    for node in model.graph.node:
        weight = constants.get(node.input[1]) if node.op_type in _OUTPUT_AXIS else None
        if weight is None or np.prod(weight.dims) < _LEAST:
            continue
        if weight.name not in made:
            axis = _OUTPUT_AXIS[node.op_type]
            if node.op_type == "Gemm" and not any(item.name == "transB" for item in node.attribute):
                axis = 1
            made[weight.name] = _stored_as_int4(model.graph, weight, axis)
        node.input[1] = made[weight.name].output[0]
    for place, node in enumerate(made.values()):
        model.graph.node.insert(place, node)
    return model


def _stored_as_int4(graph: onnx.GraphProto, weight: TensorProto, axis: int) -> onnx.NodeProto:
    values = numpy_helper.to_array(weight).astype(np.float64)
    rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    scales = _best_scales(rows)
    shape = [-1 if number == axis else 1 for number in range(values.ndim)]
    codes = np.clip(np.round(values / scales.reshape(shape)), -7, 7).astype(np.int8).reshape(-1)
    padded = np.append(codes, np.zeros(codes.size % 2, np.int8)).view(np.uint8)
    packed = (padded[::2] & 15) | (padded[1::2] & 15) << 4
    name = weight.name
    graph.initializer.remove(weight)
    graph.initializer.append(
        TensorProto(name=f"{name}_q", data_type=22, dims=values.shape, raw_data=packed.tobytes())
    )
    graph.initializer.append(numpy_helper.from_array(scales.astype(np.float32), f"{name}_s"))
    inputs, outputs = [f"{name}_q", f"{name}_s"], [f"{name}_d"]
    return helper.make_node("DequantizeLinear", inputs, outputs, axis=axis)


def _best_scales(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return, for each row, the scale of least squared error, of a few below the largest value.

    Scales are rounded to ten bits, so that their lower bytes pack to nothing.
    """
    top = np.abs(rows).max(axis=1)
    top[top == 0] = 7
    errors, candidates = [], []
    for share in np.linspace(0.5, 1.0, 26):
        scale = (top * share / 7).astype(np.float16).astype(np.float64)
        scale[scale == 0] = 1
        codes = np.clip(np.round(rows / scale[:, None]), -7, 7)
        errors.append(((codes * scale[:, None] - rows) ** 2).sum(axis=1))
        candidates.append(scale)
    best = np.argmin(errors, axis=0)
    chosen: np.ndarray[Any, Any] = np.array(candidates)[best, np.arange(len(rows))]
    return chosen


def accuracy(path: Path, suffix: str) -> float:
    """Return top-1 in percent on the held-out digits."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    data = dict(np.load(MODELS / f"digits_labels{suffix}.npz"))
    labels = data.pop("labels")
    feeds = {item.name: data[item.name] for item in session.get_inputs()}
    scores = session.run(None, feeds)[0]
    return float((scores.reshape(len(labels), -1).argmax(axis=1) == labels).mean() * 100)


def chain(model: Path, amount: float, folder: Path) -> tuple[float, float, int]:
    """Return top-1 before and after, and the bytes of the packed result."""
    suffix = "_nhwc" if "keras" in model.name else ""
    pruned, narrow = folder / "pruned.onnx", folder / "narrow.onnx"
    wish = Pruning(
        amount=amount,
        scope="global",
        update=True,
        calibration=MODELS / f"digits_calibration{suffix}.npz",
    )
    onnxslim.optimize(model, pruned, pruning=wish)
    onnx.save(to_int4(onnx.load(pruned)), narrow)
    report = onnxslim.pack(narrow, folder / "narrow.onnxz", profile="max")
    return accuracy(model, suffix), accuracy(narrow, suffix), report.packed_bytes


def main() -> None:
    """Print a row for each model and amount."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--amounts", default="0.7,0.8,0.9")
    chosen = parser.parse_args()
    models = chosen.models or [MODELS / "digits_cnn.onnx", MODELS / "digits_resnet_pruned.onnx"]
    print(f"{'model':32} pruned      bytes   packed  ratio  top-1 before  after")
    for model in models:
        for amount in map(float, chosen.amounts.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                before, after, size = chain(model, amount, Path(folder))
            raw = model.stat().st_size
            print(
                f"{model.name:32} {amount:5.0%} {raw:11} {size:8} {raw / size:6.1f} "
                f"{before:11.2f} % {after:6.2f} %",
                flush=True,
            )


if __name__ == "__main__":
    main()
