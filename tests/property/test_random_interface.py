"""Random graphs in another float type, and random parts cut out of them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from random_graphs import feeds, random_model

from onnxslim import io
from onnxslim.errors import UsageError
from onnxslim.ir.interface import extract
from onnxslim.rewrite.float_types import convert_floats

GRAPHS = 60
SHARDS = 3
_ERRORS = onnxruntime.capi.onnxruntime_pybind11_state
LOST_CAPTURE = (_ERRORS.Fail, _ERRORS.RuntimeException)


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    """The outputs; None where onnxruntime cannot run the graph (captured values it loses)."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return session.run(None, inputs)
    except LOST_CAPTURE:
        return None


def as_half(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float16) if array.dtype == np.float32 else array


def seeds(shard: int) -> range:
    return range(shard, GRAPHS * SHARDS, SHARDS)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_float16_is_well_typed_and_close(shard: int) -> None:
    compared = 0
    for seed in seeds(shard):
        proto = random_model(seed)
        model = io.load(proto)
        convert_floats(model, ir.DataType.FLOAT16)
        half = io.to_proto(model)
        onnx.checker.check_model(half, full_check=True)
        inputs = feeds(proto, seed, 2)
        expected = run(proto, inputs)
        if expected is None:
            continue
        got = run(half, {name: as_half(array) for name, array in inputs.items()})
        assert got is not None, seed
        for one, other in zip(expected, got, strict=True):
            assert other.dtype == as_half(one).dtype
            largest = np.abs(one).max(initial=0) if one.dtype.kind == "f" else 0
            if 0 < largest < 6e4:  # beyond that it leaves the range of float16
                np.testing.assert_allclose(other.astype(np.float64), one, atol=0.05 * largest)
                compared += 1
    assert compared > GRAPHS // 2


@pytest.mark.parametrize("shard", range(SHARDS))
def test_any_value_can_be_cut_out(shard: int) -> None:
    compared = 0
    for seed in seeds(shard):
        proto = random_model(seed)
        rng = np.random.default_rng(seed)
        produced = [name for node in proto.graph.node for name in node.output if name]
        end, start = (str(name) for name in rng.choice(produced, 2))
        inputs = feeds(proto, seed, 2)
        try:
            first, last = io.load(proto), io.load(proto)
            extract(first, {}, {end: None, start: None} if start != end else {end: None})
            names = [face.name for face in proto.graph.input]
            extract(last, dict.fromkeys([start, *names]), {end: None})
        except UsageError:  # a type that inference does not know; the count below is a limit
            continue
        whole = run(io.to_proto(first), inputs)
        if whole is None:
            continue
        part = run(io.to_proto(last), {start: whole[-1], **inputs})
        if part is not None:
            np.testing.assert_array_equal(part[0], whole[0])
            compared += 1
    assert compared > GRAPHS // 2
