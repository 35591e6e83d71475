"""Random graphs through the default pipeline: valid, same outputs, idempotent, deterministic."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from random_graphs import feeds, random_model

import onnxslim

GRAPHS_PER_RUN = 300
_ERRORS = onnxruntime.capi.onnxruntime_pybind11_state
LOST_CAPTURE = (_ERRORS.Fail, _ERRORS.RuntimeException)
SHARDS = 6


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)


def _bytes_without_read_names(model: onnx.ModelProto) -> int:
    def read_names(graph: onnx.GraphProto) -> int:
        own = sum(len(name) for node in graph.node for name in node.input)
        inner = [item.g for node in graph.node for item in node.attribute if item.HasField("g")]
        return own + sum(map(read_names, inner))

    return model.ByteSize() - read_names(model.graph)


def check(seed: int) -> None:
    model = random_model(seed)
    onnx.checker.check_model(model)
    before = model.SerializeToString()
    slim = onnxslim.slim(model, validate=False, verify_each=True)
    assert model.SerializeToString() == before, "the caller's model was changed"
    onnx.checker.check_model(slim)
    # a node may read a value with a longer name than before; nothing else may cost a byte
    assert _bytes_without_read_names(slim) <= _bytes_without_read_names(model)
    assert [value.name for value in slim.graph.output] == [v.name for v in model.graph.output]
    assert list(slim.graph.input) == list(model.graph.input)
    for size in (2, 3):
        fixed = model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
        inputs = feeds(model, seed, 2 if fixed else size)
        try:
            reference = run(model, inputs)
        except LOST_CAPTURE:
            continue  # the runtime loses some captures of If branches, with or without us
        for one, other in zip(reference, run(slim, inputs), strict=True):
            scale = float(np.abs(one).max(initial=1e-3))
            np.testing.assert_allclose(other, one, rtol=2e-5, atol=2e-5 * scale)
    again = onnxslim.slim(slim, validate=False)
    assert again.SerializeToString() == slim.SerializeToString(), "not idempotent"


@pytest.mark.parametrize("shard", range(SHARDS))
def test_random_graphs(shard: int) -> None:
    for seed in range(shard, GRAPHS_PER_RUN, SHARDS):
        try:
            check(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(20))
def test_many_random_graphs(shard: int) -> None:
    for seed in range(1000 + shard, 11_000, 20):
        try:
            check(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
