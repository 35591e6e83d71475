"""Small graphs for the tests of static int8, and how they are run."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from onnxslim.io import load, save

Feeds = list[dict[str, np.ndarray]]


def weight(name: str, *dims: int, seed: int = 0, scale: float = 0.4) -> onnx.TensorProto:
    """Normal numbers."""
    values = np.random.default_rng(seed).standard_normal(dims) * scale
    return numpy_helper.from_array(values.astype(np.float32), name)


def info(name: str, dims: Sequence[int | str] | None, dtype: int = TensorProto.FLOAT) -> Any:
    """A declared tensor."""
    return helper.make_tensor_value_info(name, dtype, dims)


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    weights: Sequence[onnx.TensorProto],
    opset: int = 17,
    extra: Sequence[Any] = (),
) -> onnx.ModelProto:
    """A model of one graph."""
    graph = helper.make_graph(list(nodes), "net", list(inputs), list(outputs), list(weights))
    imports = [helper.make_opsetid("", opset), *extra]
    return helper.make_model(graph, opset_imports=imports, ir_version=10 if opset > 20 else 8)


def conv_net(opset: int = 17) -> onnx.ModelProto:
    """Two convolutions, pooling and a Gemm; only one node has a name."""
    return build(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Conv", ["r", "w2"], ["d"], name="second"),
            helper.make_node("GlobalAveragePool", ["d"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "g", "gb"], ["y"], transB=1),
        ],
        [info("x", ["N", 3, "H", "W"])],
        [info("y", ["N", 5])],
        [
            weight("w", 16, 3, 3, 3),
            weight("b", 16, seed=1),
            weight("w2", 16, 16, 3, 3, seed=2, scale=0.1),
            weight("g", 5, 16, seed=3),
            weight("gb", 5, seed=4),
        ],
        opset,
    )


def wide_net() -> onnx.ModelProto:
    """One node of nearly every operator that has an int8 kernel."""
    make = helper.make_node
    return build(
        [
            make("Conv", ["x", "w", "b"], ["c1"], pads=[1, 1, 1, 1], name="conv1"),
            make("Sigmoid", ["c1"], ["s1"]),
            make("Mul", ["c1", "s1"], ["swish"]),
            make("MaxPool", ["swish"], ["m1"], kernel_shape=[2, 2], strides=[2, 2]),
            make("Conv", ["m1", "w2"], ["c2"], pads=[1, 1, 1, 1], group=8, name="depthwise"),
            make("LeakyRelu", ["c2"], ["l2"], alpha=0.2),
            make("Conv", ["l2", "w3", "b3"], ["c3"], name="pointwise"),
            make("Add", ["c3", "m1"], ["a3"]),
            make("Relu", ["a3"], ["r3"]),
            make("AveragePool", ["r3"], ["p3"], kernel_shape=[2, 2], strides=[2, 2]),
            make("Resize", ["p3", "", "scales"], ["u3"], mode="nearest"),
            make("Concat", ["u3", "r3"], ["k3"], axis=1),
            make("Pad", ["k3", "pads"], ["d3"]),
            make("Conv", ["d3", "w4"], ["c4"], name="last"),
            make("Clip", ["c4", "zero", "six"], ["six4"]),
            make("Transpose", ["six4"], ["t4"], perm=[0, 2, 3, 1]),
            make("Reshape", ["t4", "flat"], ["f4"]),
            make("MatMul", ["f4", "m"], ["y0"]),
            make("Add", ["y0", "mb"], ["y"]),
        ],
        [info("x", ["N", 3, 8, 8])],
        [info("y", ["N", 36, 4])],
        [
            weight("w", 8, 3, 3, 3),
            weight("b", 8, seed=1),
            weight("w2", 8, 1, 3, 3, seed=2),
            weight("w3", 8, 8, 1, 1, seed=3),
            weight("b3", 8, seed=4),
            weight("w4", 6, 16, 1, 1, seed=5),
            weight("m", 6, 4, seed=6),
            weight("mb", 4, seed=7),
            numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"),
            numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "pads"),
            numpy_helper.from_array(np.array(0, np.float32), "zero"),
            numpy_helper.from_array(np.array(6, np.float32), "six"),
            numpy_helper.from_array(np.array([0, -1, 6], np.int64), "flat"),
        ],
    )


def images(*shapes: Sequence[int], seed: int = 7) -> Feeds:
    """Normal numbers for input x."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for shape in shapes]


def data_of(model: ir.Model | onnx.ModelProto) -> bytes:
    """The model as a file."""
    if isinstance(model, onnx.ModelProto):
        return model.SerializeToString()
    stream = io.BytesIO()
    save(model, stream)
    return stream.getvalue()


def proto_of(model: ir.Model) -> onnx.ModelProto:
    """The model as protobuf, checked."""
    data = data_of(model)
    onnx.checker.check_model(data, full_check=True)
    return onnx.load_from_string(data)


def session(model: ir.Model | onnx.ModelProto, *, optimize: bool = True) -> Any:
    """Open as deployed, on one thread."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(data_of(model), options, ["CPUExecutionProvider"])


def run(
    model: ir.Model | onnx.ModelProto, feed: Mapping[str, np.ndarray], *, optimize: bool = True
) -> list[np.ndarray]:
    """All outputs."""
    return session(model, optimize=optimize).run(None, dict(feed))


def kernels(model: ir.Model | onnx.ModelProto, folder: Any) -> list[str]:
    """The operators that onnxruntime runs, after it has fused what it fuses."""
    path = str(folder / "fused.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = path
    onnxruntime.InferenceSession(data_of(model), options, ["CPUExecutionProvider"])
    return sorted(node.op_type for node in onnx.load(path).graph.node)


def sqnr(exact: np.ndarray, other: np.ndarray) -> float:
    """Signal to noise in dB."""
    noise = float(np.square(np.float64(exact) - np.float64(other)).sum())
    return 10 * np.log10(float(np.square(np.float64(exact)).sum()) / noise) if noise else 200.0


def as_model(proto: onnx.ModelProto) -> ir.Model:
    """As `load` gives it."""
    return load(proto)
