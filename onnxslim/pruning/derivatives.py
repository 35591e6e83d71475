"""Derivatives of single operators, for the refit of what attention computes by descent.

``pull_back(node, inputs, outputs, gradient)`` turns the gradient of a sum with respect to the
node's first output into those with respect to its inputs, from the values that onnxruntime
computed. Operators without a rule here, and forms that a rule does not cover, have no derivative:
``is_known(node)`` tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.ir.constants import is_constant
from onnxslim.ir.schema import is_op

Array = npt.NDArray[Any]
Gradients = dict[int, Array]
Rule = Callable[[ir.Node, Sequence[Array | None], Sequence[Array], Array], Gradients]

_RULES: dict[str, Rule] = {}


def is_known(node: ir.Node) -> bool:
    """Is there a derivative for this node?"""
    if not is_op(node, *_RULES):
        return False
    if is_op(node, "Slice"):
        return all(is_constant(value) for value in node.inputs[1:] if value is not None)
    if is_op(node, "Gather"):
        return is_constant(node.inputs[1])
    if is_op(node, "Pow"):
        return is_constant(node.inputs[1])
    if is_op(node, "Gelu"):
        return node.attributes.get_string("approximate", "none") == "none"
    if is_op(node, "LayerNormalization"):
        return node.attributes.get_int("axis", -1) == -1 or _normalises_last(node)
    return True


def _normalises_last(node: ir.Node) -> bool:
    scale = node.inputs[1]
    shape = scale.shape if scale is not None else None
    source = node.inputs[0]
    rank = len(source.shape) if source is not None and source.shape is not None else None
    axis = node.attributes.get_int("axis", -1)
    return shape is not None and len(shape) == 1 and rank is not None and axis == rank - 1


def pull_back(
    node: ir.Node, inputs: Sequence[Array | None], outputs: Sequence[Array], gradient: Array
) -> Gradients:
    """Gradients by the index of the input, each of the input's shape.

    Args:
        node: one that `is_known`.
        inputs: what it read.
        outputs: what it gave; for a Split, see `pull_back_split`.
        gradient: with respect to the first output.
    """
    return _RULES[node.op_type](node, inputs, outputs, gradient)


def pull_back_split(node: ir.Node, parts: Sequence[Array]) -> Gradients:
    """The gradient of what a Split divides, from those of its parts."""
    return {0: np.concatenate(parts, axis=node.attributes.get_int("axis", 0))}


def _summed_to(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Undoes broadcasting."""
    extra = gradient.ndim - len(shape)
    if extra:
        gradient = gradient.sum(axis=tuple(range(extra)))
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1 and gradient.shape[axis] != 1)
    return gradient.sum(axis=axes, keepdims=True) if axes else gradient


def _given(inputs: Sequence[Array | None], index: int) -> Array:
    found = inputs[index]
    assert found is not None
    return found


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        for name in names:
            _RULES[name] = rule
        return rule

    return register


# -- arithmetic -----------------------------------------------------------------------------------


@_rule("Add", "Sub", "Mul", "Div")
def _binary(
    node: ir.Node, inputs: Sequence[Array | None], outputs: Sequence[Array], gradient: Array
) -> Gradients:
    first, second = _given(inputs, 0), _given(inputs, 1)
    match node.op_type:
        case "Add":
            parts = gradient, gradient
        case "Sub":
            parts = gradient, -gradient
        case "Mul":
            parts = gradient * second, gradient * first
        case _:
            parts = gradient / second, -gradient * outputs[0] / second
    return {0: _summed_to(parts[0], first.shape), 1: _summed_to(parts[1], second.shape)}


@_rule("Pow")
def _pow(
    node: ir.Node, inputs: Sequence[Array | None], outputs: Sequence[Array], gradient: Array
) -> Gradients:
    base, power = _given(inputs, 0), _given(inputs, 1)
    return {0: _summed_to(gradient * power * np.power(base, power - 1), base.shape)}


@_rule("Neg", "Identity", "Sqrt", "Erf", "Tanh", "Sigmoid", "Relu", "Gelu")
def _elementwise(
    node: ir.Node, inputs: Sequence[Array | None], outputs: Sequence[Array], gradient: Array
) -> Gradients:
    x, y = _given(inputs, 0), outputs[0]
    slope: Any = 1
    match node.op_type:
        case "Neg":
            slope = -1
        case "Sqrt":
            slope = 0.5 / np.maximum(y, np.finfo(y.dtype).tiny)
        case "Erf":
            slope = np.exp(-np.square(x)) * np.array(2 / math.sqrt(math.pi), x.dtype)
        case "Tanh":
            slope = 1 - np.square(y)
        case "Sigmoid":
            slope = y * (1 - y)
        case "Relu":
            slope = x > 0
        case "Gelu":
            # y / x is the normal distribution up to x.
            below = np.divide(y, x, out=np.full_like(y, 0.5), where=np.abs(x) > 1e-3)
            density = np.exp(-0.5 * np.square(x)) * np.array(1 / math.sqrt(2 * math.pi), x.dtype)
            slope = below + x * density
    return {0: gradient * slope}


# -- shapes ---------------------------------------------------------------------------------------


@_rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshaped(
    node: ir.Node, inputs: Sequence[Array | None], outputs: Sequence[Array], gradient: Array
) -> Gradients:
    return {0: gradient.reshape(_given(inputs, 0).shape)}


@_rule("Transpose")
def _transposed(
    node: ir.Node, inputs: Sequence[Array | None], outputs: Sequence[Array], gradient: Array
) -> Gradients:
    order = list(node.attributes.get_ints("perm", ())) or list(range(gradient.ndim))[::-1]
    return {0: gradient.transpose(np.argsort(order))}


@_rule("Expand")
def _expanded(
    node: ir.Node, inputs: Sequence[Array | None], outputs: Sequence[Array], gradient: Array
) -> Gradients:
    return {0: _summed_to(gradient, _given(inputs, 0).shape)}


@_rule("Slice")
def _sliced(
    node: ir.Node, inputs: Sequence[Array | None], outputs: Sequence[Array], gradient: Array
) -> Gradients:
    source = _given(inputs, 0)
    starts, ends = _given(inputs, 1).tolist(), _given(inputs, 2).tolist()
    axes = inputs[3].tolist() if len(inputs) > 3 and inputs[3] is not None else range(len(starts))
    steps = inputs[4].tolist() if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    places: list[slice] = [slice(None)] * source.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = source.shape[axis]
        # An end below what is there means "down to the first" for negative steps.
        stop = None if step < 0 and end < -size else end
        places[axis] = slice(start, stop, step)
    result = np.zeros(source.shape, gradient.dtype)
    result[tuple(places)] = gradient
    return {0: result}


@_rule("Gather")
def _gathered(
    node: ir.Node, inputs: Sequence[Array | None], outputs: Sequence[Array], gradient: Array
) -> Gradients:
    source, numbers = _given(inputs, 0), _given(inputs, 1)
    axis = node.attributes.get_int("axis", 0) % source.ndim
    result = np.zeros(source.shape, gradient.dtype)
    turned = np.moveaxis(result, axis, 0)
    spread = np.moveaxis(
        gradient, tuple(range(axis, axis + numbers.ndim)), tuple(range(numbers.ndim))
    )
    np.add.at(turned, numbers, spread)
    return {0: result}


@_rule("Concat")
def _joined(
    node: ir.Node, inputs: Sequence[Array | None], outputs: Sequence[Array], gradient: Array
) -> Gradients:
    axis = node.attributes.get_int("axis", 0)
    sizes = [part.shape[axis] for part in inputs if part is not None]
    parts = np.split(gradient, np.cumsum(sizes)[:-1], axis=axis)
    return dict(enumerate(parts))


@_rule("Split")
def _split(
    node: ir.Node, inputs: Sequence[Array | None], outputs: Sequence[Array], gradient: Array
) -> Gradients:
    raise AssertionError("a Split has several outputs: pull_back_split")


@_rule("Where")
def _chosen(
    node: ir.Node, inputs: Sequence[Array | None], outputs: Sequence[Array], gradient: Array
) -> Gradients:
    asked, first, second = (_given(inputs, index) for index in range(3))
    return {
        1: _summed_to(np.where(asked, gradient, 0), first.shape),
        2: _summed_to(np.where(asked, 0, gradient), second.shape),
    }


# -- products and normalisations ------------------------------------------------------------------


@_rule("MatMul")
def _matmul(
    node: ir.Node, inputs: Sequence[Array | None], outputs: Sequence[Array], gradient: Array
) -> Gradients:
    first, second = _given(inputs, 0), _given(inputs, 1)
    if second.ndim == 2 and first.ndim >= 2:
        flat = gradient.reshape(-1, gradient.shape[-1])
        rows = first.reshape(-1, first.shape[-1])
        return {0: (flat @ second.T).reshape(first.shape), 1: rows.T @ flat}
    if first.ndim == 1:
        gradient = np.expand_dims(gradient, -2 if second.ndim > 1 else -1)
    if second.ndim == 1:
        gradient = np.expand_dims(gradient, -1)
    one = first[np.newaxis, :] if first.ndim == 1 else first
    two = second[:, np.newaxis] if second.ndim == 1 else second
    left = gradient @ np.swapaxes(two, -1, -2)
    right = np.swapaxes(one, -1, -2) @ gradient
    return {
        0: _summed_to(left, one.shape).reshape(first.shape),
        1: _summed_to(right, two.shape).reshape(second.shape),
    }


@_rule("Gemm")
def _gemm(
    node: ir.Node, inputs: Sequence[Array | None], outputs: Sequence[Array], gradient: Array
) -> Gradients:
    first, second = _given(inputs, 0), _given(inputs, 1)
    turned = [bool(node.attributes.get_int(name, 0)) for name in ("transA", "transB")]
    alpha = node.attributes.get_float("alpha", 1.0)
    one, two = (first.T if turned[0] else first), (second.T if turned[1] else second)
    left, right = alpha * (gradient @ two.T), alpha * (one.T @ gradient)
    found = {0: left.T if turned[0] else left, 1: right.T if turned[1] else right}
    if len(inputs) > 2 and inputs[2] is not None:
        beta = node.attributes.get_float("beta", 1.0)
        found[2] = _summed_to(beta * gradient, inputs[2].shape)
    return found


@_rule("Softmax")
def _softmax(
    node: ir.Node, inputs: Sequence[Array | None], outputs: Sequence[Array], gradient: Array
) -> Gradients:
    y, axis = outputs[0], node.attributes.get_int("axis", -1)
    weighted = gradient * y
    return {0: weighted - y * weighted.sum(axis=axis, keepdims=True)}


@_rule("ReduceMean")
def _mean(
    node: ir.Node, inputs: Sequence[Array | None], outputs: Sequence[Array], gradient: Array
) -> Gradients:
    source = _given(inputs, 0)
    axes: Any = tuple(node.attributes.get_ints("axes", ()))
    if not axes and len(inputs) > 1 and inputs[1] is not None:
        axes = tuple(inputs[1].tolist())
    if not axes:
        if node.attributes.get_int("noop_with_empty_axes", 0):
            return {0: gradient}
        axes = tuple(range(source.ndim))
    places = tuple(axis % source.ndim for axis in axes)
    shape = [1 if axis in places else size for axis, size in enumerate(source.shape)]
    count = math.prod(source.shape[axis] for axis in places)
    spread = np.broadcast_to(gradient.reshape(shape), source.shape)
    return {0: spread * np.array(1 / count, source.dtype)}


@_rule("LayerNormalization")
def _layer_norm(
    node: ir.Node, inputs: Sequence[Array | None], outputs: Sequence[Array], gradient: Array
) -> Gradients:
    x, scale = _given(inputs, 0), _given(inputs, 1)
    centred = x - x.mean(axis=-1, keepdims=True)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    rate = 1 / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + np.array(epsilon, x.dtype))
    normal = centred * rate
    inner = gradient * scale
    means = inner.mean(axis=-1, keepdims=True)
    along = (inner * normal).mean(axis=-1, keepdims=True)
    found = {
        0: rate * (inner - means - normal * along),
        1: _summed_to(gradient * normal, scale.shape),
    }
    if len(inputs) > 2 and inputs[2] is not None:
        found[2] = _summed_to(gradient, inputs[2].shape)
    return found
