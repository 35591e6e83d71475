"""Drops an Add of zeros behind a sum of products.

Before::

    a = MatMul (x, w)
    y = Add (a, <0.0, 0.0, 0.0>)

After::

    y = MatMul (x, w)

Layers whose bias was never trained have such an Add. (An Add of -0.0 changes no bit of anything and
goes by `eliminate-noop`, wherever it stands.)

Holds only if:

1. every element of the constant is 0, and broadcasting it does not change the shape;
2. the other operand is computed by MatMul, Gemm, Conv, ConvTranspose or Einsum, perhaps moved by
   Reshape, Transpose, Squeeze or Unsqueeze: adding 0.0 turns -0.0 into 0.0, and of a sum of
   products the standard does not say which zero it gives.

Exactness: rounding; a zero may have the other sign.

Source: Add of the ONNX operators, IEEE 754 section 6.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxslim.ir.constants import SMALL_BYTES, array
from onnxslim.ir.edit import bypass
from onnxslim.ir.schema import is_op
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.noops.rules import keeps_shape
from onnxslim.rewrite.scopes import Scopes

_SUMS = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul")
_MOVES = ("Reshape", "Squeeze", "Transpose", "Unsqueeze")


@dataclass(frozen=True)
class EliminateZeroBias(Pass):
    """Bypasses Adds of zeros, everywhere in the model."""

    name: ClassVar[str] = "eliminate-zero-bias"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    roots: ClassVar[frozenset[str]] = frozenset({"Add"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        scopes = Scopes(model)
        changes = 0
        for node in context.nodes_of(model, "Add"):
            kept = _match(node)
            if kept is None or not scopes.can_replace(node.outputs[0], kept):
                continue
            if context.allow(self, node.outputs[0].name or "", "Add of zeros"):
                bypass(node, kept)
                changes += 1
        return PassResult(changes)


def _match(node: ir.Node) -> ir.Value | None:
    """The operand that the sum equals."""
    for kept, zeros in (node.inputs, node.inputs[::-1]):
        if kept is None or not _is_sum(kept):
            continue
        content = array(zeros, max_bytes=SMALL_BYTES)
        if content is None or content.size == 0 or content.any():
            continue
        if keeps_shape(kept, [zeros], node.outputs[0]):
            return kept
    return None


def _is_sum(value: ir.Value) -> bool:
    """True when the elements are sums of products (2)."""
    node = value.producer()
    while node is not None and is_op(node, *_MOVES):
        moved = node.inputs[0]
        node = moved.producer() if moved is not None else None
    return node is not None and is_op(node, *_SUMS)
