"""Stores weights as numbers of entries in a short table of values.

Before::

    <float[512,256] w>
    y = MatMul (x, w)

After::

    <uint8[512,256] w_palette256, float[256] w_table>
    w_cast = Cast <to = 6> (w_palette256)
    w = Gather (w_table, w_cast)
    y = MatMul (x, w)

With 16 entries the numbers are 4-bit integers. The new nodes read constants alone, so onnxruntime
computes them once when it opens the model; that takes longer than for integers with scales, and
32-bit numbers for all elements meanwhile.

Holds only if:

1. a layer reads the constant as its weight or as the table of an embedding, as for
   ``store-weights-int8``;
2. it is finite, and its relative error (Frobenius norm) is at most ``max_error``;
3. the standard operators are of version 7 or later (8-bit numbers), or of version 21 with IR
   version 10 (4-bit numbers);
4. it is not in the body of a function.

Formula: entries of least squared error (Lloyd's algorithm); a weight with no more distinct values
than entries is stored without loss.

Exactness: lossy.

Source: Gather of the ONNX operators; Lloyd, "Least squares quantization in PCM", 1982.
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
from onnxslim.rewrite.stored_weights.palettes import exact_palette, fitted_palette

_NARROW, _OPSET, _OPSET_NARROW, _IR_NARROW = 16, 7, 21, 10


@dataclass(frozen=True)
class StoreWeightsPalette(Pass):
    """Table and numbers, Cast and Gather.

    Args:
        levels: entries of the table, 2 to 256; up to 16 are numbered in 4 bits.
        max_error: a weight whose relative error is larger stays as it is.
        min_bytes: smaller weights stay as they are.
    """

    name: ClassVar[str] = "store-weights-palette"
    exactness: ClassVar[Exactness] = Exactness.LOSSY

    levels: int = 256
    max_error: float = 0.05
    min_bytes: int = MIN_BYTES

    def run(self, model: ir.Model, context: Context) -> PassResult:
        narrow = self.levels <= _NARROW
        if default_opset(model) < (_OPSET_NARROW if narrow else _OPSET):  # (3)
            return PassResult()
        if narrow and (model.ir_version or 0) < _IR_NARROW:
            return PassResult()
        types = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
        made = store_weights(
            self,
            model,
            context,
            self._encode,
            max_error=self.max_error,
            min_bytes=self.min_bytes,
            dtypes=types,
        )
        return PassResult(made)

    def _encode(self, weight: Weight, array: Array) -> Stored | str:
        codes, table = exact_palette(array, self.levels) or fitted_palette(array, self.levels)
        error = relative_error(array, table[codes])
        if self.levels <= _NARROW:
            codes = codes.astype(ml_dtypes.uint4)
        return Stored(f"palette{self.levels}", codes, steps_back(table), error)


def steps_back(table: Array) -> tuple[Step, Step]:
    """From numbers to values. Gather takes no 8-bit numbers."""
    cast = Step("Cast", ir.DataType.INT32, attributes={"to": int(ir.DataType.INT32)})
    values = np.ascontiguousarray(table)
    return cast, Step("Gather", ir.DataType.FLOAT, values, operand_first=True)
