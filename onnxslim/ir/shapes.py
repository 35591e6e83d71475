"""Shape and type facts.

While a pipeline runs, ``value.shape`` and ``value.type`` of inner values hold only what was
inferred from the graph inputs, weights and operators (`infer`). What the file declared for inner
values may be stale, so it is set aside (`set_aside_declared`) and comes back at the end where it is
still true (`restore_declared`). Declarations of graph inputs and outputs are never touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import onnx
import onnx_ir as ir

from onnxslim.ir import inference_proto
from onnxslim.ir.traversal import graphs, subgraphs_of

_DECLARED = "onnxslim.declared"


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """All dimensions as ints, or None when the rank or any dimension is unknown."""
    if value is None or value.shape is None:
        return None
    dims = [size for size in value.shape if isinstance(size, int) and size >= 0]
    return tuple(dims) if len(dims) == len(value.shape) else None


def rank(value: ir.Value | None) -> int | None:
    """The number of dimensions, or None when unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def dim(value: ir.Value | None, axis: int) -> int | str | None:
    """One dimension: an int, the name of a symbol, or None when unknown.

    Some exporters write -1 where they mean "unknown"; it is understood that way.

    Args:
        value: the value asked about.
        axis: in ``[-rank, rank)``; anything else gives None.
    """
    if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    size = value.shape[axis]
    if isinstance(size, int):
        return size if size >= 0 else None
    return size.value


def same_shape(first: ir.Value | None, second: ir.Value | None) -> bool:
    """True when both shapes are known and provably equal, symbols included."""
    if first is None or second is None or first.shape is None or second.shape is None:
        return False
    if len(first.shape) != len(second.shape):
        return False
    pairs = [(dim(first, axis), dim(second, axis)) for axis in range(len(first.shape))]
    return all(one is not None and one == other for one, other in pairs)


def _inner_values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in graphs(model):
        for node in graph:
            for value in node.outputs:
                if not value.is_graph_output():
                    yield value


def _body_inputs(model: ir.Model) -> Iterator[ir.Value]:
    """Inputs of Loop and Scan bodies, whose shapes may change from one turn to the next."""
    for graph in graphs(model):
        if graph is not model.graph:
            yield from graph.inputs


def _has_negative(shape: ir.Shape) -> bool:
    return any(isinstance(size, int) and size < 0 for size in shape)


def set_aside_declared(model: ir.Model) -> None:
    """Remembers the declared types of inner values and clears their shapes."""
    for value in _body_inputs(model):
        value.meta[_DECLARED] = (value.type, value.shape)
        value.shape = None
    for value in model.graph.inputs:
        if value.shape is not None and _has_negative(value.shape):
            value.meta[_DECLARED] = (value.type, value.shape)
            sizes = [dim(value, axis) for axis in range(len(value.shape))]
            value.shape = ir.Shape(sizes)
    for value in _inner_values(model):
        value.meta[_DECLARED] = (value.type, value.shape)
        value.shape = None


def restore_declared(model: ir.Model) -> None:
    """Puts declared types back where nothing inferred contradicts them; drops all others.

    A value that had no declaration gets none, so that the file does not grow by what is inferred.
    """
    for value in (*_body_inputs(model), *model.graph.inputs):
        if _DECLARED in value.meta:
            value.type, value.shape = value.meta.pop(_DECLARED)
    for value in _inner_values(model):
        declared = value.meta.pop(_DECLARED, None)
        if declared is None or declared[0] is None:
            value.type, value.shape = None, None
            continue
        declared_type, declared_shape = declared
        if value.type is not None and value.type != declared_type:
            declared_type, declared_shape = value.type, value.shape
        elif not _compatible(declared_shape, value.shape):
            declared_shape = value.shape
        value.type, value.shape = declared_type, declared_shape


def _compatible(declared: ir.Shape | None, inferred: ir.Shape | None) -> bool:
    if declared is None or inferred is None:
        return True
    if len(declared) != len(inferred):
        return False
    return all(
        one == other or not isinstance(one, int) or not isinstance(other, int)
        for one, other in zip(declared, inferred, strict=True)
    )


def infer(model: ir.Model) -> int:
    """Fills in shapes and types of inner values by onnx's shape inference, weights left out.

    Returns:
        The number of values that are known better than before. A model that inference cannot
        handle keeps what it had; inference is a source of facts, never a reason to fail.
    """
    proto = _stripped_proto(model) if model.functions else inference_proto.write(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return 0
    return _take_over(model.graph, inferred.graph)


def _stripped_proto(model: ir.Model) -> onnx.ModelProto:
    """As `inference_proto.write`, with the bodies of functions."""
    with _large_tensors_hidden(model):
        proto = ir.to_proto(model)
    for info in (*proto.graph.input, *proto.graph.output):
        for size in info.type.tensor_type.shape.dim:
            if size.dim_value < 0:
                size.Clear()
    for node in proto.graph.node:
        if node.op_type in inference_proto.SHAPE_KEEPING and node.domain in ("", "ai.onnx"):
            node.op_type = "Identity"
            del node.input[1:], node.output[1:], node.attribute[:]
    inputs = {value.name for value in model.graph.inputs}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in inputs]
    if len(kept) < len(proto.graph.initializer):
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)
    return proto


@contextlib.contextmanager
def _large_tensors_hidden(model: ir.Model) -> Iterator[None]:
    """Puts data-less external tensors in the place of large ones, and the large ones back."""
    values: list[tuple[ir.Value, ir.TensorProtocol]] = []
    attributes: list[tuple[ir.Node, ir.Attr]] = []
    try:
        for graph in graphs(model):
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is not None and tensor.nbytes > inference_proto.HIDDEN_BYTES:
                    values.append((value, tensor))
                    value.const_value = inference_proto.without_data(tensor)
            for node in graph:
                for attribute in list(node.attributes.values()):
                    if _is_large_tensor(attribute):
                        attributes.append((node, attribute))
                        stand_in = inference_proto.without_data(attribute.as_tensor())
                        node.attributes[attribute.name] = ir.AttrTensor(attribute.name, stand_in)
        yield
    finally:
        for value, tensor in values:
            value.const_value = tensor
        for node, attribute in attributes:
            node.attributes[attribute.name] = attribute


def _is_large_tensor(attribute: ir.Attr) -> bool:
    return (
        not attribute.is_ref()
        and attribute.type == ir.AttributeType.TENSOR
        and attribute.as_tensor().nbytes > inference_proto.HIDDEN_BYTES
    )


def _take_over(graph: ir.Graph, inferred: onnx.GraphProto) -> int:
    """Copies inferred types of inner values into the graph and, in step, into its subgraphs."""
    facts = {info.name: info for info in inferred.value_info}
    better = 0
    for index, node in enumerate(graph):
        for value in node.outputs:
            found = facts.get(value.name or "")
            if found is None or value.is_graph_output() or found == inference_proto.typed(value):
                continue
            is_new = value.shape is None
            better += _improve(value, found.type)
            if is_new and value.shape is not None:
                inference_proto.remember(value, found)
        if subgraphs_of(node):
            better += _take_over_inner(node, inferred.node[index])
    return better


def _take_over_inner(node: ir.Node, inferred: onnx.NodeProto) -> int:
    better = 0
    for attribute in inferred.attribute:
        inner = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
        for own, other in zip(_graphs_of(node, attribute.name), inner, strict=True):
            better += _take_over(own, other)
    return better


def _graphs_of(node: ir.Node, name: str) -> Sequence[ir.Graph]:
    attribute = node.attributes[name]
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else []


def _improve(value: ir.Value, found: onnx.TypeProto) -> int:
    """Takes over what was unknown. Known facts stay: they came from the same source."""
    improved = 0
    found_type = ir.serde.deserialize_type_proto_for_type(found)
    if found_type is not None and value.type != found_type:
        value.type = found_type
        improved = 1
    shape = ir.serde.deserialize_type_proto_for_shape(found)
    if shape is None:
        return improved
    if value.shape is None or len(value.shape) != len(shape):
        value.shape = shape
        return 1
    merged = [
        old if isinstance(old, int) or not isinstance(new, int) else new
        for old, new in zip(value.shape, shape, strict=True)
    ]
    if merged != list(value.shape):
        value.shape = ir.Shape(merged)
        return 1
    return improved
