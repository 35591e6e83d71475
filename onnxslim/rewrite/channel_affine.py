"""Moves ``y * scale + shift`` per output channel into the convolution or Gemm that computes y."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.edit import add_initializer
from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import static_shape

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

# Relative distance of neighbouring numbers, by element type.
_EPSILON = {
    ir.DataType.FLOAT: 2.0**-23,
    ir.DataType.FLOAT16: 2.0**-10,
    ir.DataType.DOUBLE: 2.0**-52,
    ir.DataType.BFLOAT16: 2.0**-7,
}


class NotFusableError(Exception):
    """The fusion would be wrong or would cost; the message says why. Never leaves a pass."""


@dataclass(frozen=True)
class Affine:
    """A function of every output channel.

    Attributes:
        scale: factors of shape (C), or None for ones.
        shift: summands of shape (C), or None for zeros.
        constants: the values it was read from, which may become unused.
    """

    scale: Floats | None
    shift: Floats | None
    constants: tuple[ir.Value, ...]


@dataclass(frozen=True)
class Linear:
    """A Conv, ConvTranspose or Gemm whose result is read by one node only.

    Attributes:
        node: the node.
        channels: number of output channels C.
        rank: number of dimensions of the result; channels are its axis 1.
    """

    node: ir.Node
    channels: int
    rank: int


@dataclass(frozen=True)
class Fusion:
    """New contents, computed and checked before anything is changed.

    Attributes:
        weight: the scaled weight, None when it stays.
        bias: the new bias of shape (C), None when it stays.
    """

    weight: Array | None
    bias: Array | None


def linear_before(value: ir.Value | None, reader: ir.Node) -> Linear | None:
    """The linear node that computes ``value`` for ``reader`` alone, in the same graph."""
    node = value.producer() if value is not None else None
    if value is None or node is None or not is_op(node, "Conv", "ConvTranspose", "Gemm"):
        return None
    if node.graph is not reader.graph or len(node.outputs) != 1 or len(node.inputs) < 2:
        return None
    if value.is_graph_output() or len(value.uses()) != 1:
        return None
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        return None
    shape = _shape(node.inputs[1])
    if shape is None or (node.op_type != "Gemm" and len(shape) < 3):
        return None
    if node.op_type == "Gemm":
        channels = shape[0] if node.attributes.get_int("transB", 0) else shape[1]
    elif node.op_type == "Conv":
        channels = shape[0]
    else:
        channels = shape[1] * (node.attributes.get_int("group", 1) or 1)
    return Linear(node, channels, len(shape))


def _shape(value: ir.Value | None) -> tuple[int, ...] | None:
    tensor = constant_tensor(value)
    return static_shape(value) if tensor is None else tuple(tensor.shape.numpy())


def per_channel(content: Array, linear: Linear) -> Floats | None:
    """A constant as (C) numbers, when broadcasting lays it along the channels; None otherwise.

    ``[W]`` lies along the last axis, even where W happens to be C.
    """
    if content.ndim > linear.rank:
        return None
    aligned = (1,) * (linear.rank - content.ndim) + content.shape
    if aligned[1] not in (1, linear.channels) or any(
        size != 1 for axis, size in enumerate(aligned) if axis != 1
    ):
        return None
    flat = content.reshape(-1).astype(np.float64)
    return np.broadcast_to(flat, (linear.channels,)).copy()


def fuse(linear: Linear, affine: Affine) -> Fusion:
    """Computes the new weight and bias in float64.

    Raises:
        NotFusableError: a weight or bias is not constant or has other readers, numbers leave the
            range of the element type, or more would be stored than before.
    """
    weight = None if affine.scale is None else _scaled_weight(linear, affine.scale)
    old = linear.node.inputs[2] if len(linear.node.inputs) > 2 else None
    if old is None and affine.shift is None:
        return Fusion(weight, None)
    bias = np.zeros(linear.channels) if old is None else _bias(linear, old)
    if affine.scale is not None:
        bias = bias * affine.scale
    if affine.shift is not None:
        bias = bias + affine.shift
    dtype = _dtype(linear, affine)
    _check_stored_bytes(linear, affine, old, linear.channels * dtype.itemsize)
    return Fusion(weight, rounded(bias, dtype, (), "bias"))


def _scaled_weight(linear: Linear, scale: Floats) -> Array:
    value = linear.node.inputs[1]
    if value is None or not value.is_initializer() or constant_tensor(value) is None:
        raise NotFusableError("the weight is not an initializer")
    if len(value.uses()) != 1 or value.is_graph_output():
        raise NotFusableError(f"the weight {value.name} has other readers")
    tensor = constant_tensor(value)
    if tensor is None or tensor.dtype not in _EPSILON:
        raise NotFusableError(f"the weight {value.name} is not of a floating-point type")
    array = tensor.numpy()
    if linear.node.op_type == "ConvTranspose":
        groups = linear.node.attributes.get_int("group", 1) or 1
        if array.shape[0] % groups:
            raise NotFusableError("the groups do not divide the input channels")
        split = (groups, array.shape[0] // groups, *array.shape[1:])
        factor = scale.reshape(groups, 1, -1, *(1,) * (array.ndim - 2))
        exact = (array.astype(np.float64).reshape(split) * factor).reshape(array.shape)
        channel_axis: tuple[int, ...] = (0, *range(2, array.ndim))
    else:
        axis = 1 if _is_plain_gemm(linear.node) else 0
        factor = scale.reshape([-1 if index == axis else 1 for index in range(array.ndim)])
        exact = array.astype(np.float64) * factor
        channel_axis = tuple(index for index in range(array.ndim) if index != axis)
    return rounded(exact, array.dtype, channel_axis, "weight")


def _is_plain_gemm(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and not node.attributes.get_int("transB", 0)


def rounded(exact: Floats, dtype: np.dtype[Any], axes: tuple[int, ...], what: str) -> Array:
    """Rounds to the element type of the model.

    Args:
        exact: the numbers.
        dtype: the element type.
        axes: the axes within one channel.
        what: for the message.

    Raises:
        NotFusableError: numbers are not finite after rounding, or a whole channel sinks so low
            that rounding costs more than the usual last bit.
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        result = exact.astype(dtype)
        back = result.astype(np.float64)
    if not np.isfinite(back).all():
        raise NotFusableError(f"the new {what} leaves the range of {dtype}")
    epsilon = _EPSILON[ir.DataType.from_numpy(dtype)]
    largest = np.abs(exact).max(axis=axes, keepdims=True, initial=0.0)
    if (np.abs(back - exact) > epsilon * largest).any():
        raise NotFusableError(f"the new {what} is too small for {dtype}")
    return result


def _bias(linear: Linear, value: ir.Value) -> Floats:
    tensor = constant_tensor(value)
    if tensor is None or tensor.dtype not in _EPSILON:
        raise NotFusableError("the bias is not constant")
    content = tensor.numpy()
    if linear.node.op_type != "Gemm":
        return content.astype(np.float64)
    if linear.node.attributes.get_float("beta", 1.0) != 1.0:
        raise NotFusableError("the bias is scaled by beta")
    along = per_channel(content, linear)
    if along is None:
        raise NotFusableError("the bias of the Gemm differs from row to row")
    return along


def _dtype(linear: Linear, affine: Affine) -> np.dtype[Any]:
    values = (*linear.node.inputs[1:], *affine.constants)
    for value in values:
        tensor = constant_tensor(value)
        if tensor is not None and tensor.dtype in _EPSILON:
            return np.dtype(tensor.dtype.numpy())
    raise NotFusableError("the element type is not floating-point")


def _check_stored_bytes(linear: Linear, affine: Affine, old: ir.Value | None, needed: int) -> None:
    """A bias that is added or split off a shared one has to be paid for by what goes."""
    if old is not None and _is_own(old):
        return
    freed = 0
    for value in affine.constants:
        tensor = constant_tensor(value)
        if tensor is not None and len(value.uses()) == 1 and not value.is_graph_output():
            freed += int(tensor.nbytes)
    if needed > freed:
        raise NotFusableError(f"a new bias of {needed} bytes would be stored for {freed}")


def _is_own(bias: ir.Value) -> bool:
    """True for an initializer that only one node reads, so that it may be rewritten in place."""
    return bias.is_initializer() and len(bias.uses()) == 1 and not bias.is_graph_output()


def home_of(linear: Linear, main: ir.Graph) -> ir.Graph | None:
    """The graph that a new bias belongs to: the weight's own, or the main graph of the node."""
    weight = linear.node.inputs[1]
    if weight is not None and weight.is_initializer() and weight.graph is not None:
        return weight.graph
    return main if linear.node.graph is main else None


def apply_fusion(linear: Linear, fusion: Fusion, graph: ir.Graph, name: str) -> None:
    """Stores new contents; weight and bias keep their names where they are read by this node only.

    Args:
        linear: the node.
        fusion: the new contents.
        graph: where a new bias goes, from `home_of`.
        name: a fresh name for a new bias.
    """
    node = linear.node
    if fusion.weight is not None and node.inputs[1] is not None:
        node.inputs[1].const_value = ir.tensor(fusion.weight, name=node.inputs[1].name)
    if fusion.bias is None:
        return
    old = node.inputs[2] if len(node.inputs) > 2 else None
    if old is not None and _is_own(old):
        old.const_value = ir.tensor(fusion.bias, name=old.name)
        old.shape = ir.Shape(fusion.bias.shape)
        return
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    if old is None:
        node.attributes.pop("beta", None)
    node.replace_input_with(2, add_initializer(graph, fusion.bias, name))
