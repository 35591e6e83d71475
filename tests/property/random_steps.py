"""More steps for random graphs: selection, reduction, other dtypes, loops, recurrent layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper
from random_graphs import STEPS, Builder, Dim, Item

MORE_UNARY = (
    "Ceil",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "HardSigmoid",
    "Round",
    "Selu",
    "Sign",
    "Softsign",
)


def more_unary(b: Builder) -> None:
    item = b.pick()
    if item:
        bounded = b.node("Tanh", [item.name], item.shape)
        b.node(str(b.rng.choice(MORE_UNARY)), [bounded.name], item.shape)


def clip(b: Builder) -> None:
    item = b.pick()
    if item:
        low = b.constant(np.array(-0.5, np.float32))
        high = b.constant(np.array(b.rng.choice([0.5, 6.0]), np.float32))
        inputs = [item.name, low] if b.rng.random() < 0.3 else [item.name, low, high]
        out = b.node("Clip", inputs, item.shape)
        if b.rng.random() < 0.4:
            b.node("Relu", [out.name], item.shape)


def divide_power(b: Builder) -> None:
    item = b.pick()
    if item:
        number = b.constant(np.array(b.rng.choice([1.0, 2.0, 4.0]), np.float32))
        out = b.node("Div", [item.name, number], item.shape)
        two = b.constant(np.array(b.rng.choice([1.0, 2.0]), np.float32))
        b.node("Pow", [out.name, two], item.shape)


def channel_affine(b: Builder) -> None:
    """A scale or a shift by channel, often right after a Conv."""
    item = b.pick(4)
    if item is None or not isinstance(item.shape[1], int):
        return
    constant = b.constant(b.weights(1, item.shape[1], 1, 1))
    operator = str(b.rng.choice(["Add", "Mul", "Sub", "Div"]))
    if operator == "Div":
        constant = b.constant(np.abs(b.weights(1, item.shape[1], 1, 1)) + np.float32(0.5))
    b.node(operator, [item.name, constant], item.shape)


def cut(b: Builder) -> None:
    """A Slice along the last axis, sometimes of everything, sometimes two that make a whole."""
    item = b.pick()
    if item is None or not item.shape or not isinstance(item.shape[-1], int) or item.shape[-1] < 2:
        return
    size = item.shape[-1]
    middle = int(b.rng.integers(1, size))
    axes = b.constant(np.array([len(item.shape) - 1], np.int64))
    bounds = [(0, size)] if b.rng.random() < 0.3 else [(0, middle), (middle, 2**62)]
    for start, end in bounds:
        limits = [b.constant(np.array([number], np.int64)) for number in (start, end)]
        width = min(end, size) - start
        b.node("Slice", [item.name, *limits, axes], (*item.shape[:-1], width))


def split(b: Builder) -> None:
    item = b.pick()
    if item is None or not item.shape or not isinstance(item.shape[-1], int) or item.shape[-1] < 2:
        return
    size, axis = item.shape[-1], len(item.shape) - 1
    first = int(b.rng.integers(1, size))
    parts = b.constant(np.array([first, size - first], np.int64))
    outputs = [b.fresh(), b.fresh()]
    b.nodes.append(helper.make_node("Split", [item.name, parts], outputs, axis=axis))
    halves = [
        Item(name, (*item.shape[:-1], width))
        for name, width in zip(outputs, (first, size - first), strict=True)
    ]
    b.items.extend(halves)
    if b.rng.random() < 0.5:
        b.node("Concat", outputs, item.shape, axis=axis)


def reduce(b: Builder) -> None:
    item = b.pick()
    if item is None or len(item.shape) < 2:
        return
    axis = int(b.rng.integers(1, len(item.shape)))
    operator = str(b.rng.choice(["ReduceMax", "ReduceMean", "ReduceMin", "ReduceL2"]))
    kept = tuple(size for position, size in enumerate(item.shape) if position != axis)
    out = b.node(operator, [item.name], kept, axes=[axis], keepdims=0)
    if b.rng.random() < 0.5:
        axes = b.constant(np.array([axis], np.int64))
        shape = (*item.shape[:axis], 1, *item.shape[axis + 1 :])
        b.node("Unsqueeze", [out.name, axes], shape)


def choose(b: Builder) -> None:
    """Comparison, Not, Where."""
    item = b.pick()
    if item is None:
        return
    zero = b.constant(np.array(0, np.float32))
    test = b.node("Greater", [item.name, zero], item.shape, dtype=TensorProto.BOOL)
    if b.rng.random() < 0.5:
        test = b.node("Not", [test.name], item.shape, dtype=TensorProto.BOOL)
    other = b.node("Neg", [item.name], item.shape)
    b.node("Where", [test.name, item.name, other.name], item.shape)


def expand(b: Builder) -> None:
    item = b.pick()
    if item is None:
        return
    dims = b.node("Shape", [item.name], (len(item.shape),), dtype=TensorProto.INT64)
    value = b.constant(np.array([1.5], np.float32))
    wide = b.node("Expand", [value, dims.name], item.shape)
    b.node("Add", [item.name, wide.name], item.shape)


def pad(b: Builder) -> None:
    item = b.pick(4)
    if item is None or not all(isinstance(size, int) for size in item.shape[1:]):
        return
    amount = int(b.rng.integers(0, 2))
    pads = b.constant(np.array([0, 0, amount, amount, 0, 0, amount, amount], np.int64))
    height, width = (int(size) + 2 * amount for size in item.shape[2:])
    shape = (item.shape[0], item.shape[1], height, width)
    out = b.node("Pad", [item.name, pads], shape)
    channels = int(item.shape[1])
    weight = b.constant(b.weights(2, channels, 1, 1))
    b.node("Conv", [out.name, weight], (item.shape[0], 2, height, width))


def half_precision(b: Builder) -> None:
    item = b.pick()
    if item:
        narrow = b.node("Cast", [item.name], item.shape, to=10, dtype=TensorProto.FLOAT16)
        flipped = b.node("Abs", [narrow.name], item.shape, dtype=TensorProto.FLOAT16)
        b.node("Cast", [flipped.name], item.shape, to=1)


def integers(b: Builder) -> None:
    """int64 and int32 arithmetic that comes back as floats."""
    item = b.pick()
    if item is None:
        return
    bounded = b.node("Tanh", [item.name], item.shape)
    ten = b.constant(np.array(10, np.float32))
    scaled = b.node("Mul", [bounded.name, ten], item.shape)
    whole = b.node("Cast", [scaled.name], item.shape, to=7, dtype=TensorProto.INT64)
    number = b.constant(np.array(b.rng.choice([0, 1, 3]), np.int64))
    added = b.node("Add", [whole.name, number], item.shape, dtype=TensorProto.INT64)
    short = b.node("Cast", [added.name], item.shape, to=6, dtype=TensorProto.INT32)
    b.node("Cast", [short.name], item.shape, to=1)


def normalize(b: Builder) -> None:
    """A layer normalization in primitive operators, or as one."""
    item = b.pick()
    if item is None or len(item.shape) < 2 or not isinstance(item.shape[-1], int):
        return
    size = item.shape[-1]
    scale = b.constant(b.weights(1, size).reshape(-1))
    shift = b.constant(b.weights(1, size).reshape(-1))
    if b.rng.random() < 0.4:
        b.node("LayerNormalization", [item.name, scale, shift], item.shape, axis=-1)
        return
    reduced = (*item.shape[:-1], 1)
    mean = b.node("ReduceMean", [item.name], reduced, axes=[-1])
    centred = b.node("Sub", [item.name, mean.name], item.shape)
    two = b.constant(np.array(2, np.float32))
    square = b.node("Pow", [centred.name, two], item.shape)
    variance = b.node("ReduceMean", [square.name], reduced, axes=[-1])
    epsilon = b.constant(np.array(1e-5, np.float32))
    shifted = b.node("Add", [variance.name, epsilon], reduced)
    deviation = b.node("Sqrt", [shifted.name], reduced)
    normal = b.node("Div", [centred.name, deviation.name], item.shape)
    scaled = b.node("Mul", [normal.name, scale], item.shape)
    b.node("Add", [scaled.name, shift], item.shape)


def gelu(b: Builder) -> None:
    item = b.pick()
    if item is None:
        return
    numbers = [b.constant(np.array(number, np.float32)) for number in (2**0.5, 1.0, 0.5)]
    divided = b.node("Div", [item.name, numbers[0]], item.shape)
    erf = b.node("Erf", [divided.name], item.shape)
    shifted = b.node("Add", [erf.name, numbers[1]], item.shape)
    product = b.node("Mul", [item.name, shifted.name], item.shape)
    b.node("Mul", [product.name, numbers[2]], item.shape)


def matrix_chain(b: Builder) -> None:
    """Transposes around a product of matrices."""
    item = b.pick(3)
    if item is None or not isinstance(item.shape[2], int):
        return
    swapped = b.node(
        "Transpose", [item.name], (item.shape[0], item.shape[2], item.shape[1]), perm=[0, 2, 1]
    )
    inner: Dim = item.shape[2]
    b.node("MatMul", [swapped.name, item.name], (item.shape[0], inner, inner))


def loop(b: Builder) -> None:
    """A Loop with a known trip count that carries one value and reads an outer one."""
    item = b.pick()
    if item is None:
        return
    turn, going, carried, out, result = (b.fresh() for _ in range(5))
    kept = b.fresh()
    body = helper.make_graph(
        [
            helper.make_node("Identity", [going], [kept]),
            helper.make_node("Add", [carried, item.name], [out]),
        ],
        "body",
        [
            helper.make_tensor_value_info(turn, TensorProto.INT64, []),
            helper.make_tensor_value_info(going, TensorProto.BOOL, []),
            helper.make_tensor_value_info(carried, TensorProto.FLOAT, item.shape),
        ],
        [
            helper.make_tensor_value_info(kept, TensorProto.BOOL, []),
            helper.make_tensor_value_info(out, TensorProto.FLOAT, item.shape),
        ],
    )
    count = b.constant(np.array(int(b.rng.integers(1, 3)), np.int64))
    keep = b.constant(np.array(True))
    b.nodes.append(helper.make_node("Loop", [count, keep, item.name], [result], body=body))
    b.items.append(Item(result, item.shape))


def recurrent(b: Builder) -> None:
    """A GRU over the rows of a cube, its direction axis squeezed away."""
    item = b.pick(3)
    if item is None or not isinstance(item.shape[2], int):
        return
    hidden = 3
    weight = b.constant(b.weights(1, 3 * hidden, item.shape[2]))
    again = b.constant(b.weights(1, 3 * hidden, hidden))
    moved = b.node(
        "Transpose", [item.name], (item.shape[1], item.shape[0], item.shape[2]), perm=[1, 0, 2]
    )
    steps, batch = moved.shape[0], moved.shape[1]
    out = b.node("GRU", [moved.name, weight, again], (steps, 1, batch, hidden), hidden_size=hidden)
    axis = b.constant(np.array([1], np.int64))
    b.node("Squeeze", [out.name, axis], (steps, batch, hidden))


def quantized(b: Builder) -> None:
    item = b.pick()
    if item is None:
        return
    scale = b.constant(np.array(0.05, np.float32))
    zero = b.constant(np.array(3, np.int8))
    out = b.node("QuantizeLinear", [item.name, scale, zero], item.shape, dtype=TensorProto.INT8)
    b.node("DequantizeLinear", [out.name, scale, zero], item.shape)


def folded_weight(b: Builder) -> None:
    """A weight that is computed from constants."""
    item = b.pick(2)
    if item is None or not isinstance(item.shape[1], int):
        return
    raw = b.constant(b.weights(4, item.shape[1]))
    turned = b.node("Transpose", [raw], (item.shape[1], 4), perm=[1, 0])
    b.node("MatMul", [item.name, turned.name], (item.shape[0], 4))


MORE: tuple[Any, ...] = (
    more_unary,
    clip,
    divide_power,
    channel_affine,
    channel_affine,
    cut,
    split,
    reduce,
    choose,
    expand,
    pad,
    half_precision,
    integers,
    normalize,
    gelu,
    matrix_chain,
    loop,
    recurrent,
    quantized,
    folded_weight,
)

ALL_STEPS = (*STEPS, *MORE)
