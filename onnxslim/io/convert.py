"""Raises the opset of a model by onnx's own converter, which works on protobuf."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import version_converter

from onnxslim.errors import InvalidModelError
from onnxslim.io import wire
from onnxslim.io.encode import large
from onnxslim.io.extras import META_KEY
from onnxslim.io.proto import to_proto
from onnxslim.io.reader import load
from onnxslim.io.views import skeleton_proto
from onnxslim.io.writer import total_bytes
from onnxslim.ir.schema import default_opset
from onnxslim.ir.traversal import graphs

# The first IR version that knows opset 13 and later, and initializers that are no inputs.
_IR_VERSION = 8
_WEIGHT_BYTES = 1024


def convert_opset(model: ir.Model, target: int) -> ir.Model:
    """A copy of the model at another opset of the standard operators; weights are shared.

    Args:
        model: stays as it is.
        target: the opset version wanted.

    Raises:
        InvalidModelError: the converter has no way there.
    """
    before = default_opset(model)
    if before == target:
        return load(model)
    lifted = _liftable(model)
    proto = skeleton_proto(model, max_tensor_bytes=_WEIGHT_BYTES) if lifted else _whole(model)
    try:
        converted = version_converter.convert_version(proto, target)
    except Exception as error:  # the converter raises whatever its C++ part does
        reason = " ".join(str(error).split())[:200]
        raise InvalidModelError(
            f"the model cannot be converted from opset {before} to {target}: {reason}; export it "
            f"with opset {target}"
        ) from error
    result = load(converted)
    _put_back(result, lifted)
    result.ir_version = max(model.ir_version, _IR_VERSION)
    result.metadata_props.update(model.metadata_props)
    result.graph.meta[META_KEY] = model.graph.meta.get(META_KEY, result.graph.meta[META_KEY])
    _put_back_notes(model, result)
    return result


def _liftable(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """The weights that can be left out of the conversion: large ones of the main graph, if all
    large tensors are there and none of them has a default that a caller may override."""
    lifted: dict[str, ir.TensorProtocol] = {}
    for graph in graphs(model):
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is None or not large(tensor, _WEIGHT_BYTES + 1):
                continue
            if graph is not model.graph or value.is_graph_input() or value.is_graph_output():
                return {}
            lifted[name] = tensor
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    tensor = attribute.as_tensor()
                    if large(tensor, _WEIGHT_BYTES + 1):
                        return {}
    return lifted


def _whole(model: ir.Model) -> onnx.ModelProto:
    if total_bytes(model) > wire.MAX_MESSAGE_BYTES:
        raise InvalidModelError(
            "the opset of this model cannot be converted: its weights are not plain initializers "
            "and pass 2 GiB; export it with opset 17"
        )
    return to_proto(model)


def _put_back(model: ir.Model, lifted: dict[str, ir.TensorProtocol]) -> None:
    graph = model.graph
    for value in [item for item in graph.inputs if item.name in lifted]:
        graph.inputs.remove(value)
        value.const_value = lifted[value.name or ""]
        graph.register_initializer(value)


def _put_back_notes(before: ir.Model, after: ir.Model) -> None:
    """Doc strings and metadata of nodes, found by their first output; the converter drops them."""
    old = {node.outputs[0].name: node for node in before.graph if node.outputs}
    for node in after.graph:
        known = old.get(node.outputs[0].name) if node.outputs else None
        if known is not None and known.op_type == node.op_type:
            node.doc_string = node.doc_string or known.doc_string
            node.metadata_props.update(known.metadata_props)
    after.doc_string = after.doc_string or before.doc_string
    after.graph.doc_string = after.graph.doc_string or before.graph.doc_string
    after.graph.metadata_props.update(before.graph.metadata_props)
