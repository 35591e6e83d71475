"""Running a ``ModelProto`` in onnxruntime and comparing outputs.

`onnxslim.validate` is the better judge: it knows tolerances by type and made-up inputs in range.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxslim import io, passes
from onnxslim.compat.arguments import read_check_inputs
from onnxslim.errors import UsageError

if TYPE_CHECKING:
    import onnx

Arrays = dict[str, Any]

# What `check_result` lets pass; the other project's numbers.
_RTOL, _ATOL = 1e-3, 1e-4


def is_onnxruntime_available() -> bool:
    """True where onnxruntime is installed; it is not imported for the answer."""
    return importlib.util.find_spec("onnxruntime") is not None


def gen_onnxruntime_input_data(
    model: onnx.ModelProto,
    model_check_inputs: Mapping[str, Any] | Iterable[str] | None = None,
    seed: int = 0,
) -> Arrays:
    """Made-up inputs by name, open dimensions small.

    Args:
        model: the model.
        model_check_inputs: as for `onnxslim.slim`.
        seed: the same seed gives the same inputs.

    Raises:
        UsageError: an input that the model does not have.
    """
    from onnxslim.calibration.feeds import generate_feeds

    graph = io.load(model)
    shapes, arrays = read_check_inputs(model_check_inputs)
    known = [value.name or "" for value in graph.graph.inputs if not value.is_initializer()]
    for name in (*shapes, *arrays):
        if name not in known:
            raise UsageError(f"no input is called {name!r}{passes.nearest(name, known)}")
    wanted = {**shapes, **{name: list(array.shape) for name, array in arrays.items()}}
    return {**generate_feeds(graph, seed=seed, shapes=wanted, count=1)[0], **arrays}


def onnxruntime_inference(
    model: onnx.ModelProto, input_data: Mapping[str, Any]
) -> tuple[Arrays, onnx.ModelProto]:
    """The outputs by name, with graph optimizations off, and the model as it was given.

    Raises:
        RuntimeRefusedError: onnxruntime cannot open or run it.
    """
    from onnxslim.runtime.session import open_session

    session = open_session(io.load(model), optimize=False)
    outputs = session.run(input_data)
    return dict(zip(session.output_names, outputs, strict=True)), model


def check_onnx(
    model: onnx.ModelProto,
    model_check_inputs: Mapping[str, Any] | Iterable[str] | None = None,
) -> tuple[Arrays, Arrays, onnx.ModelProto]:
    """Inputs, the outputs they give, and the model as it was given."""
    feed = gen_onnxruntime_input_data(model, model_check_inputs)
    outputs, model = onnxruntime_inference(model, feed)
    return feed, outputs, model


def check_result(raw: Mapping[str, Any], slimmed: Mapping[str, Any]) -> bool:
    """True when both hold the same outputs, within 1e-3 relative and 1e-4 absolute; NaN is NaN."""
    if raw.keys() != slimmed.keys():
        return False
    return all(_agree(raw[name], slimmed[name]) for name in raw)


def _agree(one: Any, other: Any) -> bool:
    if isinstance(one, list) or isinstance(other, list):
        same = isinstance(one, list) and isinstance(other, list) and len(one) == len(other)
        return same and all(map(_agree, one, other))
    first, second = np.asarray(one), np.asarray(other)
    if first.shape != second.shape:
        return False
    if first.dtype.kind not in "fciub":
        return bool(np.array_equal(first, second))
    return bool(np.allclose(first, second, rtol=_RTOL, atol=_ATOL, equal_nan=True))
