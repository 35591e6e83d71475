"""What a model costs: operators, parameters, stored bytes, multiply-accumulate operations."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import dim
from onnxslim.ir.traversal import graphs, nodes


@dataclass(frozen=True)
class Snapshot:
    """The cost of a model at one moment.

    Attributes:
        operators: count of nodes by operator (``domain.Op`` outside the standard domain), subgraphs
            and function bodies included.
        nodes: the sum of ``operators``.
        initializers: count of stored weights, in all graphs.
        parameters: elements of all floating-point or quantized weights.
        weight_bytes: bytes of all weights.
        macs: multiply-accumulate operations of one run of the main graph (Conv, ConvTranspose,
            Gemm, MatMul), with every symbolic dimension taken as 1; None when a shape is unknown.
        file_bytes: bytes of the whole file, external data included.
    """

    operators: dict[str, int]
    nodes: int
    initializers: int
    parameters: int
    weight_bytes: int
    macs: int | None
    file_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def snapshot(model: ir.Model, file_bytes: int) -> Snapshot:
    """Counts everything; no weight is read.

    Args:
        model: with shapes inferred, for the MACs.
        file_bytes: bytes of the model as a file; only ``io`` knows.
    """
    operators = Counter(_label(node) for node in nodes(model))
    tensors = [tensor for graph in graphs(model) for tensor in _weights(graph)]
    counted = [macs_of(node) for node in model.graph if is_op(node, *_MATRIX_OPS)]
    known = [macs for macs in counted if macs is not None]
    return Snapshot(
        operators=dict(sorted(operators.items())),
        nodes=operators.total(),
        initializers=len(tensors),
        parameters=sum(tensor.size for tensor in tensors if tensor.dtype != ir.DataType.INT64),
        weight_bytes=sum(tensor.nbytes for tensor in tensors if tensor.dtype != ir.DataType.STRING),
        macs=sum(known) if len(known) == len(counted) else None,
        file_bytes=file_bytes,
    )


_MATRIX_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _label(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def _weights(graph: ir.Graph) -> list[ir.TensorProtocol]:
    values = graph.initializers.values()
    return [value.const_value for value in values if value.const_value is not None]


def _size(value: ir.Value | None, axis: int) -> int | None:
    """A dimension with symbols taken as 1; None when the rank is unknown."""
    if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    size = dim(value, axis)
    return size if isinstance(size, int) else 1


def _elements(value: ir.Value | None) -> int | None:
    if value is None or value.shape is None:
        return None
    return math.prod(_size(value, axis) or 0 for axis in range(len(value.shape)))


def macs_of(node: ir.Node) -> int | None:
    """MACs of one matrix operator: output elements times the length of each dot product."""
    out = _elements(node.outputs[0])
    first, weight = node.inputs[0], node.inputs[1]
    if node.op_type == "Conv":
        per_output = _elements(weight)
        channels = _size(weight, 0)
        length = None if per_output is None or not channels else per_output // channels
    elif node.op_type == "ConvTranspose":
        out = _elements(first)  # every input element meets all kernel taps of its group's outputs
        per_input = _elements(weight)
        channels = _size(weight, 0)
        length = None if per_input is None or not channels else per_input // channels
    elif node.op_type == "Gemm":
        transposed = node.attributes.get_int("transA", 0)
        length = _size(first, 0 if transposed else 1)
    else:
        length = _size(first, -1)
    return None if out is None or length is None else out * length
