"""Leaves out the initial state of an LSTM, GRU or RNN that starts from zeros.

Before::

    h = ConstantOfShape (shape)          # 2 x batch x 64 zeros
    y = LSTM (x, w, r, b, , h, h)

After::

    y = LSTM (x, w, r, b)

Zeros are what the operators start from when nothing is given. Exporters compute the shape of the
zeros from the input, and all that becomes dead.

Holds only if:

1. the state is 0.0 in all elements: ConstantOfShape of 0.0, a constant of at most 64 KiB, or one of
   these behind operators that only move elements.

Exactness: exact; a state of the wrong shape is no longer noticed.

Source: inputs ``initial_h`` and ``initial_c`` of LSTM, GRU and RNN in the ONNX operators ("If not
specified, assumed to be 0").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import SMALL_BYTES, array
from onnxslim.ir.schema import is_op
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.place_constant import discard_unused

_STATES = {"GRU": (5,), "LSTM": (5, 6), "RNN": (5,)}
_MOVES = (
    *("Expand", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose"),
    "Unsqueeze",
)
# Longer chains of moves before a state are not seen in practice.
_REACH = 16


@dataclass(frozen=True)
class EliminateZeroState(Pass):
    """Removes inputs; what computed them is left to `eliminate-dead-nodes`."""

    name: ClassVar[str] = "eliminate-zero-state"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    roots: ClassVar[frozenset[str]] = frozenset({"GRU", "LSTM", "RNN"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        changes = 0
        for node in context.nodes_of(model, *_STATES):
            for slot in _STATES[node.op_type]:
                value = node.inputs[slot] if slot < len(node.inputs) else None
                if value is None or not _is_zero(value):
                    continue
                if context.allow(self, f"{node.outputs[0].name}[{slot}]", node.op_type):
                    _leave_out(node, slot, value)
                    changes += 1
        return PassResult(changes)


def _is_zero(value: ir.Value | None, reach: int = _REACH) -> bool:
    """True when all elements have the bits of 0.0 (1)."""
    if value is None or reach == 0:
        return False
    content = array(value, max_bytes=SMALL_BYTES)
    if content is not None:
        return content.size > 0 and not content.any() and not np.signbit(content).any()
    node = value.producer()
    if node is None:
        return False
    if is_op(node, "ConstantOfShape"):
        return _fills_zero(node)
    if is_op(node, "Concat"):
        return all(_is_zero(item, reach - 1) for item in node.inputs)
    return is_op(node, *_MOVES) and _is_zero(node.inputs[0], reach - 1)


def _fills_zero(node: ir.Node) -> bool:
    found = node.attributes.get("value")
    if found is None:
        return True
    if found.is_ref():
        return False
    content = found.as_tensor().numpy()
    return not content.any() and not np.signbit(content).any()


def _leave_out(node: ir.Node, slot: int, value: ir.Value) -> None:
    node.replace_input_with(slot, None)
    used = [index for index, item in enumerate(node.inputs) if item is not None]
    node.resize_inputs(used[-1] + 1)
    discard_unused(value)
