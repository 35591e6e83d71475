"""Reduces before a Transpose instead of behind it, and makes new axes where they belong.

Before::

    a = Transpose <perm = [0, 2, 3, 1]> (x)
    y = ReduceMax <axes = [1, 2], keepdims = 0> (a)

    b = Unsqueeze <axes = [3]> (z)                  # z of rank 3
    w = Transpose <perm = [0, 3, 1, 2]> (b)

After::

    y = ReduceMax <axes = [2, 3], keepdims = 0> (x)

    w = Unsqueeze <axes = [1]> (z)

Holds only if:

1. the axes are constant, an attribute or an input of the operator's version;
2. the axes that are left, or were there before, come out in their order;
3. ``keepdims`` is 0 for a reduction;
4. the first node has no other reader, is no graph output, and stands in the same graph;
5. where axes are an input, the new ones are stored beside the old ones if others read those.

Exactness: rounding; a sum may be taken in another order.

Source: Transpose, Unsqueeze and the reductions of the ONNX operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import int_list
from onnxslim.ir.edit import remove, replace_value
from onnxslim.ir.schema import is_op
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.place_constant import add_constant, discard_unused

_REDUCTIONS = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
)


@dataclass(frozen=True)
class FuseTransposeReduce(Pass):
    """A change is one Transpose less."""

    name: ClassVar[str] = "fuse-transpose-reduce"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    roots: ClassVar[frozenset[str]] = frozenset({"Transpose"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        changes = 0
        for node in context.nodes_of(model, *_REDUCTIONS, "Transpose"):
            if is_op(node, *_REDUCTIONS):
                changes += self._reduce(node, model, context)
            else:
                changes += self._unsqueeze(node, model, context)
        return PassResult(changes)

    def _reduce(self, node: ir.Node, model: ir.Model, context: Context) -> int:
        transpose = _only_feeder(node, "Transpose")
        order = _perm(transpose)
        axes = None if order is None else _axes(node, len(order))
        keeps = node.attributes.get("keepdims")
        if transpose is None or order is None or axes is None or keeps is None:
            return 0
        left = [source for place, source in enumerate(order) if place not in axes]
        if keeps.is_ref() or keeps.as_int() != 0 or left != sorted(left):  # (2, 3)
            return 0
        if not context.allow(self, node.outputs[0].name or "", node.op_type):
            return 0
        _store(node, sorted(order[axis] for axis in axes), model, context)
        node.replace_input_with(0, transpose.inputs[0])
        remove(transpose)
        return 1

    def _unsqueeze(self, node: ir.Node, model: ir.Model, context: Context) -> int:
        unsqueeze = _only_feeder(node, "Unsqueeze")
        order = _perm(node)
        axes = None if order is None or unsqueeze is None else _axes(unsqueeze, len(order))
        if unsqueeze is None or order is None or axes is None:
            return 0
        old = [source for source in order if source not in axes]
        if old != sorted(old) or unsqueeze.outputs[0].is_graph_output():  # (2)
            return 0
        if not context.allow(self, node.outputs[0].name or "", "Unsqueeze"):
            return 0
        places = [place for place, source in enumerate(order) if source in axes]
        _store(unsqueeze, places, model, context)
        result, output = unsqueeze.outputs[0], node.outputs[0]
        name = output.name
        result.type, result.shape = output.type, output.shape
        replace_value(output, result)
        output.name, result.name = f"{name}__replaced", name
        remove(node)
        return 1


def _only_feeder(node: ir.Node, wanted: str) -> ir.Node | None:
    """The node that computes the first input, for this node alone (4)."""
    value = node.inputs[0] if len(node.inputs) else None
    producer = value.producer() if value is not None else None
    if value is None or producer is None or not is_op(producer, wanted):
        return None
    if len(value.uses()) != 1 or value.is_graph_output() or producer.graph is not node.graph:
        return None
    return producer


def _perm(node: ir.Node | None) -> list[int] | None:
    found = node.attributes.get("perm") if node is not None else None
    return None if found is None or found.is_ref() else list(found.as_ints())


def _axes(node: ir.Node, width: int) -> list[int] | None:
    """The axes of a node, counted in ``width`` axes from the front (1)."""
    found = node.attributes.get("axes")
    if found is not None:
        axes = None if found.is_ref() else list(found.as_ints())
    else:
        axes = int_list(node.inputs[1]) if len(node.inputs) > 1 else None
    if not axes or any(not -width <= axis < width for axis in axes):
        return None
    return sorted({axis % width for axis in axes})


def _store(node: ir.Node, axes: list[int], model: ir.Model, context: Context) -> None:
    if "axes" in node.attributes:
        node.attributes["axes"] = ir.AttrInt64s("axes", axes)
        return
    former = node.inputs[1]
    name = context.fresh_name(f"{node.outputs[0].name}_axes")
    tensor = ir.tensor(np.array(axes, dtype=np.int64))
    node.replace_input_with(1, add_constant(model, node, tensor, name))
    if former is not None:
        discard_unused(former)
