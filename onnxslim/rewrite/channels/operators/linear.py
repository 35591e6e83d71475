"""Channel rules of the operators with weights: Conv, ConvTranspose, Gemm and MatMul."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor, is_constant, scalar
from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import rank
from onnxslim.rewrite.channels.atoms import (
    Array,
    Barrier,
    Channelled,
    Channels,
    Contraction,
    Edits,
    Ids,
    Known,
    constant_shape,
    label,
    uniform,
)
from onnxslim.rewrite.channels.operators.quantized import (
    Stored,
    is_quantized_sum,
    quantized_constant,
    stored_weight,
)
from onnxslim.rewrite.channels.operators.transposed import turned_weight
from onnxslim.rewrite.channels.weight import Weight


def plain_conv(state: Channelled, node: ir.Node) -> None:
    """Conv: with one group a contraction of axis 1, depthwise a scaling of axis 1."""
    stored = stored_weight(node, 1)
    shape = stored.shape
    group = node.attributes.get_int("group", 1)
    if group != 1:
        _depthwise(state, node, stored, group)
        return
    weight = Weight(stored.tensor, 0, stored.scheme)
    bias = bias_known(node, shape[0])
    padded = is_padded(node)
    inputs = state.on_axis(node.inputs[0], 1, shape[1])
    outputs = state.fresh(shape[0])
    known = sum_known(weight, inputs, bias, exact=padded)
    state.track(node.outputs[0], 1, outputs, known, stored.dtype)
    stored.record(state, {0: outputs, 1: inputs.ids})
    record_bias(state, node, outputs)
    fold = None if padded else fold_into_input(node, 2)
    no_fold = no_fold_reason(node, "enters a padded Conv")
    part = Contraction(node, weight, inputs, outputs, fold, no_fold, _owned(node))
    add_contraction(state, part)


def plain_conv_transpose(state: Channelled, node: ir.Node) -> None:
    """ConvTranspose with one group: its weight is in by out. Only zero channels may be left out."""
    stored = stored_weight(node, 1)
    shape = stored.shape
    weight = Weight(stored.tensor, 1, stored.scheme)
    bias = bias_known(node, shape[1])
    inputs = state.on_axis(node.inputs[0], 1, shape[0])
    outputs = state.fresh(shape[1])
    known = sum_known(weight, inputs, bias, exact=True)
    state.track(node.outputs[0], 1, outputs, known, stored.dtype)
    stored.record(state, {0: inputs.ids, 1: outputs})
    record_bias(state, node, outputs)
    no_fold = no_fold_reason(node, "enters a ConvTranspose")
    part = Contraction(node, weight, inputs, outputs, None, no_fold, _owned(node))
    add_contraction(state, part)


def matmul(state: Channelled, node: ir.Node) -> None:
    """MatMul with a constant matrix on the right: a contraction of the last axis."""
    turned = turned_weight(node, 1)
    stored, out_axis = (turned, 0) if turned is not None else (stored_weight(node, 1), 1)
    axes = rank(node.inputs[0])
    if len(stored.shape) != 2 or axes is None or axes < 2:
        raise Barrier("only a product with a constant matrix on the right is pruned")
    weight = Weight(stored.tensor, out_axis, stored.scheme)
    inputs = state.on_axis(node.inputs[0], axes - 1, weight.inputs)
    outputs = state.fresh(weight.outputs)
    known = sum_known(weight, inputs, np.zeros(weight.outputs), exact=False)
    state.track(node.outputs[0], axes - 1, outputs, known, stored.dtype)
    stored.record(state, {out_axis: outputs, 1 - out_axis: inputs.ids})
    reason = no_fold_reason(node, "enters a MatMul that no Add of a constant follows")
    fold = _fold_into_add(node)
    add_contraction(state, Contraction(node, weight, inputs, outputs, fold, reason, _owned(node)))


def gemm(state: Channelled, node: ir.Node) -> None:
    """Gemm with constant B: a contraction of axis 1 of A."""
    stored = stored_weight(node, 1)
    if len(stored.shape) != 2 or node.attributes.get_int("transA", 0) != 0:
        raise Barrier("Gemm with transA is not pruned")
    out_axis = 0 if node.attributes.get_int("transB", 0) else 1
    weight = Weight(stored.tensor, out_axis, stored.scheme)
    alpha = node.attributes.get_float("alpha", 1.0)
    beta = node.attributes.get_float("beta", 1.0)
    bias_axis = _gemm_bias_axis(node, weight.outputs)
    bias = _gemm_bias_known(node, bias_axis, weight.outputs) * beta
    inputs = state.on_axis(node.inputs[0], 1, weight.inputs)
    outputs = state.fresh(weight.outputs)
    known = sum_known(weight, inputs, bias, exact=False, scale=alpha)
    state.track(node.outputs[0], 1, outputs, known, stored.dtype)
    stored.record(state, {out_axis: outputs, 1 - out_axis: inputs.ids})
    if bias_axis is not None:
        record_bias(state, node, outputs, bias_axis)
    simple = optional_input(node, 2) is None or beta == 1.0
    fold = fold_into_input(node, 2, scale=alpha) if simple else None
    no_fold = no_fold_reason(node, "enters a Gemm with beta")
    part = Contraction(node, weight, inputs, outputs, fold, no_fold, _owned(node))
    add_contraction(state, part)


def _depthwise(state: Channelled, node: ir.Node, stored: Stored, group: int) -> None:
    shape = stored.shape
    if shape[1] != 1 or shape[0] % group:
        raise Barrier("grouped convolution is not pruned")
    multiplier = shape[0] // group
    inputs = state.on_axis(node.inputs[0], 1, group)
    outputs = inputs.ids
    if multiplier > 1:
        outputs = state.fresh(shape[0])
        state.unite(outputs, np.repeat(inputs.ids, multiplier))
    bias = bias_known(node, shape[0])
    entering = np.repeat(inputs.filled(), multiplier)
    weights = stored.numbers().reshape(shape[0], -1)
    if is_padded(node):
        entering = np.where(entering == 0, 0.0, np.nan)
    with np.errstate(all="ignore"):
        known = bias + entering * weights.astype(np.float64).sum(axis=1)
    known = np.where((weights == 0).all(axis=1), bias, known)
    state.track(node.outputs[0], 1, outputs, known, stored.dtype)
    stored.record(state, {0: outputs})
    record_bias(state, node, outputs)
    state.fixes.append((inputs.ids, _set_group(node, inputs)))


def _set_group(node: ir.Node, inputs: Channels) -> Callable[[Edits], None]:
    def fix(edits: Edits) -> None:
        node.attributes["group"] = ir.AttrInt64("group", int(edits.kept(inputs.ids).sum()))

    return fix


def _owned(node: ir.Node) -> bool:
    """Is the node the only reader of its weight, which is stored as it is?"""
    value = node.inputs[1]
    return (
        is_constant(value)
        and value is not None
        and len(value.uses()) == 1
        and not value.is_graph_output()
    )


def add_contraction(state: Channelled, contraction: Contraction) -> None:
    """Adds a matrix operator, named in reports by its second input."""
    state.contractions.append(contraction)
    site = contraction.node.inputs[1]
    assert site is not None
    producer = site.producer()
    named = producer is not None and is_op(producer, "DequantizeLinear", "Transpose")
    if producer is not None and named and producer.inputs[0]:
        site = producer.inputs[0]
    state.sources.append((site.name or "", contraction.node.outputs[0]))


def sum_known(
    weight: Weight, inputs: Channels, bias: Known, *, exact: bool, scale: float = 1.0
) -> Known:
    """The constant of each output channel: its bias, plus what constant inputs add to it.

    Args:
        weight: the weight.
        inputs: the channels that are summed over.
        bias: per output channel, NaN when it is not constant.
        exact: only zeros count as constants, since borders see fewer kernel positions.
        scale: factor of the sum (Gemm's alpha).
    """
    if inputs.known is None:
        return np.where(weight.out_any(), np.nan, bias)
    finite = ~np.isnan(inputs.known)
    nonzero = np.flatnonzero(finite & (inputs.known != 0) & (not exact))
    unknown = ~finite | ((inputs.known != 0) & exact)
    varies = weight.matrix()[:, unknown].any(axis=1)
    added = weight.sums(nonzero) @ inputs.known[nonzero] * scale if nonzero.size else 0.0
    return np.where(varies, np.nan, bias + added)


def fold_into_input(
    node: ir.Node, index: int, scale: float = 1.0
) -> Callable[[Edits, Array], None] | None:
    """Adds to the bias of a Conv or Gemm, which need not be there yet; None for integer sums."""
    if is_quantized_sum(node):
        return None
    dtype = stored_weight(node, 1).dtype

    def fold(edits: Edits, added: Array) -> None:
        old = optional_input(node, index)
        held = 0.0 if old is None else tensor_of(node, index).numpy().astype(np.float64)
        content = np.asarray(held + added * scale).astype(dtype.numpy())
        weight_value = node.inputs[1]
        base = old if old is not None else weight_value
        assert base is not None
        name = f"{base.name}_folded"
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, edits.initializer(content, name))
        if old is None and node.op_type == "Gemm":
            node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)

    return fold


def no_fold_reason(node: ir.Node, reason: str) -> str:
    """Why constants cannot be folded into a bias, where quantization alone does not tell."""
    if is_quantized_sum(node):
        return f"enters a quantized {node.op_type}, whose integer sums it would change"
    return reason


def _fold_into_add(node: ir.Node) -> Callable[[Edits, Array], None] | None:
    """Adds to the constant of the Add right behind a MatMul; None when there is no such Add."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output() or is_quantized_sum(node):
        return None
    adder, index = uses[0].node, 1 - uses[0].idx
    if not is_op(adder, "Add") or adder.graph is not node.graph:
        return None
    shape = constant_shape(adder.inputs[index])
    axes = rank(node.outputs[0])
    if shape is None or axes is None or len(shape) > axes or any(size != 1 for size in shape[:-1]):
        return None

    def fold(edits: Edits, added: Array) -> None:
        old = adder.inputs[index]
        assert old is not None
        held = tensor_of(adder, index)
        content = (held.numpy().astype(np.float64) + added).astype(held.dtype.numpy())
        adder.replace_input_with(index, edits.initializer(content, f"{old.name}_folded"))

    return fold


def optional_input(node: ir.Node, index: int) -> ir.Value | None:
    """An input that a node may leave out."""
    return node.inputs[index] if index < len(node.inputs) else None


def tensor_of(node: ir.Node, index: int) -> ir.TensorProtocol:
    """A constant input.

    Raises:
        Barrier: it is not constant.
    """
    tensor = constant_tensor(optional_input(node, index))
    if tensor is None:
        raise Barrier(f"{label(optional_input(node, index))} is not constant")
    return tensor


def weight_shape(node: ir.Node, index: int) -> tuple[int, ...]:
    """The shape of a constant of rank 2 or more.

    Raises:
        Barrier: the input is no such constant.
    """
    shape = tuple(tensor_of(node, index).shape.numpy())
    if len(shape) < 2 or 0 in shape:
        raise Barrier(f"{label(optional_input(node, index))} is not a matrix")
    return shape


def record_bias(state: Channelled, node: ir.Node, outputs: Ids, axis: int = 0) -> None:
    """A bias, if there is one, loses the channels that the outputs lose."""
    value = optional_input(node, 2)
    tracked = state.of(value)
    if tracked is not None:
        state.unite(tracked.ids, outputs)
    elif value is not None:
        state.record(node, 2, {axis: outputs})


def _quantized_bias(node: ir.Node) -> Known | None:
    """A bias behind a DequantizeLinear of the same graph."""
    value = optional_input(node, 2)
    producer = value.producer() if value is not None else None
    same = producer is not None and producer.graph is node.graph
    return quantized_constant(value) if same else None


def bias_known(node: ir.Node, size: int) -> Known:
    """The bias of a Conv per output channel; zeros when there is none."""
    value = optional_input(node, 2)
    if value is None:
        return np.zeros(size)
    quantized = _quantized_bias(node)
    if quantized is not None and quantized.shape == (size,):
        return quantized
    if constant_shape(value) != (size,):
        raise Barrier(f"{label(value)} is not a constant bias")
    known = uniform(value, 0)
    return np.full(size, np.nan) if known is None else known


def _gemm_bias_axis(node: ir.Node, size: int) -> int | None:
    """The axis of C that runs over output channels; None when C is missing or one number."""
    value = optional_input(node, 2)
    quantized = _quantized_bias(node)
    shape = quantized.shape if quantized is not None else constant_shape(value)
    shape = (1,) if value is None else shape
    if shape is None:
        raise Barrier(f"{label(value)} is not a constant bias")
    if all(extent == 1 for extent in shape):
        return None
    if shape[-1] != size or any(extent != 1 for extent in shape[:-1]):
        raise Barrier(f"{label(value)} is not one bias per output")
    return len(shape) - 1


def _gemm_bias_known(node: ir.Node, axis: int | None, size: int) -> Known:
    value = optional_input(node, 2)
    if value is None:
        return np.zeros(size)
    quantized = _quantized_bias(node)
    if quantized is not None and quantized.size in (1, size):
        return np.broadcast_to(quantized.reshape(-1), (size,))
    if axis is None:
        number = scalar(value)
        return np.full(size, np.nan if number is None else float(number))
    known = uniform(value, axis)
    return np.full(size, np.nan) if known is None else known


def is_padded(node: ir.Node) -> bool:
    """May a Conv see zeros beyond the border?"""
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return True
    return any(node.attributes.get_ints("pads", ()))
