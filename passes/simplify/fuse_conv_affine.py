"""Moves a constant per channel that follows a convolution or Gemm into its weights.

Before::

    <float[1,4,1,1] s, float[4,1,1] t>
    c = Conv (x, w, b)
    m = Mul (c, s)
    y = Add (m, t)

After::

    y = Conv (x, w2, b2)

Holds only if:

1. the node is Add, Sub, Mul or Div with one constant side, not ``constant / c``, no divisor is
   zero, and it has no attributes (opset 7 or later);
2. broadcasting lays the constant along the channels: a scalar, ``[C,1,1]``, ``[1,C,1,1]``; the
   shape ``[C]`` lies along the last axis, and a constant of more dimensions widens the result;
3. the result of the Conv, ConvTranspose or Gemm has no other reader and is no graph output;
4. to multiply, the weight is an initializer that no other node reads; the bias is constant or
   absent; for Gemm, ``beta`` is 1 and the bias is the same for all rows;
5. the new weight and bias are finite in their element type, and no channel sinks into the range
   where numbers lose digits (float16);
6. no more bytes are stored than before: a scalar does not become a bias of C numbers.

Exactness: rounding; the factors meet the weights instead of the sums.

Source: broadcasting rules of ONNX; Conv, ConvTranspose and Gemm of its operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import array, is_constant
from onnxslim.ir.edit import bypass
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.channel_affine import (
    Affine,
    Floats,
    Linear,
    NotFusableError,
    apply_fusion,
    fuse,
    home_of,
    linear_before,
    per_channel,
)
from onnxslim.rewrite.place_constant import discard_unused


@dataclass(frozen=True)
class FuseConvAffine(Pass):
    """Fuses Conv, ConvTranspose or Gemm with Add, Sub, Mul or Div of constants after it."""

    name: ClassVar[str] = "fuse-conv-affine"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    roots: ClassVar[frozenset[str]] = frozenset({"Add", "Div", "Mul", "Sub"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        if model.ir_version is None or model.ir_version < 4:
            return PassResult()  # weights are inputs there
        changes = 0
        for node in context.nodes_of(model, "Add", "Sub", "Mul", "Div"):
            if not node.attributes:
                changes += self._fuse(node, model, context)
        return PassResult(changes)

    def _fuse(self, node: ir.Node, model: ir.Model, context: Context) -> int:
        first, second = node.inputs
        constant_first = is_constant(first)
        linear = linear_before(second if constant_first else first, node)
        constant = first if constant_first else second
        if linear is None or constant is None or not is_constant(constant):
            return 0
        site = node.outputs[0].name or ""
        graph = home_of(linear, model.graph)
        try:
            fusion = fuse(linear, _affine(node.op_type, constant, linear, constant_first))
        except NotFusableError as reason:
            context.refuse(self, site, str(reason))
            return 0
        if graph is None or not context.allow(self, site, f"{linear.node.op_type} {node.op_type}"):
            return 0
        weight = linear.node.inputs[1]
        name = context.fresh_name(f"{weight.name if weight is not None else site}_bias")
        apply_fusion(linear, fusion, graph, name)
        read = [value for value in node.inputs if value is not None]
        bypass(node, linear.node.outputs[0])
        for value in read:
            discard_unused(value)
        return 1


def _affine(op_type: str, constant: ir.Value, linear: Linear, constant_first: bool) -> Affine:
    content = array(constant)
    along = None if content is None else per_channel(content, linear)
    if along is None:
        raise NotFusableError("the constant does not lie along the channels")  # (2)
    scale, shift = _scale_and_shift(op_type, along, constant_first)
    return Affine(scale, shift, (constant,))


def _scale_and_shift(
    op_type: str, along: Floats, constant_first: bool
) -> tuple[Floats | None, Floats | None]:
    if op_type == "Add":
        return None, along
    if op_type == "Sub":
        return (-np.ones_like(along), along) if constant_first else (None, -along)
    if op_type == "Mul":
        return along, None
    if constant_first or not along.all():
        raise NotFusableError("the division is not by constants other than zero")  # (1)
    return 1.0 / along, None
