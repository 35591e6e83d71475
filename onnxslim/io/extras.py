"""What onnx_ir has no place for, carried from load to save beside the objects it belongs to.

Everything hangs on the ``meta`` of the graph (which ``Model.clone`` copies, unlike that of the
model), node or value, so what a pass removes takes its extras along.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import Message  # type: ignore[import-untyped]
from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-untyped]

from onnxslim.io.source import Source
from onnxslim.io.wire import varint

META_KEY = "onnxslim.io"
"""Key in ``meta`` of graphs, nodes and values; holds one of the classes below."""

SPARSE_KEY = "sparse_initializer"
"""Key in ``meta`` of a value that stands for a sparse initializer; holds its bytes."""


@dataclass(frozen=True)
class ModelExtras:
    """On the main graph: fields of the model, and the declarations of its inputs and outputs."""

    path: str | None = None
    sources: tuple[Source, ...] = ()
    unknown: bytes = b""
    training_info: tuple[bytes, ...] = ()
    declared: dict[str, bytes] = field(default_factory=dict)
    graph: GraphExtras | None = None
    unnamed_domain: bool = False
    """The import of the standard operators named no domain, not even the empty one."""


@dataclass(frozen=True)
class GraphExtras:
    """On a graph or on the graph of a function."""

    unknown: bytes = b""
    annotations: tuple[bytes, ...] = ()
    described: frozenset[str] = frozenset()
    """Initializers that had a value_info of their own; the IR would write one for each."""


@dataclass(frozen=True)
class NodeExtras:
    """On a node: unknown fields of it and, by name, of its attributes and their tensors."""

    unknown: bytes = b""
    attributes: dict[str, bytes] = field(default_factory=dict)
    tensors: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class ValueExtras:
    """On a value: unknown fields, and a type that the IR cannot express (map, opaque)."""

    unknown: bytes = b""
    type: bytes = b""


@dataclass(frozen=True)
class OpaqueAttribute:
    """Value of an attribute that the IR cannot express (sparse tensors, map types, no type).

    ``data`` is the serialized AttributeProto. Two are equal when their bytes are, so merging of
    equal nodes stays right.
    """

    data: bytes


def source_path(model: ir.Model) -> str | None:
    """Return the real path of the file the model was loaded from, if it came from one."""
    kept = model.graph.meta.get(META_KEY)
    return kept.path if isinstance(kept, ModelExtras) else None


def is_opaque_initializer(value: ir.Value) -> bool:
    """Whether ``value`` stands for a sparse initializer: constant, but without ``const_value``.

    Such a value is listed in ``graph.initializers``, has no producer and is no graph input.
    """
    return SPARSE_KEY in value.meta


def unknown_fields(message: Message) -> bytes:
    """Return the unknown fields of ``message`` itself (not of what it holds), serialized."""
    return b"".join(_unknown_field(item) for item in UnknownFieldSet(message))


def _unknown_field(item: Any) -> bytes:
    number, wire, data = item.field_number, item.wire_type, item.data
    head = varint(number << 3 | wire)
    if wire == 0:
        return head + varint(data)
    if wire == 1:
        return head + int(data).to_bytes(8, "little")
    if wire == 5:
        return head + int(data).to_bytes(4, "little")
    if wire == 2:
        return head + varint(len(data)) + bytes(data)
    inner = b"".join(_unknown_field(part) for part in data)
    return head + inner + varint(number << 3 | 4)


def has_unknown_fields(proto: onnx.ModelProto) -> bool:
    """Whether any message in ``proto`` has unknown fields (they are rare: ask once, up front)."""
    known = onnx.ModelProto()
    known.CopyFrom(proto)
    known.DiscardUnknownFields()
    return bool(known.ByteSize() != proto.ByteSize())


def graphs_of(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """Yield the main graph, the functions, and all subgraphs (not those of training_info)."""
    stack: list[onnx.GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    while stack:
        graph = stack.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH and not attribute.ref_attr_name:
                    stack.append(attribute.g)
                elif attribute.type == onnx.AttributeProto.GRAPHS and not attribute.ref_attr_name:
                    stack.extend(attribute.graphs)


def tensors_of(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    """Yield the tensors of one graph: dense initializers, attributes, attribute defaults."""
    if isinstance(graph, onnx.GraphProto):
        yield from graph.initializer
    else:
        for attribute in graph.attribute_proto:
            yield from attribute_tensors(attribute)
    for node in graph.node:
        for attribute in node.attribute:
            yield from attribute_tensors(attribute)


def attribute_tensors(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    """Yield the dense tensors of an attribute."""
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors


def expressible_type(proto: onnx.TypeProto) -> bool:
    """Whether the IR can hold this type."""
    kind = proto.WhichOneof("value")
    if kind in (None, "tensor_type", "sparse_tensor_type"):
        return True
    if kind in ("sequence_type", "optional_type"):
        holder = getattr(proto, kind)
        return (
            holder.HasField("elem_type")
            and holder.elem_type.WhichOneof("value") is not None
            and expressible_type(holder.elem_type)
        )
    return False


def expressible_attribute(proto: onnx.AttributeProto) -> bool:
    """Whether the IR can hold this attribute."""
    kinds = onnx.AttributeProto
    if proto.ref_attr_name:
        return True
    if proto.type in (kinds.UNDEFINED, kinds.SPARSE_TENSOR, kinds.SPARSE_TENSORS):
        return False
    if proto.type == kinds.TYPE_PROTO:
        return proto.tp.WhichOneof("value") is not None and expressible_type(proto.tp)
    if proto.type == kinds.TYPE_PROTOS:
        return all(expressible_type(item) for item in proto.type_protos)
    if proto.type == kinds.STRINGS:
        return all(_is_text(item) for item in proto.strings)
    return True  # a STRING that is not text is bytes in the IR


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def forget_declared(model: ir.Model) -> None:
    """Inputs and outputs are written as the graph has them now, not as the file declared them.

    For callers that change the interface on request; otherwise the declarations of the file stay.
    """
    kept = model.graph.meta.get(META_KEY)
    if isinstance(kept, ModelExtras):
        model.graph.meta[META_KEY] = replace(kept, declared={})
