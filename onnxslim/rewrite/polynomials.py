"""Reads sums, products and powers with constants as polynomials in one value."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from onnxslim.rewrite.patterns import maker, number, with_number

_DEPTH = 8
_DEGREE = 3


@dataclass
class Polynomial:
    """Coefficients by exponent, and the nodes that compute it."""

    terms: dict[int, float]
    nodes: list[ir.Node] = field(default_factory=list)


def polynomial(value: ir.Value | None, x: ir.Value, home: object) -> Polynomial | None:
    """A value as a polynomial of degree 3 at most in ``x``, or None.

    Args:
        value: what to read.
        x: the variable.
        home: the graph that all nodes have to stand in.
    """
    return _read(value, x, home, _DEPTH)


def _read(value: ir.Value | None, x: ir.Value, home: object, depth: int) -> Polynomial | None:
    if value is x:
        return Polynomial({1: 1.0})
    constant = number(value, x)
    if constant is not None:
        return Polynomial({0: constant})
    node = maker(value, home, "Add", "Mul", "Div", "Pow") if depth else None
    if node is None or len(node.inputs) != 2 or node.attributes:
        return None
    left = _read(node.inputs[0], x, home, depth - 1)
    right = _read(node.inputs[1], x, home, depth - 1) if left is not None else None
    if left is None or right is None:
        return None
    terms = _combined(node.op_type, left.terms, right.terms)
    return None if terms is None else Polynomial(terms, [*left.nodes, *right.nodes, node])


def _combined(
    op_type: str, left: dict[int, float], right: dict[int, float]
) -> dict[int, float] | None:
    if op_type == "Add":
        return {power: left.get(power, 0.0) + right.get(power, 0.0) for power in {*left, *right}}
    if op_type == "Mul":
        return _product(left, right)
    constant = right.get(0)
    if constant is None or len(right) != 1:
        return None
    if op_type == "Div":
        return {power: item / constant for power, item in left.items()} if constant else None
    if constant not in (2.0, 3.0):
        return None
    found: dict[int, float] | None = left
    for _ in range(int(constant) - 1):
        found = _product(found, left) if found is not None else None
    return found


def _product(left: dict[int, float], right: dict[int, float]) -> dict[int, float] | None:
    found: dict[int, float] = {}
    for one, first in left.items():
        for other, second in right.items():
            found[one + other] = found.get(one + other, 0.0) + first * second
    return found if all(power <= _DEGREE for power in found) else None


@dataclass
class Factors:
    """A product: its constant, its other factors, and the nodes that multiply them."""

    constant: float
    values: list[ir.Value]
    nodes: list[ir.Node]


def factors(root: ir.Node) -> Factors:
    """The factors of a tree of Mul, and Div by a constant; values with other readers are leaves."""
    found = Factors(1.0, [], [])
    _collect(root, found)
    return found


def _collect(node: ir.Node, found: Factors) -> None:
    found.nodes.append(node)
    parts = with_number(node)
    operands = list(node.inputs)
    if parts is not None and (node.op_type == "Mul" or parts[0] is node.inputs[0]):
        operands = [parts[0]]
        if node.op_type == "Mul":
            found.constant *= parts[1]
        else:
            found.constant /= parts[1] or float("nan")
    for value in operands:
        inner = maker(value, node.graph, "Mul", "Div")
        alone = value is not None and len(value.uses()) == 1 and not value.is_graph_output()
        if inner is not None and alone and _splits(inner):
            _collect(inner, found)
        elif value is not None:
            found.values.append(value)


def _splits(node: ir.Node) -> bool:
    if node.op_type == "Mul":
        return True
    parts = with_number(node)
    return parts is not None and parts[0] is node.inputs[0]
