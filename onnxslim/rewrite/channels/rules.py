"""The walk over a graph: the rule of every operator, and a barrier for all the others."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxslim.ir.constants import is_constant
from onnxslim.ir.schema import ONNX_DOMAINS
from onnxslim.rewrite.channels.atoms import Barrier, Channelled, Evaluate, Ids, label
from onnxslim.rewrite.channels.operators import (
    along_axes,
    attention,
    depth_space,
    elementwise,
    grouped,
    layout,
    linear,
    norm,
    products,
    quantized,
    recurrent,
    sources,
    split_norm,
)
from onnxslim.rewrite.channels.operators import reshape as reshaping

# Before opset 7 broadcasting was spelled out in attributes.
MINIMUM_OPSET = 7

Rule = Callable[[Channelled, ir.Node], None]

RULES: dict[str, Rule] = {
    "ArgMax": along_axes.mixed("it compares the channels, or counts along another axis"),
    "ArgMin": along_axes.mixed("it compares the channels, or counts along another axis"),
    "AveragePool": elementwise.average_pool,
    "BatchNormalization": norm.batch_norm,
    "Cast": elementwise.cast,
    "Concat": layout.concat,
    "ConstantOfShape": sources.constant_of_shape,
    "Conv": grouped.conv,
    "ConvTranspose": grouped.conv_transpose,
    "CumSum": along_axes.along_another_axis,
    "DepthToSpace": depth_space.depth_to_space,
    "DequantizeLinear": quantized.linear_map,
    "Dropout": elementwise.passing,
    "Einsum": along_axes.mixed("Einsum is not followed; MatMul and Transpose are"),
    "Expand": sources.expand,
    "Flatten": reshaping.flatten,
    "Gather": sources.gather,
    "Gemm": linear.gemm,
    "GlobalAveragePool": elementwise.global_pool,
    "GlobalLpPool": elementwise.lp_pool,
    "GlobalMaxPool": elementwise.global_pool,
    "GroupNormalization": norm.group_norm,
    "Hardmax": along_axes.along_another_axis,
    "Identity": elementwise.passing,
    "InstanceNormalization": norm.instance_norm,
    "LRN": along_axes.mixed("it normalises over neighbouring channels"),
    "LayerNormalization": norm.layer_norm,
    "LogSoftmax": along_axes.softmax,
    "LpNormalization": norm.lp_norm,
    "LpPool": elementwise.lp_pool,
    "MatMul": products.matmul,
    "MaxPool": elementwise.max_pool,
    "MaxRoiPool": along_axes.mixed("MaxRoiPool is not pruned through"),
    "Pad": layout.pad,
    "RMSNormalization": norm.rms_norm,
    "QuantizeLinear": quantized.linear_map,
    "Reshape": split_norm.reshape,
    "Resize": layout.resize,
    "Shape": split_norm.shape_of,
    "Slice": layout.slice_,
    "SimplifiedLayerNormalization": norm.rms_norm,
    "Softmax": along_axes.softmax,
    "SpaceToDepth": depth_space.space_to_depth,
    "Split": layout.split,
    "Squeeze": layout.squeeze,
    "Tile": layout.tile,
    "TopK": along_axes.along_another_axis,
    "Transpose": layout.transpose,
    "Trilu": along_axes.trilu,
    "Unsqueeze": layout.unsqueeze,
    "Upsample": layout.resize,
    **dict.fromkeys(("GRU", "LSTM", "RNN"), recurrent.recurrent),
    **dict.fromkeys(elementwise.BROADCASTING, elementwise.broadcasting),
    **dict.fromkeys(elementwise.CONTINUOUS, elementwise.unary),
    **dict.fromkeys(elementwise.JUMPING, elementwise.unary),
    **dict.fromkeys(elementwise.REDUCTIONS, along_axes.reduction),
}


def walk(
    graph: ir.Graph,
    opset: int,
    evaluate: Evaluate,
    *,
    is_function: bool = False,
    compensate_norms: bool = False,
) -> Channelled:
    """Finds the atoms of a graph, what is known of its channels, and what pins them.

    Args:
        graph: a main graph, a subgraph or a function body, with inferred shapes.
        opset: the version of the standard operators, at least `MINIMUM_OPSET`.
        evaluate: runs one node, for constants that pass through it.
        is_function: True for the body of a function, which cannot hold initializers.
        compensate_norms: norms over the channels may lose zero channels and be corrected for it.
    """
    state = Channelled(graph, opset, evaluate, is_function, compensate_norms)
    for node in graph:
        if node in state.handled:
            continue
        try:
            rule = _rule(node)
            if not attention.followed(state, node):
                rule(state, node)
        except Barrier as barrier:
            state.barrier(node, str(barrier))
    for value, channels in state.values.items():
        _pin_escaping(state, value, channels.ids)
    for value, joint in state.joints.items():
        _pin_escaping(state, value, joint.ids.reshape(-1))
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
    rule = RULES.get(node.op_type)
    if rule is None:
        raise Barrier(f"{node.op_type} is not pruned through")
    return rule


def _pin_escaping(state: Channelled, value: ir.Value, ids: Ids) -> None:
    """Pins what is seen from outside: graph outputs, values that subgraphs capture, dead ends."""
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
