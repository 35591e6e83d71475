"""Makes one LayerNormalization of the operators that compute it.

Before::

    m = ReduceMean <axes=[-1]> (x)
    d = Sub (x, m)
    q = Mul (d, d)                # or Pow (d, 2)
    v = ReduceMean <axes=[-1]> (q)
    e = Add (v, epsilon)
    s = Sqrt (e)
    n = Div (d, s)                # or Mul (d, Reciprocal (s)), Mul (d, Div (1, s)), e ** -0.5
    w = Mul (n, scale)
    y = Add (w, bias)             # may be missing

After::

    y = LayerNormalization <axis=-1, epsilon> (x, scale, bias)

Where x is float16 and the steps up to n stand between a Cast to float and one back, these go too:
the operator computes its mean and deviation in float by itself (stash_type 1).

Holds only if:

1. the opset is 17 or later;
2. both reductions keep their dimensions and run over the same last axes; scale and bias have
   exactly the sizes of these axes, and these are known;
3. x is float or float16, and scale and bias are of the same type: statistics of double would lose
   digits in the operator;
4. epsilon is one number, and it is not negative;
5. no step has another reader or is a graph output;
6. nothing in the model is quantized: there a last bit may become a step of the grid.

Exactness: rounding; float16 without Casts is computed more precisely than before.

Source: the definition of LayerNormalization among the ONNX operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxslim.ir.schema import opset_of
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.normalizations import FLOATS, Norm, find_norm, fits
from onnxslim.rewrite.patterns import (
    is_closed,
    maker,
    pairs,
    reduced_axes,
    replace_group,
    rounding_matters,
)

OPSET = 17


@dataclass
class _Match:
    root: ir.Node
    value: ir.Value
    scale: ir.Value
    bias: ir.Value | None
    norm: Norm
    nodes: list[ir.Node]


@dataclass(frozen=True)
class FuseLayerNormalization(Pass):
    """A change is one LayerNormalization."""

    name: ClassVar[str] = "fuse-layer-normalization"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    roots: ClassVar[frozenset[str]] = frozenset({"ReduceMean"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        changes = 0
        general = rounding_matters(model, context)
        for node in context.nodes_of(model, "Mul"):
            match = _match(node)
            if match is None or (opset_of(node, model) or 0) < OPSET:  # (1)
                continue
            site = match.root.outputs[0].name or ""
            reason = general or _reason(match)
            if reason is not None:
                context.refuse(self, site, reason)
            elif context.allow(self, site):
                _rewrite(match)
                changes += 1
        return PassResult(changes)


def _match(node: ir.Node) -> _Match | None:
    """The normalization that a Mul scales."""
    for value, scale in pairs(node):
        casts: list[ir.Node] = []
        last = maker(value, node.graph, "Div", "Mul", "Cast")
        if last is not None and last.op_type == "Cast":
            casts, last = [last], maker(last.inputs[0], node.graph, "Div", "Mul")
        norm = find_norm(last) if last is not None else None
        centred = _centred(norm, node) if norm is not None else None
        if norm is None or centred is None:
            continue
        source, steps = centred
        if casts:
            into = maker(source, node.graph, "Cast")
            if into is None or into.inputs[0] is None:
                continue
            casts, source = [*casts, into], into.inputs[0]
        nodes = [*steps, *norm.nodes, *casts, node]
        root, bias = _bias_after(node)
        return _Match(root, source, scale, bias, norm, [*nodes, root])
    return None


def _centred(norm: Norm, node: ir.Node) -> tuple[ir.Value, list[ir.Node]] | None:
    """What the mean was taken off, and the two nodes that did it."""
    difference = maker(norm.value, node.graph, "Sub")
    if difference is None or difference.inputs[0] is None:
        return None
    mean = maker(difference.inputs[1], node.graph, "ReduceMean")
    if mean is None or mean.inputs[0] is not difference.inputs[0]:
        return None
    if reduced_axes(mean) != norm.axes:  # (2)
        return None
    return difference.inputs[0], [mean, difference]


def _bias_after(node: ir.Node) -> tuple[ir.Node, ir.Value | None]:
    """The Add that reads a product and nobody else, and what it adds; else the product itself."""
    product = node.outputs[0]
    uses = list(product.uses())
    if len(uses) == 1 and not product.is_graph_output():
        reader = maker(uses[0][0].outputs[0], node.graph, "Add")
        for value, bias in pairs(reader) if reader is not None else ():
            if value is product and bias is not product and _same_kind(bias, node):
                return reader or node, bias
    return node, None


def _same_kind(bias: ir.Value, node: ir.Node) -> bool:
    """True for a bias with the shape of the scale; anything else is a sum of its own."""
    return any(
        scale.shape is not None and bias.shape is not None and scale.shape == bias.shape
        for scale in node.inputs
        if scale is not None and scale.shape is not None and scale.shape.is_static()
    )


def _reason(match: _Match) -> str | None:
    """Why a match is left alone, or None."""
    kinds = {value.dtype for value in (match.value, match.scale)}
    if match.bias is not None:
        kinds.add(match.bias.dtype)
    if len(kinds) != 1 or not kinds <= FLOATS:
        return "kept because input, scale and bias are not all float or all float16"  # (3)
    for value in (match.scale, match.bias):
        if value is not None and not fits(value, match.value, match.norm.axes):  # (2)
            return f"kept because {value.name!r} is not known to have the sizes of the last axes"
    if not is_closed(match.nodes, match.root):  # (5)
        return "kept because a step of it is read elsewhere"
    casts = [node for node in match.nodes if node.op_type == "Cast"]
    if casts and match.norm.value.dtype != ir.DataType.FLOAT:
        return "kept because the statistics are not computed in float"
    return None


def _rewrite(match: _Match) -> None:
    inputs = [match.value, match.scale]
    if match.bias is not None:
        inputs.append(match.bias)
    new = ir.Node(
        "",
        "LayerNormalization",
        inputs,
        [
            ir.AttrInt64("axis", match.norm.axes[0]),
            ir.AttrFloat32("epsilon", match.norm.epsilon),
        ],
        name=match.root.name,
    )
    replace_group(match.nodes, match.root, new)
