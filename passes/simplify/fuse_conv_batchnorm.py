"""Moves a BatchNormalization into the weights of the convolution or Gemm before it.

Before::

    c = Conv (x, w, b)
    y = BatchNormalization <epsilon = 1e-05> (c, scale, beta, mean, var)

After::

    y = Conv (x, w2, b2)

Holds only if:

1. the normalization is in inference mode: ``training_mode`` 0 and one output from opset 14 on, one
   output from 7 on (``spatial`` 1 below 9), ``is_test`` 1 before;
2. its four parameters are constant, of one number per channel, and variance + epsilon is positive;
3. the result of the Conv, ConvTranspose or Gemm has no other reader and is no graph output;
4. the weight is an initializer that no other node reads (a shared one would be stored twice), and
   the bias is constant or absent; for Gemm, ``beta`` is 1 and the bias is the same for all rows;
5. the new weight and bias are finite in their element type, and no channel sinks into the range
   where numbers lose digits (float16);
6. no more bytes are stored than before.

Formula: ``f = scale / sqrt(var + epsilon)``, ``w2 = w * f`` along the output channels (within each
group for ConvTranspose), ``b2 = (b - mean) * f + beta``, all in float64 and rounded once.

Exactness: rounding; the factors meet the weights instead of the sums.

Source: BatchNormalization of the ONNX operators, opsets 1 to 15; Conv 1 to 22.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import array
from onnxslim.ir.edit import bypass
from onnxslim.ir.schema import opset_of
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.channel_affine import (
    Affine,
    Linear,
    NotFusableError,
    apply_fusion,
    fuse,
    home_of,
    linear_before,
)
from onnxslim.rewrite.place_constant import discard_unused


@dataclass(frozen=True)
class FuseConvBatchnorm(Pass):
    """Fuses Conv, ConvTranspose or Gemm with the BatchNormalization after it."""

    name: ClassVar[str] = "fuse-conv-batchnorm"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    roots: ClassVar[frozenset[str]] = frozenset({"BatchNormalization"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        if model.ir_version is None or model.ir_version < 4:
            return PassResult()  # weights are inputs there
        changes = 0
        for node in context.nodes_of(model, "BatchNormalization"):
            changes += self._fuse(node, model, context)
        return PassResult(changes)

    def _fuse(self, node: ir.Node, model: ir.Model, context: Context) -> int:
        linear = linear_before(node.inputs[0], node)
        if linear is None:
            return 0
        site = node.outputs[0].name or ""
        graph = home_of(linear, model.graph)
        try:
            if not is_inference(node, opset_of(node, model)):
                raise NotFusableError("the normalization is in training mode")  # (1)
            fusion = fuse(linear, _affine(node, linear))
        except NotFusableError as reason:
            context.refuse(self, site, str(reason))
            return 0
        if graph is None or not context.allow(self, site, linear.node.op_type):
            return 0
        weight = linear.node.inputs[1]
        name = context.fresh_name(f"{weight.name if weight is not None else site}_bias")
        apply_fusion(linear, fusion, graph, name)
        read = [value for value in node.inputs if value is not None]
        bypass(node, linear.node.outputs[0])
        for value in read:
            discard_unused(value)
        return 1


def is_inference(node: ir.Node, opset: int | None) -> bool:
    """True when the normalization uses its stored mean and variance."""
    if opset is None or any(attribute.is_ref() for attribute in node.attributes.values()):
        return False
    if any(value.name for value in node.outputs[1:]):
        return False
    if opset < 7:
        return node.attributes.get_int("is_test", 0) == 1
    return (
        node.attributes.get_int("training_mode", 0) == 0
        and node.attributes.get_int("spatial", 1) == 1
    )


def _affine(node: ir.Node, linear: Linear) -> Affine:
    values = tuple(value for value in node.inputs[1:] if value is not None)
    contents = [array(value, max_bytes=None) for value in values]
    read = [item.astype(np.float64) for item in contents if item is not None]
    if len(read) != 4 or any(item.shape != (linear.channels,) for item in read):
        raise NotFusableError("the parameters are not constants of one number per channel")  # (2)
    scale, beta, mean, variance = read
    epsilon = node.attributes.get_float("epsilon", 1e-5) or 0.0
    if not (variance + epsilon > 0).all():
        raise NotFusableError("variance + epsilon is not positive")  # (2)
    factor = scale / np.sqrt(variance + epsilon)
    return Affine(factor, beta - mean * factor, values)
