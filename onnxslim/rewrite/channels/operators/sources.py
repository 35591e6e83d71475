"""Channel rules of operators that make channels of constants: tables, and states that are filled.

A table that is gathered by computed indices (an embedding) has its columns as channels. Where the
same table is a weight elsewhere (an output layer tied to the embedding), both uses are one tensor,
so that a column goes when neither needs it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import array, is_constant, scalar
from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import dim, rank
from onnxslim.rewrite.channels.atoms import (
    Barrier,
    Channelled,
    Joint,
    Known,
    constant_shape,
    label,
    uniform,
)
from onnxslim.rewrite.channels.joint import joint_of, length_along, track_joint
from onnxslim.rewrite.channels.operators import layout
from onnxslim.rewrite.channels.operators.linear import tensor_of
from onnxslim.rewrite.channels.operators.target import spelled, spelled_count
from onnxslim.rewrite.channels.weight import Weight

_RECURRENT = ("GRU", "LSTM", "RNN")


def gather(state: Channelled, node: ir.Node) -> None:
    """Gather: of a constant table by computed indices, or of something computed."""
    if not is_constant(node.inputs[0]):
        layout.gather(state, node)
        return
    shape, places = constant_shape(node.inputs[0]), rank(node.inputs[1])
    if shape is None or len(shape) != 2 or 0 in shape or places is None:
        raise Barrier(f"{label(node.inputs[0])} is no table of vectors")
    if node.attributes.get_int("axis", 0) % 2 != 0:
        raise Barrier("it picks columns of its table")
    tensor = tensor_of(node, 0)
    ids = state.fresh(shape[1])
    state.track(node.outputs[0], places, ids, _columns(node, tensor), tensor.dtype)
    state.record(node, 0, {1: ids}, tied=True)
    value = node.inputs[0]
    state.sources.append((value.name or "" if value is not None else "", node.outputs[0]))


def _columns(node: ir.Node, tensor: ir.TensorProtocol) -> Known | None:
    """What each column of a table holds; of a large table only whether it is zero."""
    if tensor.dtype.bitwidth > 32 and not tensor.dtype.is_floating_point():
        return None  # such numbers may be too long for a float
    known = uniform(node.inputs[0], 1)
    if known is not None:
        return known
    if not tensor.dtype.is_floating_point():
        return None
    return np.where(Weight(tensor, out_axis=1).out_any(), np.nan, 0.0)


def constant_of_shape(state: Channelled, node: ir.Node) -> None:
    """ConstantOfShape that only starts recurrent operators: the last axis counts their units."""
    output = node.outputs[0]
    count, units = rank(output), dim(output, 2)
    if count != 3 or not isinstance(units, int) or not _starts_recurrence(output):
        raise Barrier("it is no initial state")
    attribute = node.attributes.get("value")
    tensor = attribute.as_tensor() if attribute is not None else None
    number = 0.0 if tensor is None else float(tensor.numpy().reshape(-1)[0])
    dtype = ir.DataType.FLOAT if tensor is None else tensor.dtype
    directions = dim(output, 0)
    rows = directions if isinstance(directions, int) and directions > 0 else 1
    ids = state.fresh(rows * units).reshape(rows, units)
    fix = spelled(node, 0, 2, units, "the shape")
    known = np.full(ids.shape, number)
    if rows == 1:
        state.track(output, 2, ids[0], known[0], dtype)
    else:
        track_joint(state, node, output, Joint((0, 2), ids, (), known, dtype))
    made = joint_of(state, output)
    assert made is not None
    if made.lines:
        state.pin(made.lines[0], "the state of a direction stays")
    state.fixes.append((ids.reshape(-1), fix(length_along(made, made.ids.ndim - 1))))


def expand(state: Channelled, node: ir.Node) -> None:
    """Expand: of a constant that only starts recurrent operators, or of something computed."""
    value, output = node.inputs[0], node.outputs[0]
    shape = constant_shape(value)
    if shape is None:
        layout.expand(state, node)
        return
    content = array(value)
    if content is None or len(shape) != 3 or rank(output) != 3 or not _starts_recurrence(output):
        raise Barrier("it is no initial state")
    ids = state.fresh(shape[2])
    number = scalar(value)
    known = np.full(shape[2], number) if number is not None else uniform(value, 2)
    fix = spelled_count(state, node, node.inputs[1], 2, ids, "the shape")
    state.track(output, 2, ids, known, tensor_of(node, 0).dtype)
    state.record(node, 0, {2: ids})
    state.fixes.append((ids, fix))


def _starts_recurrence(value: ir.Value) -> bool:
    uses = list(value.uses())
    return bool(uses) and all(is_op(use.node, *_RECURRENT) and use.idx in (5, 6) for use in uses)
