"""Walks over everything a model holds: main graph, subgraphs, function bodies."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Every graph of the model once: the main graph, subgraphs at any depth, function bodies.

    Outer graphs come before the subgraphs inside them. The list is fixed before the first graph is
    yielded, so that a caller may edit nodes while walking.
    """
    roots = [model.graph, *(function.graph for function in model.functions.values())]
    for root in roots:
        yield root
        yield from list(root.subgraphs())


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of every graph; within a graph in order. Nodes removed meanwhile are skipped."""
    for graph in graphs(model):
        for node in list(graph):
            if node.graph is graph:
                yield node


def subgraphs_of(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs directly held in the attributes of a node."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()
