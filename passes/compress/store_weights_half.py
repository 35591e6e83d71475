"""Stores weights in half the bytes: as float16 or bfloat16.

Before::

    <float[512,256] w>
    y = MatMul (x, w)

After::

    <float16[512,256] w_fp16>
    w = Cast <to = 1> (w_fp16)
    y = MatMul (x, w)

The Cast reads a constant alone, so onnxruntime computes it once when it opens the model: runs are
as fast as before, and memory holds float32 weights as before.

Holds only if:

1. a layer reads the constant as its weight or as the table of an embedding, as for
   ``store-weights-int8``, and it is float32;
2. it is finite, and its relative error (Frobenius norm) is at most ``max_error``;
3. as float16 no element overflows; where one does, or where small ones are lost so that the error
   is too large, bfloat16 is tried;
4. the standard operators are of version 7 or later, for bfloat16 of 13 or later;
5. it is not in the body of a function.

Exactness: lossy.

Source: Cast of the ONNX operators; IEEE 754 rounding to nearest even.
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

_OPSET, _OPSET_BFLOAT = 7, 13


@dataclass(frozen=True)
class StoreWeightsHalf(Pass):
    """Half precision and Cast.

    Args:
        bfloat: bfloat16 at once; else only where float16 does not do.
        max_error: a weight whose relative error is larger stays as it is.
        min_bytes: smaller weights stay as they are.
    """

    name: ClassVar[str] = "store-weights-half"
    exactness: ClassVar[Exactness] = Exactness.LOSSY

    bfloat: bool = False
    max_error: float = 0.01
    min_bytes: int = MIN_BYTES

    def run(self, model: ir.Model, context: Context) -> PassResult:
        opset = default_opset(model)
        if opset < (_OPSET_BFLOAT if self.bfloat else _OPSET):  # (4)
            return PassResult()
        bfloat_known = opset >= _OPSET_BFLOAT

        def encode(weight: Weight, array: Array) -> Stored | str:
            stored = None if self.bfloat else _as_float16(array)
            if bfloat_known and (stored is None or stored.error > self.max_error):  # (3)
                stored = _stored("bf16", array, array.astype(ml_dtypes.bfloat16))
            return stored or "as fp16 it overflows, and bf16 needs opset 13"

        made = store_weights(
            self,
            model,
            context,
            encode,
            max_error=self.max_error,
            min_bytes=self.min_bytes,
        )
        return PassResult(made)


def _as_float16(array: Array) -> Stored | None:
    """None where an element overflows."""
    if np.abs(array).max(initial=0.0) > np.finfo(np.float16).max:
        return None
    return _stored("fp16", array, array.astype(np.float16))


def _stored(form: str, array: Array, narrow: Array) -> Stored:
    cast = Step("Cast", ir.DataType.FLOAT, attributes={"to": int(ir.DataType.FLOAT)})
    return Stored(form, narrow, (cast,), relative_error(array, narrow.astype(np.float32)))
