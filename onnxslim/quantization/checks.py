"""What a quantized model has to pass before anybody gets it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import numpy as np
import onnx_ir as ir

from onnxslim.errors import InvalidModelError, RuntimeRefusedError
from onnxslim.io import save, total_bytes
from onnxslim.ir.traversal import subgraphs_of
from onnxslim.runtime.session import open_session
from onnxslim.runtime.specs import Feed

# Files above this many bytes keep their weights beside them: protobuf ends at 2 GiB.
INLINE_BYTES = 1_500_000_000

# Relative, in the Euclidean norm: another form of the same sums.
_CONVERSION_ERROR = 1e-4

# The same for models in half precision, whose own arithmetic is no better.
_HALF_ERROR = 2e-2

_OPEN = """
import sys, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""


def check_conversion(model: ir.Model, work: ir.Model, feed: Feed, *, is_half: bool = False) -> None:
    """Raises InvalidModelError when preparation changed what the model computes.

    Args:
        model: as it was given.
        work: after preparation.
        feed: inputs for both.
        is_half: the model computes in half precision.
    """
    allowed = _HALF_ERROR if is_half else _CONVERSION_ERROR
    before, after = (open_session(item, optimize=False).run(feed) for item in (model, work))
    for value, one, other in zip(model.graph.outputs, before, after, strict=True):
        same = np.shape(one) == np.shape(other)
        if same and isinstance(one, np.ndarray) and one.dtype.kind == "f":
            one, other = one.astype(np.float64), other.astype(np.float64)
            finite = np.isfinite(one) & np.isfinite(other)
            error = np.linalg.norm((one - other)[finite])
            same = bool(error <= allowed * np.linalg.norm(one[finite]))
        elif same and isinstance(one, np.ndarray):
            same = bool(np.array_equal(one, other))
        if not same:
            raise InvalidModelError(
                f"raising the opset, which int8 needs, changes output {value.name!r}; export the "
                "model with opset 17"
            )


def check_result(model: ir.Model, feed: Feed) -> None:
    """Opens the model the way it will be deployed and runs it once.

    Raises:
        InvalidModelError: onnxruntime does not take it.
    """
    try:
        if any(True for node in model.graph for _ in subgraphs_of(node)):
            _open_elsewhere(model)
        open_session(model, optimize=True).run(feed)
    except RuntimeRefusedError as error:
        raise InvalidModelError(
            f"the quantized model does not run: {error}; exclude the node if the message names one"
        ) from error


def _open_elsewhere(model: ir.Model) -> None:
    """Opens the model in a process of its own.

    Some versions of onnxruntime end the whole process on int8 beside subgraphs.

    Raises:
        RuntimeRefusedError: that process does not end well.
    """
    with tempfile.TemporaryDirectory(prefix="onnxslim-") as folder:
        path = os.path.join(folder, "int8.onnx")
        save(model, path, external_data=total_bytes(model) > INLINE_BYTES)
        call = [sys.executable, "-c", _OPEN, path]
        done = subprocess.run(call, capture_output=True, check=False, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeRefusedError(f"onnxruntime cannot open it: {last[-200:]}")
