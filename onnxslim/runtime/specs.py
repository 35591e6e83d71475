"""What a model wants as inputs, said the same way for a graph and for an open session."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.ir.shapes import dim

Array = npt.NDArray[Any]
Feed = dict[str, Any]
"""Inputs by name: an array, a list of arrays for a sequence, None for an empty optional."""

Kind = Literal["tensor", "sequence", "optional", "other"]
Dim = int | str | None

# How onnxruntime spells element types, where it differs from onnx's own spelling in lower case.
_RUNTIME_SPELLING = {"float": "FLOAT", "double": "DOUBLE"}
_TENSOR_TYPE = re.compile(r"tensor\((\w+)\)")


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: its name.
        dtype: element type; None when it is not known or not a tensor type.
        shape: per dimension an int, the name of a symbol, or None; None when the rank is unknown.
        kind: tensor, sequence of tensors, optional tensor, or something else.
        required: False when the model holds a default value (an initializer of the same name).
    """

    name: str
    dtype: ir.DataType | None
    shape: tuple[Dim, ...] | None
    kind: Kind = "tensor"
    required: bool = True

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype of the array that is handed over; object for strings."""
        if self.dtype is None or self.dtype == ir.DataType.STRING:
            return np.dtype(object)
        return np.dtype(self.dtype.numpy())

    def __str__(self) -> str:
        """For messages: ``x float32 [N, 3, 224, 224]``."""
        dtype = "any type" if self.dtype is None else dtype_name(self.dtype)
        kind = "" if self.kind == "tensor" else f"{self.kind} of "
        return f"{self.name} {kind}{dtype} {shape_text(self.shape)}"


def dtype_name(dtype: ir.DataType) -> str:
    """numpy's name of an element type: ``float32``, ``int64``, ``string``."""
    return "string" if dtype == ir.DataType.STRING else str(dtype.numpy())


def shape_text(shape: tuple[Dim, ...] | None) -> str:
    """A shape for people: ``[N, 3, ?]``; ``[...]`` when the rank is unknown."""
    if shape is None:
        return "[...]"
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def input_specs(model: ir.Model) -> list[InputSpec]:
    """The inputs of the main graph, in order."""
    return [_spec_of(value) for value in model.graph.inputs]


def _spec_of(value: ir.Value) -> InputSpec:
    shape: tuple[Dim, ...] | None = None
    if value.shape is not None:
        shape = tuple(dim(value, axis) for axis in range(len(value.shape)))
    kind: Kind = "other"
    match value.type:
        case ir.TensorType():
            kind = "tensor"
        case ir.SequenceType(elem_type=ir.TensorType()):
            kind = "sequence"
        case ir.OptionalType(elem_type=ir.TensorType()):
            kind = "optional"
    dtype = value.dtype if kind != "other" else None
    required = not value.is_initializer()
    return InputSpec(value.name or "", dtype, shape, kind, required)


def spec_from_runtime(name: str, type_text: str, shape: list[Dim]) -> InputSpec:
    """The spec of an input as onnxruntime describes it.

    An unknown rank cannot be told from a scalar there (both are ``[]``), nor can sequences have
    shapes; `input_specs` of the graph knows more.
    """
    inner = type_text
    kind: Kind = "tensor"
    for prefix, wrapped in (("seq(", "sequence"), ("optional(", "optional")):
        if inner.startswith(prefix):
            kind, inner = wrapped, inner[len(prefix) : -1]  # type: ignore[assignment]
            break
    match = _TENSOR_TYPE.fullmatch(inner)
    if match is None:
        return InputSpec(name, None, None, "other")
    sizes = None if kind == "sequence" else tuple(shape)
    return InputSpec(name, runtime_dtype(match.group(1)), sizes, kind)


def runtime_dtype(text: str) -> ir.DataType | None:
    """The element type that onnxruntime writes as ``float``, ``int64``, ``bfloat16`` ..."""
    name = _RUNTIME_SPELLING.get(text, text.upper())
    return ir.DataType[name] if name in ir.DataType.__members__ else None
