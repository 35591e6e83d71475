"""Walks over everything a model holds: main graph, subgraphs, function bodies."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache

import onnx.defs
import onnx_ir as ir

from onnxslim.ir.schema import NEWEST, schema

_GRAPH = ir.AttributeType.GRAPH
_GRAPHS = ir.AttributeType.GRAPHS


def graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Every graph of the model once: the main graph, subgraphs at any depth, function bodies.

    Outer graphs come before the subgraphs inside them. The list is fixed before the first graph is
    yielded, so that a caller may edit nodes while walking.
    """
    roots = [model.graph, *(function.graph for function in model.functions.values())]
    for root in roots:
        yield root
        yield from subgraphs_below(root)


def subgraphs_below(root: ir.Graph) -> list[ir.Graph]:
    """The subgraphs inside a graph at any depth, outer ones first, in the order of their nodes."""
    found: dict[ir.Graph, None] = {}
    _collect(root, found)
    return list(found)


def _collect(graph: ir.Graph, found: dict[ir.Graph, None]) -> None:
    for node in graph:
        if not _may_hold_graphs(node.op_type, node.domain):
            continue
        for inner in subgraphs_of(node):
            if inner not in found:
                found[inner] = None
                _collect(inner, found)


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of every graph; within a graph in order. Nodes removed meanwhile are skipped."""
    for graph in graphs(model):
        for node in list(graph):
            if node.graph is graph:
                yield node


@lru_cache(maxsize=4096)
def _may_hold_graphs(op_type: str, domain: str) -> bool:
    """False for operators whose schema has no attribute for a graph; that spares a look at them."""
    known = schema(op_type, domain, NEWEST)
    kinds = [] if known is None else [each.type for each in known.attributes.values()]
    kind = onnx.defs.OpSchema.AttrType
    return known is None or kind.GRAPH in kinds or kind.GRAPHS in kinds


def subgraphs_of(node: ir.Node) -> list[ir.Graph]:
    """The graphs directly held in the attributes of a node."""
    found: list[ir.Graph] = []
    for attribute in attributes_of(node):
        kind = attribute.type
        if kind == _GRAPH and not attribute.is_ref():
            found.append(attribute.as_graph())
        elif kind == _GRAPHS and not attribute.is_ref():
            found.extend(attribute.as_graphs())
    return found


def attributes_of(node: ir.Node) -> Collection[ir.Attr]:
    """The attributes of a node; several times faster than asking its mapping for each of them."""
    held: Mapping[str, ir.Attr] = getattr(node.attributes, "data", node.attributes)
    return held.values()
