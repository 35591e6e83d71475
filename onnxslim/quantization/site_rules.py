"""How a scale per channel passes operators: which keep it, and which weights take it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor, int_list, scalar
from onnxslim.ir.shapes import rank
from onnxslim.quantization.following import (
    Following,
    RefusedError,
    Rule,
    only_first,
    own_constant,
)
from onnxslim.quantization.scaling import Labels, Port, Read
from onnxslim.quantization.site_moves import MOVES

LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

# f(x / s) * s = f(x) for every s > 0, element by element.
_ELEMENTWISE = ("Relu", "LeakyRelu", "PRelu", "Identity", "Abs", "Neg")
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")


def _keep(node: ir.Node, walk: Following) -> None:
    walk.labels[node.outputs[0]] = only_first(node, walk)


def _clip(node: ir.Node, walk: Following) -> None:
    labels = only_first(node, walk)
    low, high = clip_bounds(node)
    if low not in (0.0, None):
        raise RefusedError(f"a Clip from {low} is no Relu")
    if high is not None:
        walk.clips.append(node)
    walk.labels[node.outputs[0]] = labels


def clip_bounds(node: ir.Node) -> tuple[float | None, float | None]:
    """Lower and upper bound of a Clip; None for none.

    Raises:
        RefusedError: a bound is no constant.
    """
    found: list[float | None] = []
    for index, name in ((1, "min"), (2, "max")):
        value = node.inputs[index] if index < len(node.inputs) else None
        bound = node.attributes.get_float(name, None) if value is None else scalar(value)
        if value is not None and bound is None:
            raise RefusedError("a Clip with bounds that are no constants")
        extreme = bound is not None and abs(bound) >= float(np.finfo(np.float32).max)
        found.append(None if extreme else bound)
    return found[0], found[1]


def _pool(node: ir.Node, walk: Following) -> None:
    labels = only_first(node, walk)
    if labels.size != labels.shape[1]:
        raise RefusedError(f"a {node.op_type} mixes it")
    walk.labels[node.outputs[0]] = labels


def _ignore(node: ir.Node, walk: Following) -> None:
    """Looks at shapes only."""


def _reduce(node: ir.Node, walk: Following) -> None:
    labels = only_first(node, walk)
    given = node.attributes.get_ints("axes", None)
    if given is None and len(node.inputs) > 1:
        given = int_list(node.inputs[1])
    if given is None:
        raise RefusedError(f"a {node.op_type} over axes that are not known")
    axes = [axis % labels.ndim for axis in given]
    if not axes or any(labels.shape[axis] > 1 for axis in axes):
        raise RefusedError(f"a {node.op_type} mixes it")
    keep = node.attributes.get_int("keepdims", 1)
    walk.labels[node.outputs[0]] = labels if keep else labels.squeeze(tuple(axes))


def _add(node: ir.Node, walk: Following) -> None:
    first, second = (walk.channels_of(value) for value in node.inputs)
    if first is not None and second is not None:
        if first.shape != second.shape or not bool((first == second).all()):
            raise RefusedError(f"{_article(node)} of different channels")
        walk.labels[node.outputs[0]] = first
        return
    labels, other = (first, 1) if first is not None else (second, 0)
    assert labels is not None
    if constant_tensor(node.inputs[other]) is None:
        raise RefusedError(f"{_article(node)} of something that keeps its scale")
    value = own_constant(node, other)
    tensor = constant_tensor(value)
    size = len(tensor.shape) if tensor is not None else 0
    if size > labels.ndim:
        raise RefusedError(f"{_article(node)} of a constant of more dimensions")
    lead = labels.ndim - max(size, 1)  # axes that the constant lacks, and may go on lacking
    short = (
        labels.reshape(labels.shape[lead:]) if max(labels.shape[:lead], default=1) == 1 else labels
    )
    walk.shifts.append(Port(value, short))
    walk.labels[node.outputs[0]] = labels


def _extreme(node: ir.Node, walk: Following) -> None:
    """The larger or smaller of values that are scaled alike, or of one and zero."""
    scaled = [labels for labels in map(walk.channels_of, node.inputs) if labels is not None]
    first = scaled[0]
    if any(one.shape != first.shape or not bool((one == first).all()) for one in scaled):
        raise RefusedError(f"a {node.op_type} of different channels")
    if any(walk.channels_of(value) is None and scalar(value) != 0 for value in node.inputs):
        raise RefusedError(f"a {node.op_type} with something that keeps its scale")
    walk.labels[node.outputs[0]] = first


def _article(node: ir.Node) -> str:
    return f"{'an' if node.op_type == 'Add' else 'a'} {node.op_type}"


def _gate(node: ir.Node, walk: Following) -> None:
    """A product with, or a quotient by, what does not depend on the scale."""
    first, second = (walk.channels_of(value) for value in node.inputs)
    if (first is None) == (second is None) or (node.op_type == "Div" and first is None):
        raise RefusedError(f"a {node.op_type} by itself")
    labels, other = (first, node.inputs[1]) if first is not None else (second, node.inputs[0])
    other_rank = rank(other)
    tensor = constant_tensor(other)
    if tensor is not None:
        other_rank = len(tensor.shape)
    assert labels is not None
    if other_rank is None or other_rank > labels.ndim:
        raise RefusedError(f"a {node.op_type} of an unknown shape")
    walk.plain = walk.plain and tensor is not None
    walk.labels[node.outputs[0]] = labels


def _matmul(node: ir.Node, walk: Following) -> None:
    first, second = (walk.channels_of(value) for value in node.inputs)
    if first is not None and second is not None:
        raise RefusedError("a MatMul by itself")
    if first is not None:
        _read_matrix(node, walk, first, np.arange(2) == 0)
        return
    assert second is not None
    if rank(node.inputs[0]) != second.ndim or second.ndim < 2 or second.shape[-2] > 1:
        raise RefusedError("a MatMul sums over it")
    walk.plain = False
    walk.labels[node.outputs[0]] = second


def _read_matrix(node: ir.Node, walk: Following, labels: Labels, rows: Labels) -> None:
    """A weight matrix that sums over the last axis of the activation."""
    value = own_constant(node, 1)
    tensor = constant_tensor(value)
    if tensor is None or len(tensor.shape) != 2 or labels.shape[-1] != labels.size:
        raise RefusedError(f"a {node.op_type} by more than a matrix")
    port = Port(value, labels.reshape(-1, 1) if rows[0] else labels.reshape(1, -1))
    assert node.inputs[0] is not None
    walk.reads.append(Read(port, node, node.inputs[0], labels))


def _gemm(node: ir.Node, walk: Following) -> None:
    labels = only_first(node, walk)
    if node.attributes.get_int("transA", 0):
        raise RefusedError("a Gemm of a transposed activation")
    by_columns = bool(node.attributes.get_int("transB", 0))
    _read_matrix(node, walk, labels, np.array([not by_columns]))


def _conv(node: ir.Node, walk: Following) -> None:
    labels = only_first(node, walk)
    value = own_constant(node, 1)
    tensor = constant_tensor(value)
    if tensor is None or labels.ndim < 3 or labels.size != labels.shape[1]:
        raise RefusedError(f"a {node.op_type} reads it in another layout")
    shape = tuple(tensor.shape.numpy())
    flat, tail = labels.reshape(-1), [1] * (len(shape) - 2)
    group = node.attributes.get_int("group", 1) or 1
    if node.op_type == "ConvTranspose":
        port = Port(value, flat.reshape(-1, 1, *tail))
    elif group == 1:
        port = Port(value, flat.reshape(1, -1, *tail))
    else:  # weight (O, I / group, ...): row o reads the channels of group o // (O / group)
        rows = flat.reshape(group, -1).repeat(shape[0] // group, axis=0)
        port = Port(value, rows.reshape(*rows.shape, *tail))
    assert node.inputs[0] is not None
    walk.reads.append(Read(port, node, node.inputs[0], labels))


RULES: dict[str, Rule] = {
    **MOVES,
    **dict.fromkeys(_ELEMENTWISE, _keep),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), _reduce),
    **dict.fromkeys(("Add", "Sub"), _add),
    **dict.fromkeys(("Max", "Min"), _extreme),
    **dict.fromkeys(("Mul", "Div"), _gate),
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    **dict.fromkeys(("Shape", "Size"), _ignore),
    "Clip": _clip,
    "MatMul": _matmul,
    "Gemm": _gemm,
}

HOMOGENEOUS = frozenset(RULES) - LINEAR - {"Mul", "Div", "Add", "Sub"}
