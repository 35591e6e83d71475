"""What the rules of no-ops share: the facts of a node, and the guard against broadcasting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxslim.ir import shapes
from onnxslim.ir.constants import Array, array, constant_tensor


@dataclass(frozen=True)
class Facts:
    """A node under a rule.

    Attributes:
        node: the node; its attributes hold no reference.
        opset: version of the standard operators that it follows.
    """

    node: ir.Node
    opset: int

    def input(self, index: int) -> ir.Value | None:
        """An input, or None when it is absent."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        found = self.node.attributes.get(name)
        return default if found is None else found.as_int()

    def integers(self, name: str) -> list[int] | None:
        """A list attribute, or None when it is absent."""
        found = self.node.attributes.get(name)
        return None if found is None else list(found.as_ints())

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        found = self.node.attributes.get(name)
        return default if found is None else found.as_string()


Rule = Callable[[Facts], ir.Value | None]
"""Gives the input that the first output always equals, bit by bit, or None."""


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape in full, as far as it is certain; see `rank`. A constant has its own."""
    tensor = constant_tensor(value)
    if tensor is not None:
        return tuple(tensor.shape.numpy())
    return None if rank(value) is None else shapes.static_shape(value)


def rank(value: ir.Value | None) -> int | None:
    """The number of dimensions, or None when it is not certain.

    The declared shape of a graph output is not: nothing checks it at run time.
    """
    return None if value is None or value.is_graph_output() else shapes.rank(value)


def dim(value: ir.Value | None, axis: int) -> int | str | None:
    """One dimension as `shapes.dim`, as far as it is certain; see `rank`."""
    return None if rank(value) is None else shapes.dim(value, axis)


def same_static_shape(first: ir.Value | None, second: ir.Value | None) -> bool:
    """True when both shapes are known in full, and equal."""
    shape = static_shape(first)
    return shape is not None and shape == static_shape(second)


def keeps_shape(kept: ir.Value, others: Sequence[ir.Value | None], result: ir.Value) -> bool:
    """True when broadcasting ``kept`` with the other operands gives the shape of ``kept``.

    Symbols do not count as equal here: two inputs may carry the same symbol and come with
    different sizes, one of them 1.
    """
    if same_static_shape(kept, result):
        return True
    return all(other is kept or _fits_into(other, kept) for other in others)


def _fits_into(other: ir.Value | None, kept: ir.Value) -> bool:
    shape = static_shape(other)
    if shape is None:
        return False
    if not shape:
        return True
    width = rank(kept)
    if width is None or len(shape) > width:
        return False
    return all(size == 1 or size == dim(kept, axis - len(shape)) for axis, size in enumerate(shape))


def all_equal(value: ir.Value | None, number: float) -> bool:
    """True for a constant whose elements all have the bits of ``number``; -0.0 is not 0.0."""
    content = array(value)
    if content is None or content.size == 0:
        return False
    return bool(np.all(content == content.dtype.type(number))) and _same_signs(content, number)


def _same_signs(content: Array, number: float) -> bool:
    if number != 0 or content.dtype.kind in "iub":
        return True
    if content.dtype.kind == "c":
        return False
    signs = np.signbit(content.astype(np.float64))
    return bool(np.all(signs == np.signbit(number)))


def is_integer(value: ir.Value | None) -> bool:
    """True when the element type is known to be an integer."""
    return value is not None and value.dtype is not None and value.dtype.is_integer()
