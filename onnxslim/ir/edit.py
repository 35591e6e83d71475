"""Edits that keep the interface sacred: names and order of graph inputs and outputs never move."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.ir.traversal import graphs, subgraphs_of


def can_replace(old: ir.Value, new: ir.Value) -> bool:
    """True when every use of ``old`` may read ``new`` instead.

    A graph output keeps its name, so ``new`` has to take that name over. It cannot when ``new`` is
    itself a graph input, graph output or initializer, lives in another graph than ``old`` (a
    subgraph may not return an outer value), or is a graph output already.
    """
    if not old.is_graph_output():
        return True
    producer = new.producer()
    return (
        producer is not None
        and not new.is_graph_input()
        and not new.is_graph_output()
        and not new.is_initializer()
        and old.producer() is not None
        and producer.graph is old.producer().graph  # type: ignore[union-attr]
    )


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Makes every use of ``old``, graph outputs included, read ``new``.

    Where ``old`` was a graph output, ``new`` takes its name, its declared type and its shape, and
    the former producer of the name gets another one. Ask `can_replace` first.
    """
    if old.is_graph_output():
        name, old_type, shape = old.name, old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        old.name = f"{name}__replaced"
        new.name = name
        new.type = old_type if old_type is not None else new.type
        new.shape = shape if shape is not None else new.shape
        return
    if new.type is None:
        new.type = old.type
    if new.shape is None and not new.is_graph_input():
        new.shape = old.shape
    ir.convenience.replace_all_uses_with(old, new)


def bypass(node: ir.Node, replacement: ir.Value) -> None:
    """Replaces the node's first output by ``replacement`` and removes the node."""
    replace_value(node.outputs[0], replacement)
    remove(node)


def remove(node: ir.Node) -> None:
    """Removes a node whose outputs nobody uses any more, with what its subgraphs capture."""
    graph = node.graph
    if graph is None:
        raise ValueError(f"node {node.name!r} is in no graph")
    graph.remove(node, safe=True)
    _release_captures(node)


def _release_captures(node: ir.Node) -> None:
    """The nodes in the subgraphs of a removed node no longer count as users of outer values."""
    for graph in subgraphs_of(node):
        for inner in graph:
            _release_captures(inner)
            for index in range(len(inner.inputs)):
                inner.replace_input_with(index, None)


class Names:
    """Gives out names that no value and no node of a model has: good for either, or for both.

    The names are collected once, so asking is cheap however large the graph is. Names given up
    meanwhile stay taken. The answers depend on the model and the order of questions alone.
    """

    def __init__(self, model: ir.Model) -> None:
        self._taken: set[str] = set()
        for graph in graphs(model):
            self._taken.update(value.name or "" for value in graph.inputs)
            self._taken.update(graph.initializers)
            for node in graph:
                self._taken.add(node.name or "")
                self._taken.update(value.name or "" for value in node.outputs)
                self._taken.update(value.name or "" for value in node.inputs if value is not None)

    def fresh(self, base: str) -> str:
        """``base`` itself when it is free, else ``base_1``, ``base_2``, ..."""
        name, number = base, 0
        while name in self._taken:
            number += 1
            name = f"{base}_{number}"
        self._taken.add(name)
        return name


def add_initializer(graph: ir.Graph, content: npt.NDArray[np.generic], name: str) -> ir.Value:
    """Adds a constant to ``graph`` under a name from `Names.fresh` and returns its value."""
    tensor = ir.tensor(content, name=name)
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(content.shape),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def replace_node(node: ir.Node, new: ir.Node) -> None:
    """Puts ``new`` in the place of ``node``: same position, same output values by name."""
    graph = node.graph
    if graph is None:
        raise ValueError(f"node {node.name!r} is in no graph")
    graph.insert_before(node, new)
    outputs: Sequence[tuple[ir.Value, ir.Value]] = list(
        zip(node.outputs, new.outputs, strict=False)
    )
    for old_output, new_output in outputs:
        new_output.type = new_output.type or old_output.type
        new_output.shape = new_output.shape or old_output.shape
        name = old_output.name
        replace_value(old_output, new_output)
        old_output.name = f"{name}__replaced"
        new_output.name = name
    remove(node)
