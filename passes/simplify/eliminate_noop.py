"""Removes nodes whose result is one of their inputs, bit by bit.

Before::

    <float one = {1}, int64[2] s = {0, -1}>
    a = Mul (x, one)
    b = Reshape (a, s)
    y = Relu (b)

After (x has two axes)::

    y = Relu (x)

The rules are in `rewrite.noops.arithmetic` (Add, Sub, Mul, Div, Pow, logic, Cast, Clip, Where,
Dropout, reductions, operations on one operand, double negations,
 Relu of Relu, Floor of Ceil and the like) and `rewrite.noops.shapes` (Concat,
Expand, Flatten, Pad, Reshape, Resize, Slice, Split, Squeeze, Tile, Transpose and others). Of a
Concat, inputs that are empty along its axis are left out.

Holds only if:

1. the input has the element type and provably the shape of the result: constants do not broadcast
   it, sizes that must agree are known numbers (symbols are not trusted across values);
2. all bits agree, for every number: ``x + 0.0`` stays, since it turns -0.0 into 0.0, and so does
   Clip without bounds of floats, which makes infinities finite;
3. constants are constant: no default that a caller may override;
4. other outputs of the node (the mask of Dropout) are not read;
5. the result is no graph output, or the input can take over its name;
6. no attribute is a reference to an attribute of a function.

Exactness: exact by the specification. The CPU kernel of Where in onnxruntime gives 0.0 where it
chose -0.0; without the node the -0.0 comes through.

Source: operator specifications of ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxslim.ir.schema import ONNX_DOMAINS, is_op, opset_of
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.noops import arithmetic, shapes
from onnxslim.rewrite.noops.rules import Facts
from onnxslim.rewrite.replace_values import Bypasses
from onnxslim.rewrite.scopes import Scopes

_RULES = {**arithmetic.RULES, **shapes.RULES}


@dataclass(frozen=True)
class EliminateNoop(Pass):
    """Bypasses nodes that provably change nothing, everywhere in the model."""

    name: ClassVar[str] = "eliminate-noop"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def run(self, model: ir.Model, context: Context) -> PassResult:
        scopes = Scopes(model)
        bypasses = Bypasses()
        changes = 0
        main_opset = _opset(model.graph.opset_imports)
        for node in context.nodes_of(model, "Concat", *_RULES):
            opset = opset_of(node, model) if model.functions else main_opset
            if opset is None:
                continue
            if node.op_type == "Concat":
                changes += self._shorten(node, scopes, context, bypasses)
                continue
            kept = _match(node, opset, model)
            kept = None if kept is None else bypasses.resolve(kept)
            if kept is None or not scopes.can_replace(node.outputs[0], kept):  # (5)
                continue
            if context.allow(self, node.outputs[0].name or "", node.op_type):
                bypasses.bypass(node, kept)
                changes += 1
        bypasses.finish()
        return PassResult(changes)

    def _shorten(self, node: ir.Node, scopes: Scopes, context: Context, bypasses: Bypasses) -> int:
        """Leaves out empty inputs of a Concat, or the whole Concat."""
        filled = shapes.filled_inputs(node)
        if filled is None:
            return 0
        site = node.outputs[0].name or ""
        only = bypasses.resolve(filled[0]) if len(filled) == 1 else None
        if only is not None and scopes.can_replace(node.outputs[0], only):
            if not context.allow(self, site, "Concat of one input"):
                return 0
            bypasses.bypass(node, only)
            return 1
        if len(filled) == len(node.inputs) or not context.allow(self, site, "empty inputs"):
            return 0
        for index, value in enumerate(filled):
            node.replace_input_with(index, value)
        node.resize_inputs(len(filled))
        return 1


def _calls_function(value: ir.Value | None, model: ir.Model) -> bool:
    """True for a result of a function of the model, whatever operator it is named after."""
    producer = value.producer() if value is not None and model.functions else None
    return producer is not None and producer.op_identifier() in model.functions


def _match(node: ir.Node, opset: int, model: ir.Model) -> ir.Value | None:
    """The input that the first output equals, when nothing else of the node is read."""
    if not is_op(node, *_RULES) or node.op_identifier() in model.functions:
        return None
    if is_op(node, "Cast") and _calls_function(node.inputs[0], model):
        return None
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):  # (4)
        return None
    if any(attribute.is_ref() for attribute in node.attributes.values()):  # (6)
        return None
    return _RULES[node.op_type](Facts(node, opset))


def _opset(imports: Mapping[str, int]) -> int | None:
    return next((imports[domain] for domain in ONNX_DOMAINS if domain in imports), None)
