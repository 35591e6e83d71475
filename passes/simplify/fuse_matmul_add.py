"""Turns a product of two matrices and the sum after it into one Gemm.

Before::

    m = MatMul (a, b)            # a (M, K), b (K, N)
    y = Add (m, c)               # c (N), (1, N), (M, 1), (M, N) or a scalar

After::

    y = Gemm (a, b, c)

A Gemm without a bias takes over the sum after it in the same way.

Holds only if:

1. both factors have exactly two dimensions; nothing is reshaped to get there;
2. the sum has the shape of the product: every dimension of c is 1, or a number that equals that of
   the product, and c has at most two;
3. the product has no other reader and is no graph output;
4. the element type is float, double or float16, which all kernels of Gemm know;
5. the opset is 7 or later, where c broadcasts without an attribute;
6. no factor comes out of DequantizeLinear: integer kernels want the bias to be quantized as well;
7. the inner dimension K is not known to be 0.

Exactness: rounding; the bias may be added before the products.

Source: Gemm and MatMul of the ONNX operators, opsets 7 to 13.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.edit import remove, replace_node
from onnxslim.ir.schema import is_op, opset_of
from onnxslim.ir.shapes import dim, rank, static_shape
from onnxslim.pipeline import Context, Exactness, Pass, PassResult

_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16})


@dataclass(frozen=True)
class _Match:
    product: ir.Node
    sum: ir.Node
    bias: ir.Value


@dataclass(frozen=True)
class FuseMatmulAdd(Pass):
    """Fuses MatMul and Add, or Gemm and Add, into a Gemm with a bias."""

    name: ClassVar[str] = "fuse-matmul-add"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    roots: ClassVar[frozenset[str]] = frozenset({"MatMul", "Gemm"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        changes = 0
        for node in context.nodes_of(model, "Add"):
            if node.attributes:
                continue
            match = _match(node)
            if match is None or (opset_of(node, model) or 0) < 7:  # (5)
                continue
            if context.allow(self, node.outputs[0].name or "", match.product.op_type):
                _rewrite(match)
                changes += 1
        return PassResult(changes)


def _match(node: ir.Node) -> _Match | None:
    first, second = node.inputs
    for value, other in ((first, second), (second, first)):
        product = value.producer() if value is not None else None
        if value is None or other is None or product is None or product.graph is not node.graph:
            continue
        if not _is_plain_product(product) or value.is_graph_output() or len(value.uses()) != 1:
            continue  # (3)
        if value.dtype in _TYPES and _is_bias_of(other, value):  # (4)
            return _Match(product, node, other)
    return None


def _is_plain_product(node: ir.Node) -> bool:
    if is_op(node, "Gemm"):
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            return False
    elif not is_op(node, "MatMul"):
        return False
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        return False
    factors = node.inputs[:2]
    if any(_rank(value) != 2 or _is_dequantized(value) for value in factors):
        return False  # (1) (6)
    return dim(factors[0], 0 if node.attributes.get_int("transA", 0) else 1) != 0  # (7)


def _rank(value: ir.Value | None) -> int | None:
    tensor = constant_tensor(value)
    return rank(value) if tensor is None else len(tensor.shape)


def _is_dequantized(value: ir.Value | None) -> bool:
    return value is not None and is_op(value.producer(), "DequantizeLinear")


def _is_bias_of(bias: ir.Value, product: ir.Value) -> bool:
    """True when adding the bias leaves the shape of the product as it is (2)."""
    tensor = constant_tensor(bias)
    sizes = static_shape(bias) if tensor is None else tuple(tensor.shape.numpy())
    if sizes is None or len(sizes) > 2:
        return False
    offset = 2 - len(sizes)
    return all(size in (1, dim(product, offset + axis)) for axis, size in enumerate(sizes))


def _rewrite(match: _Match) -> None:
    product = match.product
    kept = [item for name, item in product.attributes.items() if name != "beta"]
    gemm = ir.Node(
        product.domain,
        "Gemm",
        [product.inputs[0], product.inputs[1], match.bias],
        kept,
        name=product.name,
        doc_string=product.doc_string,
        metadata_props=dict(product.metadata_props),
    )
    replace_node(match.sum, gemm)
    remove(product)
