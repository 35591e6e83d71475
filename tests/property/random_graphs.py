"""Random small models that hold what optimizers trip over.

Values are tracked with their dtype and shape; the first dimension of an input may be the symbol
``N``. Constants, identities, casts to the same type, transposes that cancel, shape arithmetic,
shared weights, zeroed channels, If branches with captures, and random operators all occur.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dim = int | str


@dataclass
class Item:
    name: str
    shape: tuple[Dim, ...]
    dtype: int = TensorProto.FLOAT


@dataclass
class Builder:
    """Grows a graph node by node from a seeded generator."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    counter: int = 0

    def fresh(self) -> str:
        self.counter += 1
        return f"v{self.counter}"

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        """An initializer or a Constant node, at random."""
        name = self.fresh()
        tensor = numpy_helper.from_array(array, name)
        if self.rng.random() < 0.3:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.initializers.append(tensor)
        return name

    def weights(self, *shape: int) -> np.ndarray[Any, Any]:
        """Random weights; sometimes whole rows or columns are zero."""
        array = self.rng.standard_normal(shape).astype(np.float32) * 0.5
        if len(shape) >= 2 and self.rng.random() < 0.4:
            array[self.rng.random(shape[0]) < 0.5] = 0
        if len(shape) >= 2 and self.rng.random() < 0.3:
            array[:, self.rng.random(shape[1]) < 0.5] = 0
        return array

    def node(self, op: str, inputs: list[str], shape: tuple[Dim, ...], **attributes: Any) -> Item:
        item = Item(self.fresh(), shape, attributes.pop("dtype", TensorProto.FLOAT))
        self.nodes.append(helper.make_node(op, inputs, [item.name], **attributes))
        self.items.append(item)
        return item

    def pick(self, rank: int | None = None) -> Item | None:
        fitting = [
            item
            for item in self.items
            if item.dtype == TensorProto.FLOAT and (rank is None or len(item.shape) == rank)
        ]
        return fitting[int(self.rng.integers(len(fitting)))] if fitting else None


UNARY = ("Relu", "Sigmoid", "Tanh", "Neg", "Abs", "Identity", "HardSwish", "Softplus", "LeakyRelu")


def unary(b: Builder) -> None:
    item = b.pick()
    if item:
        b.node(str(b.rng.choice(UNARY)), [item.name], item.shape)


def scalar_arithmetic(b: Builder) -> None:
    item = b.pick()
    number = b.rng.choice([0.0, 1.0, -0.0, 2.0, 0.5])
    if item:
        constant = b.constant(np.array(number, np.float32))
        operator = str(b.rng.choice(["Add", "Sub", "Mul"]))
        b.node(operator, [item.name, constant], item.shape)


def binary(b: Builder) -> None:
    first = b.pick()
    if first is None:
        return
    others = [item for item in b.items if item.shape == first.shape and item.dtype == first.dtype]
    second = others[int(b.rng.integers(len(others)))]
    operator = str(b.rng.choice(["Add", "Mul", "Sub", "Max", "Min"]))
    b.node(operator, [first.name, second.name], first.shape)


def same_cast(b: Builder) -> None:
    item = b.pick()
    if item:
        b.node("Cast", [item.name], item.shape, to=TensorProto.FLOAT)


def wide_cast(b: Builder) -> None:
    item = b.pick()
    if item:
        middle = b.node("Cast", [item.name], item.shape, to=11, dtype=TensorProto.DOUBLE)
        b.node("Cast", [middle.name], item.shape, to=1)


def transpose(b: Builder) -> None:
    item = b.pick()
    if item:
        perm = [int(axis) for axis in b.rng.permutation(len(item.shape))]
        b.node("Transpose", [item.name], tuple(item.shape[axis] for axis in perm), perm=perm)


def linear(b: Builder) -> None:
    item = b.pick(2)
    if item is None or not isinstance(item.shape[1], int):
        return
    width = int(b.rng.integers(2, 7))
    weight = b.constant(b.weights(item.shape[1], width))
    bias = b.constant(b.weights(width))
    if b.rng.random() < 0.5:
        out = b.node("MatMul", [item.name, weight], (item.shape[0], width))
        b.node("Add", [out.name, bias], (item.shape[0], width))
    else:
        b.node("Gemm", [item.name, weight, bias], (item.shape[0], width))


def conv_batchnorm(b: Builder) -> None:
    item = b.pick(4)
    if item is None or not all(isinstance(size, int) for size in item.shape[1:]):
        return
    channels = int(b.rng.integers(2, 7))
    weight = b.constant(b.weights(channels, item.shape[1], 3, 3))
    inputs = [item.name, weight]
    if b.rng.random() < 0.5:
        bias = b.weights(channels)
        bias[b.rng.random(channels) < 0.5] = 0
        inputs.append(b.constant(bias))
    shape = (item.shape[0], channels, *item.shape[2:])
    out = b.node("Conv", inputs, shape, pads=[1, 1, 1, 1])
    if b.rng.random() < 0.6:
        scale, shift = b.weights(channels), b.weights(channels)
        dead = b.rng.random(channels) < 0.3
        scale[dead] = shift[dead] = 0
        mean, variance = b.weights(channels), np.abs(b.weights(channels)) + np.float32(0.1)
        parameters = [b.constant(array) for array in (scale, shift, mean, variance)]
        out = b.node("BatchNormalization", [out.name, *parameters], shape)
    b.node(str(b.rng.choice(UNARY)), [out.name], shape)


def flatten(b: Builder) -> None:
    item = b.pick(4)
    if item is None or not all(isinstance(size, int) for size in item.shape[1:]):
        return
    width = int(np.prod([int(size) for size in item.shape[1:]]))
    if b.rng.random() < 0.5:
        b.node("Flatten", [item.name], (item.shape[0], width), axis=1)
        return
    target = b.constant(np.array([-1, width], np.int64))
    b.node("Reshape", [item.name, target], (item.shape[0], width))


def shape_chain(b: Builder) -> None:
    """Shape, Gather, Unsqueeze, Concat, Reshape: what exporters write for ``x.view(b, -1)``."""
    item = b.pick(3)
    if item is None or not all(isinstance(size, int) for size in item.shape[1:]):
        return
    dims = b.node("Shape", [item.name], (3,), dtype=TensorProto.INT64)
    first = b.constant(np.array(0, np.int64))
    size = b.node("Gather", [dims.name, first], (), dtype=TensorProto.INT64)
    axes = b.constant(np.array([0], np.int64))
    lifted = b.node("Unsqueeze", [size.name, axes], (1,), dtype=TensorProto.INT64)
    rest = b.constant(np.array([-1], np.int64))
    target = b.node("Concat", [lifted.name, rest], (2,), axis=0, dtype=TensorProto.INT64)
    width = int(item.shape[1]) * int(item.shape[2])
    b.node("Reshape", [item.name, target.name], (item.shape[0], width))


def squeeze_pair(b: Builder) -> None:
    item = b.pick()
    if item is None or len(item.shape) > 3:
        return
    axis = b.constant(np.array([0], np.int64))
    lifted = b.node("Unsqueeze", [item.name, axis], (1, *item.shape))
    b.node("Squeeze", [lifted.name, axis], item.shape)


def concat(b: Builder) -> None:
    item = b.pick()
    if item is None or len(item.shape) < 2 or not isinstance(item.shape[1], int):
        return
    others = [
        other
        for other in b.items
        if len(other.shape) == len(item.shape)
        and isinstance(other.shape[1], int)
        and other.dtype == item.dtype
        and [s for i, s in enumerate(other.shape) if i != 1]
        == [s for i, s in enumerate(item.shape) if i != 1]
    ]
    other = others[int(b.rng.integers(len(others)))]
    shape = (item.shape[0], item.shape[1] + int(other.shape[1]), *item.shape[2:])
    b.node("Concat", [item.name, other.name], shape, axis=1)


def pool(b: Builder) -> None:
    item = b.pick(4)
    if item is None or not isinstance(item.shape[1], int):
        return
    if b.rng.random() < 0.5:
        b.node("GlobalAveragePool", [item.name], (item.shape[0], item.shape[1], 1, 1))
    else:
        b.node("MaxPool", [item.name], item.shape, kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def softmax(b: Builder) -> None:
    item = b.pick()
    if item:
        b.node("Softmax", [item.name], item.shape, axis=int(b.rng.integers(len(item.shape))))


def branch(b: Builder) -> None:
    """An If on an input or a constant, whose branches capture an outer value."""
    item = b.pick()
    if item is None:
        return
    graphs = []
    for operator in ("Neg", "Abs"):
        name, middle = b.fresh(), b.fresh()
        inner = [
            helper.make_node("Identity", [item.name], [middle]),
            helper.make_node(operator, [middle], [name]),
        ]
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, item.shape)
        graphs.append(helper.make_graph(inner, "branch", [], [output]))
    fixed = b.rng.random() < 0.4
    flag = b.constant(np.array(bool(b.rng.integers(2)))) if fixed else "flag"
    b.node("If", [flag], item.shape, then_branch=graphs[0], else_branch=graphs[1])


STEPS = (
    unary,
    unary,
    scalar_arithmetic,
    binary,
    binary,
    same_cast,
    wide_cast,
    transpose,
    linear,
    linear,
    conv_batchnorm,
    conv_batchnorm,
    flatten,
    shape_chain,
    squeeze_pair,
    concat,
    pool,
    softmax,
    branch,
)


def random_model(seed: int, steps: Sequence[Callable[[Builder], None]] = STEPS) -> onnx.ModelProto:
    """A valid model out of these steps; equal seeds give equal models."""
    b = Builder(np.random.default_rng(seed))
    batch: Dim = "N" if b.rng.random() < 0.7 else 2
    inputs = [
        Item("image", (batch, int(b.rng.integers(1, 4)), 4, 4)),
        Item("row", (batch, int(b.rng.integers(2, 6)))),
        Item("cube", (batch, 2, 3)),
    ]
    b.items.extend(inputs)
    for _ in range(int(b.rng.integers(4, 22))):
        steps[int(b.rng.integers(len(steps)))](b)
    made = [item for item in b.items if item.name.startswith("v")]
    if not made:
        unary(b)
        made = b.items[len(inputs) :]
    count = min(len(made), int(b.rng.integers(1, 4)))
    chosen = [made[int(index)] for index in b.rng.choice(len(made), count, replace=False)]
    if made[-1] not in chosen:
        chosen.append(made[-1])
    graph = helper.make_graph(
        b.nodes,
        "random",
        [
            *(helper.make_tensor_value_info(i.name, i.dtype, i.shape) for i in inputs),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info(i.name, i.dtype, i.shape) for i in chosen],
        b.initializers,
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])


def feeds(model: onnx.ModelProto, seed: int, size: int) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs with the symbol N bound to ``size``."""
    rng = np.random.default_rng(seed)
    result: dict[str, np.ndarray[Any, Any]] = {}
    for value in model.graph.input:
        if value.name == "flag":
            result["flag"] = np.array(bool(rng.integers(2)))
            continue
        dims = [d.dim_value or size for d in value.type.tensor_type.shape.dim]
        result[value.name] = rng.standard_normal(dims).astype(np.float32)
    return result
