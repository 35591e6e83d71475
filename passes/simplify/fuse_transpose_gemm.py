"""Lets Gemm transpose its factors by itself.

Before::

    t = Transpose <perm = [1, 0]> (b)
    y = Gemm (a, t, c)

After::

    y = Gemm <transB = 1> (a, b, c)

Holds only if:

1. the Transpose swaps two dimensions: its ``perm`` is [1, 0], or absent at rank 2;
2. every reader of its result is a factor of a Gemm, so that the Transpose goes; it is no graph
   output.

Exactness: rounding; kernels may sum transposed factors in another order.

Source: Gemm and Transpose of the ONNX operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxslim.ir.edit import remove
from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import rank
from onnxslim.pipeline import Context, Exactness, Pass, PassResult

_FLAGS = ("transA", "transB")


@dataclass(frozen=True)
class FuseTransposeGemm(Pass):
    """Fuses a Transpose with all Gemms that read it; a change is one Transpose less."""

    name: ClassVar[str] = "fuse-transpose-gemm"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    roots: ClassVar[frozenset[str]] = frozenset({"Transpose"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        changes = 0
        for node in context.nodes_of(model, "Transpose"):
            if not _swaps(node) or not _is_only_factor(node):
                continue
            if context.allow(self, node.outputs[0].name or "", "Transpose"):
                _rewrite(node)
                changes += 1
        return PassResult(changes)


def _swaps(node: ir.Node) -> bool:
    """True for the transposition of a matrix (1)."""
    perm = node.attributes.get("perm")
    if perm is None:
        return rank(node.inputs[0]) == 2
    return not perm.is_ref() and list(perm.as_ints()) == [1, 0]


def _is_only_factor(node: ir.Node) -> bool:
    value = node.outputs[0]
    if value.is_graph_output() or not value.uses():
        return False
    return all(
        is_op(user, "Gemm")
        and index < 2
        and not any(attribute.is_ref() for attribute in user.attributes.values())
        for user, index in value.uses()
    )


def _rewrite(node: ir.Node) -> None:
    source = node.inputs[0]
    for user, index in list(node.outputs[0].uses()):
        flag = _FLAGS[index]
        turned = 0 if user.attributes.get_int(flag, 0) else 1
        user.attributes.pop(flag, None)
        if turned:
            user.attributes[flag] = ir.AttrInt64(flag, 1)
        user.replace_input_with(index, source)
    remove(node)
