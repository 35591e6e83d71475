"""Random networks for pruning tests, made to invite a wrong removal.

Activations that do not keep zero, padding, joins with zeros on one side, unread inputs, constants
and operators that mix channels, over nearly everything that the analysis has a rule for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from prune_models import Net

SIZES = (4, 6, 8)
STEP = 2.0**-5


class Builder:
    """Grows a network by random steps over a pool of (value, channels, height).

    Args:
        seed: of everything.
        dtype: of the inputs and weights.
        steps: how many steps, from and to (without).
        plain: only what CNNs and MLPs consist of.
    """

    def __init__(
        self,
        seed: int,
        dtype: type = np.float32,
        steps: tuple[int, int] = (5, 16),
        *,
        plain: bool = False,
    ) -> None:
        self.net = Net(seed, dtype, opset=(17, 17, 21)[seed % 3])
        self.length, self.plain = steps, plain
        self.rng = np.random.default_rng(10_000 + seed)
        self.count = 0
        self.steady = self.net.dtype == np.float16  # no jumps
        self.height: dict[str, int] = {}
        x = self.net.input("x", ["n", int(self.pick(SIZES)), 8, 8])
        self.height[x] = 8
        self.pool = [x]
        self.steps: list[Callable[[], str]] = [] if plain else self.mixed()
        self.steps += [
            *[self.conv] * 5,
            *[self.activation] * 4,
            *[self.batch_norm] * 2,
            *[self.join] * 3,
            *(self.depthwise, self.concat, self.pool_step, self.vector, self.pad, self.gate),
            *(self.nhwc, self.split, self.transposed, self.softmax, self.scale_up, self.reshaped),
            *(self.sliced, self.gathered, self.grouped, self.grouped, self.shuffled),
            *(
                self.twins,
                self.twins,
                self.prelu,
                self.feed_forward,
                self.squeezed,
                self.stacked,
            ),
        ]

    def mixed(self) -> list[Callable[[], str]]:
        """Steps with constructs that mix channels, and those that few networks have."""
        return [
            *(self.attention, self.attention, self.recurrent, self.recurrent, self.layer_norm),
            *(self.rms_norm, self.group_norm, self.depth_space, self.tiled, self.expanded),
            *(self.grouped_transposed, self.reduced, self.local_norm, self.cast, self.spelled),
            *(self.instance_norm, self.where, self.table, self.swiglu, self.l2_norm),
            self.clip,
        ]

    def pick(self, items):
        return items[int(self.rng.integers(len(items)))]

    def name(self) -> str:
        self.count += 1
        return f"w{self.count}"

    def some(self, count: int) -> np.ndarray:
        """A random subset of channels, often empty, sometimes all."""
        shares = (0, 0, 0.2, 0.4) if self.plain else (0, 0, 0.3, 0.6, 1)
        return np.flatnonzero(self.rng.random(count) < self.pick(shares))

    def value(self) -> str:
        return self.pick(self.pool[-2 if self.plain else -4 :])

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

    def twins(self) -> str:
        """Some channels are the same, but for what the next steps do to them."""
        x = self.conv()
        node, out = self.net.nodes[-1], self.net.channels[x]
        vectors = [self.net.weights[name] for name in node.input[1:]]
        x = self.net.batch_norm(x, self.name()) if self.rng.random() < 0.5 else x
        if x != node.output[0]:
            vectors += [self.net.weights[name] for name in self.net.nodes[-1].input[1:]]
        for vector in vectors[: len(vectors) - bool(self.rng.random() < 0.2)]:
            vector[out // 2 :] = vector[: out - out // 2]
        y = self.net.op(self.pick(("Relu", "Tanh", "Identity")), [x])
        self.height[y] = self.height[node.output[0]]
        return y

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
        names = ["Relu", "Relu", "Sigmoid", "LeakyRelu", "HardSwish", "Softplus", "Abs", "Elu"]
        if not self.steady and not self.plain:
            names.append("Floor")  # half floats meet its steps too often
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
        other = self.same_shape(x)
        if self.plain:  # no constants that only ranges of values would tell
            op_type = self.pick(("Add", "Add", "Mul") if x == other else ("Add", "Mul", "Add"))
        else:
            op_type = self.pick(("Add", "Add", "Mul", "Sub", "Max", "Min"))
        return self.grown(self.net.op(op_type, [x, other]), x)

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
        fill = self.net.weight(self.name(), self.number((0, 0.5)))
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

    def number(self, numbers) -> np.ndarray:
        return np.array(self.pick(numbers), dtype=self.net.dtype)

    def ints(self, *numbers: int) -> str:
        return self.net.weight(self.name(), np.array(numbers, dtype=np.int64))

    def reduce(self, op_type: str, x: str, axes: list[int], **attrs) -> str:
        """Axes are an attribute up to opset 17 and an input from 18 on (ReduceSum: 13)."""
        if self.net.opset >= 18 or op_type == "ReduceSum":
            return self.net.op(op_type, [x, self.ints(*axes)], **attrs)
        return self.net.op(op_type, [x], axes=axes, **attrs)

    def sequence(self, x: str) -> str:
        """``(n, channels, h, h)`` as ``(n, h * h, channels)``."""
        y = self.net.op("Reshape", [x, self.ints(0, 0, -1)])
        return self.net.op("Transpose", [y], perm=[0, 2, 1])

    def image(self, y: str, like: str, channels: int) -> str:
        """The way back from `sequence`."""
        size = self.height[like]
        y = self.net.op("Transpose", [y], channels, perm=[0, 2, 1])
        y = self.net.op("Reshape", [y, self.ints(-1, channels, size, size)], channels)
        return self.grown(y, like)

    def projected(self, x: str, out: int, zero, unread=()) -> str:
        if self.rng.random() < 0.5:
            return self.net.linear(x, out, self.name(), zero=zero, unread=unread)
        weight = self.net.random(self.net.channels[x], out, scale=0.4)
        weight[:, list(zero)] = 0
        weight[list(unread)] = 0
        return self.net.op("MatMul", [x, self.net.weight(self.name(), weight)], out)

    def attention(self) -> str:
        x = self.value()
        if self.height[x] > 6:
            return x
        heads, size = self.pick((1, 2, 3)), self.pick((2, 4))
        width = heads * size
        dead = np.flatnonzero(np.repeat(self.rng.random(heads) < self.pick((0, 0.5)), size))
        y = self.sequence(x)
        self.net.channels[y] = self.net.channels[x]
        parts = []
        for turn in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
            zero = np.union1d(dead, self.some(width)).astype(int)
            part = self.projected(y, width, zero if self.rng.random() < 0.7 else dead)
            part = self.net.op("Reshape", [part, self.ints(0, 0, heads, size)])
            parts.append(self.net.op("Transpose", [part], perm=turn))
        scores = self.net.op("MatMul", parts[:2])
        scale = self.net.weight(self.name(), self.number((0.5, 0.7)))
        scores = self.net.op("Softmax", [self.net.op("Mul", [scores, scale])], axis=-1)
        y = self.net.op("Transpose", [self.net.op("MatMul", [scores, parts[2]])], perm=[0, 2, 1, 3])
        y = self.net.op("Reshape", [y, self.ints(0, 0, width)], width)
        out = self.pick((self.net.channels[x], 6))
        y = self.projected(y, out, self.some(out), dead if self.rng.random() < 0.5 else ())
        return self.image(y, x, out)

    def recurrent(self) -> str:
        x = self.value()
        if self.height[x] > 6:
            return x
        op_type, gates = self.pick((("LSTM", 4), ("GRU", 3), ("RNN", 1)))
        both = bool(self.rng.integers(2))
        sides, units, features = 1 + both, self.pick((3, 4, 6)), self.net.channels[x]
        w = self.net.random(sides, gates, units, features, scale=0.4)
        r = self.net.random(sides, gates, units, units, scale=0.4)
        bias = self.net.random(sides, 2, gates, units, scale=0.3)
        for side in range(sides):
            dead = self.some(units)
            w[side][:, dead], r[side][:, dead], bias[side][:, :, dead] = 0, 0, 0
            r[side][..., self.some(units)] = 0
        w[..., self.some(features)] = 0
        names = [
            self.net.weight(self.name(), w.reshape(sides, gates * units, features)),
            self.net.weight(self.name(), r.reshape(sides, gates * units, units)),
            self.net.weight(self.name(), bias.reshape(sides, 2 * gates * units)),
        ]
        y = self.net.op("Reshape", [x, self.ints(0, 0, -1)])
        y = self.net.op("Transpose", [y], perm=[2, 0, 1])
        attrs = {"direction": "bidirectional"} if both else {}
        y = self.net.op(op_type, [y, *names], units, hidden_size=units, **attrs)
        y = self.net.op("Transpose", [y], perm=[2, 0, 1, 3])
        y = self.net.op("Reshape", [y, self.ints(0, 0, sides * units)], sides * units)
        return self.image(y, x, sides * units)

    def layer_norm(self) -> str:
        x = self.value()
        count = self.net.channels[x]
        scale = self.net.random(count)
        scale[self.some(count)] = 0
        shift = self.net.random(count)
        shift[self.some(count)] = 0
        names = [self.net.weight(self.name(), part) for part in (scale, shift)]
        y = self.net.op("LayerNormalization", [self.sequence(x), *names], count, axis=-1)
        if self.rng.random() < 0.5:
            self.net.channels[y] = count
            out = self.pick(SIZES)
            return self.image(self.projected(y, out, self.some(out)), x, out)
        return self.image(y, x, count)

    def rms_norm(self) -> str:
        x = self.value()
        count = self.net.channels[x]
        y = self.sequence(x)
        two, small = (self.net.weight(self.name(), self.number((part,))) for part in (2, 1e-2))
        mean = self.reduce("ReduceMean", self.net.op("Pow", [y, two]), [-1], keepdims=1)
        root = self.net.op("Sqrt", [self.net.op("Add", [mean, small])])
        scale = self.net.random(count)
        scale[self.some(count)] = 0
        y = self.net.op("Mul", [self.net.op("Div", [y, root]), self.net.weight(self.name(), scale)])
        return self.image(y, x, count)

    def group_norm(self) -> str:
        x = self.value()
        count = self.net.channels[x]
        groups = self.pick([part for part in (1, 2, 3, 4) if count % part == 0])
        if self.net.opset < 21 or self.net.dtype != np.float32:
            return x
        scale, shift = self.net.random(count), self.net.random(count)
        scale[self.some(count)] = 0
        shift[self.some(count)] = 0
        names = [self.net.weight(self.name(), part) for part in (scale, shift)]
        return self.grown(self.net.op("GroupNormalization", [x, *names], num_groups=groups), x)

    def instance_norm(self) -> str:
        x = self.value()
        parts = [self.net.random(self.net.channels[x]) for _ in range(2)]
        for part in parts:
            part[self.some(len(part))] = 0
        names = [self.net.weight(self.name(), part) for part in parts]
        return self.grown(self.net.op("InstanceNormalization", [x, *names], epsilon=0.01), x)

    def local_norm(self) -> str:
        x = self.value()
        return self.grown(self.net.op("LRN", [x], size=3), x)

    def l2_norm(self) -> str:
        x = self.value()
        norm = self.reduce("ReduceL2", x, [1], keepdims=1)
        norm = self.net.op("Max", [norm, self.net.weight(self.name(), self.number((0.1,)))])
        return self.grown(self.net.op("Div", [x, norm]), x)

    def depth_space(self) -> str:
        x = self.value()
        count, size = self.net.channels[x], self.height[x]
        if self.rng.random() < 0.4 and size % 2 == 0 and count <= 6:
            y = self.net.op("SpaceToDepth", [x], count * 4, blocksize=2)
            return self.grown(y, x, size // 2)
        if count % 4 or size > 8:
            return x
        mode = self.pick(("DCR", "CRD"))
        y = self.net.op("DepthToSpace", [x], count // 4, blocksize=2, mode=mode)
        return self.grown(y, x, size * 2)

    def tiled(self) -> str:
        x = self.value()
        times = 2 if self.net.channels[x] <= 8 else 1
        y = self.net.op("Tile", [x, self.ints(1, times, 1, 1)], self.net.channels[x] * times)
        return self.grown(y, x)

    def expanded(self) -> str:
        x = self.value()
        size, count = self.height[x], self.net.channels[x]
        pooled = self.net.op("GlobalMaxPool", [x])
        y = self.net.op("Expand", [pooled, self.ints(1, count, size, size)])
        return self.grown(self.net.op("Add", [x, y]), x)

    def grouped_transposed(self) -> str:
        x = self.value()
        count = self.net.channels[x]
        groups = self.pick([part for part in (2, 3, 4) if count % part == 0] or [1])
        each = self.pick((1, 2))
        weight = self.net.random(count, each, 3, 3, scale=0.2)
        weight[self.some(count)] = 0
        bias = self.net.random(groups * each)
        for group in range(groups):
            dead = self.some(each)
            weight.reshape(groups, -1, each, 3, 3)[group][:, dead] = 0
            bias[group * each + dead] = 0
        names = [self.net.weight(self.name(), part) for part in (weight, bias)]
        attrs = {"pads": [1] * 4, "group": groups}
        return self.grown(self.net.op("ConvTranspose", [x, *names], groups * each, **attrs), x)

    def reduced(self) -> str:
        """A statistic over the channels or the image, joined with what it came from."""
        x = self.value()
        names = ("ReduceMean", "ReduceMax", "ReduceSum", "ReduceMin")
        axes = self.pick(([1], [2, 3], [3]))
        y = self.reduce(self.pick(names), x, axes, keepdims=1)
        count = self.net.channels[x]
        y = self.net.op("Mul", [x, self.net.op("Tanh", [y])], count)
        return self.grown(y, x)

    def cast(self) -> str:
        x = self.value()
        target = self.pick((onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE))
        if self.steady:
            target = onnx.TensorProto.FLOAT
        y = self.net.op("Relu", [self.net.op("Cast", [x], to=target)])
        return self.grown(self.net.op("Cast", [y], to=self.net.element), x)

    def spelled(self) -> str:
        """A Reshape whose target is put together from Shape, Gather and numbers."""
        x = self.value()
        count, size = self.net.channels[x], self.height[x]
        batch = self.net.op("Gather", [self.net.op("Shape", [x]), self.ints(0)], axis=0)
        target = self.net.op("Concat", [batch, self.ints(count, size * size)], axis=0)
        y = self.net.op("Relu", [self.net.op("Reshape", [x, target], count)])
        target = self.net.op("Concat", [batch, self.ints(count, size, size)], axis=0)
        return self.grown(self.net.op("Reshape", [y, target], count), x)

    def where(self) -> str:
        x = self.value()
        zero = self.net.weight(self.name(), self.number((0, 0.5)))
        above = self.net.op("Greater", [x, zero])
        y = self.net.op("Where", [above, x, self.same_shape(x)], self.net.channels[x])
        return self.grown(x if self.steady else y, x)

    def table(self) -> str:
        """Rows of an embedding table, which may have dead columns."""
        if "ids" not in self.net.channels:
            number = onnx.TensorProto.INT64
            self.net.inputs.append(onnx.helper.make_tensor_value_info("ids", number, ["n", 16]))
            self.net.channels["ids"] = 16
        out = self.pick(SIZES)
        content = self.net.random(3, out)
        content[:, self.some(out)] = self.pick((0, 0, 0.5))
        y = self.net.op("Gather", [self.net.weight(self.name(), content), "ids"], out, axis=0)
        if self.rng.random() < 0.7:
            self.net.channels[y] = out
            y = self.projected(y, out, self.some(out), self.some(out))
        self.height["ids"] = 4
        return self.image(y, "ids", out)

    def feed_forward(self) -> str:
        x = self.value()
        hidden, out = self.pick((6, 12)), self.pick((self.net.channels[x], 6))
        y = self.sequence(x)
        self.net.channels[y] = self.net.channels[x]
        y = self.projected(y, hidden, self.some(hidden))
        y = self.net.op(self.pick(("Relu", "Tanh", "Sigmoid", "Identity")), [y])
        return self.image(self.projected(y, out, self.some(out), self.some(hidden)), x, out)

    def swiglu(self) -> str:
        x = self.value()
        hidden, out = self.pick((4, 8)), self.net.channels[x]
        y = self.sequence(x)
        self.net.channels[y] = self.net.channels[x]
        up = self.projected(y, hidden, self.some(hidden))
        gate = self.projected(y, hidden, self.some(hidden))
        gate = self.net.op("Mul", [gate, self.net.op("Sigmoid", [gate])])
        y = self.net.op("Mul", [up, gate], hidden)
        return self.image(self.projected(y, out, self.some(out)), x, out)

    def prelu(self) -> str:
        x = self.value()
        slope = self.net.weight(self.name(), self.net.random(self.net.channels[x], 1, 1))
        return self.grown(self.net.op("PRelu", [x, slope]), x)

    def clip(self) -> str:
        x = self.value()
        low = self.net.weight(self.name(), self.number((-0.5, 0, 0.1)))
        high = self.net.weight(self.name(), self.number((1, 6)))
        return self.grown(self.net.op("Clip", [x, low, high]), x)

    def squeezed(self) -> str:
        """Through a shape with one axis more."""
        x = self.value()
        axis = self.pick((1, 2, 4))
        y = self.net.op("Relu", [self.net.op("Unsqueeze", [x, self.ints(axis)])])
        return self.grown(self.net.op("Squeeze", [y, self.ints(axis)], self.net.channels[x]), x)

    def stacked(self) -> str:
        """Concat along the height, of which a Slice takes a part."""
        x = self.value()
        y = self.net.op("Concat", [x, self.same_shape(x)], axis=2)
        size = self.height[x]
        start = int(self.rng.integers(size))
        y = self.net.op("Slice", [y, self.ints(start), self.ints(start + size), self.ints(2)])
        return self.grown(y, x)

    def head(self) -> str:
        x = self.pool[-1]
        size = self.net.channels[x] * self.height[x] ** 2
        way = self.pick(("flatten", "global", "mean", "conv"))
        if way == "conv":
            return self.net.conv(x, 3, self.name(), unread=self.some(self.net.channels[x]))
        if way == "flatten":
            y = self.net.op("Flatten", [x], size)
        elif way == "mean":
            y = self.reduce("ReduceMean", x, [2, 3], keepdims=0)
        else:
            y = self.net.op("Flatten", [self.net.op("GlobalMaxPool", [x])])
        y = self.net.gemm(y, 8, self.name(), zero=self.some(8))
        # a LeakyRelu lets every input through, so that brute force can see it
        y = self.net.op("LeakyRelu" if self.plain else "Relu", [y])
        return self.net.linear(y, 3, self.name(), unread=self.some(8))

    def build(self) -> list[str]:
        for _ in range(int(self.rng.integers(*self.length))):
            self.pool.append(self.pick(self.steps)())
        y = self.head()
        image = self.net.nodes[-1].op_type == "Conv"
        self.net.outputs[y] = ("n", 3, "h", "w") if image else ("n", 3)
        outputs = [y]
        if self.rng.random() < 0.2 and self.pool[-2] != "x":
            seen = self.pool[-2]
            y = self.net.op("Neg", [seen])
            size = self.height[seen]
            self.net.outputs[y] = ("n", self.net.channels[seen], size, size)
            outputs.append(y)
        return outputs


class Quantizer:
    """Puts QuantizeLinear and DequantizeLinear into a network.

    Scales are powers of two, so that sums of what they stand for are exact in any order.

    Args:
        net: the network; it is changed.
        seed: of the choices.
    """

    def __init__(self, net: Net, seed: int) -> None:
        self.net = net
        self.rng = np.random.default_rng(20_000 + seed)
        self.nodes: list[onnx.NodeProto] = []
        self.count = 0

    def run(self) -> None:
        cast = ""
        for node in self.net.nodes:
            result = node.output[0]
            kinds = ("Conv", "ConvTranspose", "Gemm", "MatMul")
            quantized = node.op_type in kinds and node.input[1] in self.net.weights
            if quantized:
                self.operator(node)
            ends = self.rng.random() < (0.5 if quantized else 0.1) and len(node.output) == 1
            ends = ends and node.op_type not in ("Shape", "Greater", "Gather", "Concat", "Cast")
            if node.op_type == "Cast":
                cast = result
            ends = ends and cast not in node.input  # maybe of another type
            node.output[0] = f"{result}_sum" if ends else result
            self.nodes.append(node)
            if ends:
                self.activation(node.output[0], result)
        self.net.nodes = self.nodes

    def operator(self, node: onnx.NodeProto) -> None:
        """Quantizes what a matrix operator reads, sometimes only its weight."""
        if self.rng.random() < 0.2:
            self.weight(node)
            return
        node.input[0] = self.activation(node.input[0])
        scale = self.weight(node)
        if len(node.input) > 2:
            bias = self.net.weights.pop(node.input[2])
            step = np.broadcast_to(np.float32(scale * STEP), bias.shape)
            content = np.clip(np.round(bias / step), -1000, 1000).astype(np.int32)
            node.input[2] = self.dequantize(content, step, None, 0)

    def weight(self, node: onnx.NodeProto) -> np.ndarray:
        """Quantizes a weight; returns its scale or scales per output channel."""
        content = self.net.weights.pop(node.input[1])
        turned = any(item.name == "transB" for item in node.attribute)
        axis = 0 if node.op_type == "Conv" or turned else 1
        unsigned = self.rng.random() < 0.5
        zero = np.array(128 if unsigned else 0, np.uint8 if unsigned else np.int8)
        scale = np.float32(2.0 ** -self.rng.integers(5, 8))
        grouped = node.op_type == "ConvTranspose" and any(a.name == "group" for a in node.attribute)
        if self.rng.random() < 0.5 and not grouped:
            size = content.shape[axis]
            scale = (2.0 ** -self.rng.integers(5, 8, size)).astype(np.float32)
            zero = np.full(size, zero)
        along = [1] * content.ndim
        if scale.ndim:
            along[axis] = -1
        steps = np.round(content / scale.reshape(along))
        quantized = np.clip(steps, -127, 127).astype(np.int32) + zero.reshape(along)
        node.input[1] = self.dequantize(quantized.astype(zero.dtype), scale, zero, axis)
        return scale

    def dequantize(self, content, scale, zero, axis: int) -> str:
        names = [self.constant(content), self.constant(scale)]
        names += [] if zero is None else [self.constant(zero)]
        attrs = {"axis": axis} if np.ndim(scale) else {}
        return self.add("DequantizeLinear", names, **attrs)

    def activation(self, x: str, out: str | None = None) -> str:
        kind = (np.int8, np.uint8)[int(self.rng.integers(2))]
        zero = {np.int8: (0, 0, 5), np.uint8: (0, 128, 120)}[kind][int(self.rng.integers(3))]
        names = [self.constant(np.float32(STEP)), self.constant(kind(zero))]
        y = self.add("QuantizeLinear", [x, *names])
        return self.add("DequantizeLinear", [y, *names], out)

    def constant(self, content) -> str:
        self.count += 1
        return self.net.weight(f"q{self.count}", np.asarray(content))

    def add(self, op_type: str, inputs, out: str | None = None, **attrs) -> str:
        self.count += 1
        name = out or f"q{self.count}"
        self.nodes.append(onnx.helper.make_node(op_type, inputs, [name], **attrs))
        return name
