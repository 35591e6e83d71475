"""Makes one RMSNormalization of the operators that compute it.

Before::

    q = Pow (x, 2)                # or Mul (x, x)
    v = ReduceMean <axes=[-1]> (q)
    e = Add (v, epsilon)
    s = Sqrt (e)
    n = Div (x, s)                # or Mul (x, Reciprocal (s)), Mul (x, Div (1, s)), e ** -0.5
    y = Mul (n, scale)

After::

    y = RMSNormalization <axis=-1, epsilon> (x, scale)

Where x is float16 and the steps up to n stand between a Cast to float and one back, these go too:
the operator computes its statistics in float by itself (stash_type 1). The Cast to float stays for
its other readers.

Holds only if:

1. the opset is 23 or later;
2. the reduction keeps its dimensions and runs over the last axes; the scale has exactly the sizes
   of these axes, and these are known;
3. x is float or float16, and the scale is of the same type;
4. epsilon is one number, and it is not negative;
5. no step has another reader or is a graph output;
6. nothing in the model is quantized: there a last bit may become a step of the grid.

Exactness: rounding; float16 without Casts is computed more precisely than before.

Source: the definition of RMSNormalization among the ONNX operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxslim.ir.edit import remove
from onnxslim.ir.schema import opset_of
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.normalizations import FLOATS, Norm, find_norm, fits
from onnxslim.rewrite.patterns import is_closed, maker, pairs, replace_group, rounding_matters

OPSET = 23


@dataclass
class _Match:
    root: ir.Node
    value: ir.Value
    scale: ir.Value
    norm: Norm
    nodes: list[ir.Node]


@dataclass(frozen=True)
class FuseRmsNormalization(Pass):
    """A change is one RMSNormalization."""

    name: ClassVar[str] = "fuse-rms-normalization"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    roots: ClassVar[frozenset[str]] = frozenset({"ReduceMean"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        changes = 0
        general = rounding_matters(model, context)
        for node in context.nodes_of(model, "Mul"):
            match = _match(node)
            if match is None or (opset_of(node, model) or 0) < OPSET:  # (1)
                continue
            site = node.outputs[0].name or ""
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
        if norm is None:
            continue
        source = norm.value
        if casts:
            into = maker(source, node.graph, "Cast")
            if into is None or into.inputs[0] is None or source.dtype != ir.DataType.FLOAT:
                continue
            source = into.inputs[0]
        return _Match(node, source, scale, norm, [*norm.nodes, *casts, node])
    return None


def _reason(match: _Match) -> str | None:
    """Why a match is left alone, or None."""
    kinds = {match.value.dtype, match.scale.dtype}
    if len(kinds) != 1 or not kinds <= FLOATS:
        return "kept because input and scale are not both float or both float16"  # (3)
    if not fits(match.scale, match.value, match.norm.axes):  # (2)
        return f"kept because {match.scale.name!r} is not known to have the sizes of the last axes"
    if not is_closed(match.nodes, match.root):  # (5)
        return "kept because a step of it is read elsewhere"
    return None


def _rewrite(match: _Match) -> None:
    new = ir.Node(
        "",
        "RMSNormalization",
        [match.value, match.scale],
        [
            ir.AttrInt64("axis", match.norm.axes[0]),
            ir.AttrFloat32("epsilon", match.norm.epsilon),
        ],
        name=match.root.name,
    )
    widened = match.norm.value.producer() if match.norm.value is not match.value else None
    replace_group(match.nodes, match.root, new)
    if widened is None or widened.outputs[0].uses() or widened.outputs[0].is_graph_output():
        return
    remove(widened)
