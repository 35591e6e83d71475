"""Operators that deal channels out over space, repeat them, or work along other axes."""

from __future__ import annotations

import numpy as np
import pytest
from prune_models import Net, Pruned

IMAGE = ("n", 3, 6, 6)


def dead_channels(mode: str, outputs: list[int], *, size: int = 2, count: int = 8) -> list[int]:
    """The channels in front of DepthToSpace that become these outputs."""
    area = size * size
    if mode == "DCR":
        return [place * count + channel for channel in outputs for place in range(area)]
    return [channel * area + place for channel in outputs for place in range(area)]


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_pixel_shuffle_loses_whole_blocks(mode):
    net = Net()
    zero = dead_channels(mode, [1, 4, 7])
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=zero)
    x = net.op("DepthToSpace", [x], 8, blocksize=2, mode=mode)
    pruned = Pruned(net.model(net.conv(net.op("Relu", [x]), 4, "c2")))
    assert pruned.dims("c1.w") == (20, 3, 3, 3)
    assert pruned.dims("c2.w") == (4, 5, 3, 3)
    pruned.assert_equal()


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_part_of_a_block_stays(mode):
    net = Net()
    zero = dead_channels(mode, [1, 4, 7])[:-1]
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=zero)
    x = net.op("DepthToSpace", [x], 8, blocksize=2, mode=mode)
    pruned = Pruned(net.model(net.conv(x, 4, "c2")))
    assert pruned.dims("c1.w") == (24, 3, 3, 3)
    assert "4 zeroed channels stay" in pruned.reasons()
    pruned.assert_equal()


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_unread_outputs_of_a_pixel_shuffle(mode):
    net = Net()
    x = net.conv(net.input("x", IMAGE), 72, "c1")
    x = net.op("DepthToSpace", [x], 8, blocksize=3, mode=mode)
    pruned = Pruned(net.model(net.conv(x, 4, "c2", unread=[0, 3, 5])))
    assert pruned.dims("c1.w") == (45, 3, 3, 3)
    pruned.assert_equal()


def test_space_to_depth():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 8, "c1", zero=[0, 3, 6])])
    x = net.op("SpaceToDepth", [x], 32, blocksize=2)
    pruned = Pruned(net.model(net.conv(x, 4, "c2")))
    assert pruned.dims("c1.w") == (5, 3, 3, 3)
    assert pruned.dims("c2.w") == (4, 20, 3, 3)
    pruned.assert_equal()


def test_space_to_depth_of_which_only_some_positions_are_read():
    net = Net()
    x = net.conv(net.input("x", IMAGE), 8, "c1")
    x = net.op("SpaceToDepth", [x], 32, blocksize=2)
    unread = [0, 8, 16, 24, 3, 11, 19, 27, 5]
    pruned = Pruned(net.model(net.conv(x, 4, "c2", unread=unread)))
    assert pruned.dims("c1.w") == (6, 3, 3, 3)
    pruned.assert_equal()


def test_there_and_back():
    net = Net()
    x = net.conv(net.input("x", IMAGE), 8, "c1", zero=[2, 3])
    x = net.op("SpaceToDepth", [x], 32, blocksize=2)
    x = net.op("DepthToSpace", [x], 8, blocksize=2, mode="DCR")
    pruned = Pruned(net.model(net.conv(x, 4, "c2")))
    assert pruned.dims("c2.w") == (4, 6, 3, 3)
    pruned.assert_equal()


# -- operators that repeat, or work along another axis --------------------------------------------


@pytest.mark.parametrize("last", [[8, 5, 6], [1, 5, 1]])
def test_expand_of_other_axes(last):
    net = Net()
    x = net.conv(net.input("x", ("n", 3, 1, 6)), 8, "c1", zero=[0, 5], kernel=1)
    x = net.op("Expand", [x, net.weight("to", np.array(last))])
    pruned = Pruned(net.model(net.conv(x, 4, "c2")))
    assert pruned.dims("c2.w") == (4, 6, 3, 3)
    pruned.assert_equal()


def test_tile_of_other_axes():
    net = Net()
    x = net.conv(net.input("x", IMAGE), 8, "c1", zero=[0, 5])
    x = net.op("Tile", [x, net.weight("times", np.array([1, 1, 2, 3]))])
    pruned = Pruned(net.model(net.conv(x, 4, "c2")))
    assert pruned.dims("c2.w") == (4, 6, 3, 3)
    pruned.assert_equal()


def test_tile_of_the_channels_stays():
    net = Net()
    x = net.conv(net.input("x", IMAGE), 8, "c1", zero=[0, 5])
    x = net.op("Tile", [x, net.weight("times", np.array([1, 2, 1, 1]))], 16)
    pruned = Pruned(net.model(net.conv(x, 4, "c2")))
    assert pruned.changes == 0
    assert "it repeats the channels" in pruned.reasons()


@pytest.mark.parametrize(
    ("op_type", "constant", "attrs"),
    [
        ("CumSum", np.array(2), {}),
        ("LpPool", None, {"kernel_shape": [2, 2], "p": 2}),
        ("GlobalLpPool", None, {"p": 2}),
        ("Trilu", None, {"upper": 0}),
        ("Hardmax", None, {"axis": 3}),
    ],
)
def test_operators_that_leave_channels_alone(op_type, constant, attrs):
    net = Net()
    x = net.conv(net.input("x", IMAGE), 8, "c1", zero=[0, 5])
    inputs = [x] if constant is None else [x, net.weight("k", constant)]
    y = net.op(op_type, inputs, **attrs)
    pruned = Pruned(net.model(net.conv(y, 4, "c2", kernel=1, unread=[0, 5])))
    assert pruned.dims("c2.w") == (4, 6, 1, 1)
    pruned.assert_equal()


def test_top_k_along_another_axis():
    net = Net()
    x = net.conv(net.input("x", IMAGE), 8, "c1", zero=[0, 5])
    y = net.op("TopK", [x, net.weight("k", np.array([2]))], axis=3)
    net.nodes[-1].output.append("places")
    pruned = Pruned(net.model(net.conv(y, 4, "c2", kernel=1)))
    assert pruned.dims("c2.w") == (4, 6, 1, 1)
    pruned.assert_equal()


@pytest.mark.parametrize(
    ("op_type", "constant", "attrs", "reason"),
    [
        ("CumSum", np.array(1), {}, "depends on many channels"),
        ("TopK", np.array([2]), {"axis": 1}, "depends on many channels"),
        ("MaxRoiPool", np.zeros((1, 5), np.float32), {"pooled_shape": [1, 1]}, "MaxRoiPool"),
    ],
)
def test_operators_that_mix_channels_say_so(op_type, constant, attrs, reason):
    net = Net()
    x = net.conv(net.input("x", (1, 3, 6, 6)), 8, "c1", zero=[0, 5])
    y = net.op(op_type, [x, net.weight("k", constant)], **attrs)
    if op_type == "TopK":
        net.nodes[-1].output.append("places")
    pruned = Pruned(net.model(y))
    assert pruned.changes == 0
    assert reason in pruned.reasons()


def test_einsum_says_so():
    net = Net()
    x = net.linear(net.input("x", ["n", 6]), 8, "l1", zero=[0, 5])
    y = net.op("Einsum", [x, net.weight("w", net.random(8, 4))], 4, equation="ij,jk->ik")
    pruned = Pruned(net.model(y))
    assert pruned.changes == 0
    assert "Einsum is not followed" in pruned.reasons()
