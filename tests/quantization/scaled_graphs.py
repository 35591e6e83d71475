"""Small graphs with random weights, as ONNX text: inputs whose name starts with ``w`` or ``b``
become weights of the declared shape."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from onnxslim.ir import shapes
from onnxslim.runtime.session import open_session

HEAD = '<ir_version: 10, opset_import: ["" : {opset}]>\n'


def graph(text: str, *, opset: int = 20, seed: int = 0) -> ir.Model:
    """The model of a graph text; weights are normally distributed numbers."""
    proto = onnx.parser.parse_model(HEAD.format(opset=opset) + text)
    rng = np.random.default_rng(seed)
    for info in list(proto.graph.input):
        if info.name[0] in "wb":
            shape = [size.dim_value for size in info.type.tensor_type.shape.dim]
            array = rng.standard_normal(shape).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
            proto.graph.input.remove(info)
    onnx.checker.check_model(proto, full_check=True)
    model = ir.from_proto(proto)
    shapes.infer(model)
    return model


def feed_of(model: ir.Model, seed: int = 1) -> dict[str, np.ndarray]:
    """Random numbers for every input; open dimensions become 2."""
    rng = np.random.default_rng(seed)
    return {
        value.name: rng.standard_normal(
            [size if isinstance(size, int) else 2 for size in value.shape]
        ).astype(np.float32)
        for value in model.graph.inputs
    }


def run(model: ir.Model, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """All outputs, the graph as it is."""
    return open_session(model, optimize=False, threads=1).run(feed)


def weight(model: ir.Model, name: str) -> np.ndarray:
    """The numbers of an initializer."""
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()
