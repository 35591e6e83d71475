"""onnx's own reference evaluator: slow, for small models whose operators onnxruntime lacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from onnxslim.errors import RuntimeRefusedError
from onnxslim.ir.traversal import graphs
from onnxslim.runtime.session import one_line

# Larger models are left alone: the evaluator is plain numpy, loops in Python.
MAX_BYTES = 20 * 1024 * 1024


class ReferenceSession:
    """A model that is open in the reference evaluator.

    Args:
        model: the model.

    Raises:
        RuntimeRefusedError: the model is too large or the evaluator does not take it.
    """

    def __init__(self, model: ir.Model) -> None:
        if _stored_bytes(model) > MAX_BYTES:
            raise RuntimeRefusedError("the model is too large for the reference evaluator")
        from onnx.reference import ReferenceEvaluator

        self.output_names = [value.name or "" for value in model.graph.outputs]
        try:
            self._inner: Any = ReferenceEvaluator(_whole_proto(model))
        except Exception as error:  # the evaluator raises anything
            raise RuntimeRefusedError(
                f"the reference evaluator cannot open the model: {one_line(error)}"
            ) from error

    def run(self, feeds: Mapping[str, Any], *, limit: float | None = None) -> list[Any]:
        """Runs once; one item per output, in order. ``limit`` cannot be kept here.

        Raises:
            RuntimeRefusedError: an operator is missing or fails.
        """
        import numpy as np

        try:
            with np.errstate(all="ignore"):
                return list(self._inner.run(None, dict(feeds)))
        except Exception as error:  # operators are plain Python and raise anything
            raise RuntimeRefusedError(
                f"the reference evaluator cannot run the model: {one_line(error)}"
            ) from error


def _stored_bytes(model: ir.Model) -> int:
    total = 0
    for graph in graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                total += value.const_value.nbytes
    return total


def _whole_proto(model: ir.Model) -> Any:
    import onnx

    from onnxslim.io import runtime_proto

    data, folder = runtime_proto(model)
    proto = onnx.load_model_from_string(data)
    if folder is not None:
        onnx.load_external_data_for_model(proto, str(folder))
    return proto
