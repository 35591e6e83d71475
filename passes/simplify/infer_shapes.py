"""Infers shapes and types of inner values, as facts for the passes after it.

Before::

    y = MatMul (x, w)            # float[N,4] x, float[4,8] w; y unknown

After::

    y = MatMul (x, w)            # y known as float[N,8]

Holds only if: always; where inference fails, nothing is known and later passes rewrite less.

Exactness: exact, no node changes.

Source: operator type and shape inference of the ONNX specification, run by onnx.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxslim.ir import shapes
from onnxslim.pipeline import Context, Exactness, Pass, PassResult


@dataclass(frozen=True)
class InferShapes(Pass):
    """Fills ``value.shape`` and ``value.type``; counts no changes, since no node changes."""

    name: ClassVar[str] = "infer-shapes"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def run(self, model: ir.Model, context: Context) -> PassResult:
        return PassResult(facts=shapes.infer(model))
