"""Seconds to quantize graphs of more and more nodes, without calibration; growth must be linear.

Run: python tests/bench/bench_quantize_graph.py [NODES ...]
"""

from __future__ import annotations

import sys
import time

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onnxslim.calibration.run import calibrate
from onnxslim.io import load
from onnxslim.quantization.engine import (
    QuantPlan,
    prepare_float,
    quantize_once,
    tensors_to_calibrate,
)
from onnxslim.quantization.presets import find_preset

_WIDTH = 8


def deep_net(nodes: int) -> ir.Model:
    """Residual blocks of Conv, Relu, Conv, Add, Relu, until there are that many nodes."""
    rng = np.random.default_rng(0)
    made: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    last = "x"

    def conv(source: str, target: str) -> None:
        scale = 0.3 / np.sqrt(_WIDTH)
        for name, dims in ((f"{target}_w", (_WIDTH, _WIDTH, 1, 1)), (f"{target}_b", (_WIDTH,))):
            values = (rng.standard_normal(dims) * scale).astype(np.float32)
            weights.append(numpy_helper.from_array(values, name))
        made.append(
            helper.make_node("Conv", [source, f"{target}_w", f"{target}_b"], [target], name=target)
        )

    for block in range(nodes // 5):
        a, b, c, d, e = (f"{letter}{block}" for letter in "abcde")
        conv(last, a)
        made.append(helper.make_node("Relu", [a], [b], name=b))
        conv(b, c)
        made.append(helper.make_node("Add", [c, last], [d], name=d))
        made.append(helper.make_node("Relu", [d], [e], name=e))
        last = e
    info = helper.make_tensor_value_info
    shape = [1, _WIDTH, 4, 4]
    graph = helper.make_graph(
        made,
        "deep",
        [info("x", TensorProto.FLOAT, shape)],
        [info(last, TensorProto.FLOAT, shape)],
        weights,
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def measure(nodes: int) -> dict[str, float]:
    """Seconds by step, and nodes in int8."""
    model = deep_net(nodes)
    plan = QuantPlan(find_preset("cpu-avx2"))
    times = {}

    def timed(name: str, start: float) -> None:
        times[name] = time.perf_counter() - start

    start = time.perf_counter()
    prepared = prepare_float(model)
    timed("prepare", start)
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal((1, _WIDTH, 4, 4)).astype(np.float32)} for _ in range(2)]
    start = time.perf_counter()
    calibration = calibrate(prepared.model, feeds, tensors=tensors_to_calibrate(prepared, plan))
    timed("calibrate", start)
    start = time.perf_counter()
    _, report = quantize_once(prepared, calibration, plan)
    timed("quantize", start)
    start = time.perf_counter()
    quantize_once(prepared, calibration, plan)
    timed("again", start)
    times["int8"] = sum(report.quantized.values())
    return times


if __name__ == "__main__":
    for count in [int(text) for text in sys.argv[1:]] or [500, 1000, 2000, 5000]:
        found = measure(count)
        print(count, {name: round(value, 2) for name, value in found.items()}, flush=True)
