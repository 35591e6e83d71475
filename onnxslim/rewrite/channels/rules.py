"""The walk over a graph: the rule of every operator, and a barrier for all the others."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxslim.ir.constants import is_constant
from onnxslim.ir.schema import ONNX_DOMAINS
from onnxslim.rewrite.channels import elementwise, grouped, layout, linear, norm, recurrent
from onnxslim.rewrite.channels import reshape as reshaping
from onnxslim.rewrite.channels import shuffle as shuffling
from onnxslim.rewrite.channels.atoms import Barrier, Channelled, Evaluate, label

# Before opset 7 broadcasting was spelled out in attributes.
MINIMUM_OPSET = 7

Rule = Callable[[Channelled, ir.Node], None]

RULES: dict[str, Rule] = {
    "AveragePool": elementwise.average_pool,
    "BatchNormalization": norm.batch_norm,
    "Cast": elementwise.cast,
    "Concat": layout.concat,
    "Conv": grouped.conv,
    "ConvTranspose": linear.conv_transpose,
    "Dropout": elementwise.passing,
    "Flatten": reshaping.flatten,
    "Gather": layout.gather,
    "Gemm": linear.gemm,
    "GlobalAveragePool": elementwise.global_pool,
    "GlobalMaxPool": elementwise.global_pool,
    "Identity": elementwise.passing,
    "InstanceNormalization": norm.instance_norm,
    "LogSoftmax": elementwise.softmax,
    "MatMul": linear.matmul,
    "MaxPool": elementwise.max_pool,
    "Pad": layout.pad,
    "Reshape": shuffling.reshape,
    "Resize": layout.resize,
    "Shape": reshaping.shape_of,
    "Slice": layout.slice_,
    "Softmax": elementwise.softmax,
    "Split": layout.split,
    "Squeeze": layout.squeeze,
    "Transpose": layout.transpose,
    "Unsqueeze": layout.unsqueeze,
    "Upsample": layout.resize,
    **dict.fromkeys(("GRU", "LSTM", "RNN"), recurrent.recurrent),
    **dict.fromkeys(elementwise.BROADCASTING, elementwise.broadcasting),
    **dict.fromkeys(elementwise.CONTINUOUS, elementwise.unary),
    **dict.fromkeys(elementwise.JUMPING, elementwise.unary),
    **dict.fromkeys(elementwise.REDUCTIONS, elementwise.reduction),
}

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


def walk(
    graph: ir.Graph, opset: int, evaluate: Evaluate, *, is_function: bool = False
) -> Channelled:
    """Finds the atoms of a graph, what is known of its channels, and what pins them.

    Args:
        graph: a main graph, a subgraph or a function body, with inferred shapes.
        opset: the version of the standard operators, at least `MINIMUM_OPSET`.
        evaluate: runs one node, for constants that pass through it.
        is_function: True for the body of a function, which cannot hold initializers.
    """
    state = Channelled(graph, opset, evaluate, is_function)
    for node in graph:
        try:
            _rule(node)(state, node)
        except Barrier as barrier:
            state.barrier(node, str(barrier))
    for value in list(state.values):
        _pin_escaping(state, value)
    _pin_other_uses(state)
    return state


def _rule(node: ir.Node) -> Rule:
    """The rule of a node.

    Raises:
        Barrier: there is none, or the node is not understood as a whole.
    """
    if node.domain not in ONNX_DOMAINS or node.overload:
        raise Barrier(f"operator {node.domain}.{node.op_type} is not known here")
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        raise Barrier("an attribute is a parameter of the function")
    if node.op_type in _QUANTIZED:
        raise Barrier("quantized channels are not pruned")
    rule = RULES.get(node.op_type)
    if rule is None:
        raise Barrier(f"{node.op_type} is not pruned through")
    return rule


def _pin_escaping(state: Channelled, value: ir.Value) -> None:
    """Pins what is seen from outside: graph outputs, values that subgraphs capture, dead ends."""
    ids = state.values[value].ids
    if value.is_graph_output():
        state.pin(ids, f"{label(value)} is a graph output")
    uses = value.uses()
    if any(use.node.graph is not state.graph for use in uses):
        state.pin(ids, f"{label(value)} is used inside a subgraph")
    producer = value.producer()
    if not uses and producer is not None and not any(out.uses() for out in producer.outputs):
        state.pin(ids, f"{label(value)} is not used at all")


def _pin_other_uses(state: Channelled) -> None:
    """Pins the axes of constants along which some reader cannot follow a cut."""
    for value, slots in state.slots.items():
        recorded = state.uses.get(value, {})
        covered = [recorded.get((use.node, use.idx), frozenset()) for use in value.uses()]
        for axis, ids in slots.items():
            if value.is_graph_output() or not is_constant(value):
                state.pin(ids, f"{label(value)} belongs to the interface of the graph")
            if not all(axis in axes for axes in covered):
                state.pin(ids, f"weight {label(value)} is shared with another reader")
