"""The message that shape inference works on, kept in step with the graph at little cost.

Inference needs operators, attributes, types and small constants, not weights, names of nodes or
documentation. What was written for a node or a value is remembered with it and used again as long
as nothing it was made of has changed; most of a graph stays the same between two passes.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from onnxslim.ir.schema import ONNX_DOMAINS
from onnxslim.ir.traversal import attributes_of, subgraphs_of

# Tensors above this many bytes are hidden from shape inference; shapes and axes are never larger.
HIDDEN_BYTES = 4096
# Of these onnx infers nothing, but the output has the shape and the type of the first input.
SHAPE_KEEPING = ("GroupNormalization", "SimplifiedLayerNormalization")

_NOTE = "onnxslim.inference"
_TENSOR = ir.AttributeType.TENSOR


def write(model: ir.Model) -> onnx.ModelProto:
    """The main graph with its subgraphs, without the bodies of functions.

    Left out: large tensors, initializers that a caller may override, negative sizes in the types
    of inputs and outputs.
    """
    proto = onnx.ModelProto()
    proto.ir_version = model.ir_version
    for domain in sorted(model.graph.opset_imports):
        entry = proto.opset_import.add()
        entry.domain, entry.version = domain, model.graph.opset_imports[domain]
    _write_graph(model.graph, proto.graph, is_main=True)
    for info in (*proto.graph.input, *proto.graph.output):
        for size in info.type.tensor_type.shape.dim:
            if size.dim_value < 0:
                size.Clear()
    return proto


def typed(value: ir.Value) -> onnx.ValueInfoProto | None:
    """Name, type and shape as a message, or None when there is nothing to say. Do not change it."""
    shape = value.shape
    if not value.name or (shape is None and value.type is None):
        return None
    key = _key(value)
    note = value.meta.get(_NOTE)
    if note is not None and note[0] == key:
        known: onnx.ValueInfoProto = note[1]
        return known
    info = onnx.ValueInfoProto()
    info.name = value.name
    if value.type is not None:
        ir.serde.serialize_type_into(info.type, value.type)
        if shape is not None:
            ir.serde.serialize_shape_into(info.type, shape)
    value.meta[_NOTE] = (key, info)
    return info


def remember(value: ir.Value, info: onnx.ValueInfoProto) -> None:
    """Notes that ``info`` says what is known of a value, so that it need not be written again."""
    known = onnx.ValueInfoProto()
    known.CopyFrom(info)  # a part would keep the whole message it belongs to in memory
    value.meta[_NOTE] = (_key(value), known)


def _key(value: ir.Value) -> tuple[object, ...]:
    return value.name, value.type, None if value.shape is None else value.shape.dims


def _write_graph(graph: ir.Graph, proto: onnx.GraphProto, *, is_main: bool) -> None:
    proto.name = graph.name or ""
    listed = {value.name for value in graph.inputs}
    infos = []
    for value in graph.initializers.values():
        if value.name not in listed:
            infos.append(typed(value))
        elif is_main:
            continue
        if value.const_value is not None:
            proto.initializer.append(_tensor(value, value.const_value))
    for node in graph:
        proto.node.append(_node(node, is_main))
        infos += [typed(value) for value in node.outputs if not value.is_graph_output()]
    proto.value_info.extend(info for info in infos if info is not None)
    for values, field in ((graph.inputs, proto.input), (graph.outputs, proto.output)):
        for value in values:
            field.append(typed(value) or onnx.ValueInfoProto(name=value.name))


def _tensor(value: ir.Value, tensor: ir.TensorProtocol) -> onnx.TensorProto:
    """An initializer; the note hangs on another key than that of `typed`."""
    note = value.meta.get(_NOTE + ".data")
    if note is not None and note[0] is tensor and note[1] == value.name:
        known: onnx.TensorProto = note[2]
        return known
    hidden = tensor.nbytes > HIDDEN_BYTES
    proto = onnx.TensorProto()
    ir.serde.serialize_tensor_into(proto, without_data(tensor) if hidden else tensor)
    proto.name = value.name or ""
    value.meta[_NOTE + ".data"] = (tensor, value.name, proto)
    return proto


def _node(node: ir.Node, is_main: bool) -> onnx.NodeProto:
    inner = subgraphs_of(node)
    attributes = list(attributes_of(node))
    inputs = ["" if value is None else value.name or "" for value in node.inputs]
    outputs = [value.name or "" for value in node.outputs]
    key = (node.domain, node.op_type, node.overload, is_main, inputs, outputs)
    note = None if inner else node.meta.get(_NOTE)
    if note is not None and note[0] == key and _are(note[1], attributes):
        known: onnx.NodeProto = note[2]
        return known
    proto = onnx.NodeProto(op_type=node.op_type)
    proto.domain, proto.overload = node.domain, node.overload
    while outputs and not outputs[-1]:
        del outputs[-1]
    if is_main and node.op_type in SHAPE_KEEPING and node.domain in ONNX_DOMAINS:
        proto.op_type = "Identity"
        proto.input.extend(inputs[:1])
        proto.output.extend(outputs[:1])
        return proto
    proto.input.extend(inputs)
    proto.output.extend(outputs)
    for attribute in attributes:
        _write_attribute(attribute, proto.attribute.add())
    if not inner:
        node.meta[_NOTE] = (key, attributes, proto)
    return proto


def _are(known: Sequence[ir.Attr], attributes: Sequence[ir.Attr]) -> bool:
    return len(known) == len(attributes) and all(map(_is, known, attributes))


def _is(one: ir.Attr, other: ir.Attr) -> bool:
    return one is other


def _write_attribute(attribute: ir.Attr, proto: onnx.AttributeProto) -> None:
    if attribute.is_ref():
        ir.serde.serialize_reference_attribute_into(proto, attribute)
    elif attribute.type == ir.AttributeType.GRAPH:
        proto.name, proto.type = attribute.name, onnx.AttributeProto.GRAPH
        _write_graph(attribute.as_graph(), proto.g, is_main=False)
    elif attribute.type == ir.AttributeType.GRAPHS:
        proto.name, proto.type = attribute.name, onnx.AttributeProto.GRAPHS
        for graph in attribute.as_graphs():
            _write_graph(graph, proto.graphs.add(), is_main=False)
    elif attribute.type == _TENSOR and attribute.value.nbytes > HIDDEN_BYTES:
        stand_in = without_data(attribute.value)
        ir.serde.serialize_attribute_into(proto, ir.AttrTensor(attribute.name, stand_in))
    else:
        ir.serde.serialize_attribute_into(proto, attribute)


def without_data(tensor: ir.TensorProtocol) -> ir.ExternalTensor:
    """A tensor of the same type and shape that has no contents to be read."""
    return ir.ExternalTensor(
        "hidden",
        0,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
    )
