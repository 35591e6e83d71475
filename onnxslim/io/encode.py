"""From the IR to a ModelProto, with the caller deciding what stands for each tensor.

The IR's own serializer copies every weight into the proto and drops what :mod:`extras` carries;
this one does neither, and never changes the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import onnx
import onnx_ir as ir

from onnxslim.io import extras
from onnxslim.io.border import write_border
from onnxslim.io.extras import META_KEY, SPARSE_KEY
from onnxslim.io.source import SourceTensor

TensorHook = Callable[[onnx.TensorProto, ir.TensorProtocol], bool]
"""Fills in the data of a large tensor and returns True, or returns False to have it inline."""

SkipHook = Callable[[ir.Value], bool]
"""Whether a main-graph initializer becomes a graph input instead."""

_QUANTIZATION_KEY = "quant_parameter_tensor_names"  # where the IR keeps such annotations
_FUNCTION_VALUE_INFO = 10  # IR version from which functions hold value_info
_MULTI_DEVICE = 11  # IR version from which nodes hold device configurations


def encode(model: ir.Model, hook: TensorHook, stand_in: SkipHook | None = None) -> onnx.ModelProto:
    """Serialize ``model``; ``hook`` is asked for every tensor."""
    return _Encoder(model, hook, stand_in).run()


class _Encoder:
    def __init__(self, model: ir.Model, hook: TensorHook, stand_in: SkipHook | None) -> None:
        self._model = model
        self._hook = hook
        self._stand_in = stand_in
        self._version = model.ir_version

    def run(self) -> onnx.ModelProto:
        model, proto = self._model, onnx.ModelProto()
        kept = model.graph.meta.get(META_KEY)
        kept = kept if isinstance(kept, extras.ModelExtras) else extras.ModelExtras()
        proto.ir_version = model.ir_version
        for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
            value = getattr(model, name)
            if value is not None:
                setattr(proto, name, value)
        _opsets(proto.opset_import, model.opset_imports)
        if kept.unnamed_domain:
            for item in proto.opset_import:
                if not item.domain:
                    item.ClearField("domain")
        _entries(proto.metadata_props, model.metadata_props)
        if self._version >= _MULTI_DEVICE:
            for configuration in getattr(model, "device_configurations", ()):
                message = ir.serde.serialize_model_configuration(configuration)
                proto.configuration.add().CopyFrom(message)
        self._graph(proto.graph, model.graph, kept.graph, kept.declared)
        for function in model.functions.values():
            self._function(proto, function)
        for data in kept.training_info:
            proto.training_info.add().ParseFromString(data)
        if kept.unknown:
            proto.MergeFromString(kept.unknown)
        return proto

    def _graph(
        self,
        proto: onnx.GraphProto,
        graph: ir.Graph,
        kept: extras.GraphExtras | None,
        declared: Mapping[str, bytes] | None = None,
    ) -> None:
        kept = kept or extras.GraphExtras()
        main = declared is not None
        if graph.name is not None:
            proto.name = graph.name
        if graph.doc_string is not None:
            proto.doc_string = graph.doc_string
        _border(proto, graph, declared or {})
        self._initializers(proto, graph, kept, main)
        outputs = set(graph.outputs)
        for node in graph:
            self._node(proto.node.add(), node)
            for value in node.outputs:
                if value not in outputs:
                    _value_info(proto.value_info, value)
        _annotations(proto, graph, kept)
        _entries(proto.metadata_props, graph.metadata_props)
        if kept.unknown:
            proto.MergeFromString(kept.unknown)

    def _initializers(
        self, proto: onnx.GraphProto, graph: ir.Graph, kept: extras.GraphExtras, main: bool
    ) -> None:
        inputs = set(graph.inputs)
        for name, value in graph.initializers.items():
            if main and self._stand_in is not None and self._stand_in(value):
                if value not in inputs:
                    _typed_input(proto.input.add(), value)
                continue
            if name in kept.described and value not in inputs:
                _value_info(proto.value_info, value)
            if extras.is_opaque_initializer(value):
                sparse = proto.sparse_initializer.add()
                sparse.ParseFromString(value.meta[SPARSE_KEY])
                sparse.values.name = name
            elif value.const_value is not None:
                self._tensor(proto.initializer.add(), value.const_value, name)

    def _function(self, model_proto: onnx.ModelProto, function: ir.Function) -> None:
        proto = model_proto.functions.add()
        kept = function.graph.meta.get(META_KEY) or extras.GraphExtras()
        proto.name = function.name
        proto.domain = function.domain
        if function.overload:
            proto.overload = function.overload
        if function.doc_string is not None:
            proto.doc_string = function.doc_string
        _opsets(proto.opset_import, function.opset_imports)
        _entries(proto.metadata_props, function.metadata_props)
        proto.input.extend(value.name or "" for value in function.inputs)
        proto.output.extend(value.name or "" for value in function.outputs)
        for attr in function.attributes.values():
            if attr.value is None and not attr.is_ref():
                proto.attribute.append(attr.name)
            else:
                self._attribute(proto.attribute_proto.add(), attr)
        for node in function:
            self._node(proto.node.add(), node)
        self._function_value_info(model_proto, proto, function)
        if kept.unknown:
            proto.MergeFromString(kept.unknown)

    def _function_value_info(
        self, model_proto: onnx.ModelProto, proto: onnx.FunctionProto, function: ir.Function
    ) -> None:
        values = [*function.inputs, *(value for node in function for value in node.outputs)]
        if self._version >= _FUNCTION_VALUE_INFO:
            for value in values:
                _value_info(proto.value_info, value)
            return
        for value in values:  # before IR 10: under a qualified name in the main graph
            name = f"{function.domain}::{function.name}/{value.name}"
            _value_info(model_proto.graph.value_info, value, name)

    def _node(self, proto: onnx.NodeProto, node: ir.Node) -> None:
        proto.op_type = node.op_type
        if node.domain:
            proto.domain = node.domain
        if node.name:
            proto.name = node.name
        if node.overload:
            proto.overload = node.overload
        if node.doc_string is not None:
            proto.doc_string = node.doc_string
        proto.input.extend(
            [(value.name or "") if value is not None else "" for value in node.inputs]
        )
        proto.output.extend([value.name or "" for value in node.outputs])
        for attr in node.attributes.values():
            self._attribute(proto.attribute.add(), attr)
        if node.metadata_props:
            _entries(proto.metadata_props, node.metadata_props)
        if self._version >= _MULTI_DEVICE:
            for configuration in getattr(node, "device_configurations", ()):
                message = ir.serde.serialize_node_device_configuration(configuration)
                proto.device_configurations.add().CopyFrom(message)
        kept = node.meta.get(META_KEY) if node.meta else None
        if kept is not None:
            _restore_node(proto, kept)

    def _attribute(self, proto: onnx.AttributeProto, attr: ir.Attr) -> None:
        value: Any = attr.value
        if attr.is_ref():
            ir.serde.serialize_reference_attribute_into(proto, attr)
        elif isinstance(value, extras.OpaqueAttribute):
            proto.ParseFromString(value.data)
            proto.name = attr.name
        elif attr.type in _HOLDERS:
            proto.name = attr.name
            proto.type = onnx.AttributeProto.AttributeType.ValueType(attr.type.value)
            if attr.doc_string:
                proto.doc_string = attr.doc_string
            self._held(proto, attr.type, value)
        else:
            ir.serde.serialize_attribute_into(proto, attr)

    def _held(self, proto: onnx.AttributeProto, kind: ir.AttributeType, value: Any) -> None:
        """Fill in tensors and graphs."""
        if kind == ir.AttributeType.TENSOR:
            self._tensor(proto.t, value, value.name)
        elif kind == ir.AttributeType.TENSORS:
            for item in value:
                self._tensor(proto.tensors.add(), item, item.name)
        elif kind == ir.AttributeType.GRAPH:
            proto.g.SetInParent()
            self._graph(proto.g, value, value.meta.get(META_KEY))
        else:
            for item in value:
                self._graph(proto.graphs.add(), item, item.meta.get(META_KEY))

    def _tensor(
        self,
        proto: onnx.TensorProto,
        tensor: ir.TensorProtocol,
        name: str | None,
    ) -> None:
        filled = self._hook(proto, tensor)
        if not filled:
            _inline(proto, tensor)
        if filled or not isinstance(tensor, ir.TensorProtoTensor):
            _describe(proto, tensor)
            if extra := _tensor_extra(tensor):
                proto.MergeFromString(extra)
        if name:
            proto.name = name


def _tensor_extra(tensor: ir.TensorProtocol) -> bytes:
    if isinstance(tensor, SourceTensor):
        return tensor.extra
    if isinstance(tensor, ir.TensorProtoTensor):
        return extras.unknown_fields(tensor.raw)
    if isinstance(tensor, ir.StringTensor):
        return bytes(tensor.meta.get(META_KEY, b""))
    return b""


_HOLDERS = frozenset(
    {
        ir.AttributeType.TENSOR,
        ir.AttributeType.TENSORS,
        ir.AttributeType.GRAPH,
        ir.AttributeType.GRAPHS,
    }
)


def _inline(proto: onnx.TensorProto, tensor: ir.TensorProtocol) -> None:
    if isinstance(tensor, ir.TensorProtoTensor):
        proto.CopyFrom(tensor.raw)  # typed fields stay typed fields
    elif tensor.dtype == ir.DataType.STRING:
        proto.string_data.extend(_strings(tensor))
    else:
        proto.raw_data = tensor.tobytes()


def _strings(tensor: ir.TensorProtocol) -> list[bytes]:
    if isinstance(tensor, ir.StringTensor):
        return list(tensor.string_data())
    flat = tensor.numpy().reshape(-1).tolist()
    return [item.encode() if isinstance(item, str) else item for item in flat]


def _describe(proto: onnx.TensorProto, tensor: ir.TensorProtocol) -> None:
    proto.data_type = int(tensor.dtype)
    proto.dims.extend(_dims(tensor))
    if tensor.doc_string:
        proto.doc_string = tensor.doc_string
    if tensor.metadata_props:
        _entries(proto.metadata_props, tensor.metadata_props)


def _dims(tensor: ir.TensorProtocol) -> list[int]:
    return [dim for dim in tensor.shape if isinstance(dim, int)]


def _border(proto: onnx.GraphProto, graph: ir.Graph, declared: Mapping[str, bytes]) -> None:
    for infos, values, here, there in (
        (proto.input, graph.inputs, "i:", "o:"),
        (proto.output, graph.outputs, "o:", "i:"),
    ):
        for value in values:
            current = onnx.ValueInfoProto()
            _fill_value(current, value)
            own, other = (declared.get(f"{end}{value.name}") for end in (here, there))
            write_border(infos.add(), current, own, other, refinable=here == "o:")


def _typed_input(proto: onnx.ValueInfoProto, value: ir.Value) -> None:
    """Declare an initializer as a graph input of its type."""
    tensor = value.const_value
    assert tensor is not None
    proto.name = value.name or ""
    proto.type.tensor_type.elem_type = int(tensor.dtype)
    shape = proto.type.tensor_type.shape
    shape.SetInParent()
    for dim in _dims(tensor):
        shape.dim.add(dim_value=dim)


def _fill_value(proto: onnx.ValueInfoProto, value: ir.Value, name: str | None = None) -> None:
    ir.serde.serialize_value_into(proto, value, name=name or value.name or "")
    kept = value.meta.get(META_KEY) if value.meta else None
    if kept is None:
        return
    if kept.type and value.type is None:
        proto.type.ParseFromString(kept.type)
    if kept.unknown:
        proto.MergeFromString(kept.unknown)


def _value_info(infos: Any, value: ir.Value, name: str | None = None) -> None:
    if not value.name:
        return
    told = value.type is not None or value.shape is not None or value.doc_string
    if told or value.metadata_props or META_KEY in value.meta:
        _fill_value(infos.add(), value, name)


def _annotations(proto: onnx.GraphProto, graph: ir.Graph, kept: extras.GraphExtras) -> None:
    values: list[ir.Value] = [*graph.inputs, *graph.initializers.values()]
    values += [value for node in graph for value in node.outputs]
    for value in dict.fromkeys([*values, *graph.outputs]):
        names = value.meta.get(_QUANTIZATION_KEY) if value.meta else None
        if names:
            annotation = proto.quantization_annotation.add(tensor_name=value.name or "")
            _entries(annotation.quant_parameter_tensor_names, names)
    for data in kept.annotations:
        proto.quantization_annotation.add().ParseFromString(data)


def _restore_node(proto: onnx.NodeProto, kept: extras.NodeExtras) -> None:
    for attribute in proto.attribute:
        if attribute.name in kept.tensors and attribute.HasField("t"):
            old = extras.unknown_fields(attribute.t)
            if not old:
                attribute.t.MergeFromString(kept.tensors[attribute.name])
        if attribute.name in kept.attributes and not extras.unknown_fields(attribute):
            attribute.MergeFromString(kept.attributes[attribute.name])
    if kept.unknown:
        proto.MergeFromString(kept.unknown)


def _entries(entries: Any, mapping: Mapping[str, str]) -> None:
    for key, value in mapping.items():
        entries.add(key=key, value=value)


def _opsets(imports: Any, mapping: Mapping[str, int]) -> None:
    for domain, version in mapping.items():
        imports.add(domain=domain, version=version)


def large(tensor: ir.TensorProtocol, limit: int) -> bool:
    """Whether a tensor has fixed-size elements and at least ``limit`` bytes."""
    fixed: Iterable[ir.DataType] = (ir.DataType.STRING, ir.DataType.UNDEFINED)
    return tensor.dtype not in fixed and tensor.nbytes >= limit
