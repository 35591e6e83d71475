"""Channel rules of QuantizeLinear and DequantizeLinear, and weights that are stored as integers.

A weight behind ``DequantizeLinear(q, scale, zero point)`` is zero where q equals its zero point; a
cut goes through to q and, where they count channels, to the scale and the zero point. Between two
QuantizeLinear the sums of such models are exact integers, which a folded constant would round
anew, so only zero and unread channels go there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor, is_constant
from onnxslim.ir.schema import is_op
from onnxslim.rewrite.channels.atoms import (
    Array,
    Barrier,
    Channelled,
    Channels,
    Edits,
    Ids,
    Known,
    constant_shape,
    label,
)
from onnxslim.rewrite.channels.operators.reshape import tracked_input
from onnxslim.rewrite.channels.weight import Quantization, Weight

# How near to a step of QuantizeLinear a constant may lie, in steps and relative to itself.
_STEPS, _RELATIVE = 1e-3, 1e-5
# Input of the weight, input of its zero point, and the axis of the weight that counts outputs.
_INTEGER = {
    "ConvInteger": (1, 3, 0),
    "MatMulInteger": (1, 3, 1),
    "QLinearConv": (3, 5, 0),
    "QLinearMatMul": (3, 5, 1),
}
_READERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Stored:
    """A constant input of an operator, plain or behind a DequantizeLinear.

    Attributes:
        reader: the node that reads the stored tensor: the operator or the DequantizeLinear.
        index: which input of ``reader``.
        tensor: what is stored.
        dtype: the type that the operator sees.
        scheme: how integers become numbers; None for a plain constant.
    """

    reader: ir.Node
    index: int
    tensor: ir.TensorProtocol
    dtype: ir.DataType
    scheme: Quantization | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, the same on both sides of a DequantizeLinear."""
        return tuple(self.tensor.shape.numpy())

    def numbers(self) -> Array:
        """All numbers in the type that the operator sees; for small weights."""
        content = self.tensor.numpy()
        return content if self.scheme is None else self.scheme.numbers(content)

    def record(self, state: Channelled, axes: Mapping[int, Ids]) -> None:
        """Says that the weight may be cut along these axes, with its scales and zero points."""
        state.record(self.reader, self.index, axes)
        self.record_scheme(state, axes)

    def record_scheme(self, state: Channelled, axes: Mapping[int, Ids]) -> None:
        """The part of `record` beside the weight itself: scales, zero points and the shape."""
        if self.scheme is None:
            return
        if self.scheme.axis in axes:
            _record_parameters(state, self.reader, axes[self.scheme.axis])
        if axes:
            output = self.reader.outputs[0]
            ids = np.concatenate(list(axes.values()))
            state.fixes.append((ids, lambda edits: _cut_shape(output, axes, edits)))


def _cut_shape(value: ir.Value, axes: Mapping[int, Ids], edits: Edits) -> None:
    if value.shape is not None:
        dims = list(value.shape)
        for axis, ids in axes.items():
            dims[axis] = int(edits.kept(ids).sum())
        value.shape = ir.Shape(dims)


def stored_weight(node: ir.Node, index: int) -> Stored:
    """The weight of a matrix operator, of rank 2 or more.

    Raises:
        Barrier: the input is no such constant, or quantized in a form that cannot be cut.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    producer = value.producer() if value is not None else None
    tensor = constant_tensor(value)
    found = None
    if tensor is not None:
        found = Stored(node, index, tensor, tensor.dtype)
    elif value is not None and producer is not None and _dequantizes(producer, node):
        found = _behind_dequantize(producer, value)
    if found is None:
        raise Barrier(f"{label(value)} is not constant")
    if len(found.shape) < 2 or 0 in found.shape:
        raise Barrier(f"{label(value)} is not a matrix")
    return found


def _dequantizes(producer: ir.Node, reader: ir.Node) -> bool:
    """Is this a DequantizeLinear in the same graph?"""
    return is_op(producer, "DequantizeLinear") and producer.graph is reader.graph


def _behind_dequantize(node: ir.Node, value: ir.Value) -> Stored | None:
    tensor = constant_tensor(node.inputs[0])
    if tensor is None:
        return None
    scheme = quantization(node, len(tensor.shape.numpy()), tensor.dtype)
    if len(value.uses()) != 1 or value.is_graph_output():
        raise Barrier(f"the quantized weight {label(value)} has other readers")
    dtype = value.dtype
    if dtype is None:
        dtype = ir.DataType.from_numpy(scheme.scale.dtype)
    return Stored(node, 0, tensor, dtype, scheme)


def is_stored(value: ir.Value) -> bool:
    """Is a value a constant behind a DequantizeLinear?"""
    node = value.producer()
    return node is not None and is_op(node, "DequantizeLinear") and is_constant(node.inputs[0])


def quantized_constant(value: ir.Value | None) -> Known | None:
    """The numbers of a small constant behind a DequantizeLinear; None for anything else.

    Raises:
        Barrier: it is quantized in a form that is not followed.
    """
    node = value.producer() if value is not None else None
    if node is None or not is_op(node, "DequantizeLinear"):
        return None
    tensor = constant_tensor(node.inputs[0])
    if tensor is None:
        return None
    scheme = quantization(node, len(tensor.shape), tensor.dtype)
    return scheme.numbers(tensor.numpy()).astype(np.float64)


def vector_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of a constant, plain or behind a DequantizeLinear; None for anything else."""
    quantized = quantized_constant(value)
    return constant_shape(value) if quantized is None else quantized.shape


def quantization(node: ir.Node, count: int, dtype: ir.DataType | None) -> Quantization:
    """Scale, zero point and axis of a QuantizeLinear or DequantizeLinear.

    Args:
        node: the node.
        count: the rank of its data.
        dtype: the type of the quantized side, for a zero point that is left out.

    Raises:
        Barrier: they are not constant, or belong to blocks along an axis.
    """
    scale = constant_tensor(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero = constant_tensor(given)
    if scale is None or (given is not None and zero is None):
        raise Barrier("its scale or zero point is not constant")
    if node.attributes.get_int("block_size", 0) or len(scale.shape) > 1:
        raise Barrier("it is quantized in blocks, which are not cut")
    axis = node.attributes.get_int("axis", 1)
    if not -count <= axis < count and scale.size > 1:
        raise Barrier("the axis of its scales is out of range")
    if zero is None:
        plain = np.zeros((), dtype=np.int8 if dtype is None else dtype.numpy())
        return Quantization.of(scale.numpy(), plain, axis % max(count, 1))
    return Quantization.of(scale.numpy(), zero.numpy(), axis % max(count, 1))


def _record_parameters(state: Channelled, node: ir.Node, ids: Ids) -> None:
    """Scales and zero points that count these channels lose the same ones."""
    for index in range(1, len(node.inputs)):
        if constant_shape(node.inputs[index]) == (len(ids),):
            state.record(node, index, {0: ids})


def is_quantized_sum(node: ir.Node) -> bool:
    """Does a matrix operator work on quantized data, so that its sums are integers?

    A float operator on a quantized weight alone is not one.
    """
    uses = node.outputs[0].uses()
    if any(is_op(use.node, "QuantizeLinear") for use in uses):
        return True
    places = [index for index in (0, 2) if index < len(node.inputs)]
    values = [value for index in places if (value := node.inputs[index]) is not None]
    producers = [value.producer() for value in values]
    return any(node is not None and is_op(node, "DequantizeLinear") for node in producers)


def linear_map(state: Channelled, node: ir.Node) -> None:
    """QuantizeLinear and DequantizeLinear: per element, with parameters per tensor or per channel.

    A constant with one long axis (a bias) is tracked along it, as if it were computed.
    """
    if node.inputs[0] is not None and constant_tensor(node.inputs[0]) is not None:
        _constant_vector(state, node)
        return
    channels, count = tracked_input(state, node)
    scheme = quantization(node, count, None)
    vector = scheme.scale.size > 1
    if vector and scheme.axis == channels.axis and scheme.scale.size != len(channels.ids):
        raise Barrier("its scales do not count the channels")
    known = _through(state, node, channels, scheme, count)
    state.track(node.outputs[0], channels.axis, channels.ids, known, scheme_dtype(node, scheme))
    if vector and scheme.axis == channels.axis:
        _record_parameters(state, node, channels.ids)


def scheme_dtype(node: ir.Node, scheme: Quantization) -> ir.DataType:
    """The type of the result, where shape inference does not know it."""
    is_quantize = is_op(node, "QuantizeLinear")
    return ir.DataType.from_numpy((scheme.zero_point if is_quantize else scheme.scale).dtype)


def _through(
    state: Channelled, node: ir.Node, channels: Channels, scheme: Quantization, count: int
) -> Known | None:
    """What the operator itself makes of the constants; unknown where rounding could decide.

    With scales along another axis, only what is the same for all of them.
    """
    dtype = channels.dtype
    if dtype is None and is_op(node, "QuantizeLinear"):
        dtype = ir.DataType.from_numpy(scheme.scale.dtype)
    if channels.known is None or dtype is None:
        return None
    size = len(channels.ids)
    shape = [1] * count
    shape[channels.axis] = size
    across = scheme.scale.size > 1 and scheme.axis != channels.axis
    if across:
        shape[scheme.axis] = scheme.scale.size
    plain = np.nan_to_num(channels.known)
    along = [size if axis == channels.axis else 1 for axis in range(count)]
    margin = np.zeros(size)
    if is_op(node, "QuantizeLinear"):
        step = float(np.abs(scheme.scale.astype(np.float64)).max())
        margin = np.where(plain == 0, 0.0, _STEPS * step + _RELATIVE * np.abs(plain))
    results = []
    for moved in (plain,) if not margin.any() else (plain, plain - margin, plain + margin):
        feed = np.broadcast_to(moved.reshape(along), shape).astype(dtype.numpy())
        given: list[Array | None] = [np.ascontiguousarray(feed)]
        for other in node.inputs[1:]:
            tensor = constant_tensor(other)
            given.append(None if tensor is None else tensor.numpy())
        result = state.evaluate(node, given)
        if result is None or list(result.shape) != shape:
            return None
        results.append(np.moveaxis(result, channels.axis, 0).reshape(size, -1).astype(np.float64))
    joined = np.concatenate(results, axis=1)
    same = (joined == joined[:, :1]).all(axis=1) & ~np.isnan(channels.known)
    return np.where(same, results[0][:, 0], np.nan)


def _constant_vector(state: Channelled, node: ir.Node) -> None:
    """Tracks a quantized bias along its one long axis. What reads it ties it to its channels."""
    tensor = constant_tensor(node.inputs[0])
    assert tensor is not None
    shape = tuple(tensor.shape.numpy())
    long = [axis for axis, size in enumerate(shape) if size > 1] or [len(shape) - 1]
    uses = node.outputs[0].uses()
    if not shape or len(long) > 1 or not is_op(node, "DequantizeLinear"):
        return
    if any(is_op(use.node, *_READERS) and use.idx == 1 for use in uses):
        return  # a weight: the operator cuts it
    axis = long[0]
    scheme = quantization(node, len(shape), tensor.dtype)
    numbers = scheme.numbers(tensor.numpy()).reshape(-1).astype(np.float64)
    ids = state.fresh(shape[axis])
    state.track(node.outputs[0], axis, ids, numbers, ir.DataType.from_numpy(scheme.scale.dtype))
    state.record(node, 0, {axis: ids})
    if scheme.scale.size > 1:
        _record_parameters(state, node, ids)


def integer_operators(graph: ir.Graph) -> Iterator[tuple[str, str]]:
    """Weights of operators on integers that have zero filters, and why these stay."""
    for node in graph:
        if not is_op(node, *_INTEGER):
            continue
        place, zero_place, out_axis = _INTEGER[node.op_type]
        value = node.inputs[place]
        tensor = constant_tensor(value)
        zero = constant_tensor(node.inputs[zero_place]) if len(node.inputs) > zero_place else None
        if value is None or tensor is None or len(tensor.shape) < 2:
            continue
        numbers = np.zeros((), dtype=np.int8) if zero is None else zero.numpy()
        scheme = Quantization.of(np.ones((), dtype=np.float32), numbers, out_axis)
        dead = int((~Weight(tensor, out_axis, scheme).out_any()).sum())
        if dead:
            reason = f"{dead} zero filters stay: {node.op_type} is not pruned, its QDQ form is"
            yield value.name or "", reason
