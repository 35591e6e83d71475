"""What is put right in the graph that the engine wrote."""

from __future__ import annotations

import onnx_ir as ir

from onnxslim.quantization.selection import Selection


def spare_float_readers(result: ir.Model, selection: Selection) -> None:
    """Lets float nodes read the float tensor where there is one.

    The engine sends all readers of a tensor through QuantizeLinear and DequantizeLinear. For a node
    that stays in float this is loss without gain, unless the tensor comes out of an int8 node: that
    must have no float reader, or the runtime computes it in float.

    Args:
        result: the model with the engine's names.
        selection: nodes under the same names.
    """
    kept = {node.name: id(node) in selection.captured for node, _ in selection.refused}
    for node in result.graph:
        if node.name not in kept:
            continue
        for index, value in enumerate(node.inputs):
            source = _before_conversion(value)
            if source is None:
                continue
            producer = source.producer()
            if kept[node.name] or producer is None or producer.name in kept:
                node.replace_input_with(index, source)
    _remove_unread(result.graph)


def _before_conversion(value: ir.Value | None) -> ir.Value | None:
    """The tensor that a QuantizeLinear and DequantizeLinear pair turned into ``value``."""
    last = value.producer() if value is not None else None
    if last is None or last.op_type != "DequantizeLinear" or last.inputs[0] is None:
        return None
    first = last.inputs[0].producer()
    if first is None or first.op_type != "QuantizeLinear":
        return None
    return first.inputs[0]


def _remove_unread(graph: ir.Graph) -> None:
    """Removes conversions that nobody reads any more."""
    for node in reversed(list(graph)):
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        value = node.outputs[0]
        if not value.uses() and not value.is_graph_output():
            graph.remove(node, safe=True)
