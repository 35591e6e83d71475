"""Models in half precision: computed in float32 between inputs and outputs that stay float16."""

from __future__ import annotations

import onnx_ir as ir

from onnxslim.ir.edit import Names
from onnxslim.rewrite.float_types import convert_floats

_HALF, _FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def to_island(model: ir.Model) -> bool:
    """Turns float16 into float32 inside a model; inputs and outputs keep their types.

    Scales of QuantizeLinear are float32 below opset 19, and int8 kernels give float32 in any case.

    Args:
        model: changed in place; its shapes and types have been inferred.

    Returns:
        False when nothing in it is float16.

    Raises:
        UsageError: the type of a value is unknown.
    """
    inputs = [value for value in model.graph.inputs if value.dtype == _HALF]
    outputs = [index for index, value in enumerate(model.graph.outputs) if value.dtype == _HALF]
    if not (inputs or outputs or _uses_half(model)):
        return False
    names = Names(model)
    convert_floats(model, _FLOAT)
    for value in inputs:
        if not value.is_initializer():
            _cast_input(model.graph, value, names)
    for index in outputs:
        _cast_output(model.graph, index, names)
    return True


def _uses_half(model: ir.Model) -> bool:
    constants = model.graph.initializers.values()
    return any(value.dtype == _HALF for value in constants) or any(
        value.dtype == _HALF for node in model.graph for value in node.outputs
    )


def _cast_input(graph: ir.Graph, value: ir.Value, names: Names) -> None:
    users = list(value.uses())
    node = _cast(value, _FLOAT, names.fresh(f"{value.name}_float32"))
    node.outputs[0].shape = value.shape
    value.type = ir.TensorType(_HALF)
    for user, index in users:
        user.replace_input_with(index, node.outputs[0])
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = node.outputs[0]
    first = next(iter(graph), None)
    if first is None:
        graph.append(node)
    else:
        graph.insert_before(first, node)


def _cast_output(graph: ir.Graph, index: int, names: Names) -> None:
    value = graph.outputs[index]
    name = value.name
    node = _cast(value, _HALF, name)
    last = node.outputs[0]
    last.shape = value.shape
    value.name = names.fresh(f"{name}_float32")
    last.name = name
    graph.outputs[index] = last
    graph.append(node)


def _cast(value: ir.Value, dtype: ir.DataType, name: str | None) -> ir.Node:
    output = ir.Value(name=name, type=ir.TensorType(dtype))
    attributes = {"to": int(dtype)}
    return ir.node("Cast", [value], attributes, outputs=[output], name=f"{name}_Cast")
