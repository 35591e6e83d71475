"""Constant channels that no bias can take up: one of them stands for all the others."""

from __future__ import annotations

import numpy as np
import pytest
from prune_models import Net, Pruned

HALF = range(16, 32)
IMAGE = ("n", 16, 6, 6)
# Four channels and their constants.
SHIFTS = {3: 0.2, 7: 1.0, 8: -0.5, 30: 3.0}


def constants(net: Net, shifts=None) -> str:
    """32 channels, of which some hold a constant each."""
    shifts = SHIFTS if shifts is None else shifts
    x = net.conv(net.input("x", IMAGE), 32, "c1")
    return net.batch_norm(x, "bn", shift=shifts, dead=list(shifts))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("kernel", [3, 5])
def test_different_constants_become_one(dtype, kernel):
    net = Net(dtype=dtype)
    pruned = Pruned(net.model(net.conv(constants(net), 8, "c2", kernel=kernel)))
    assert pruned.dims("c1.w")[0] == 29
    assert pruned.dims("c2.w")[1] == 29
    shift = pruned.after.graph.initializers["bn.b"].const_value.numpy()
    assert 3.0 in shift, "the largest stays"
    tolerance = {np.float32: 1e-6, np.float16: 4e-3}[dtype]
    pruned.assert_equal(tolerance=tolerance)


def test_sixteen_halves_become_one():
    net = Net()
    x = net.op("Sigmoid", [net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)])
    pruned = Pruned(net.model(net.conv(x, 8, "c2")))
    assert pruned.dims("c1.w") == (17, 16, 3, 3)
    assert pruned.dims("c2.w") == (8, 17, 3, 3)
    pruned.assert_equal()


def test_two_readers_agree_on_one():
    net = Net()
    x = constants(net)
    y = net.op("Add", [net.conv(x, 8, "c2"), net.conv(x, 8, "c3", unread=[30, 7])])
    pruned = Pruned(net.model(y))
    assert pruned.dims("c1.w")[0] == 29
    pruned.assert_equal()


def test_a_constant_that_another_reader_needs_stands_for_the_others():
    net = Net()
    x = constants(net)
    y = net.op("Relu", [net.conv(x, 8, "c2", unread=[7])])
    seen = net.op("Slice", [x, *(net.weight(f"s{i}", np.array([i])) for i in (7, 8, 1))], 1)
    pruned = Pruned(net.model(y, seen))
    assert pruned.dims("c1.w")[0] == 29
    pruned.assert_equal()


def test_a_small_constant_does_not_stand_for_large_ones():
    net = Net()
    x = constants(net, {3: 1e-6, 7: 1.0, 8: 0.75})
    y = net.op("Relu", [net.conv(x, 8, "c2")])
    seen = net.op("Slice", [x, *(net.weight(f"s{i}", np.array([i])) for i in (3, 4, 1))], 1)
    pruned = Pruned(net.model(y, seen))
    assert pruned.dims("c1.w")[0] == 31
    assert np.abs(pruned.after.graph.initializers["c2.w"].const_value.numpy()).max() < 2
    pruned.assert_equal()


def test_constants_tied_to_a_living_channel_stay():
    net = Net()
    x = net.input("x", IMAGE)
    y = net.op("Sigmoid", [net.conv(x, 32, "c1", zero=HALF)])
    total = net.op("Add", [y, net.conv(x, 32, "skip")])
    z = net.op("Concat", [net.conv(y, 8, "c2"), net.conv(total, 8, "c3")], 16, axis=1)
    pruned = Pruned(net.model(z))
    assert pruned.dims("c1.w")[0] == 32
    pruned.assert_equal()


def test_a_weight_with_two_readers_is_not_merged():
    net = Net()
    x = constants(net)
    y = net.op("Add", [net.conv(x, 8, "c2"), net.op("Conv", [x, "c2.w"], 8, pads=[1] * 4)])
    pruned = Pruned(net.model(y))
    assert pruned.changes == 0
    assert "padded Conv" in pruned.reasons()


def test_conv_transpose_and_bare_matmul():
    net = Net()
    x = constants(net)
    up = net.weight("up", net.random(32, 8, 3, 3, scale=0.1))
    pruned = Pruned(net.model(net.op("ConvTranspose", [x, up], 8, strides=[2, 2])))
    assert pruned.dims("up") == (29, 8, 3, 3)
    pruned.assert_equal()
    net = Net()
    x = net.op("Exp", [net.linear(net.input("x", ["n", 5, 16], axis=2), 32, "l1", zero=HALF)])
    product = net.op("MatMul", [x, net.weight("w", net.random(32, 8, scale=0.2))], 8)
    pruned = Pruned(net.model(product))
    assert pruned.dims("w") == (17, 8)
    pruned.assert_equal()


def test_dead_outputs_do_not_keep_a_constant():
    net = Net()
    x = net.op("Sigmoid", [net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)])
    x = net.conv(x, 32, "c2", unread=range(16, 31))
    net.weights["c2.w"][:8, 31] = 0
    pruned = Pruned(net.model(net.conv(x, 8, "c3", unread=range(8, 32))))
    assert pruned.dims("c1.w")[0] == 16
    pruned.assert_equal()
