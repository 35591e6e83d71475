"""Stores weights as 4-bit integers with one scale per block of about 32.

Before::

    <float[512,256] w>
    y = MatMul (x, w)

After::

    <int4[16,32,256] w_int4, float16[16,1,256] w_scale, int64[2] w_shape = {512, 256}>
    w_cast = Cast <to = 1> (w_int4)
    w_scale_cast = Cast <to = 1> (w_scale)
    w_mul = Mul (w_cast, w_scale_cast)
    w = Reshape (w_mul, w_shape)
    y = MatMul (x, w)

The new nodes read constants alone, so onnxruntime computes them once when it opens the model: the
file is about a seventh, runs are as fast as before, and memory holds float weights as before.

Holds only if:

1. a layer reads the constant as its weight or as the table of an embedding, as for
   ``store-weights-int8``;
2. it is finite, and its relative error (Frobenius norm) is at most ``max_error``;
3. the standard operators are of version 21 or later and the IR of version 10 or later, which know
   4-bit integers;
4. some block length of 16 to 64 divides its rows, or all of it;
5. it is not in the body of a function.

Formula: scale = -c * m / 8 per block, where m is the element of largest magnitude and c the best of
a few shares by squared error; code = round(w / scale) within -8 and 7.

Exactness: lossy.

Source: Cast of the ONNX operators, version 21; the folding by onnxruntime was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxslim.ir.schema import default_opset
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.stored_weights.emit import Step, Stored, relative_error, store_weights
from onnxslim.rewrite.stored_weights.find import MIN_BYTES, Array, Weight
from onnxslim.rewrite.stored_weights.scales import block_codes, block_layout

_OPSET, _IR_VERSION = 21, 10


@dataclass(frozen=True)
class StoreWeightsInt4(Pass):
    """Int4 per block, Cast, Mul and Reshape.

    Args:
        max_error: a weight whose relative error is larger stays as it is.
        min_bytes: smaller weights stay as they are.
    """

    name: ClassVar[str] = "store-weights-int4"
    exactness: ClassVar[Exactness] = Exactness.LOSSY

    max_error: float = 0.12
    min_bytes: int = MIN_BYTES

    def run(self, model: ir.Model, context: Context) -> PassResult:
        if default_opset(model) < _OPSET or (model.ir_version or 0) < _IR_VERSION:  # (3)
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
    layout = block_layout(array.shape, weight.kept)
    if layout is None:  # (4)
        return f"no block of 16 to 64 elements divides its shape {list(array.shape)}"
    codes, scale, decoded = block_codes(array.reshape(layout))
    float_ = ir.DataType.FLOAT
    steps = (
        Step("Cast", float_, attributes={"to": int(float_)}),
        Step("Mul", float_, scale),
        Step("Reshape", float_, np.array(array.shape, dtype=np.int64)),
    )
    error = relative_error(array, decoded)
    return Stored("int4", codes.astype(ml_dtypes.int4), steps, error)
