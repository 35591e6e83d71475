"""Makes a model fit for static int8, and decides which of its nodes get it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from onnxslim import passes
from onnxslim.errors import InvalidModelError
from onnxslim.io import load
from onnxslim.io.convert import convert_opset
from onnxslim.ir import shapes
from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.edit import Names, replace_value
from onnxslim.ir.schema import ONNX_DOMAINS, default_opset
from onnxslim.ir.traversal import nodes
from onnxslim.pipeline import Context, Pass
from onnxslim.quantization.axes import channel_axis
from onnxslim.quantization.half import to_island
from onnxslim.runtime.session import open_session
from onnxslim.runtime.specs import runtime_dtype

# Scales per channel need opset 13; 17 is the newest that every runtime in use reads.
_LOWEST_OPSET, _TARGET_OPSET = 13, 17

# From here on QuantizeLinear and DequantizeLinear take 16 bits.
_OPSET_OF_16_BITS = 21

# The first IR version in which an initializer need not be an input.
_SEPARATE_WEIGHTS = 4

_QUANTIZED_MARKS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantize", "QLinear", "QGemm")
_QUANTIZED_OPS = frozenset({"ConvInteger", "MatMulInteger", "MatMulNBits", "QAttention", "QMoE"})


def prepare(
    model: ir.Model, *, needs_opset_21: bool = False
) -> tuple[ir.Model, list[str], dict[str, str]]:
    """A copy with constants as initializers, a recent opset and a type for every value.

    Args:
        model: stays as it is.
        needs_opset_21: the numbers will have 16 bits.

    Returns:
        The copy, notes for the report, and the given names of nodes that got another.

    Raises:
        InvalidModelError: already quantized, or an opset that cannot be raised.
        RuntimeRefusedError: onnxruntime cannot open the model.
    """
    notes = []
    refuse_quantized(model)
    before = default_opset(model)
    if needs_opset_21 and before < _OPSET_OF_16_BITS:
        work = convert_opset(model, _OPSET_OF_16_BITS)
        notes.append(f"opset {before} was raised to {_OPSET_OF_16_BITS}, 16 bits need it")
    elif before < _LOWEST_OPSET:
        work = convert_opset(model, _TARGET_OPSET)
        notes.append(f"opset {before} was raised to {_TARGET_OPSET}, scales per channel need it")
    else:
        work = load(model)
    if model.ir_version < _SEPARATE_WEIGHTS and _drop_weights_from_inputs(work):
        notes.append(
            f"weights are no longer inputs: IR version {model.ir_version} listed them as such"
        )
    _own_tensors(work)
    given = _name_nodes(work)
    _lift_constants(work)
    _separate_weights(work)
    shapes.infer(work)
    _complete_types(work)
    if to_island(work):
        notes.append(
            "the model is in float16: it was computed in float32 between its inputs and "
            "outputs, and what is not int8 is stored so"
        )
        _own_tensors(work)
        given |= _name_nodes(work)
        shapes.infer(work)
    if folded := _fold_norms(work):
        notes.append(f"{folded} BatchNormalization were folded into convolutions")
    return work, notes, given


def _fold_norms(model: ir.Model) -> int:
    """Folds BatchNormalization into the convolution before it: it has no int8 kernel."""
    context = Context(model)
    fuse: Pass = cast("Any", passes.load("fuse-conv-batchnorm"))()
    return fuse(model, context).changes


def is_quantized(model: ir.Model) -> bool:
    """True when a node takes, gives or converts to integers of few bits."""
    return _first_quantized(model) is not None


def _first_quantized(model: ir.Model) -> ir.Node | None:
    for node in nodes(model):
        if node.op_type in _QUANTIZED_OPS or any(m in node.op_type for m in _QUANTIZED_MARKS):
            return node
    return None


def refuse_quantized(model: ir.Model) -> None:
    """Raises InvalidModelError when a model is quantized already."""
    node = _first_quantized(model)
    if node is not None:
        label = node.name or next((v.name for v in node.outputs if v.name), "")
        raise InvalidModelError(
            f"the model is already quantized: node {label!r} is a {node.op_type}; "
            "give the float model, or let it be taken back to float first (requantize)"
        )


def _drop_weights_from_inputs(model: ir.Model) -> bool:
    """Removes initializers from the inputs; they have to be there in old IR versions, in which
    runtimes let nobody override them all the same."""
    graph = model.graph
    listed = [value for value in graph.inputs if value.is_initializer()]
    for value in listed:
        graph.inputs.remove(value)
    model.ir_version = max(model.ir_version, _SEPARATE_WEIGHTS)
    return bool(listed)


def _own_tensors(model: ir.Model) -> None:
    """Gives every initializer a tensor object of its own: renaming a value renames its tensor, and
    those of a copy are shared with the original. The data stays shared."""
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            value.const_value = copy.copy(value.const_value)


def _name_nodes(model: ir.Model) -> dict[str, str]:
    """Gives every node of the main graph a name of its own, the same for the same model.

    onnxruntime does not open models in which two nodes have one name; nodes without one could not
    be excluded.

    Returns:
        What nodes without a name were called, which is nothing, by their new name.
    """
    taken = {node.name for node in nodes(model)}
    seen: set[str] = set()
    given: dict[str, str] = {}
    for node in nodes(model):
        is_unnamed = not node.name
        if is_unnamed and node.graph is not model.graph:
            continue
        base = node.name or f"{node.op_type}_{next((v.name for v in node.outputs if v.name), '')}"
        name, number = base, 0
        while name in seen or (name in taken and (is_unnamed or number)):
            number += 1
            name = f"{base}_{number}"
        node.name = name
        seen.add(name)
        taken.add(name)
        if is_unnamed:
            given[name] = ""
    return given


def _lift_constants(model: ir.Model) -> None:
    """Turns Constant nodes of the main graph into initializers: others keep their float weights."""
    graph = model.graph
    for node in list(graph):
        output = node.outputs[0] if len(node.outputs) == 1 else None
        tensor = constant_tensor(output)
        if output is None or tensor is None or node.op_type != "Constant":
            continue
        if output.is_graph_output() or tensor.dtype == ir.DataType.STRING:
            continue
        name = output.name
        owned = copy.copy(tensor)
        owned.name = name
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=owned,
        )
        replace_value(output, value)
        graph.remove(node, safe=True)
        graph.register_initializer(value)


def _separate_weights(model: ir.Model) -> None:
    """Gives a shared initializer one copy for each way of use.

    Scales lie along one axis: the output channels, whose place differs by operator. A bias is
    stored by the scales of its node. Subgraphs go on reading floats.
    """
    fresh = Names(model).fresh
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or value.is_graph_input():
            continue
        ways: dict[object, list[tuple[ir.Node, int]]] = {}
        for node, index in value.uses():
            ways.setdefault(_way_of_use(model.graph, node, index, tensor), []).append((node, index))
        keep_first = not value.is_graph_output()
        for way, uses in list(ways.items())[1 if keep_first else 0 :]:
            _copy_for(model.graph, value, uses, fresh(f"{value.name}_{way}"))


def _way_of_use(graph: ir.Graph, node: ir.Node, index: int, tensor: ir.TensorProtocol) -> object:
    if node.graph is not graph:
        return "float"
    if node.domain in ONNX_DOMAINS:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and index == 2:
            return "bias"
        axis = channel_axis(node, index, len(tensor.shape))
        if axis is not None:
            return f"axis{axis}"
        if node.op_type in ("ConvTranspose", "MatMul"):
            return "whole"
    return "shared"


def _copy_for(
    graph: ir.Graph, value: ir.Value, uses: Sequence[tuple[ir.Node, int]], name: str
) -> None:
    owned = copy.copy(value.const_value)
    assert owned is not None
    owned.name = name
    twin = ir.Value(name=name, type=value.type, shape=value.shape, const_value=owned)
    graph.register_initializer(twin)
    for node, index in uses:
        node.replace_input_with(index, twin)


def _complete_types(model: ir.Model) -> None:
    """Asks onnxruntime for the types that shape inference does not know (other domains)."""
    graph = model.graph
    unknown = [
        value.name or ""
        for node in graph
        for value in node.outputs
        if value.type is None and value.name and value.uses()
    ]
    if not unknown:
        return
    probe = load(model)
    values = {value.name: value for node in probe.graph for value in node.outputs}
    probe.graph.outputs.extend(values[name] for name in unknown)
    session = open_session(probe, optimize=False)
    types = dict(zip(session.output_names, session.output_types, strict=True))
    for node in graph:
        for value in node.outputs:
            text = types.get(value.name or "", "") if value.type is None else ""
            dtype = runtime_dtype(text[len("tensor(") : -1]) if text.startswith("tensor(") else None
            if dtype is not None:
                value.type = ir.TensorType(dtype)


def check_weights(nodes_: Sequence[ir.Node]) -> None:
    """Raises InvalidModelError when a float constant of the nodes holds NaN or infinity."""
    seen: set[int] = set()
    for node in nodes_:
        for value in node.inputs:
            tensor = value.const_value if value is not None and value.is_initializer() else None
            if value is None or tensor is None or id(value) in seen:
                continue
            seen.add(id(value))
            if tensor.dtype == ir.DataType.FLOAT and not np.isfinite(tensor.numpy()).all():
                raise InvalidModelError(
                    f"weight {value.name!r} holds NaN or infinity, for which there is no int8 "
                    "scale; correct the model or exclude the nodes that read it"
                )


def whole_tensor_weights(nodes_: Sequence[ir.Node]) -> list[str]:
    """Weights of matrix products that need one scale for the whole tensor, sorted: those whose
    output channels lie along no axis (`channel_axis`)."""
    found = set()
    for node in nodes_:
        for index, value in enumerate(node.inputs[:2]):
            if node.op_type not in ("ConvTranspose", "MatMul") or value is None:
                continue
            tensor = value.const_value if value.is_initializer() else None
            if tensor is not None and channel_axis(node, index, len(tensor.shape)) is None:
                found.add(value.name or "")
    return sorted(found)


def wanted_tensors(nodes_: Sequence[ir.Node]) -> list[str]:
    """The float32 values that the nodes read or write and that are no constants, in order."""
    names: dict[str, None] = {}
    for node in nodes_:
        for value in (*node.inputs, *node.outputs):
            if value is None or value.is_initializer() or value.dtype != ir.DataType.FLOAT:
                continue
            if value.name:
                names[value.name] = None
    return list(names)
