"""Norms over fewer channels that compute what they did over all: zeros count, but are not there.

With M of D channels kept and the others zero, a mean over M times ``M / D`` is the mean over D.

RMS norm: ``x / sqrt(mean_D(x^2) + eps) = sqrt(D / M) * x / sqrt(mean_M(x^2) + eps * D / M)``, so
other constants do. Layer norm: a zero channel is ``0 - mean`` once it is centred, so
``var = mean_M((x - mean)^2) * M / D + mean^2 * (D - M) / D``, which takes primitive operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import is_constant, scalar
from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import rank
from onnxslim.rewrite.channels.atoms import (
    Array,
    Barrier,
    Channelled,
    Channels,
    Edits,
    Ids,
)
from onnxslim.rewrite.channels.operators.linear import tensor_of

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def share_of(edits: Edits, ids: Ids) -> float:
    """M / D: the share of the channels that stays."""
    kept = edits.kept(ids)
    return float(kept.sum()) / len(kept)


def rms_norm_fix(node: ir.Node, channels: Channels) -> Callable[[Edits], None]:
    """Prepares the change of epsilon and scale of an RMS norm that loses zero channels."""

    def fix(edits: Edits) -> None:
        share = share_of(edits, channels.ids)
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        node.attributes["epsilon"] = ir.AttrFloat32("epsilon", epsilon / share)
        _rescale(node, 1, 1 / math.sqrt(share), edits)

    return fix


def _rescale(node: ir.Node, index: int, factor: float, edits: Edits) -> None:
    """Multiplies a constant input, for this node alone."""
    old, tensor = node.inputs[index], tensor_of(node, index)
    content = (tensor.numpy().astype(np.float64) * factor).astype(tensor.dtype.numpy())
    name = f"{old.name if old is not None else 'constant'}_scaled"
    node.replace_input_with(index, edits.initializer(content, name))


@dataclass(frozen=True)
class Writer:
    """Writes nodes in front of another one.

    Attributes:
        anchor: the node that they come before.
        edits: names and constants.
        opset: since 18 the axes of a reduction are an input.
        dtype: of the numbers.
    """

    anchor: ir.Node
    edits: Edits
    opset: int
    dtype: ir.DataType

    def number(self, value: float, name: str) -> ir.Value:
        """A constant number."""
        return self.edits.initializer(np.array(value, dtype=self.dtype.numpy()), name)

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        like: ir.Value | None,
        attributes: Sequence[ir.Attr] = (),
        dtype: ir.DataType | None = None,
    ) -> ir.Value:
        """A node; its output has the shape of ``like``."""
        base = self.anchor.outputs[0].name
        name = self.edits.fresh_name(f"{base}_{op_type.lower()}")
        shape = None if like is None or like.shape is None else ir.Shape(list(like.shape))
        value = ir.Value(name=name, type=ir.TensorType(dtype or self.dtype), shape=shape)
        node = ir.Node("", op_type, list(inputs), list(attributes), outputs=[value])
        assert self.anchor.graph is not None
        self.anchor.graph.insert_before(self.anchor, node)
        return value

    def cast(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        """A Cast."""
        attribute = ir.AttrInt64("to", int(to))
        return self.op("Cast", [value], value, [attribute], dtype=to)

    def mean(self, value: ir.Value, axes: Sequence[int]) -> ir.Value:
        """The mean over some axes, which stay as axes of one."""
        attributes = [ir.AttrInt64("keepdims", 1)]
        inputs: list[ir.Value | None] = [value]
        if self.opset >= 18:
            content = np.array(axes, dtype=np.int64)
            inputs.append(self.edits.initializer(content, f"{value.name}_axes"))
        else:
            attributes.append(ir.AttrInt64s("axes", list(axes)))
        result = self.op("ReduceMean", inputs, value, attributes)
        if result.shape is not None:
            sizes = [1 if axis in axes else size for axis, size in enumerate(result.shape)]
            result.shape = ir.Shape(sizes)
        return result


def layer_norm_fix(
    state: Channelled, node: ir.Node, channels: Channels, axis: int
) -> Callable[[Edits], None]:
    """Prepares the compensated form of a LayerNormalization that loses zero channels.

    Args:
        state: the walk.
        node: the LayerNormalization.
        channels: what enters, tracked along a normalised axis.
        axis: the first normalised axis.

    Raises:
        Barrier: its type is unknown.
    """
    dtype = channels.dtype or node.outputs[0].dtype
    count = rank(node.inputs[0])
    if dtype is None or count is None:
        raise Barrier("its element type is unknown")
    opset, axes = state.opset, list(range(axis, count))

    def fix(edits: Edits) -> None:
        source = node.inputs[0]
        assert source is not None
        inner = ir.DataType.FLOAT if dtype in _HALF else dtype
        write = Writer(node, edits, opset, inner)
        entering = source if inner == dtype else write.cast(source, inner)
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        normal = _normalised(write, entering, axes, share_of(edits, channels.ids), epsilon)
        _affine(write, node, normal if inner == dtype else write.cast(normal, dtype))

    return fix


def _normalised(
    write: Writer, x: ir.Value, axes: Sequence[int], share: float, epsilon: float
) -> ir.Value:
    """The centred two-pass form; ``share`` is M / D."""
    base = write.anchor.outputs[0].name
    part, rest = write.number(share, f"{base}_share"), write.number(1 - share, f"{base}_rest")
    mean = write.mean(x, axes)
    mean = write.op("Mul", [mean, part], mean)
    centred = write.op("Sub", [x, mean], x)
    spread = write.mean(write.op("Mul", [centred, centred], x), axes)
    spread = write.op("Mul", [spread, part], mean)
    zeros = write.op("Mul", [write.op("Mul", [mean, mean], mean), rest], mean)
    variance = write.op("Add", [spread, zeros], mean)
    variance = write.op("Add", [variance, write.number(epsilon, f"{base}_epsilon")], mean)
    return write.op("Div", [centred, write.op("Sqrt", [variance], mean)], x)


def _affine(write: Writer, node: ir.Node, normal: ir.Value) -> None:
    """Turns the norm itself into the last node, so that its output stays what it is."""
    scale, shift = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    node.attributes.clear()
    node.resize_outputs(1)
    node.resize_inputs(2)
    if shift is None:
        node.op_type, left, right = "Mul", normal, scale
    else:
        dtype = normal.dtype
        left, right = write.op("Mul", [normal, scale], normal, dtype=dtype), shift
        node.op_type = "Add"
    node.replace_input_with(0, left)
    node.replace_input_with(1, right)


def reduced_mean_fix(
    state: Channelled, node: ir.Node, channels: Channels
) -> Callable[[Edits], None]:
    """Prepares a ReduceMean over channels that loses zero channels.

    In an RMS norm of primitive operators epsilon and scale change, so that it can still be
    recognised as one; anywhere else the mean is multiplied by M / D.
    """
    norm = _primitive_rms(node)

    def fix(edits: Edits) -> None:
        share = share_of(edits, channels.ids)
        if norm is not None:
            (adder, epsilon), (scaler, scale) = norm
            _rescale(adder, epsilon, 1 / share, edits)
            _rescale(scaler, scale, 1 / math.sqrt(share), edits)
            return
        dtype = channels.dtype or node.outputs[0].dtype or ir.DataType.FLOAT
        multiplied(Writer(node, edits, state.opset, dtype), node, share)

    return fix


def multiplied(write: Writer, node: ir.Node, share: float) -> None:
    """Lets the output of a node be multiplied by a number, under the name it had."""
    output = node.outputs[0]
    inner = write.op(
        node.op_type, list(node.inputs), output, list(node.attributes.values()), output.dtype
    )
    number: Array = np.array(share, dtype=write.dtype.numpy())
    node.op_type = "Mul"
    node.attributes.clear()
    node.resize_inputs(2)
    node.replace_input_with(0, inner)
    node.replace_input_with(1, write.edits.initializer(number, f"{output.name}_share"))


_Place = tuple[ir.Node, int]


def _primitive_rms(node: ir.Node) -> tuple[_Place, _Place] | None:
    """Where epsilon and scale of an RMS norm stand that starts with this ReduceMean.

    The form is Add of epsilon, Sqrt, one division by that (Div or Reciprocal), and Mul by a
    constant, with casts and other factors in between perhaps; all for one reader each. What is
    divided does not matter.
    """
    adder = only_reader(node)
    root = only_reader(adder, "Sqrt")
    if adder is None or root is None or not is_op(adder, "Add"):
        return None
    epsilon = next((place for place in (0, 1) if scalar(adder.inputs[place]) is not None), None)
    inverse = only_reader(root)
    if epsilon is None or inverse is None:
        return None
    numerator, denominator = (*inverse.inputs, None)[:2]
    divides = denominator is root.outputs[0] and numerator is not denominator
    if not is_op(inverse, "Reciprocal") and not (is_op(inverse, "Div") and divides):
        return None
    place = _scaled_by(inverse)
    return None if place is None else ((adder, epsilon), place)


def _scaled_by(node: ir.Node) -> _Place | None:
    """The constant that the result is multiplied by, after casts and other factors."""
    last, reader = node, only_reader(node)
    while reader is not None and is_op(reader, "Cast", "Mul"):
        others = [value for value in reader.inputs if value is not last.outputs[0]]
        if is_op(reader, "Mul") and len(others) != 1:
            return None
        place = next((at for at, value in enumerate(reader.inputs) if is_constant(value)), None)
        if place is not None:
            return reader, place
        last, reader = reader, only_reader(reader)
    return None


def only_reader(node: ir.Node | None, op_type: str | None = None) -> ir.Node | None:
    """The node that alone reads the first output, in the same graph."""
    if node is None or node.outputs[0].is_graph_output():
        return None
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.graph is not node.graph:
        return None
    return uses[0].node if op_type is None or is_op(uses[0].node, op_type) else None
