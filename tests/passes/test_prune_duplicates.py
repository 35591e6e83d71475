"""Equal channels: one stands for all where only matrix operators read them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from prune_models import Net, Pruned

from onnxslim.rewrite.channels import duplicates
from onnxslim.rewrite.channels import weight as weight_module
from onnxslim.rewrite.channels.weight import Weight

IMAGE = ("n", 16, 6, 6)
# Filters 3, 9 and 20 are one, and so are 5 and 6.
SETS = ((3, 9, 20), (5, 6))


def repeat(net: Net, *names: str, axis: int = 0, sets=SETS) -> None:
    """Makes these coordinates of weights equal to the first one of their set."""
    for name in names:
        content = np.moveaxis(net.weights[name], axis, 0)
        for first, *others in sets:
            content[others] = content[first]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("pad", [0, 1])
def test_equal_filters_become_one(dtype, pad):
    net = Net(dtype=dtype)
    x = net.batch_norm(net.conv(net.input("x", IMAGE), 32, "c1"), "bn")
    repeat(net, "c1.w", "c1.b", "bn.g", "bn.b", "bn.m", "bn.v")
    x = net.conv(net.op("Sigmoid", [x]), 32, "dw", group=32)
    repeat(net, "dw.w", "dw.b")
    net.weights["dw.b"][[5, 6]] = 1, 2
    pruned = Pruned(net.model(net.conv(net.op("Relu", [x]), 8, "c2", pad=pad)))
    assert pruned.dims("c1.w") == (30, 16, 3, 3)
    assert pruned.dims("dw.w") == (30, 1, 3, 3)
    assert pruned.dims("c2.w") == (8, 30, 3, 3)
    pruned.assert_equal(tolerance={np.float32: 1e-6, np.float16: 4e-3}[dtype])


def test_weights_are_summed_in_float64_and_rounded_once():
    net = Net()
    x = net.conv(net.input("x", IMAGE), 32, "c1")
    repeat(net, "c1.w", "c1.b", sets=((3, 9, 20),))
    y = net.conv(x, 8, "c2")
    before = net.weights["c2.w"].copy()
    pruned = Pruned(net.model(y))
    after = pruned.after.graph.initializers["c2.w"].const_value.numpy()
    total = before[:, [3, 9, 20]].astype(np.float64).sum(axis=1).astype(np.float32)
    np.testing.assert_array_equal(after[:, 3], total)
    np.testing.assert_array_equal(after[:, [0, 4]], before[:, [0, 4]])


@pytest.mark.parametrize("name", ["c1.b", "bn.b", "slope"])
def test_one_constant_that_differs_keeps_the_channels_apart(name):
    net = Net()
    x = net.batch_norm(net.conv(net.input("x", IMAGE), 32, "c1"), "bn")
    x = net.op("PRelu", [x, net.weight("slope", net.random(32, 1, 1))])
    repeat(net, "c1.w", "c1.b", "bn.g", "bn.b", "bn.m", "bn.v", "slope", sets=((3, 9),))
    net.weights[name][9] += 0.25
    pruned = Pruned(net.model(net.conv(x, 8, "c2")))
    assert pruned.changes == 0


def test_all_ways_into_a_join_have_to_be_equal():
    def joined(both: bool) -> Pruned:
        net = Net()
        x = net.input("x", IMAGE)
        y = net.op("Add", [net.conv(x, 32, "c1"), net.conv(x, 32, "skip", kernel=1)])
        repeat(net, "c1.w", "c1.b")
        if both:
            repeat(net, "skip.w", "skip.b")
        return Pruned(net.model(net.conv(net.op("Relu", [y]), 8, "c2")))

    assert joined(both=False).changes == 0
    pruned = joined(both=True)
    assert pruned.dims("skip.w")[0] == 29
    pruned.assert_equal()


def test_a_flattened_channel_and_a_linear_chain():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1")])
    repeat(net, "c1.w", "c1.b")
    x = net.op("Flatten", [net.op("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])], 32 * 9)
    x = net.op("Tanh", [net.gemm(x, 32, "g1")])
    repeat(net, "g1.w", "g1.b")
    x = net.op("Gelu" if net.opset > 19 else "Erf", [net.linear(x, 32, "l1")])
    repeat(net, "l1.w", axis=1)
    repeat(net, "l1.b")
    pruned = Pruned(net.model(net.linear(x, 4, "l2")))
    assert pruned.dims("c1.w")[0] == 29
    assert pruned.dims("g1.w") == (29, 29 * 9)
    assert pruned.dims("l1.w") == (29, 29)
    assert pruned.dims("l2.w") == (29, 4)
    pruned.assert_equal()


@pytest.mark.parametrize("case", ["output", "softmax", "gather", "shared", "grouped", "recurrent"])
def test_what_else_reads_them_keeps_them(case):
    net = Net()
    x = net.conv(net.input("x", IMAGE), 32, "c1")
    repeat(net, "c1.w", "c1.b")
    outputs = []
    if case == "output":
        outputs = [net.op("Relu", [x])]
    elif case == "softmax":
        x = net.op("Softmax", [x], axis=1)
    elif case == "gather":
        x = net.op("Gather", [x, net.weight("i", np.arange(31, -1, -1))], axis=1)
    elif case == "shared":
        outputs = [net.op("Conv", [net.op("Neg", [x]), "c2.w"], 8, pads=[1] * 4)]
    elif case == "grouped":
        x = net.conv(x, 32, "g", group=4)
    elif case == "recurrent":
        y = net.op("Reshape", [x, net.weight("s", np.array([0, 0, -1]))])
        y = net.op("Transpose", [y], perm=[2, 0, 1])
        w, r = net.random(1, 3, 32), net.random(1, 3, 3)
        names = [y, net.weight("w", w), net.weight("r", r)]
        outputs = [net.op("RNN", names, 3, hidden_size=3)]
    pruned = Pruned(net.model(net.conv(x, 8, "c2"), *outputs))
    assert pruned.dims("c1.w")[0] == 32
    pruned.assert_equal()


def test_a_permutation_behind_a_flatten_is_not_mistaken_for_the_channel_itself():
    """Columns of two equal channels, each at another place of the image."""
    net = Net()
    x = net.op("Flatten", [net.conv(net.input("x", ("n", 4, 2, 1)), 2, "c1", kernel=1)], 4)
    repeat(net, "c1.w", "c1.b", sets=((0, 1),))
    x = net.op("Gather", [x, net.weight("i", np.array([0, 3]))], 2, axis=1)
    pruned = Pruned(net.model(net.gemm(x, 3, "g")))
    pruned.assert_equal()


def test_sums_beyond_the_type_are_left_alone():
    net = Net(dtype=np.float16)
    x = net.conv(net.input("x", IMAGE), 32, "c1")
    repeat(net, "c1.w", "c1.b", sets=((3, 9),))
    y = net.conv(x, 8, "c2")
    net.weights["c2.w"][0, [3, 9]] = 4e4
    assert Pruned(net.model(y)).changes == 0


def test_equal_rows_of_a_sparse_weight_are_found_whatever_they_start_with():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1")])
    net.weights["c1.w"].reshape(32, -1)[:, :20] = 0
    repeat(net, "c1.w", "c1.b")
    pruned = Pruned(net.model(net.conv(x, 8, "c2")))
    assert pruned.dims("c1.w")[0] == 29
    pruned.assert_equal()


@pytest.mark.parametrize("out_axis", [0, 1])
def test_heads(monkeypatch, out_axis):
    content = np.random.default_rng(0).standard_normal((12, 10)).astype(np.float32)
    monkeypatch.setattr(weight_module, "_CHUNK_BYTES", 100)
    heads = Weight(ir.tensor(content), out_axis).heads()
    rows = content if out_axis == 0 else content.T
    np.testing.assert_array_equal(heads, rows[:, : heads.shape[1]])
    assert heads.shape[1] == 8


def test_nothing_is_compared_when_no_filters_start_alike(monkeypatch):
    def fail(*_: object) -> None:
        raise AssertionError("compared")

    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=range(4))])
    model = net.model(net.conv(x, 8, "c2"))
    monkeypatch.setattr(duplicates, "_index", fail)
    assert Pruned(model).dims("c1.w")[0] == 28
