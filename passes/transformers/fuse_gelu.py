"""Makes one Gelu of the operators that compute it.

Before::

    a = Div (x, 1.4142135)
    e = Erf (a)
    p = Add (e, 1.0)
    q = Mul (x, p)
    y = Mul (q, 0.5)

After::

    y = Gelu (x)

Before::

    c = Pow (x, 3)
    k = Mul (c, 0.044715)
    s = Add (x, k)
    u = Mul (s, 0.7978846)
    t = Tanh (u)
    p = Add (t, 1.0)
    h = Mul (x, 0.5)
    y = Mul (h, p)

After::

    y = Gelu <approximate="tanh"> (x)

The factors x, 1/2 and the sum may be multiplied in any order, and what goes into Erf or Tanh may be
written in any way that is the same polynomial in x.

Holds only if:

1. the opset is 20 or later;
2. every constant is one number, which agrees with the definition to the digits of its element type;
3. x is float, float16 or double;
4. no step has another reader or is a graph output, except that x may be read anywhere;
5. nothing in the model is quantized: there a last bit may become a step of the grid.

Exactness: rounding.

Source: the definition of Gelu among the ONNX operators.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxslim.ir.schema import opset_of
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.patterns import (
    close,
    is_closed,
    maker,
    replace_group,
    rounding_matters,
    with_number,
)
from onnxslim.rewrite.polynomials import factors, polynomial

OPSET = 20
_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})
_INNER = {
    "Erf": {1: math.sqrt(0.5)},
    "Tanh": {1: math.sqrt(2 / math.pi), 3: math.sqrt(2 / math.pi) * 0.044715},
}


@dataclass
class _Match:
    root: ir.Node
    value: ir.Value
    approximate: str
    nodes: list[ir.Node]


@dataclass(frozen=True)
class FuseGelu(Pass):
    """A change is one Gelu."""

    name: ClassVar[str] = "fuse-gelu"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    roots: ClassVar[frozenset[str]] = frozenset({"Erf", "Tanh"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        changes = 0
        general = rounding_matters(model, context)
        for node in context.nodes_of(model, "Erf", "Tanh"):
            match = _match(node)
            if match is None or (opset_of(node, model) or 0) < OPSET:  # (1)
                continue
            site = match.root.outputs[0].name or ""
            reason = general
            if not is_closed(match.nodes, match.root):  # (4)
                reason = "kept because a step of it is read elsewhere"
            if reason is not None:
                context.refuse(self, site, reason)
            elif context.allow(self, site, match.approximate):
                _rewrite(match)
                changes += 1
        return PassResult(changes)


def _match(curve: ir.Node) -> _Match | None:
    """The Gelu around an Erf or a Tanh."""
    total = _only_reader(curve.outputs[0], "Add")
    parts = with_number(total) if total is not None else None
    if total is None or parts is None or parts[1] != 1.0:
        return None
    root = _product_of(total)
    found = factors(root) if root is not None else None
    if root is None or found is None or len(found.values) != 2 or found.constant != 0.5:
        return None
    values = [value for value in found.values if value is not total.outputs[0]]
    if len(values) != 1 or values[0].dtype not in _TYPES:  # (3)
        return None
    x = values[0]
    inner = polynomial(curve.inputs[0], x, curve.graph)
    wanted = _INNER[curve.op_type]
    if inner is None or set(inner.terms) != set(wanted):
        return None
    if not all(close(inner.terms[power], item, x.dtype) for power, item in wanted.items()):  # (2)
        return None
    kind = "none" if curve.op_type == "Erf" else "tanh"
    return _Match(root, x, kind, [*inner.nodes, curve, total, *found.nodes])


def _product_of(total: ir.Node) -> ir.Node | None:
    """The last of the products that a sum goes into, as far as these have one reader each.

    A Gelu that is multiplied with something else ends before that, so the first product with both
    other factors is taken.
    """
    root, node = None, _only_reader(total.outputs[0], "Mul", "Div")
    while node is not None:
        found = factors(node)
        if len(found.values) > 2:
            return root
        root = node
        if len(found.values) == 2 and found.constant == 0.5:
            return root
        node = _only_reader(node.outputs[0], "Mul", "Div")
    return root


def _only_reader(value: ir.Value, *op_types: str) -> ir.Node | None:
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or value.producer() is None:
        return None
    home = value.producer().graph  # type: ignore[union-attr]
    return maker(uses[0][0].outputs[0], home, *op_types)


def _rewrite(match: _Match) -> None:
    attributes = [] if match.approximate == "none" else [ir.AttrString("approximate", "tanh")]
    new = ir.Node("", "Gelu", [match.value], attributes, name=match.root.name)
    replace_group(match.nodes, match.root, new)
