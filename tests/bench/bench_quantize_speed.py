"""Speed of int8 over float at one thread, of three nets with random weights, measured in turn.

Other work on the machine only ever makes a run slower, so the least time of many rounds counts.

Run: python tests/bench/bench_quantize_speed.py [--preset NAME] [--rounds N] [NET ...]
"""

from __future__ import annotations

import argparse
import io
import time
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from onnxslim.calibration.run import calibrate
from onnxslim.io import load, save
from onnxslim.quantization.engine import (
    QuantPlan,
    prepare_float,
    quantize_once,
    tensors_to_calibrate,
)
from onnxslim.quantization.presets import find_preset


class Net:
    """Builds a graph of float32 nodes with random weights."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(0)

    def weight(self, *dims: int, fan: int | None = None) -> str:
        """Normal numbers that keep activations at their size; returns the name."""
        name = f"w{len(self.weights)}"
        scale = np.sqrt(2 / (fan or 1)) if fan else 0.02
        values = (self._rng.standard_normal(dims) * scale).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def const(self, values: Any, dtype: Any) -> str:
        """A constant; returns the name."""
        name = f"k{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output; returns the name of that."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name=name, **attributes))
        return name

    def conv(self, x: str, c_in: int, c_out: int, k: int, stride: int = 1, group: int = 1) -> str:
        """A convolution with bias that keeps the size of the image at stride 1."""
        weight = self.weight(c_out, c_in // group, k, k, fan=c_in // group * k * k)
        pads = [k // 2] * 4
        bias = self.weight(c_out)
        return self.node("Conv", x, weight, bias, pads=pads, strides=[stride] * 2, group=group)

    def model(self, inputs: dict[str, list[int]], output: str) -> ir.Model:
        """The graph as a model."""
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "net",
            [info(name, TensorProto.FLOAT, dims) for name, dims in inputs.items()],
            [info(output, TensorProto.FLOAT, None)],
            self.weights,
        )
        imports = [helper.make_opsetid("", 17)]
        return load(helper.make_model(graph, opset_imports=imports, ir_version=8))


def resnet18() -> ir.Model:
    """ResNet18 at 224 pixels."""
    net = Net()
    x = net.node("Relu", net.conv("x", 3, 64, 7, 2))
    x = net.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            stride = 2 if width > 64 and block == 0 else 1
            y = net.node("Relu", net.conv(x, channels, width, 3, stride))
            y = net.conv(y, width, width, 3)
            short = x if stride == 1 else net.conv(x, channels, width, 1, stride)
            x = net.node("Relu", net.node("Add", y, short))
            channels = width
    flat = net.node("Flatten", net.node("GlobalAveragePool", x))
    y = net.node("Gemm", flat, net.weight(1000, 512, fan=512), net.weight(1000), transB=1)
    return net.model({"x": [1, 3, 224, 224]}, y)


def mobilenet() -> ir.Model:
    """MobileNet v1 at 224 pixels."""
    net = Net()
    x = net.node("Relu", net.conv("x", 3, 32, 3, 2))
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5,
            (1024, 2), (1024, 1)]  # fmt: skip
    channels = 32
    for width, stride in plan:
        x = net.node("Relu", net.conv(x, channels, channels, 3, stride, channels))
        x = net.node("Relu", net.conv(x, channels, width, 1))
        channels = width
    flat = net.node("Flatten", net.node("GlobalAveragePool", x))
    y = net.node("Gemm", flat, net.weight(1000, 1024, fan=1024), net.weight(1000), transB=1)
    return net.model({"x": [1, 3, 224, 224]}, y)


def transformer(layers: int = 4, width: int = 384, length: int = 128, heads: int = 6) -> ir.Model:
    """An encoder of four layers, 384 wide, on 128 tokens."""
    net = Net()
    each = width // heads
    split = net.const([1, length, heads, each], np.int64)
    joined = net.const([1, length, width], np.int64)

    def linear(x: str, a: int, b: int) -> str:
        return net.node("Add", net.node("MatMul", x, net.weight(a, b, fan=2 * a)), net.weight(b))

    def norm(x: str) -> str:
        gamma = net.const(np.ones(width), np.float32)
        return net.node("LayerNormalization", x, gamma, net.weight(width), axis=-1)

    def apart(x: str, perm: list[int]) -> str:
        return net.node("Transpose", net.node("Reshape", x, split), perm=perm)

    x = "x"
    for _ in range(layers):
        h = norm(x)
        q, k, v = (linear(h, width, width) for _ in range(3))
        scores = net.node("MatMul", apart(q, [0, 2, 1, 3]), apart(k, [0, 2, 3, 1]))
        scores = net.node("Mul", scores, net.const(each**-0.5, np.float32))
        mixed = net.node("MatMul", net.node("Softmax", scores, axis=-1), apart(v, [0, 2, 1, 3]))
        mixed = net.node("Reshape", net.node("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
        x = net.node("Add", x, linear(mixed, width, width))
        h = linear(norm(x), width, 4 * width)
        erf = net.node("Erf", net.node("Div", h, net.const(2**0.5, np.float32)))
        gelu = net.node("Mul", h, net.node("Add", erf, net.const(1, np.float32)))
        gelu = net.node("Mul", gelu, net.const(0.5, np.float32))
        x = net.node("Add", x, linear(gelu, 4 * width, width))
    return net.model({"x": [1, length, width]}, norm(x))


NETS = {"resnet18": resnet18, "mobilenet": mobilenet, "transformer": transformer}


def session(model: ir.Model) -> Any:
    """As a user would open it, on one thread."""
    stream = io.BytesIO()
    save(model, stream)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        stream.getvalue(), options, providers=["CPUExecutionProvider"]
    )


def least_times(models: dict[str, ir.Model], feed: Any, rounds: int) -> dict[str, float]:
    """Least milliseconds of each, all in turn."""
    sessions = {name: session(model) for name, model in models.items()}
    least = dict.fromkeys(models, np.inf)
    for _ in range(rounds):
        for name, one in sessions.items():
            start = time.perf_counter()
            one.run(None, feed)
            least[name] = min(least[name], time.perf_counter() - start)
    return {name: 1e3 * value for name, value in least.items()}


def measure(name: str, preset: str, rounds: int) -> None:
    """Prints speed and size of every form."""
    model = NETS[name]()
    settings = find_preset(preset)
    plan = QuantPlan(settings, method="minmax")
    prepared = prepare_float(model)
    shape = [int(dim) for dim in model.graph.inputs[0].shape or ()]
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(4)]
    calibration = calibrate(prepared.model, feeds, tensors=tensors_to_calibrate(prepared, plan))
    plans = {
        "int8": plan,
        "qoperator": replace(plan, form="qoperator"),
        "onnxruntime": replace(plan, engine="onnxruntime"),
        "products": replace(plan, op_types=("Conv", "Gemm", "MatMul")),
        "constant": replace(plan, preset=replace(settings, constant_matmul_only=True)),
    }
    if name == "transformer":
        plans["dynamic"] = replace(plan, dynamic=True)
    models = {"float": model}
    for label, one in plans.items():
        models[label] = quantize_once(prepared, calibration, one)[0]
    times = least_times(models, feeds[0], rounds)
    for label, value in times.items():
        print(f"{name} {settings.name} {label}: {value:.2f} ms, {times['float'] / value:.2f}x")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("nets", nargs="*", default=list(NETS))
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    for net_name in given.nets:
        measure(net_name, given.preset, given.rounds)
