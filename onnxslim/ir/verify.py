"""Checks the invariants that every pass has to keep."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxslim.errors import VerificationError
from onnxslim.ir.traversal import subgraphs_of


def verify(model: ir.Model) -> None:
    """Checks single assignment, topological order, scopes and opset imports of the whole model.

    Raises:
        VerificationError: names the first node or value that breaks a rule, with its neighbours.
    """
    _verify_graph(model.graph, set(), model.graph.opset_imports)
    for function in model.functions.values():
        _verify_graph(function.graph, set(), function.opset_imports)


def _verify_graph(graph: ir.Graph, outer: set[str], imports: dict[str, int]) -> None:
    defined: set[str] = set()
    for value in graph.inputs:
        _define(value, defined, graph)
    for name, value in graph.initializers.items():
        if name != value.name:
            raise VerificationError(f"initializer {name!r} is registered under another name")
        defined.add(name)
    visible = outer | defined if outer else defined
    for node in graph:
        _verify_node(node, visible, imports)
        for inner in subgraphs_of(node):
            _verify_graph(inner, visible, imports)
        for value in node.outputs:
            if value.name:
                _define(value, defined, graph, node)
                visible.add(value.name)
    _verify_outputs(graph.outputs, visible, graph)


def _define(
    value: ir.Value, defined: set[str], graph: ir.Graph, node: ir.Node | None = None
) -> None:
    if value.name in defined:
        where = f" by node {describe(node)}" if node is not None else ""
        raise VerificationError(f"value {value.name!r} of graph {graph.name!r} is set twice{where}")
    defined.add(value.name or "")


def _verify_node(node: ir.Node, visible: set[str], imports: dict[str, int]) -> None:
    domain = node.domain
    if domain not in imports and not (domain in ("", "ai.onnx") and {"", "ai.onnx"} & set(imports)):
        raise VerificationError(f"node {describe(node)}: domain {domain!r} is not imported")
    for value in node.inputs:
        if value is None or not value.name or value.meta.get("sparse_initializer"):
            continue
        if value.name not in visible:
            raise VerificationError(
                f"node {describe(node)} reads {value.name!r}, which no earlier node, input or "
                "initializer in scope provides"
            )


def _verify_outputs(outputs: Iterable[ir.Value], visible: set[str], graph: ir.Graph) -> None:
    for value in outputs:
        if value.name not in visible and not value.meta.get("sparse_initializer"):
            raise VerificationError(
                f"output {value.name!r} of graph {graph.name!r} is computed by no node"
            )


def describe(node: ir.Node | None) -> str:
    """A node in one line, as in the textual form of ONNX: ``y = Add (a, b)``."""
    if node is None:
        return "(none)"
    outputs = ", ".join(value.name or "" for value in node.outputs)
    inputs = ", ".join(value.name or "" if value is not None else "" for value in node.inputs)
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return f"{outputs} = {operator} ({inputs})"
