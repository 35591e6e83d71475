"""Makes HardSigmoid and HardSwish of the operators that compute them.

Before::

    a = Add (x, 3.0)
    c = Clip (a, 0.0, 6.0)
    m = Mul (x, c)
    y = Div (m, 6.0)

After::

    y = HardSwish (x)             # from opset 14
    h = HardSigmoid <alpha=0.1666667, beta=0.5> (x)      # before
    y = Mul (x, h)

Before::

    a = Add (x, 3.0)
    c = Clip (a, 0.0, 6.0)
    y = Div (c, 6.0)

After::

    y = HardSigmoid <alpha=0.1666667, beta=0.5> (x)

A Mul of x and its HardSigmoid with these numbers becomes a HardSwish as well.

Holds only if:

1. the Clip has constant bounds, 0 and more than 0; what is added is one number, and the division is
   by the upper bound; for HardSwish they are 3 and 6;
2. x is float or float16, and the opset is 6 or later;
3. no step has another reader or is a graph output, except that x may be read anywhere;
4. nothing in the model is quantized: there a last bit may become a step of the grid.

Exactness: rounding.

Source: the definitions of HardSigmoid and HardSwish among the ONNX operators.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxslim.ir.constants import scalar
from onnxslim.ir.schema import is_op, opset_of
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.patterns import close, is_closed, maker, replace_group, rounding_matters
from onnxslim.rewrite.polynomials import factors, polynomial

_SIGMOID_OPSET, _SWISH_OPSET = 6, 14
_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})


@dataclass
class _Match:
    """``clip (alpha * x + beta, 0, 1)``, and times x where ``swish``."""

    root: ir.Node
    value: ir.Value
    alpha: float
    beta: float
    swish: bool
    nodes: list[ir.Node]


@dataclass(frozen=True)
class FuseHardSwish(Pass):
    """A change is one HardSigmoid or HardSwish."""

    name: ClassVar[str] = "fuse-hard-swish"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    roots: ClassVar[frozenset[str]] = frozenset({"Clip", "HardSigmoid"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        changes = 0
        general = rounding_matters(model, context)
        for node in context.nodes_of(model, "Mul", "Div"):
            opset = opset_of(node, model) or 0
            match = _match(node)
            if match is None or opset < _SIGMOID_OPSET:  # (2)
                continue
            if not _is_shorter(match, opset):
                continue
            site = node.outputs[0].name or ""
            if general is not None:
                context.refuse(self, site, general)
            elif context.allow(self, site, "HardSwish" if match.swish else "HardSigmoid"):
                _rewrite(match, opset, context)
                changes += 1
        return PassResult(changes)


def _match(root: ir.Node) -> _Match | None:
    product = factors(root)
    if not 1 <= len(product.values) <= 2:
        return None
    for place, value in enumerate(product.values):
        curve = maker(value, root.graph, "Clip", "HardSigmoid")
        if curve is None:
            continue
        others = product.values[:place] + product.values[place + 1 :]
        found = _sigmoid(curve, others[0] if others else None, product.constant)
        if found is None or (others and not _is_swish(found)):
            continue
        match = _Match(root, found.value, found.alpha, found.beta, bool(others), found.nodes)
        match.nodes = [*found.nodes, *product.nodes]
        if is_closed(match.nodes, root):  # (3)
            return match
    return None


def _sigmoid(curve: ir.Node, x: ir.Value | None, constant: float) -> _Match | None:
    """A curve that is multiplied with a constant, as a HardSigmoid of x."""
    if is_op(curve, "HardSigmoid"):
        value = curve.inputs[0]
        if value is None or value.dtype not in _TYPES or x is not value or constant != 1.0:
            return None
        alpha = curve.attributes.get_float("alpha", 0.2)
        beta = curve.attributes.get_float("beta", 0.5)
        return _Match(curve, value, alpha, beta, True, [curve])
    low, high = _bounds(curve)
    moved = maker(curve.inputs[0], curve.graph, "Add")
    if low != 0 or high is None or not 0 < high < math.inf or moved is None:
        return None
    for value in moved.inputs if x is None else [x]:
        inner = polynomial(moved.outputs[0], value, curve.graph) if value is not None else None
        if value is None or inner is None or value.dtype not in _TYPES:
            continue
        if set(inner.terms) != {0, 1} or inner.terms[1] != 1.0:
            continue
        if close(constant, 1 / high, value.dtype):  # (1)
            nodes = [*inner.nodes, curve]
            return _Match(curve, value, 1 / high, inner.terms[0] / high, False, nodes)
    return None


def _bounds(clip: ir.Node) -> tuple[float | None, float | None]:
    """Lower and upper bound, as far as they are constant."""
    if len(clip.inputs) > 1:
        values = [*clip.inputs[1:], None][:2]
        found = [scalar(value) for value in values]
        return found[0], found[1]
    low, high = clip.attributes.get("min"), clip.attributes.get("max")
    if low is None or high is None:
        return None, None
    return low.as_float(), high.as_float()


def _is_swish(match: _Match) -> bool:
    return close(match.alpha, 1 / 6, match.value.dtype) and close(
        match.beta, 0.5, match.value.dtype
    )


def _is_shorter(match: _Match, opset: int) -> bool:
    """False where the new form has as many nodes as the old one."""
    after = 2 if match.swish and opset < _SWISH_OPSET else 1
    return len(set(match.nodes)) > after


def _rewrite(match: _Match, opset: int, context: Context) -> None:
    name, value = match.root.name, match.value
    if match.swish and opset >= _SWISH_OPSET:
        replace_group(match.nodes, match.root, ir.Node("", "HardSwish", [value], name=name))
        return
    numbers = [ir.AttrFloat32("alpha", match.alpha), ir.AttrFloat32("beta", match.beta)]
    sigmoid = ir.Node("", "HardSigmoid", [value], numbers, name=None if match.swish else name)
    if not match.swish:
        replace_group(match.nodes, match.root, sigmoid)
        return
    between, graph = sigmoid.outputs[0], match.root.graph
    between.name = context.fresh_name(f"{match.root.outputs[0].name}_gate")
    between.type, between.shape = value.type, value.shape
    if graph is not None:
        graph.insert_before(match.root, sigmoid)
    product = ir.Node("", "Mul", [value, between], name=name)
    replace_group(match.nodes, match.root, product)
