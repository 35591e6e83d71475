"""Stores weights in fewer bytes where they come back bit for bit.

Before::

    <float[512,256] w>
    y = MatMul (x, w)

After::

    <float16[512,256] w_fp16>
    w = Cast <to = 1> (w_fp16)
    y = MatMul (x, w)

Tried are, smallest first: a table of up to 16 values (4-bit numbers), up to 256 values (8-bit
numbers), float16, bfloat16. Weights that were rounded or clustered before they were stored as
float32 are of that kind.

Holds only if:

1. a layer reads the constant as its weight or as the table of an embedding, as for
   ``store-weights-int8``, and it is float32;
2. every bit pattern comes back: 0.0 and -0.0 are told apart, subnormal numbers are kept;
3. the standard operators are of version 7 or later, for bfloat16 of 13 or later, for 4-bit numbers
   of 21 or later with IR version 10;
4. it is not in the body of a function.

Exactness: exact.

Source: Cast and Gather of the ONNX operators.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxslim.ir.schema import default_opset
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.stored_weights.emit import Step, Stored, store_weights
from onnxslim.rewrite.stored_weights.find import MIN_BYTES, Array, Weight
from onnxslim.rewrite.stored_weights.palettes import exact_palette

_OPSET, _OPSET_BFLOAT, _OPSET_NARROW, _IR_NARROW = 7, 13, 21, 10


@dataclass(frozen=True)
class StoreWeightsNarrow(Pass):
    """Whatever narrow form is exact.

    Args:
        min_bytes: smaller weights stay as they are.
    """

    name: ClassVar[str] = "store-weights-narrow"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    min_bytes: int = MIN_BYTES

    def run(self, model: ir.Model, context: Context) -> PassResult:
        opset = default_opset(model)
        if opset < _OPSET:  # (3)
            return PassResult()
        narrow = opset >= _OPSET_NARROW and (model.ir_version or 0) >= _IR_NARROW

        def encode(weight: Weight, array: Array) -> Stored | str:
            return next(
                _forms(array, narrow=narrow, bfloat=opset >= _OPSET_BFLOAT),
                "no narrow form gives it back exactly",
            )

        made = store_weights(
            self,
            model,
            context,
            encode,
            max_error=0.0,
            min_bytes=self.min_bytes,
        )
        return PassResult(made)


def _forms(array: Array, *, narrow: bool, bfloat: bool) -> Iterator[Stored]:
    """The forms that give the weight back exactly, smallest first."""
    found = exact_palette(array, 256)
    if found is not None:
        codes, table = found
        fits = narrow and table.size <= 16
        cast = Step("Cast", ir.DataType.INT32, attributes={"to": int(ir.DataType.INT32)})
        steps = (cast, Step("Gather", ir.DataType.FLOAT, table, operand_first=True))
        numbers = codes.astype(ml_dtypes.uint4) if fits else codes
        yield Stored("palette16" if fits else "palette256", numbers, steps, 0.0)
    cast = Step("Cast", ir.DataType.FLOAT, attributes={"to": int(ir.DataType.FLOAT)})
    for form, dtype in (("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)):
        if form == "fp16" or bfloat:
            with np.errstate(over="ignore"):
                half = array.astype(dtype)
            if _same_bits(half.astype(np.float32), array):  # (2)
                yield Stored(form, half, (cast,), 0.0)


def _same_bits(first: Array, second: Array) -> bool:
    return np.array_equal(
        np.ascontiguousarray(first).view(np.uint32), np.ascontiguousarray(second).view(np.uint32)
    )
