"""Puts constants where they belong: initializers of the main graph, Constant nodes elsewhere."""

from __future__ import annotations

import onnx_ir as ir

from onnxslim.ir.constants import is_constant
from onnxslim.ir.edit import remove, replace_value


def needs_node(model: ir.Model, graph: ir.Graph | ir.Function | None) -> bool:
    """True where a constant has to be a Constant node.

    Function bodies have no initializers, those of subgraphs are not understood by every runtime,
    and before IR version 4 an initializer is a graph input.
    """
    return graph is not model.graph or (model.ir_version or 0) < 4


def becomes_node(model: ir.Model, value: ir.Value) -> bool:
    """True when the constant in place of this node output has to be a Constant node.

    A graph output keeps a node that computes it.
    """
    producer = value.producer()
    return producer is None or value.is_graph_output() or needs_node(model, producer.graph)


def replace_by_constant(model: ir.Model, value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Lets a constant take the place and the name of a node output; the node itself stays.

    Args:
        model: the model.
        value: an output of a node that is in a graph.
        tensor: the contents.
    """
    if becomes_node(model, value):
        _by_node(value, tensor)
    else:
        _by_initializer(model.graph, value, tensor)


def _by_initializer(graph: ir.Graph, value: ir.Value, tensor: ir.TensorProtocol) -> None:
    name = value.name
    new = _value(name, tensor)
    ir.convenience.replace_all_uses_with(value, new)
    value.name = f"{name}__replaced"
    graph.register_initializer(new)


def _by_node(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    producer = value.producer()
    if producer is None:
        raise ValueError(f"value {value.name!r} is computed by no node")
    name = value.name
    new = _node_before(producer, tensor, producer.name)
    replace_value(value, new)
    value.name = f"{name}__replaced"
    new.name = name


def _node_before(reader: ir.Node, tensor: ir.TensorProtocol, name: str | None) -> ir.Value:
    if reader.graph is None:
        raise ValueError(f"node {reader.name!r} is in no graph")
    node = ir.node("Constant", [], {"value": tensor})
    reader.graph.insert_before(reader, node)
    node.name = name  # the graph gives a name to a node without one, which is stored
    new = node.outputs[0]
    new.type, new.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
    return new


def _value(name: str | None, tensor: ir.TensorProtocol) -> ir.Value:
    return ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )


def add_constant(
    model: ir.Model, reader: ir.Node, tensor: ir.TensorProtocol, name: str
) -> ir.Value:
    """A new constant that ``reader`` may read.

    Args:
        model: the model.
        reader: the node that will read it; a Constant node goes right before it.
        tensor: the contents.
        name: a fresh name.
    """
    if needs_node(model, reader.graph):
        new = _node_before(reader, tensor, None)
        new.name = name
        return new
    value = _value(name, tensor)
    model.graph.register_initializer(value)
    return value


def discard_unused(value: ir.Value) -> None:
    """Removes a constant if nobody reads it any more and it is no graph output."""
    if value.is_graph_output() or value.uses() or not is_constant(value):
        return
    producer = value.producer()
    if producer is not None:
        remove(producer)
    elif value.graph is not None and value.name is not None:
        del value.graph.initializers[value.name]
