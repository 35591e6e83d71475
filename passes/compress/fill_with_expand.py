"""Stores a large constant of one value as that value and a shape.

Before::

    <float[64,64,32] c>
    y = Add (x, c)

After::

    <float c_value, int64[3] c_shape = {64, 64, 32}>
    c = Expand (c_value, c_shape)
    y = Add (x, c)

The new node reads constants alone, so onnxruntime computes it once when it opens the model.

Holds only if:

1. all elements of the constant have the same bytes: NaN by its payload, 0.0 is not -0.0;
2. it has 4 KiB or more, no caller can override it and it is no graph output;
3. every reader is a layer or an elementwise operator that takes a computed value there as well as
   a constant;
4. the standard operators are of version 8 or later, which have Expand; types that Expand of that
   version does not take stay.

Exactness: exact.

Source: Expand of the ONNX operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.schema import default_opset, is_op
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.stored_weights.emit import Step, Stored, replace_weight
from onnxslim.rewrite.stored_weights.find import Weight
from onnxslim.rewrite.tensor_bytes import reader

_OPSET = 8
_LEAST_BYTES = 4096
_TYPES = (
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.INT32,
    ir.DataType.INT64,
    ir.DataType.BOOL,
)
_READERS = (
    "Add",
    "And",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Div",
    "Equal",
    "Gather",
    "Gemm",
    "Greater",
    "Less",
    "MatMul",
    "Max",
    "Min",
    "Mul",
    "Or",
    "Pow",
    "Sub",
    "Where",
)
_CHUNK = 1 << 20


@dataclass(frozen=True)
class FillWithExpand(Pass):
    """Expand for constants of one value, in the main graph."""

    name: ClassVar[str] = "fill-with-expand"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def run(self, model: ir.Model, context: Context) -> PassResult:
        if default_opset(model) < _OPSET:  # (4)
            return PassResult()
        changes = 0
        for value in list(model.graph.initializers.values()):
            tensor = constant_tensor(value)
            if tensor is None or not _is_fill(tensor):
                continue
            name = value.name or ""
            if value.is_graph_output():
                context.refuse(self, name, "it is an output of the graph")
            elif not all(is_op(node, *_READERS) for node in value.consumers()):  # (3)
                context.refuse(self, name, "a reader may need it as an initializer")
            elif context.allow(self, name, f"one value, {tensor.nbytes} bytes"):
                replace_weight(model, context, Weight(value, model.graph, ()), _filled(tensor))
                changes += 1
        return PassResult(changes)


def _is_fill(tensor: ir.TensorProtocol) -> bool:
    """Stops reading at the first piece that differs."""
    if tensor.dtype not in _TYPES or tensor.nbytes < _LEAST_BYTES:
        return False
    read, width = reader(tensor), tensor.dtype.bitwidth // 8
    first = read(0, width)
    if read(tensor.nbytes - width, tensor.nbytes) != first or read(width, 2 * width) != first:
        return False
    for start in range(0, tensor.nbytes, _CHUNK):
        piece = np.frombuffer(read(start, min(start + _CHUNK, tensor.nbytes)), np.uint8)
        if not (piece.reshape(-1, width) == np.frombuffer(first, np.uint8)).all():
            return False
    return True


def _filled(tensor: ir.TensorProtocol) -> Stored:
    array = tensor.numpy()
    shape = np.array(array.shape, dtype=np.int64)
    value = np.array(array.reshape(-1)[0])
    return Stored("value", value, (Step("Expand", tensor.dtype, shape),), 0.0)
