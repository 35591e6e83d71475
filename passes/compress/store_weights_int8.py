"""Stores weights as 8-bit integers with one scale per channel.

Before::

    <float[512,256] w>
    y = MatMul (x, w)

After::

    <int8[512,256] w_int8, float16[1,256] w_scale>
    w_cast = Cast <to = 1> (w_int8)
    w_scale_cast = Cast <to = 1> (w_scale)
    w = Mul (w_cast, w_scale_cast)
    y = MatMul (x, w)

The new nodes read constants alone, so onnxruntime computes them once when it opens the model: the
file is about a quarter, runs are as fast as before, and memory holds float weights as before.
DequantizeLinear is not used for it, because onnxruntime keeps that node and may run it each time.

Holds only if:

1. a layer reads the constant as its weight (Conv, ConvTranspose, MatMul, Gemm, LSTM, GRU, RNN) or
   as the table of an embedding (Gather); it has 1 KiB or more, no caller can override it, it is no
   graph output, and no reader needs an initializer;
2. it is finite, and its relative error (Frobenius norm) is at most ``max_error``;
3. the standard operators are of version 7 or later, where Mul broadcasts;
4. it is not in the body of a function.

A channel in which a few large elements leave no room for the others gets a scale per block of about
32 elements instead, and a Reshape at the end.

Formula: scale = max |w| / 127 per channel, rounded to float16 where that holds it; code =
round(w / scale), so the error of an element is at most half a scale.

Exactness: lossy.

Source: Mul and Cast of the ONNX operators; the folding of constants by onnxruntime was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxslim.ir.schema import default_opset
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.stored_weights.emit import Step, Stored, relative_error, store_weights
from onnxslim.rewrite.stored_weights.find import MIN_BYTES, Array, Weight
from onnxslim.rewrite.stored_weights.scales import block_layout, channel_codes

_OPSET = 7
# From this relative error on, a scale per block is tried: a few large elements spoil a channel.
_COARSE = 0.02
_CAST = Step("Cast", ir.DataType.FLOAT, attributes={"to": int(ir.DataType.FLOAT)})


@dataclass(frozen=True)
class StoreWeightsInt8(Pass):
    """Int8 per channel, Cast and Mul.

    Args:
        max_error: a weight whose relative error is larger stays as it is.
        min_bytes: smaller weights stay as they are.
    """

    name: ClassVar[str] = "store-weights-int8"
    exactness: ClassVar[Exactness] = Exactness.LOSSY

    max_error: float = 0.05
    min_bytes: int = MIN_BYTES

    def run(self, model: ir.Model, context: Context) -> PassResult:
        if default_opset(model) < _OPSET:  # (3)
            return PassResult()
        types = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
        made = store_weights(
            self,
            model,
            context,
            _encode,
            max_error=self.max_error,
            min_bytes=self.min_bytes,
            dtypes=types,
        )
        return PassResult(made)


def _encode(weight: Weight, array: Array) -> Stored | str:
    by_channel = _by_channel(weight, array)
    if by_channel.error <= _COARSE:
        return by_channel
    by_block = _by_block(weight, array)
    return by_channel if by_block is None or by_block.error > by_channel.error else by_block


def _by_channel(weight: Weight, array: Array) -> Stored:
    codes, scale, decoded = channel_codes(array, weight.kept)
    steps = (_CAST, Step("Mul", ir.DataType.FLOAT, scale))
    return Stored("int8", codes, steps, relative_error(array, decoded))


def _by_block(weight: Weight, array: Array) -> Stored | None:
    layout = block_layout(array.shape, weight.kept)
    if layout is None:
        return None
    codes, scale, decoded = channel_codes(array.reshape(layout), (0, 2))
    shape = np.array(array.shape, dtype=np.int64)
    steps = (
        _CAST,
        Step("Mul", ir.DataType.FLOAT, scale),
        Step("Reshape", ir.DataType.FLOAT, shape),
    )
    return Stored("int8 blocks", codes, steps, relative_error(array, decoded))
