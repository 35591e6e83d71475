"""Steps of random models that the rewrites of shapes, slices, masks and states look for."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper
from random_graphs import Builder


def _numbers(b: Builder, *numbers: int) -> str:
    return b.constant(np.array(numbers, np.int64))


def zero_bias(b: Builder) -> None:
    item = b.pick(2)
    if item is None or not isinstance(item.shape[1], int):
        return
    out = b.node("MatMul", [item.name, b.constant(b.weights(item.shape[1], 3))], (item.shape[0], 3))
    zeros = np.full(3, b.rng.choice([0.0, 0.0, 1e-3]), np.float32)
    b.node("Add", [out.name, b.constant(zeros)], out.shape)


def started_state(b: Builder) -> None:
    """An LSTM whose first state is filled with a number, mostly 0, to a computed shape."""
    item = b.pick(3)
    if item is None or not isinstance(item.shape[2], int):
        return
    steps, batch, width = item.shape
    shape = b.node("Shape", [item.name], (3,), dtype=TensorProto.INT64)
    size = b.node("Gather", [shape.name, _numbers(b, 1)], (1,), dtype=TensorProto.INT64)
    parts = [_numbers(b, 1), size.name, _numbers(b, 2)]
    target = b.node("Concat", parts, (3,), axis=0, dtype=TensorProto.INT64)
    fill = helper.make_tensor("f", 1, [1], [float(b.rng.choice([0.0, 0.0, 0.5]))])
    state = b.node("ConstantOfShape", [target.name], (1, batch, 2), value=fill)
    weights = [b.constant(b.weights(1, 8, count)) for count in (width, 2)]
    inputs = [item.name, *weights, "", "", state.name, state.name]
    b.node("LSTM", inputs, (steps, 1, batch, 2), hidden_size=2)


def computed_shape(b: Builder) -> None:
    """Sizes taken one by one and put together again, to expand or reshape with."""
    item = b.pick()
    if item is None or len(item.shape) < 2:
        return
    shape = b.node("Shape", [item.name], (len(item.shape),), dtype=TensorProto.INT64)
    pieces = []
    for axis in range(len(item.shape)):
        place = b.constant(np.array(axis, np.int64))
        size = b.node("Gather", [shape.name, place], (), dtype=TensorProto.INT64)
        last = b.node("Unsqueeze", [size.name, _numbers(b, 0)], (1,), dtype=TensorProto.INT64)
        pieces.append(last.name)
    if b.rng.random() < 0.5:
        pieces[int(b.rng.integers(len(pieces)))] = _numbers(b, -1)
    target = b.node("Concat", pieces, (len(pieces),), axis=0, dtype=TensorProto.INT64)
    b.node("Reshape", [item.name, target.name], item.shape)


def roll(b: Builder) -> None:
    item = b.pick()
    if item is None or not item.shape or not isinstance(item.shape[-1], int) or item.shape[-1] < 2:
        return
    size = item.shape[-1]
    middle = int(b.rng.integers(1, size))
    late = middle if b.rng.random() < 0.8 else max(1, middle - 1)
    axis = _numbers(b, -1)
    first = b.node(
        "Slice", [item.name, _numbers(b, 0), _numbers(b, middle), axis], (*item.shape[:-1], middle)
    )
    second = b.node(
        "Slice",
        [item.name, _numbers(b, late), _numbers(b, 99), axis],
        (*item.shape[:-1], size - late),
    )
    width = size - late + middle
    b.node("Concat", [second.name, first.name], (*item.shape[:-1], width), axis=-1)


def patches(b: Builder) -> None:
    """Every second element along two axes, from shared Slices."""
    item = b.pick(4)
    if item is None or not all(isinstance(size, int) and size >= 2 for size in item.shape[2:]):
        return
    high, wide = item.shape[2], item.shape[3]
    assert isinstance(high, int)
    assert isinstance(wide, int)
    two, end = _numbers(b, 2), _numbers(b, 99)
    rows = b.node(
        "Slice",
        [item.name, _numbers(b, 0), end, _numbers(b, 2), two],
        (*item.shape[:2], (high + 1) // 2, wide),
    )
    for start in (0, 1):
        b.node(
            "Slice",
            [rows.name, _numbers(b, start), end, _numbers(b, 3), two],
            (*rows.shape[:3], (wide - start + 1) // 2),
        )


def mask(b: Builder) -> None:
    """Two choices by one condition, which a difference of constants decides."""
    item = b.pick(2)
    if item is None or not isinstance(item.shape[1], int):
        return
    size = item.shape[1]
    column = b.constant(b.rng.integers(0, 2, (size, 1)).astype(np.float32))
    row = b.constant(b.rng.integers(0, 2, size).astype(np.float32))
    zero, hundred = (b.constant(np.array(number, np.float32)) for number in (0, -100))
    difference = b.node("Sub", [column, row], (size, size))
    same = b.node("Equal", [difference.name, zero], (size, size), dtype=TensorProto.BOOL)
    inner = b.node("Where", [same.name, difference.name, hundred], (size, size))
    outer = b.node("Where", [same.name, zero, inner.name], (size, size))
    b.node("MatMul", [item.name, outer.name], (item.shape[0], size))


def moved_ones(b: Builder) -> None:
    """A new axis that a Transpose moves, before a Reshape or a reduction."""
    item = b.pick(2)
    if item is None:
        return
    high, wide = item.shape
    out = b.node("Unsqueeze", [item.name, _numbers(b, 1)], (high, 1, wide))
    perm = [int(axis) for axis in b.rng.permutation(3)]
    moved = b.node("Transpose", [out.name], tuple(out.shape[axis] for axis in perm), perm=perm)
    if isinstance(wide, int) and b.rng.random() < 0.5:
        b.node("Reshape", [moved.name, _numbers(b, -1, wide)], ("?", wide))
        b.items.pop()  # its first size may be another one
    else:
        b.node("ReduceMax", [moved.name], moved.shape[1:], axes=[0], keepdims=0)


def expanded(b: Builder) -> None:
    """A number or a row that is expanded to the shape of its partner."""
    item = b.pick()
    if item is None or not item.shape or not isinstance(item.shape[-1], int):
        return
    shape = b.node("Shape", [item.name], (len(item.shape),), dtype=TensorProto.INT64)
    if b.rng.random() < 0.5:
        fill = helper.make_tensor("f", 1, [1], [0.75])
        wide = b.node("ConstantOfShape", [shape.name], item.shape, value=fill)
    else:
        wide = b.node("Expand", [b.constant(b.weights(item.shape[-1])), shape.name], item.shape)
    b.node(str(b.rng.choice(["Add", "Min", "Mul"])), [item.name, wide.name], item.shape)


def turned_size(b: Builder) -> None:
    """A size that is read behind a Transpose, and a list of numbers of that length."""
    item = b.pick(3)
    if item is None:
        return
    perm = [int(axis) for axis in b.rng.permutation(3)]
    turned = b.node("Transpose", [item.name], tuple(item.shape[axis] for axis in perm), perm=perm)
    shape = b.node("Shape", [turned.name], (3,), dtype=TensorProto.INT64)
    place = b.constant(np.array(int(b.rng.integers(-3, 3)), np.int64))
    size = b.node("Gather", [shape.name, place], (), dtype=TensorProto.INT64)
    number = b.node("Cast", [size.name], (), to=1)
    b.items.pop()  # the other steps count on an axis
    b.node("Mul", [item.name, number.name], item.shape)


def old_normalization(b: Builder) -> None:
    item = b.pick(4)
    if item is None or not isinstance(item.shape[1], int):
        return
    width = item.shape[1]
    scale, bias, mean = (b.constant(b.weights(width)) for _ in range(3))
    variance = b.constant(np.abs(b.weights(width)) + np.float32(0.5))
    out = b.node("BatchNormalization", [item.name, scale, bias, mean, variance], item.shape)
    for operator in ("Mul", "Add"):
        factor = b.constant(b.weights(width, 1, 1))
        out = b.node(operator, [out.name, factor], item.shape)


REWRITES: tuple[Any, ...] = (
    zero_bias,
    started_state,
    computed_shape,
    roll,
    patches,
    mask,
    moved_ones,
    expanded,
    turned_size,
    old_normalization,
)
