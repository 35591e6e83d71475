"""From a skeleton proto to the IR: tensors that point into files, and nothing dropped."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator

import onnx
import onnx_ir as ir

from onnxslim.errors import InvalidModelError, ModelLoadError
from onnxslim.io import extras
from onnxslim.io.external import DataFiles
from onnxslim.io.extras import META_KEY, SPARSE_KEY
from onnxslim.io.source import SourceTensor
from onnxslim.io.wire import Range, Skeleton

_TUPLE_KINDS = (ir.AttributeType.STRINGS, ir.AttributeType.TYPE_PROTOS)


def decode(
    skeleton: Skeleton, proto: onnx.ModelProto, files: DataFiles, path: str | None
) -> ir.Model:
    """Turn a parsed skeleton into the IR. ``proto`` is taken over and changed.

    Raises:
        ModelLoadError: external data that is missing, unsafe or of the wrong size.
        InvalidModelError: a graph that the IR cannot represent (a name produced twice ...).
    """
    return _Decoder(skeleton, proto, files).run(path)


@contextlib.contextmanager
def _collector_off() -> Iterator[None]:
    """Building many objects with the cyclic collector on costs a quarter more time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Decoder:
    def __init__(self, skeleton: Skeleton, proto: onnx.ModelProto, files: DataFiles) -> None:
        self._token = skeleton.token
        self._ranges = list(skeleton.ranges)
        self._proto = proto
        self._files = files
        self._opaque: list[tuple[int, bytes]] = []  # type and bytes of the AttributeProto
        self._keep_unknown = extras.has_unknown_fields(proto)

    def run(self, path: str | None) -> ir.Model:
        declared = {
            kind + value.name: value.SerializeToString()
            for kind, values in (("i:", self._proto.graph.input), ("o:", self._proto.graph.output))
            for value in values
        }
        with _collector_off():
            for graph in extras.graphs_of(self._proto):
                self._prepare(graph)
            types = self._set_types_aside()
            model = self._deserialize()
            self._finish(model, types)
        unknown = extras.unknown_fields(self._proto) if self._keep_unknown else b""
        known = model.graph.meta.get(META_KEY)
        model.graph.meta[META_KEY] = extras.ModelExtras(
            path=path,
            sources=tuple({id(item.source): item.source for item in self._ranges}.values()),
            unknown=unknown,
            training_info=tuple(self._inlined_training(item) for item in self._proto.training_info),
            declared=declared,
            graph=known,
            unnamed_domain=any(not item.HasField("domain") for item in self._proto.opset_import),
        )
        return model

    def _deserialize(self) -> ir.Model:
        try:
            return ir.serde.deserialize_model(self._proto)
        except ir.serde.SerdeError as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            reason = " ".join(str(cause).split())[:300]
            raise InvalidModelError(f"the model breaks the ONNX rules: {reason}") from error

    # -- before deserialization: give every out-of-line tensor an index, set odd parts aside

    def _prepare(self, graph: onnx.GraphProto | onnx.FunctionProto) -> None:
        for tensor in extras.tensors_of(graph):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                self._point(tensor)
        attributes = [item for node in graph.node for item in node.attribute]
        if isinstance(graph, onnx.FunctionProto):
            attributes += graph.attribute_proto
        else:  # dense stand-ins, so that readers in any scope find the sparse values
            for sparse in graph.sparse_initializer:
                kind = sparse.values.data_type
                graph.initializer.add(name=sparse.values.name, data_type=kind, dims=[0])
        for attribute in attributes:
            if not extras.expressible_attribute(attribute):
                self._set_attribute_aside(attribute)

    def _point(self, tensor: onnx.TensorProto) -> None:
        """Check an out-of-line tensor and name its range in its location."""
        location = next((e.value for e in tensor.external_data if e.key == "location"), "")
        name = tensor.name or "(unnamed)"
        expected = expected_bytes(tensor, name)
        if location.startswith(self._token):
            length = self._ranges[int(location[len(self._token) :])].length
            if length != expected:
                raise ModelLoadError(
                    f"tensor '{name}' holds {length} bytes, but its shape and type need {expected}"
                )
            return
        located = self._files.locate(tensor, expected)
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=f"{self._token}{len(self._ranges)}")
        self._ranges.append(located)

    def _range(self, location: str) -> Range:
        return self._ranges[int(location[len(self._token) :])]

    def _set_attribute_aside(self, attribute: onnx.AttributeProto) -> None:
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            self._inline(sparse.values)
            self._inline(sparse.indices)
        stand_in = f"{self._token}{len(self._opaque)}".encode()
        self._opaque.append((attribute.type, attribute.SerializeToString()))
        name = attribute.name
        attribute.Clear()
        attribute.name, attribute.s, attribute.type = name, stand_in, onnx.AttributeProto.STRING

    def _inline(self, tensor: onnx.TensorProto) -> None:
        """Bring external data of a part that travels as bytes into those bytes."""
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return
        expected = expected_bytes(tensor, tensor.name)
        located = self._files.locate(tensor, expected)
        tensor.raw_data = located.source.read(located.offset, located.length)
        tensor.ClearField("data_location")
        del tensor.external_data[:]

    def _inlined_training(self, info: onnx.TrainingInfoProto) -> bytes:
        wrapper = onnx.ModelProto()
        for graph in (info.initialization, info.algorithm):
            wrapper.graph.CopyFrom(graph)
            if any(
                e.data_location for g in extras.graphs_of(wrapper) for e in extras.tensors_of(g)
            ):
                for part in _graphs_in(graph):
                    for tensor in extras.tensors_of(part):
                        self._inline(tensor)
        return bytes(info.SerializeToString())

    def _set_types_aside(self) -> dict[int, dict[str, bytes]]:
        """Clear types the IR cannot hold; return them by graph number and value name."""
        aside: dict[int, dict[str, bytes]] = {}
        for number, graph in enumerate(extras.graphs_of(self._proto)):
            infos = list(graph.value_info)
            if isinstance(graph, onnx.GraphProto):
                infos += [*graph.input, *graph.output]
            for info in infos:
                if not extras.expressible_type(info.type):
                    types = aside.setdefault(number, {})
                    types[info.name] = info.type.SerializeToString()
                    info.ClearField("type")
        return aside

    # -- after deserialization: walk proto and IR side by side

    def _finish(self, model: ir.Model, types: dict[int, dict[str, bytes]]) -> None:
        pairs: list[tuple[onnx.GraphProto | onnx.FunctionProto, ir.Graph]] = [
            (self._proto.graph, model.graph)
        ]
        if len(model.functions) != len(self._proto.functions):
            raise InvalidModelError("the model defines a function twice; rename one of them")
        for function in self._proto.functions:
            key = (function.domain, function.name, function.overload)
            pairs.append((function, model.functions[key].graph))
            self._finish_defaults(function, model.functions[key])
        number = 0
        while pairs:  # the same order as extras.graphs_of
            proto, graph = pairs.pop()
            self._finish_graph(proto, graph, types.get(number, {}))
            for node_proto, node in zip(proto.node, graph, strict=True):
                if node_proto.attribute:
                    pairs.extend(self._finish_attributes(node_proto, node))
                if self._keep_unknown:
                    _keep_node_unknown(node_proto, node)
            number += 1

    def _finish_defaults(self, proto: onnx.FunctionProto, function: ir.Function) -> None:
        for attribute in proto.attribute_proto:
            new = self._replacement(function.attributes[attribute.name])
            if new is not None:
                function.attributes[attribute.name] = new

    def _finish_attributes(
        self, proto: onnx.NodeProto, node: ir.Node
    ) -> list[tuple[onnx.GraphProto | onnx.FunctionProto, ir.Graph]]:
        subgraphs: list[tuple[onnx.GraphProto | onnx.FunctionProto, ir.Graph]] = []
        if len(node.attributes) != len(proto.attribute):
            raise InvalidModelError(f"node '{proto.name}' has an attribute twice")
        for attribute in proto.attribute:
            attr = node.attributes[attribute.name]
            if attr.is_ref():
                continue
            if attr.type == ir.AttributeType.GRAPH:
                subgraphs.append((attribute.g, attr.as_graph()))
            elif attr.type == ir.AttributeType.GRAPHS:
                subgraphs.extend(zip(attribute.graphs, attr.as_graphs(), strict=True))
            else:
                new = self._replacement(attr)
                if new is not None:
                    node.attributes[attribute.name] = new
        return subgraphs

    def _replacement(self, attr: ir.Attr) -> ir.Attr | None:
        """Return what stands for an attribute that holds a stand-in, else None."""
        kind, value = attr.type, attr.value
        if kind == ir.AttributeType.STRING and isinstance(value, str):
            if not value.startswith(self._token):
                return None
            number, data = self._opaque[int(value[len(self._token) :])]
            true_kind = ir.AttributeType(number)
            if true_kind in _TUPLE_KINDS:  # the IR would try to iterate over the value
                true_kind = ir.AttributeType.UNDEFINED
            return ir.Attr(attr.name, true_kind, extras.OpaqueAttribute(data))
        if kind == ir.AttributeType.TENSOR and isinstance(value, ir.ExternalTensor):
            return ir.Attr(attr.name, kind, self._tensor(value), doc_string=attr.doc_string)
        if kind == ir.AttributeType.TENSORS:
            tensors = [self._tensor(item) for item in attr.as_tensors()]
            return ir.Attr(attr.name, kind, tensors, doc_string=attr.doc_string)
        return None

    def _tensor(self, tensor: ir.TensorProtocol, extra: bytes = b"") -> ir.TensorProtocol:
        if not isinstance(tensor, ir.ExternalTensor):
            return tensor
        located = self._range(str(tensor.location))
        return SourceTensor(
            located.source,
            located.offset,
            located.length,
            dtype=tensor.dtype,
            shape=tensor.shape,
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props) or None,
            extra=extra,
        )

    def _finish_graph(
        self,
        proto: onnx.GraphProto | onnx.FunctionProto,
        graph: ir.Graph,
        types: dict[str, bytes],
    ) -> None:
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = self._tensor(value.const_value)
        noted = isinstance(proto, onnx.GraphProto) and len(proto.quantization_annotation) > 0
        values = _values(graph) if types or noted or self._keep_unknown else {}
        annotations: tuple[bytes, ...] = ()
        described: frozenset[str] = frozenset()
        if isinstance(proto, onnx.GraphProto):
            for sparse in proto.sparse_initializer:
                self._keep_sparse(sparse, graph)
            annotations = tuple(
                item.SerializeToString()
                for item in proto.quantization_annotation
                if item.tensor_name not in values
            )
            described = frozenset(
                info.name for info in proto.value_info if info.name in graph.initializers
            )
        for name, data in types.items():
            if name in values:
                _value_extras(values[name], type=data)
        if self._keep_unknown:
            self._keep_graph_unknown(proto, graph, values)
        unknown = extras.unknown_fields(proto) if self._keep_unknown else b""
        if unknown or annotations or described or graph.initializers:
            graph.meta[META_KEY] = extras.GraphExtras(unknown, annotations, described)

    def _keep_sparse(self, sparse: onnx.SparseTensorProto, graph: ir.Graph) -> None:
        """Turn the dense stand-in of a sparse initializer into a value without a tensor."""
        value = graph.initializers.get(sparse.values.name)
        if value is None:
            raise InvalidModelError("the model has a sparse initializer without a name")
        self._inline(sparse.values)
        self._inline(sparse.indices)
        value.const_value = None
        if not value.is_graph_input():
            value.type = ir.TensorType(ir.DataType(sparse.values.data_type))
            value.shape = ir.Shape(sparse.dims)
        value.meta[SPARSE_KEY] = sparse.SerializeToString()

    def _keep_graph_unknown(
        self,
        proto: onnx.GraphProto | onnx.FunctionProto,
        graph: ir.Graph,
        values: dict[str, ir.Value],
    ) -> None:
        infos = list(proto.value_info)
        if isinstance(proto, onnx.GraphProto):
            infos += [*proto.input, *proto.output]
            for tensor in proto.initializer:
                value = graph.initializers.get(tensor.name)
                unknown = extras.unknown_fields(tensor)
                if value is not None and unknown:
                    if isinstance(value.const_value, SourceTensor):
                        value.const_value.extra = unknown
                    elif isinstance(value.const_value, ir.StringTensor):
                        value.const_value.meta[META_KEY] = unknown
        for info in infos:
            unknown = extras.unknown_fields(info)
            if unknown and info.name in values:
                _value_extras(values[info.name], unknown=unknown)


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    """Return the values that a graph defines, by name."""
    values = [*graph.outputs, *graph.inputs, *graph.initializers.values()]
    values += [value for node in graph for value in node.outputs]
    return {value.name: value for value in values if value.name}


def _value_extras(value: ir.Value, **changes: bytes) -> None:
    old = value.meta.get(META_KEY, extras.ValueExtras())
    value.meta[META_KEY] = extras.ValueExtras(**{**vars(old), **changes})


def _keep_node_unknown(proto: onnx.NodeProto, node: ir.Node) -> None:
    attributes = {}
    tensors = {}
    for attribute in proto.attribute:
        if unknown := extras.unknown_fields(attribute):
            attributes[attribute.name] = unknown
        if attribute.HasField("t") and (unknown := extras.unknown_fields(attribute.t)):
            tensors[attribute.name] = unknown
    unknown = extras.unknown_fields(proto)
    if unknown or attributes or tensors:
        node.meta[META_KEY] = extras.NodeExtras(unknown, attributes, tensors)


def _graphs_in(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs_in(inner)


def expected_bytes(tensor: onnx.TensorProto, name: str) -> int:
    """Return the bytes that shape and type call for."""
    try:
        bits = ir.DataType(tensor.data_type).bitwidth
    except (ValueError, TypeError):
        raise ModelLoadError(
            f"tensor '{name}' has element type {tensor.data_type}, which cannot be stored as raw "
            "or external data"
        ) from None
    if any(dim < 0 for dim in tensor.dims):
        raise ModelLoadError(f"tensor '{name}' has a negative dimension: {list(tensor.dims)}")
    return int(math.prod(tensor.dims) * bits + 7) // 8
