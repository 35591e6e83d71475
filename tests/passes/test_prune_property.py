"""Random small networks with random zeros: outputs never change, and a second run does nothing.

Wrong removal is the worst that this pass could do, so the networks are made to invite it:
activations that do not keep zero, padding, joins with zeros on one side, unread inputs, constants.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from prune_models import Net, Pruned, count_parameters

GRAPHS = 200
SIZES = (4, 6, 8)


class Builder:
    """Grows a network by random steps over a pool of (value, channels, height)."""

    def __init__(self, seed: int) -> None:
        self.net = Net(seed)
        self.rng = np.random.default_rng(10_000 + seed)
        self.count = 0
        self.height: dict[str, int] = {}
        x = self.net.input("x", ["n", int(self.pick(SIZES)), 8, 8])
        self.height[x] = 8
        self.pool = [x]
        self.steps: list[Callable[[], str]] = [
            *[self.conv] * 5,
            *[self.activation] * 4,
            *[self.batch_norm] * 2,
            *[self.join] * 3,
            *(self.depthwise, self.concat, self.pool_step, self.vector, self.pad, self.gate),
            *(self.nhwc, self.split, self.transposed, self.softmax, self.scale_up, self.reshaped),
            *(self.sliced, self.gathered, self.grouped, self.grouped, self.shuffled),
        ]

    def pick(self, items):
        return items[int(self.rng.integers(len(items)))]

    def name(self) -> str:
        self.count += 1
        return f"w{self.count}"

    def some(self, count: int) -> np.ndarray:
        """A random subset of channels, often empty, sometimes all."""
        return np.flatnonzero(self.rng.random(count) < self.pick((0, 0, 0.3, 0.6, 1)))

    def value(self) -> str:
        return self.pick(self.pool[-4:])

    def grown(self, result: str, like: str, height: int | None = None) -> str:
        self.height[result] = self.height[like] if height is None else height
        return result

    def conv(self) -> str:
        x = self.value()
        kernel = self.pick((1, 3))
        pad = self.pick((0, kernel // 2)) if self.height[x] > 4 else kernel // 2
        out, name = self.pick(SIZES), self.name()
        zero, unread = self.some(out), self.some(self.net.channels[x])
        bias = bool(self.rng.integers(2))
        y = self.net.conv(x, out, name, kernel=kernel, pad=pad, bias=bias, zero=zero, unread=unread)
        if bias and self.rng.random() < 0.3:
            self.net.weights[f"{name}.b"][zero] = 0.5
        return self.grown(y, x, self.height[x] + 2 * pad - kernel + 1)

    def depthwise(self) -> str:
        x = self.value()
        count = self.net.channels[x]
        out = count * self.pick((1, 2))
        zero = self.some(out)
        y = self.net.conv(x, out, self.name(), group=count, zero=zero) if count > 1 else x
        return self.grown(y, x)

    def grouped(self) -> str:
        x = self.value()
        count = self.net.channels[x]
        groups = self.pick([part for part in (2, 3, 4) if count % part == 0] or [1])
        out = groups * self.pick((1, 2, 4))
        pad, name = self.pick((0, 1)) if self.height[x] > 4 else 1, self.name()
        unread, zero = self.some(count // groups), self.some(out)
        y = self.net.conv(x, out, name, pad=pad, group=groups, zero=zero, unread=unread)
        weight = self.net.weights[f"{name}.w"]
        weight[self.rng.random(weight.shape[:2]) < self.pick((0, 0.3, 0.7))] = 0
        if self.rng.random() < 0.3:
            self.net.weights[f"{name}.b"][zero] = 0.5
        return self.grown(y, x, self.height[x] + 2 * pad - 2)

    def shuffled(self) -> str:
        x = self.value()
        count, size = self.net.channels[x], self.height[x]
        rows = self.pick([part for part in (2, 3, 4) if count % part == 0] or [1])
        split = self.net.weight(self.name(), np.array([-1, rows, count // rows, size, size]))
        joined = self.net.weight(self.name(), np.array([-1, count, size, size]))
        y = self.net.op("Reshape", [x, split])
        y = self.net.op("Transpose", [y], perm=[0, 2, 1, 3, 4])
        return self.grown(self.net.op("Reshape", [y, joined]), x)

    def transposed(self) -> str:
        x = self.value()
        weight = self.net.random(self.net.channels[x], self.pick(SIZES), 3, 3, scale=0.2)
        weight[self.some(weight.shape[0])] = 0
        weight[:, self.some(weight.shape[1])] = 0
        names = [x, self.net.weight(self.name(), weight)]
        return self.grown(self.net.op("ConvTranspose", names, weight.shape[1], pads=[1] * 4), x)

    def batch_norm(self) -> str:
        x = self.value()
        count = self.net.channels[x]
        shift = {int(index): float(self.pick((-1, 0, 0.4))) for index in self.some(count)}
        dead = self.some(count)
        return self.grown(self.net.batch_norm(x, self.name(), shift=shift, dead=dead), x)

    def activation(self) -> str:
        x = self.value()
        names = ("Relu", "Relu", "Sigmoid", "LeakyRelu", "HardSwish", "Softplus", "Abs", "Floor")
        return self.grown(self.net.op(self.pick((*names, "Identity", "Tanh")), [x]), x)

    def same_shape(self, x: str) -> str:
        fit = [
            other
            for other in self.pool
            if self.height[other] == self.height[x]
            and self.net.channels[other] == self.net.channels[x]
        ]
        return self.pick(fit)

    def join(self) -> str:
        x = self.value()
        op_type = self.pick(("Add", "Add", "Mul", "Sub", "Max", "Min"))
        return self.grown(self.net.op(op_type, [x, self.same_shape(x)]), x)

    def concat(self) -> str:
        x = self.value()
        fit = [other for other in self.pool if self.height[other] == self.height[x]]
        other = self.pick(fit)
        total = self.net.channels[x] + self.net.channels[other]
        if total > 24:
            return x
        return self.grown(self.net.op("Concat", [x, other], total, axis=1), x)

    def split(self) -> str:
        x = self.value()
        half = self.net.channels[x] // 2
        if half < 1:
            return x
        sizes = self.net.weight(self.name(), np.array([half, self.net.channels[x] - half]))
        first = self.net.op("Split", [x, sizes], half, axis=1)
        second = f"{first}_rest"
        self.net.nodes[-1].output.append(second)
        self.net.channels[second] = self.net.channels[x] - half
        self.pool.append(self.grown(second, x))
        return self.grown(first, x)

    def pool_step(self) -> str:
        x = self.value()
        op_type = self.pick(("MaxPool", "AveragePool"))
        attrs = {"count_include_pad": 1} if op_type == "AveragePool" else {}
        y = self.net.op(op_type, [x], kernel_shape=[3, 3], pads=[1] * 4, **attrs)
        return self.grown(y, x)

    def vector(self) -> str:
        x = self.value()
        content = self.net.random(self.net.channels[x], 1, 1)
        content[self.some(len(content))] = self.pick((0, 0.5, -1))
        y = self.net.op(
            self.pick(("Add", "Mul", "Sub")), [x, self.net.weight(self.name(), content)]
        )
        return self.grown(y, x)

    def pad(self) -> str:
        x = self.value()
        if self.height[x] > 8:
            return x
        pads = self.net.weight(self.name(), np.array([0, 0, 1, 1, 0, 0, 1, 1]))
        fill = self.net.weight(self.name(), np.float32(self.pick((0, 0.5))))
        mode = self.pick(("constant", "constant", "edge"))
        inputs = [x, pads, fill] if mode == "constant" else [x, pads]
        return self.grown(self.net.op("Pad", inputs, mode=mode), x, self.height[x] + 2)

    def gate(self) -> str:
        x = self.value()
        pooled = self.net.op("GlobalAveragePool", [x])
        count = self.net.channels[x]
        out = self.pick((count, 1))
        y = self.net.conv(pooled, out, self.name(), kernel=1, zero=self.some(out))
        y = self.net.op(self.pick(("Sigmoid", "Relu")), [y])
        return self.grown(self.net.op("Mul", [x, y], count), x)

    def nhwc(self) -> str:
        x = self.value()
        y = self.net.op("Transpose", [x], perm=[0, 2, 3, 1])
        out = self.pick(SIZES)
        zero, unread = self.some(out), self.some(self.net.channels[x])
        y = self.net.linear(y, out, self.name(), zero=zero, unread=unread)
        return self.grown(self.net.op("Transpose", [y], perm=[0, 3, 1, 2]), x)

    def softmax(self) -> str:
        x = self.value()
        return self.grown(self.net.op("Softmax", [x], axis=self.pick((1, 3))), x)

    def scale_up(self) -> str:
        x = self.value()
        if self.height[x] > 5:
            return x
        scales = self.net.weight(self.name(), np.array([1, 1, 2, 2], dtype=np.float32))
        y = self.net.op("Resize", [x, "", scales], mode=self.pick(("nearest", "linear")))
        return self.grown(y, x, self.height[x] * 2)

    def reshaped(self) -> str:
        """To (n, channels, height * width) and back, or through one flat axis."""
        x = self.value()
        size, count = self.height[x], self.net.channels[x]
        middle = self.pick(([0, 0, -1], [0, count, size * size], [-1, count * size * size]))
        y = self.net.op("Reshape", [x, self.net.weight(self.name(), np.array(middle))])
        if self.rng.random() < 0.5:
            y = self.net.op("Relu", [y])
        back = self.net.weight(self.name(), np.array([-1, count, size, size]))
        return self.grown(self.net.op("Reshape", [y, back]), x)

    def sliced(self) -> str:
        x = self.value()
        count = self.net.channels[x]
        start = int(self.rng.integers(count))
        end = int(self.rng.integers(start, count)) + 1
        bounds = [self.net.weight(self.name(), np.array([part])) for part in (start, end, 1)]
        return self.grown(self.net.op("Slice", [x, *bounds], end - start), x)

    def gathered(self) -> str:
        x = self.value()
        count = self.pick(SIZES)
        picked = self.rng.integers(-self.net.channels[x], self.net.channels[x], count)
        names = [x, self.net.weight(self.name(), picked)]
        return self.grown(self.net.op("Gather", names, count, axis=1), x)

    def head(self) -> str:
        x = self.pool[-1]
        size = self.net.channels[x] * self.height[x] ** 2
        way = self.pick(("flatten", "global", "mean", "conv"))
        if way == "conv":
            return self.net.conv(x, 3, self.name(), unread=self.some(self.net.channels[x]))
        if way == "flatten":
            y = self.net.op("Flatten", [x], size)
        elif way == "mean":
            y = self.net.op("ReduceMean", [x], axes=[2, 3], keepdims=0)
        else:
            y = self.net.op("Flatten", [self.net.op("GlobalMaxPool", [x])])
        y = self.net.gemm(y, 8, self.name(), zero=self.some(8))
        return self.net.linear(self.net.op("Relu", [y]), 3, self.name(), unread=self.some(8))

    def build(self) -> list[str]:
        for _ in range(int(self.rng.integers(4, 14))):
            self.pool.append(self.pick(self.steps)())
        outputs = [self.head()]
        if self.rng.random() < 0.2 and self.pool[-2] != "x":
            outputs.append(self.net.op("Neg", [self.pool[-2]]))
        return outputs


def prune(seed: int) -> Pruned:
    builder = Builder(seed)
    pruned = Pruned(builder.net.model(*builder.build()))
    pruned.assert_equal(size=2, seeds=1, tolerance=1e-5)
    return pruned


def test_random_networks_keep_their_outputs():
    cut = 0
    for seed in range(GRAPHS):
        pruned = prune(seed)
        smaller = pruned.parameters() < count_parameters(pruned.before)
        assert pruned.changes > 0 or not smaller, seed
        cut += smaller
    assert cut > GRAPHS // 2, "the networks do not exercise the pass"


@pytest.mark.slow
def test_many_more_random_networks_keep_their_outputs():
    for seed in range(GRAPHS, 20 * GRAPHS):
        prune(seed)
