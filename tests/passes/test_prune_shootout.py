"""25 kinds of graph with half of the channels zero: right in all, removed wherever that is right.

Tools that remove zeroed channels were measured on these kinds; none did all of them. Every row
names the weights that have to shrink, and the widths they end at; what must not be cut stays.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import helper
from prune_models import Net, Pruned

from onnxslim.passes.simplify.eliminate_dead_nodes import EliminateDeadNodes
from onnxslim.pipeline import Context

HALF = range(16, 32)
IMAGE = ("n", 16, 6, 6)
Shapes = dict[str, tuple[int, ...]]


def stem(net: Net, width: int = 32, *, zero=HALF) -> str:
    return net.op("Relu", [net.conv(net.input("x", IMAGE), width, "c1", zero=zero)])


def plain(net: Net) -> tuple[str, Shapes]:
    return net.conv(stem(net), 8, "c2"), {"c1.w": (16, 16, 3, 3), "c2.w": (8, 16, 3, 3)}


def residual(net: Net) -> tuple[str, Shapes]:
    x = stem(net)
    y = net.conv(net.op("Relu", [net.conv(x, 32, "a")]), 32, "b", zero=HALF)
    x = net.op("Relu", [net.op("Add", [y, x])])
    return net.conv(x, 8, "c2"), {
        "c1.w": (16, 16, 3, 3),
        "a.w": (32, 16, 3, 3),
        "b.w": (16, 32, 3, 3),
        "c2.w": (8, 16, 3, 3),
    }


def concat(net: Net) -> tuple[str, Shapes]:
    x = stem(net)
    y = net.op("Relu", [net.conv("x", 32, "c2", zero=range(0, 32, 2))])
    x = net.op("Concat", [x, y], 64, axis=1)
    return net.conv(x, 8, "c3"), {
        "c1.w": (16, 16, 3, 3),
        "c2.w": (16, 16, 3, 3),
        "c3.w": (8, 32, 3, 3),
    }


def feed_forward(net: Net) -> tuple[str, Shapes]:
    x = net.linear(net.input("x", ["n", 5, 64], axis=2), 256, "up", zero=range(128, 256))
    return net.linear(net.op("Relu", [x]), 64, "down"), {"up.w": (64, 128), "down.w": (128, 64)}


def dead_scale(net: Net) -> tuple[str, Shapes]:
    x = net.conv(net.input("x", IMAGE), 32, "c1")
    x = net.batch_norm(x, "bn", shift=dict.fromkeys(HALF, -0.5), dead=HALF)
    return net.conv(net.op("Relu", [x]), 8, "c2"), {"c1.w": (16, 16, 3, 3), "bn.g": (16,)}


def uneven(net: Net) -> tuple[str, Shapes]:
    x = net.op("Relu", [net.conv(stem(net, zero=range(3)), 32, "c2", zero=range(20))])
    return net.conv(x, 8, "c3"), {
        "c1.w": (29, 16, 3, 3),
        "c2.w": (12, 29, 3, 3),
        "c3.w": (8, 12, 3, 3),
    }


def flatten(net: Net) -> tuple[str, Shapes]:
    x = net.op("Flatten", [stem(net)], axis=1)
    return net.gemm(x, 8, "fc", size=32 * 36), {"c1.w": (16, 16, 3, 3), "fc.w": (8, 16 * 36)}


def channels_last(net: Net) -> tuple[str, Shapes]:
    x = net.op("Transpose", [stem(net)], perm=[0, 2, 3, 1])
    return net.linear(x, 8, "fc", size=32), {"c1.w": (16, 16, 3, 3), "fc.w": (16, 8)}


def split_and_multiply(net: Net) -> tuple[str, Shapes]:
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=[*range(8), *range(16, 24)])
    net.weight("sizes", np.array([16, 16]))
    net.nodes.append(helper.make_node("Split", [x, "sizes"], ["s", "t"], axis=1))
    net.channels["s"] = 16
    x = net.op("Mul", ["s", "t"], 16)
    return net.conv(x, 8, "c2"), {"c1.w": (16, 16, 3, 3), "c2.w": (8, 8, 3, 3)}


def shuffled(net: Net) -> tuple[str, Shapes]:
    x = stem(net, zero=[*range(8), *range(20, 28)])
    x = net.op("Reshape", [x, net.weight("rows", np.array([0, 2, 16, 6, 6]))])
    x = net.op("Transpose", [x], perm=[0, 2, 1, 3, 4])
    x = net.op("Reshape", [x, net.weight("join", np.array([-1, 32, 6, 6]))], 32)
    return net.conv(x, 8, "c2"), {"c1.w": (16, 16, 3, 3), "c2.w": (8, 16, 3, 3)}


def squeeze_and_excite(net: Net) -> tuple[str, Shapes]:
    x = stem(net)
    gate = net.op("Relu", [net.conv(net.op("GlobalAveragePool", [x]), 8, "down", kernel=1)])
    gate = net.op("Sigmoid", [net.conv(gate, 32, "up", kernel=1)])
    return net.conv(net.op("Mul", [x, gate]), 8, "c2"), {
        "c1.w": (16, 16, 3, 3),
        "down.w": (8, 16, 1, 1),
        "up.w": (16, 8, 1, 1),
        "c2.w": (8, 16, 3, 3),
    }


def depthwise(net: Net) -> tuple[str, Shapes]:
    x = net.conv(stem(net), 32, "d", group=32)
    net.weights["d.b"][16:] = -0.3
    return net.conv(net.op("Relu", [x]), 8, "c2"), {
        "c1.w": (16, 16, 3, 3),
        "d.w": (16, 1, 3, 3),
        "c2.w": (8, 16, 3, 3),
    }


def constants(kernel: int, pad: int, kept: int) -> Callable[[Net], tuple[str, Shapes]]:
    def build(net: Net) -> tuple[str, Shapes]:
        x = net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)
        net.weights["c1.b"][16:] = np.linspace(0.3, 0.9, 16)
        x = net.conv(net.op("Relu", [x]), 8, "c2", kernel=kernel, pad=pad)
        return x, {"c1.w": (kept, 16, 3, 3), "c2.w": (8, kept, kernel, kernel)}

    return build


def unread(net: Net) -> tuple[str, Shapes]:
    return net.conv(stem(net, zero=()), 8, "c2", unread=HALF), {"c1.w": (16, 16, 3, 3)}


def half_after_sigmoid(net: Net) -> tuple[str, Shapes]:
    """Zero becomes 0.5, which a padded Conv reads: one channel stands for all of them."""
    x = net.op("Sigmoid", [net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)])
    return net.conv(x, 8, "c2"), {"c1.w": (17, 16, 3, 3), "c2.w": (8, 17, 3, 3)}


def softmax(net: Net) -> tuple[str, Shapes]:
    """A zero logit takes its share: nothing may go."""
    x = net.op("Softmax", [stem(net)], axis=1)
    return net.conv(x, 8, "c2"), {"c1.w": (32, 16, 3, 3), "c2.w": (8, 32, 3, 3)}


def one_branch_only(net: Net) -> tuple[str, Shapes]:
    """The other branch is alive in the same channels: nothing may go."""
    x = stem(net, zero=())
    y = net.conv(net.op("Relu", [net.conv(x, 32, "a")]), 32, "b", zero=HALF)
    x = net.op("Relu", [net.op("Add", [y, x])])
    return net.conv(x, 8, "c2"), {"c1.w": (32, 16, 3, 3), "b.w": (32, 32, 3, 3)}


def grouped(net: Net) -> tuple[str, Shapes]:
    x = stem(net, zero=[0, 5, 8, 9, 18, 23, 30, 31])
    x = net.op("Relu", [net.conv(x, 32, "g", group=4)])
    return net.conv(x, 8, "c2"), {"c1.w": (24, 16, 3, 3), "g.w": (32, 6, 3, 3)}


def whole_conv(net: Net) -> tuple[str, Shapes]:
    """What is left of the branch is the bias of its last Conv."""
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 16, "a", zero=range(16))])
    x = net.op("Add", [net.conv(x, 16, "b"), "x"])
    return net.conv(x, 8, "c2"), {"a.w": (), "b.w": (), "c2.w": (8, 16, 3, 3)}


def shared_by_two(net: Net) -> tuple[str, Shapes]:
    x = stem(net, 16, zero=())
    content = net.random(32, 16, 3, 3, scale=0.1)
    content[16:] = 0
    net.weight("shared", content)
    first = net.op("Relu", [net.op("Conv", [x, "shared"], 32, pads=[1] * 4)])
    second = net.op("Relu", [net.op("Conv", ["x", "shared"], 32, pads=[1] * 4)])
    x = net.op("Add", [net.conv(first, 8, "c2"), net.conv(second, 8, "c3")])
    return x, {
        "shared": (16, 16, 3, 3),
        "c2.w": (8, 16, 3, 3),
        "c3.w": (8, 16, 3, 3),
    }


def shared_in_a_chain(net: Net) -> tuple[str, Shapes]:
    """Both axes of the weight count the same channels."""
    content = net.random(32, 32, scale=0.3)
    content[:, 16:] = 0
    net.weight("shared", content)
    x = net.op("Relu", [net.gemm(net.input("x", ["n", 8]), 32, "fc", zero=HALF)])
    x = net.op("Relu", [net.op("MatMul", [x, "shared"])])
    x = net.op("Relu", [net.op("MatMul", [x, "shared"])])
    return net.gemm(x, 4, "last"), {"shared": (16, 16), "fc.w": (16, 8), "last.w": (4, 16)}


def attention_heads(net: Net) -> tuple[str, Shapes]:
    """Two of four heads give zeros, and nothing reads them: query and key go with them."""
    heads, size, width = 4, 16, 64
    dead = range(32, 64)
    net.input("x", ["n", 7, width], axis=2)
    net.weight("split", np.array([0, 0, heads, size]))
    parts = {}
    for name, zero, order in (
        ("q", (), [0, 2, 1, 3]),
        ("k", (), [0, 2, 3, 1]),
        ("v", dead, [0, 2, 1, 3]),
    ):
        part = net.op("Reshape", [net.linear("x", width, name, zero=zero), "split"])
        parts[name] = net.op("Transpose", [part], perm=order)
    net.weight("root", np.float32(size**-0.5))
    scores = net.op("Mul", [net.op("MatMul", [parts["q"], parts["k"]]), "root"])
    x = net.op("MatMul", [net.op("Softmax", [scores], axis=-1), parts["v"]])
    x = net.op("Transpose", [x], perm=[0, 2, 1, 3])
    x = net.op("Reshape", [x, net.weight("join", np.array([0, 0, width]))], width)
    return net.linear(x, width, "o", unread=dead), {
        "q.w": (64, 32),
        "k.w": (64, 32),
        "v.w": (64, 32),
        "o.w": (32, 64),
    }


def lstm_units(net: Net) -> tuple[str, Shapes]:
    """The last 16 of 32 units are read by no unit and by nothing behind the operator."""
    net.input("x", [5, "n", 12], axis=2)
    w = net.random(1, 4 * 32, 12, scale=0.3)
    r = net.random(4, 32, 32, scale=0.2)
    r[:, :, 16:] = 0
    names = [
        net.weight("w", w),
        net.weight("r", r.reshape(1, 4 * 32, 32)),
        net.weight("b", net.random(1, 8 * 32, scale=0.3)),
    ]
    y = net.op("LSTM", ["x", *names], 32, hidden_size=32)
    y = net.op("Squeeze", [y, net.weight("axis", np.array([1]))])
    return net.linear(y, 8, "out", unread=HALF), {
        "w": (1, 64, 12),
        "r": (1, 64, 16),
        "b": (1, 128),
        "out.w": (16, 8),
    }


ROWS: dict[str, Callable[[Net], tuple[str, Shapes]]] = {
    "conv relu conv": plain,
    "residual": residual,
    "concat": concat,
    "feed forward": feed_forward,
    "zero scale of a norm, negative shift": dead_scale,
    "3 zero in layer 1, 20 in layer 2": uneven,
    "flatten and gemm": flatten,
    "transpose and matmul": channels_last,
    "split and multiply": split_and_multiply,
    "channel shuffle": shuffled,
    "squeeze and excite": squeeze_and_excite,
    "depthwise with negative bias": depthwise,
    "constant channel, pad 0": constants(3, 0, 16),
    "constant channel, pad 1": constants(3, 1, 17),
    "constant channel, 1x1": constants(1, 0, 16),
    "unread channels": unread,
    "sigmoid after zeros": half_after_sigmoid,
    "softmax over channels": softmax,
    "zeros in one branch only": one_branch_only,
    "grouped, two zero a group": grouped,
    "a whole conv is zero": whole_conv,
    "weight shared by two convs": shared_by_two,
    "weight shared in a chain": shared_in_a_chain,
    "attention heads": attention_heads,
    "lstm units": lstm_units,
}


def test_there_are_25_kinds():
    assert len(ROWS) == 25


@pytest.mark.parametrize("kind", ROWS)
def test_kind(kind):
    net = Net(seed=3)
    output, shapes = ROWS[kind](net)
    pruned = Pruned(net.model(output))
    EliminateDeadNodes()(pruned.after, Context(pruned.after))
    weights = pruned.after.graph.initializers
    for name, dims in shapes.items():
        found = tuple(weights[name].const_value.shape.numpy()) if name in weights else ()
        assert found == dims, name
    pruned.assert_equal(tolerance=1e-6)
