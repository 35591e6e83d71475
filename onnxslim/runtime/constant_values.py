"""The contents of values that follow from constants, evaluated on demand and kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.errors import RuntimeRefusedError
from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.shapes import static_shape
from onnxslim.runtime.evaluate import evaluate, evaluate_many

Array = npt.NDArray[Any]

PLAIN = frozenset(
    {
        *(ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16),
        *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
        *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
        ir.DataType.BOOL,
    }
)
"""Element types that are evaluated: numbers and bools of at least 8 bits, float8 excepted."""

# Operators whose result has at most as many elements as their first input.
_SHRINKING = frozenset(
    {
        "Abs",
        "ArgMax",
        "ArgMin",
        "Cast",
        "Ceil",
        "Exp",
        "Floor",
        "Identity",
        "Neg",
        "Not",
        "ReduceMax",
    }
    | {"ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Round", "Shape", "Size"}
    | {"Slice", "Sqrt", "Squeeze", "Transpose", "Unsqueeze"}
)
# Operators whose result has at most the product of their inputs' numbers of elements.
_MULTIPLYING = frozenset(
    {"Add", "And", "Div", "Equal", "Gather", "GatherElements", "GatherND", "Greater", "Less"}
    | {"GreaterOrEqual", "LessOrEqual", "MatMul", "Max", "Min", "Mod", "Mul", "Or", "Pow", "Sub"}
    | {"Where", "Xor"}
)


class ConstantValues:
    """Evaluates nodes over constants; results stay for the lifetime of the object.

    Args:
        imports: the opset imports in force for a node.
        max_bytes: constants and results above this size, in bytes, are neither read nor made.
    """

    def __init__(self, imports: Callable[[ir.Node], Mapping[str, int]], max_bytes: int) -> None:
        self._imports = imports
        self._max_bytes = max_bytes
        self._contents: dict[ir.Value, Array] = {}

    def nbytes(self, value: ir.Value) -> int | None:
        """Bytes of the contents; None when they are neither inferred, stored nor evaluated.

        The declared shape of a graph output is not trusted.
        """
        if not value.name:
            return 0
        if value in self._contents:
            return int(self._contents[value].nbytes)
        tensor = constant_tensor(value)
        if tensor is not None:
            return int(tensor.nbytes)
        shape = static_shape(value)
        if shape is None or value.dtype is None or value.is_graph_output():
            return None
        return math.prod(shape) * value.dtype.bitwidth // 8

    def content(self, value: ir.Value) -> Array:
        """The contents of a constant, or of an output evaluated before.

        Raises:
            RuntimeRefusedError: it is neither, or too large.
        """
        if value in self._contents:
            return self._contents[value]
        tensor = constant_tensor(value)
        if tensor is None:
            raise RuntimeRefusedError(f"{value.name} is not known")
        if tensor.nbytes > self._max_bytes:
            raise RuntimeRefusedError(f"{value.name} has {tensor.nbytes} bytes")
        return tensor.numpy()

    def is_known(self, value: ir.Value) -> bool:
        """True when `content` gives an answer without evaluating anything."""
        return value in self._contents or constant_tensor(value) is not None

    def evaluate(self, node: ir.Node) -> None:
        """Evaluates one node whose inputs are all known.

        Raises:
            RuntimeRefusedError: the result may be too large, or onnxruntime refuses.
        """
        inputs = [None if value is None else self.content(value) for value in node.inputs]
        if any(self.nbytes(value) is None for value in node.outputs):
            bound = result_bound(node, inputs)
            if bound is None or bound * 8 > self._max_bytes:
                raise RuntimeRefusedError("the size of the result is not known beforehand")
        results = evaluate(node, inputs, self._imports(node))
        for value, result in zip(node.outputs, results, strict=True):
            if result is not None:
                self._accept(value, result)

    def evaluate_together(self, nodes: Sequence[ir.Node], wanted: Iterable[ir.Value]) -> None:
        """Evaluates nodes of one scope of imports in one session; keeps the wanted results only.

        Raises:
            RuntimeRefusedError: something cannot be evaluated; `evaluate` then tells what.
        """
        wanted = [value for value in wanted if not self.is_known(value)]
        if not wanted:
            return
        todo = [node for node in nodes if not all(self.is_known(v) for v in node.outputs if v.name)]
        inside = {output for node in todo for output in node.outputs}
        outputs = [value for value in wanted if value in inside]
        read = [value for node in todo for value in node.inputs if value is not None]
        feeds = {value: self.content(value) for value in read if value not in inside}
        results = evaluate_many(todo, feeds, outputs, self._imports(todo[0]))
        for value, result in zip(outputs, results, strict=True):
            self._accept(value, result)

    def _accept(self, value: ir.Value, result: Array) -> None:
        dtype = ir.DataType.from_numpy(result.dtype)
        if dtype not in PLAIN or (value.dtype is not None and value.dtype != dtype):
            raise RuntimeRefusedError(f"{value.name} comes out as {dtype.name}")
        self._contents[value] = result


def result_bound(node: ir.Node, inputs: Sequence[Array | None]) -> int | None:
    """How many elements the result may have at most; None when this cannot be told from here."""
    arrays = [array for array in inputs if array is not None]
    sizes = [max(array.size, 1) for array in arrays]
    if not arrays:
        return None
    if node.op_type in _SHRINKING:
        return int(sizes[0])
    if node.op_type == "Concat":
        return int(sum(sizes))
    if node.op_type in _MULTIPLYING:
        return math.prod(sizes)
    if node.op_type == "ConstantOfShape":
        return math.prod(int(item) for item in arrays[0])
    if node.op_type in ("Expand", "Tile"):
        return int(sizes[0]) * math.prod(max(int(item), 1) for item in arrays[1])
    if node.op_type == "Range":
        start, limit, step = (float(array) for array in arrays)
        return max(math.ceil((limit - start) / step), 0) + 1 if step and np.isfinite(step) else None
    return None
