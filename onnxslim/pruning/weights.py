"""The weights that can get zeros: which initializers, and along which axis they are summed over."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.schema import is_op
from onnxslim.ir.traversal import nodes
from onnxslim.rewrite.channels.emit import store

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

# Inputs that hold a weight, by operator. Biases, norms and scales are left alone.
_WEIGHTS = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
}
_FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
)


@dataclass(frozen=True)
class Weight:
    """One constant that matrix operators read, counted once however many of them do.

    Attributes:
        value: the constant.
        node: the first operator that reads it.
        axis: the axis that this operator sums over: input channels, K of a matrix product.
        shared: other operators, or the same at another place, read it as well.
        agreed: all readers sum over the same axis.
    """

    value: ir.Value
    node: ir.Node
    axis: int
    shared: bool
    agreed: bool

    @property
    def name(self) -> str:
        """Of the constant."""
        return self.value.name or ""

    @property
    def size(self) -> int:
        """Number of elements."""
        tensor = constant_tensor(self.value)
        return 0 if tensor is None else math.prod(tensor.shape.numpy())

    def read(self) -> Array:
        """The elements, in their own dtype; not to be written to."""
        tensor = constant_tensor(self.value)
        assert tensor is not None
        return tensor.numpy()

    def write(self, content: Array) -> None:
        """Stores other elements of the same shape and dtype."""
        tensor = constant_tensor(self.value)
        assert tensor is not None
        new = np.ascontiguousarray(content.astype(tensor.dtype.numpy(), copy=False))
        declared = self.value.shape
        store(self.value, ir.tensor(new, dtype=tensor.dtype, name=self.value.name))
        self.value.shape = declared


def find_weights(model: ir.Model) -> list[Weight]:
    """The weights of a model, subgraphs and functions included, in order of first use."""
    found: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
    for node in nodes(model):
        for value, axis in _read_by(node):
            found.setdefault(value, []).append((node, axis))
    return [
        Weight(
            value,
            places[0][0],
            places[0][1],
            len(value.uses()) > 1 or value.is_graph_output(),
            len({axis for _, axis in places}) == 1,
        )
        for value, places in found.items()
    ]


def _read_by(node: ir.Node) -> Iterator[tuple[ir.Value, int]]:
    if not is_op(node, *_WEIGHTS):
        return
    for index in _WEIGHTS[node.op_type]:
        value = node.inputs[index] if index < len(node.inputs) else None
        tensor = constant_tensor(value)
        if value is None or tensor is None or tensor.dtype not in _FLOATS:
            continue
        shape = tuple(tensor.shape.numpy())
        if len(shape) >= 2 and 0 not in shape:
            yield value, _summed_axis(node, index, len(shape))


def _summed_axis(node: ir.Node, index: int, rank: int) -> int:
    match node.op_type:
        case "Conv":
            return 1
        case "ConvTranspose":
            return 0
        case "Gemm":
            name = "transA" if index == 0 else "transB"
            turned = bool(node.attributes.get_int(name, 0))
            return int(turned) if index == 1 else 1 - int(turned)
        case "MatMul":
            return rank - 1 if index == 0 else rank - 2
    return 2


@dataclass(frozen=True)
class TensorSparsity:
    """Zeros of one weight.

    Attributes:
        name: of the weight.
        shape: its shape.
        zeros_before: zero elements in the original.
        zeros: zero elements now.
        size: elements.
        note: why it is not as asked for, or empty.
    """

    name: str
    shape: tuple[int, ...]
    zeros_before: int
    zeros: int
    size: int
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "shape": list(self.shape), "sparsity": self.zeros / self.size}


def zeros_in(content: Array) -> int:
    """Elements that are 0.0 or -0.0."""
    return int(content.size - np.count_nonzero(content))
