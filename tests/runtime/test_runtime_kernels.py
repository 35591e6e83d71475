"""What onnxruntime really runs."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxslim.io import load
from onnxslim.quantization.engine import quantize_model
from onnxslim.runtime.kernels import executed_operators, int8_share


def test_int8_products_are_counted() -> None:
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((8, 8)).astype(np.float32), name)
        for name in ("a", "b")
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "a"], ["h"], name="one"),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "b"], ["y"], name="two"),
        ],
        "net",
        [info("x", TensorProto.FLOAT, ["N", 8])],
        [info("y", TensorProto.FLOAT, ["N", 8])],
        weights,
    )
    model = load(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )
    feeds = [{"x": rng.standard_normal((16, 8)).astype(np.float32)}]
    assert int8_share(executed_operators(model)) == 0
    for excluded, share in (((), 1.0), (("one",), 0.5)):
        result, _ = quantize_model(model, feeds, preset="portable", exclude=excluded)
        found = executed_operators(result)
        assert found["QLinearMatMul"] == (2 if share == 1 else 1)
        assert int8_share(found) == share
    assert int8_share(executed_operators(load(helper.make_model(
        helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "r",
                          [info("x", TensorProto.FLOAT, [2])], [info("y", TensorProto.FLOAT, [2])]),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )))) == 1  # fmt: skip
