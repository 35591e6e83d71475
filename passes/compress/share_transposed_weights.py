"""Stores a matrix that is another's transpose as a Transpose of that other one.

Before::

    <float[512,256] w, float[256,512] v>
    a = MatMul (x, w)
    y = MatMul (a, v)

After::

    <float[512,256] w>
    v = Transpose <perm = [1, 0]> (w)
    a = MatMul (x, w)
    y = MatMul (a, v)

Input and output embeddings that are tied are of that kind. onnxruntime computes the Transpose once
when it opens the model: the file shrinks, memory does not.

Holds only if:

1. both are matrices of one type, of 4 KiB or more, in the main graph, and every element has the
   same bytes: NaN by its payload, 0.0 is not -0.0;
2. no caller can override either, and the one that goes is no graph output;
3. what is read by quantized operators as an initializer stays.

Exactness: exact.

Source: Transpose of the ONNX operators.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.edit import replace_value
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.stored_weights.find import Array, needs_initializer

_LEAST_BYTES = 4096


@dataclass(frozen=True)
class ShareTransposedWeights(Pass):
    """One of two matrices that are each other's transpose."""

    name: ClassVar[str] = "share-transposed-weights"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def run(self, model: ir.Model, context: Context) -> PassResult:
        kept: dict[tuple[object, ...], list[ir.Value]] = defaultdict(list)
        changes = 0
        for value in _matrices(model.graph):
            rows, columns = value.shape.numpy() if value.shape is not None else (0, 0)
            others = kept[value.dtype, columns, rows]
            twin = next((other for other in others if _is_transposed(value, other)), None)
            if twin is None or value.is_graph_output():
                kept[value.dtype, rows, columns].append(value)
            elif needs_initializer(value):
                context.refuse(self, value.name or "", "a reader needs an initializer")
            elif context.allow(self, value.name or "", f"the transpose of {twin.name}"):
                _replace(model.graph, context, value, twin)
                changes += 1
        return PassResult(changes)


def _matrices(graph: ir.Graph) -> Iterator[ir.Value]:
    for value in list(graph.initializers.values()):
        tensor = constant_tensor(value)
        if tensor is None or isinstance(tensor, ir.LazyTensor) or tensor.dtype.bitwidth < 8:
            continue
        plain = tensor.dtype not in (ir.DataType.STRING, ir.DataType.COMPLEX128)
        if plain and len(tensor.shape) == 2 and tensor.nbytes >= _LEAST_BYTES:
            yield value


def _is_transposed(value: ir.Value, other: ir.Value) -> bool:
    """Compares bytes; a row and a column are compared first."""
    first, second = _bits(value), _bits(other).T
    return (
        np.array_equal(first[0], second[0])
        and np.array_equal(first[:, -1], second[:, -1])
        and np.array_equal(first, second)
    )


def _bits(value: ir.Value) -> Array:
    tensor = constant_tensor(value)
    if tensor is None:
        raise ValueError(f"{value.name!r} is no constant")
    array = np.ascontiguousarray(tensor.numpy())
    return array.view(np.dtype(f"u{array.dtype.itemsize}"))


def _replace(graph: ir.Graph, context: Context, value: ir.Value, twin: ir.Value) -> None:
    name = value.name or ""
    del graph.initializers[name]
    value.name = f"{name}__replaced"
    node = ir.node(
        "Transpose",
        [twin],
        attributes={"perm": [1, 0]},
        name=context.fresh_name(f"{name}_transpose"),
    )
    graph.insert_before(graph[0], node)
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    replace_value(value, node.outputs[0])
    node.outputs[0].name = name
