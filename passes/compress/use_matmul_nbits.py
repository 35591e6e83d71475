"""Multiplies by 4-bit or 8-bit weights directly, in onnxruntime's own operator.

Before::

    <float[512,256] w>
    y = MatMul (x, w)

After::

    <uint8[256,16,16] w_nbits, float[4096] w_scale>
    y = com.microsoft.MatMulNBits <K = 512, N = 256, bits = 4, block_size = 32,
        accuracy_level = 4> (x, w_nbits, w_scale)

The weight stays narrow in memory and the product is computed in integers, which is faster where
reading the weight takes the time (few rows). Only onnxruntime knows the operator. A Gemm becomes
the product and an Add.

Holds only if:

1. a matrix ``(K, N)`` of float32, a constant that no caller can override and no graph output, of
   ``min_bytes`` or more; every reader is a MatMul that has it on the right, or a Gemm
   (alpha = beta = 1, transA = 0) of rank-2 input;
2. it is finite, and its relative error (Frobenius norm) is at most ``max_error``;
3. it is in the main graph.

Formula: 4 bits: see ``store-weights-int4`` with blocks of 32 along K; 8 bits: scale = max |w| / 127
per block. Activations are rounded to 8 bits per block as well (accuracy level 4), which the error
of the weight does not show; the outputs do.

Exactness: lossy.

Source: onnxruntime's MatMulNBits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.edit import add_initializer, replace_node
from onnxslim.ir.schema import is_op
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.stored_weights.emit import META_KEY, Record, relative_error
from onnxslim.rewrite.stored_weights.find import MIN_BYTES, Array, is_finite
from onnxslim.rewrite.stored_weights.scales import block_codes

_BLOCK = 32
_DOMAIN = "com.microsoft"


@dataclass(frozen=True)
class UseMatmulNbits(Pass):
    """MatMulNBits for constant matrices.

    Args:
        bits: 4 or 8.
        max_error: a weight whose relative error is larger stays as it is.
        min_bytes: smaller weights stay as they are.
    """

    name: ClassVar[str] = "use-matmul-nbits"
    exactness: ClassVar[Exactness] = Exactness.LOSSY

    bits: int = 4
    max_error: float = 0.12
    min_bytes: int = MIN_BYTES

    def run(self, model: ir.Model, context: Context) -> PassResult:
        changes = 0
        for value in list(model.graph.initializers.values()):
            if not self._is_candidate(value):
                continue
            refusal = _refusal(value)
            if refusal is not None:
                context.refuse(self, value.name or "", refusal)
            else:
                changes += self._replace(model, context, value)
        return PassResult(changes)

    def _is_candidate(self, value: ir.Value) -> bool:
        tensor = constant_tensor(value)
        return (
            tensor is not None
            and tensor.dtype == ir.DataType.FLOAT
            and tensor.nbytes >= self.min_bytes
            and any(is_op(node, "MatMul", "Gemm") and index == 1 for node, index in value.uses())
        )

    def _replace(self, model: ir.Model, context: Context, value: ir.Value) -> int:
        name, readers = value.name or "", [node for node, _ in value.uses()]
        tensor = constant_tensor(value)
        array = np.asarray(tensor.numpy()) if tensor is not None else np.zeros((0, 0))
        transposed = _is_transposed(readers[0])
        matrix = array.T if transposed else array
        if not is_finite(matrix):
            context.refuse(self, name, "it holds NaN or infinity")
            return 0
        codes, scale, decoded = _codes(matrix, self.bits)
        error = relative_error(matrix, decoded)
        if error > self.max_error:
            reason = f"in {self.bits} bits its relative error is {error:.2g}"
            context.refuse(self, name, f"{reason}, above {self.max_error:g}")
            return 0
        after = codes.nbytes + scale.nbytes
        form = f"{self.bits}-bit MatMulNBits"
        detail = f"{form}, relative error {error:.2g}, {array.nbytes} -> {after} bytes"
        if not context.allow(self, name, detail):
            return 0
        graph = model.graph
        model.graph.opset_imports.setdefault(_DOMAIN, 1)
        stored = add_initializer(graph, codes, context.fresh_name(f"{name}_nbits"))
        scales = add_initializer(graph, scale, context.fresh_name(f"{name}_scale"))
        shape = tuple(array.shape)
        record = Record(name, f"nbits{self.bits}", shape, error, array.nbytes, after)
        for node in readers:
            product = self._product(node, stored, scales, matrix.shape, context)
            product.meta[META_KEY] = record
        del graph.initializers[name]
        return 1

    def _product(
        self,
        node: ir.Node,
        codes: ir.Value,
        scales: ir.Value,
        shape: tuple[int, ...],
        context: Context,
    ) -> ir.Value:
        """Puts the product in the place of a MatMul, with an Add behind it where it is a Gemm."""
        attributes = {
            "K": shape[0],
            "N": shape[1],
            "bits": self.bits,
            "block_size": _BLOCK,
            "accuracy_level": 4,
        }
        made = ir.node(
            "MatMulNBits",
            [node.inputs[0], codes, scales],
            attributes=attributes,
            domain=_DOMAIN,
            name=node.name,
        )
        product = made.outputs[0]
        product.type = node.outputs[0].type
        bias = node.inputs[2] if is_op(node, "Gemm") and len(node.inputs) > 2 else None
        if bias is None:
            replace_node(node, made)
            return product
        product.name = context.fresh_name(f"{node.outputs[0].name}_product")
        if node.graph is not None:
            node.graph.insert_before(node, made)
        replace_node(node, ir.node("Add", [product, bias]))
        return product


def _refusal(value: ir.Value) -> str | None:
    """Why the matrix cannot be one of MatMulNBits, or None."""
    shape = () if value.shape is None else value.shape.numpy()
    if value.is_graph_output():
        return "it is an output of the graph"
    if len(shape) != 2:
        return "it is no matrix"
    readers = list(value.uses())
    if not all(_is_product(node, index) and node.graph is value.graph for node, index in readers):
        return "other nodes than MatMul and Gemm of the main graph read it too"
    if len({_is_transposed(node) for node, _ in readers}) > 1:
        return "it is read transposed and as it is"
    return None


def _is_product(node: ir.Node, index: int) -> bool:
    if index != 1 or node.inputs[0] is None:
        return False
    if is_op(node, "MatMul"):
        return node.outputs[0].dtype in (ir.DataType.FLOAT, None)
    if not is_op(node, "Gemm"):
        return False
    wanted = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    return all(
        name not in node.attributes or node.attributes[name].value == plain
        for name, plain in wanted.items()
    )


def _is_transposed(node: ir.Node) -> bool:
    attribute = node.attributes.get("transB")
    return is_op(node, "Gemm") and attribute is not None and attribute.as_int() == 1


def _codes(matrix: Array, bits: int) -> tuple[Array, Array, Array]:
    """Codes ``(N, K / 32, bytes)`` in uint8, scales ``(N * K / 32,)`` in float32, and the matrix
    ``(K, N)`` that they stand for. The last block is filled up with zeros."""
    rows, columns = matrix.shape
    count = -(-rows // _BLOCK)
    padded = np.zeros((columns, count * _BLOCK), dtype=np.float32)
    padded[:, :rows] = matrix.T
    blocks = padded.reshape(columns * count, _BLOCK, 1)
    if bits == 4:
        codes, scale, _ = block_codes(blocks)
        scale = scale.astype(np.float32)
        unsigned = (codes + 8).astype(np.uint8).reshape(columns, count, _BLOCK)
        stored = unsigned[..., 0::2] | (unsigned[..., 1::2] << 4)
    else:
        limit = np.abs(blocks).max(axis=1, keepdims=True)
        scale = np.maximum(limit / np.float32(127), np.finfo(np.float32).tiny)
        codes = np.rint(blocks / scale).astype(np.int16)
        stored = (codes + 128).astype(np.uint8).reshape(columns, count, _BLOCK)
    decoded = (codes.astype(np.float32) * scale).reshape(columns, count * _BLOCK)[:, :rows].T
    return stored, scale.reshape(-1), decoded
