"""The operator tests of the onnx package through the default pipeline: same outputs, always.

About 1,880 single-operator models with data come from ``collect_testcases``; the ``simple``,
``pytorch-converted``, ``pytorch-operator`` and ``light`` folders of the package follow. One that
onnxruntime cannot run as it is says nothing and is counted apart.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import onnxslim

SHARDS = 16
DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
FOLDERS = ("simple", "pytorch-converted", "pytorch-operator", "light")

# By the largest magnitude of the output. The runtime computes float16 in float32 and drops some of
# the roundings between nodes, depending on which nodes there are: one step is its own doing.
TOLERANCE = {np.dtype(np.float16): 1e-3}

# Operators whose outputs are random whatever the seed input.
RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}


@functools.cache
def node_cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        return sorted(collect_testcases(None), key=lambda case: case.name)


def session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, inputs: list[Any]) -> list[Any] | None:
    """The outputs, or None when onnxruntime cannot run the model on these inputs."""
    try:
        opened = session(model.SerializeToString())
        names = [value.name for value in opened.get_inputs()]
        feeds = {name: _feed(value) for name, value in zip(names, inputs, strict=False)}
        return list(opened.run(None, feeds))
    except Exception:
        return None


def _feed(value: Any) -> Any:
    return np.asarray(value) if np.isscalar(value) else value


def same(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple):
        return (
            isinstance(other, list | tuple)
            and len(one) == len(other)
            and all(same(first, second) for first, second in zip(one, other, strict=True))
        )
    if one is None or other is None:
        return one is other
    first, second = np.asarray(one), np.asarray(other)
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    if first.dtype.kind not in "fc":
        return bool(np.array_equal(first, second))
    finite = np.abs(first[np.isfinite(first)])
    scale = float(finite.max()) if finite.size else 0.0
    tolerance = TOLERANCE.get(first.dtype, 1e-6)
    return bool(
        np.allclose(first, second, rtol=tolerance, atol=1e-7 + tolerance * scale, equal_nan=True)
    )


def check(name: str, model: onnx.ModelProto, data: list[list[Any]]) -> str:
    """``ok``, ``not runnable``, or what is wrong."""
    references = [run(model, inputs) for inputs in data]
    runnable = [pair for pair in zip(data, references, strict=True) if pair[1] is not None]
    optimized = onnxslim.slim(model, validate=False)
    assert optimized is not None
    if not runnable:
        return "not runnable"
    for inputs, reference in runnable:
        got = run(optimized, inputs)
        if got is None:
            return f"{name}: does not run any more"
        random = any(node.op_type in RANDOM for node in model.graph.node)
        if not random and not same(reference, got):
            return f"{name}: other outputs"
    return "ok"


@pytest.mark.parametrize("shard", range(SHARDS))
def test_node_models(shard: int) -> None:
    cases = node_cases()[shard::SHARDS]
    results = [
        check(case.name, case.model, [list(inputs) for inputs, _ in case.data_sets])
        for case in cases
    ]
    wrong = [text for text in results if text not in ("ok", "not runnable")]
    assert wrong == []
    assert results.count("ok") > 0.6 * len(results)


def folders() -> Iterator[Path]:
    for name in FOLDERS:
        yield from sorted((DATA / name).rglob("*.onnx"))


def _data_sets(path: Path, model: onnx.ModelProto) -> list[list[Any]]:
    if "light" in path.parts:
        shape = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
        ramp = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / np.prod(shape)
        return [[ramp.astype(np.float32)]]
    sets = []
    for folder in sorted(path.parent.glob("test_data_set_*")):
        inputs = []
        for index, value in enumerate(model.graph.input):
            file = folder / f"input_{index}.pb"
            if file.exists():
                inputs.append(_read(file, value))
        sets.append(inputs)
    return sets


def _read(file: Path, value: onnx.ValueInfoProto) -> Any:
    if value.type.WhichOneof("value") == "sequence_type":
        return numpy_helper.to_list(onnx.SequenceProto.FromString(file.read_bytes()))
    return numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes()))


@pytest.mark.parametrize(
    "path", list(folders()), ids=lambda path: path.parent.name + "/" + path.stem
)
def test_folder_models(path: Path) -> None:
    model = onnx.load(os.fspath(path))
    assert check(path.stem, model, _data_sets(path, model)) in ("ok", "not runnable")
