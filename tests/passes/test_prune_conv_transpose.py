"""ConvTranspose with groups: equally many channels in each group, and whole groups."""

from __future__ import annotations

import numpy as np
import pytest
from prune_models import Net, Pruned

IMAGE = ("n", 16, 5, 5)


def deconv(
    net: Net, x: str, out: int, name: str, *, group: int, zero=(), unread=(), bias=0.3
) -> str:
    """A ConvTranspose with stride 2; ``zero``: outputs that are zero; ``unread``: inputs."""
    size, width = net.channels[x], out // group
    weight = net.random(size, width, 3, 3, scale=(size // group * 9) ** -0.5)
    by_group = weight.reshape(group, size // group, width, 3, 3)
    vector = net.random(out, scale=bias)
    for channel in zero:
        by_group[channel // width, :, channel % width] = 0
        vector[channel] = 0
    weight[list(unread)] = 0
    inputs = [x, net.weight(f"{name}.w", weight), net.weight(f"{name}.b", vector)]
    attrs = {"group": group} if group > 1 else {}
    return net.op("ConvTranspose", inputs, out, strides=[2, 2], pads=[1] * 4, **attrs)


def chain(net: Net, *, before=(), zero=(), unread=(), after=(), group: int = 4) -> str:
    """Conv 16 -> 32, grouped ConvTranspose 32 -> 24, Conv 24 -> 8."""
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=before)])
    x = net.op("Relu", [deconv(net, x, 24, "t", group=group, zero=zero, unread=unread)])
    return net.conv(x, 8, "c2", unread=after)


def only(pruned: Pruned):
    (node,) = [node for node in pruned.after.graph if node.op_type == "ConvTranspose"]
    return node


@pytest.mark.parametrize(
    ("dead", "kept"),
    [
        ([0, 5, 8, 9, 18, 23, 30, 31], 24),  # two in each group, at other places
        ([0, 5, 8, 9, 18, 30, 31], 28),  # only one in the third group
        ([0, 5, 8, 9, 18, 23], 32),  # none in the last
    ],
)
@pytest.mark.parametrize("way", ["before", "unread"])
def test_every_group_loses_equally_many_inputs(dead, kept, way):
    net = Net()
    pruned = Pruned(net.model(chain(net, **{way: dead})))
    assert pruned.dims("c1.w")[0] == kept
    assert pruned.dims("t.w") == (kept, 6, 3, 3)
    assert ("equally many" in pruned.reasons()) is (kept > 24)
    pruned.assert_equal()


@pytest.mark.parametrize("way", ["zero", "after"])
def test_every_group_loses_equally_many_outputs(way):
    net = Net()
    pruned = Pruned(net.model(chain(net, **{way: [0, 5, 8, 9, 14, 15, 18, 23]})))
    assert pruned.dims("t.w") == (32, 4, 3, 3)
    assert pruned.dims("t.b") == (16,)
    assert pruned.dims("c2.w") == (8, 16, 3, 3)
    pruned.assert_equal()


def test_inputs_and_outputs_together():
    net = Net()
    before, after = [0, 1, 8, 15, 17, 18, 24, 29], [5, 6, 17, 18]
    pruned = Pruned(net.model(chain(net, before=before, after=after)))
    assert pruned.dims("t.w") == (24, 5, 3, 3)
    pruned.assert_equal()


def test_a_whole_group_goes():
    net = Net()
    pruned = Pruned(net.model(chain(net, after=range(6, 12))))
    assert pruned.dims("t.w") == (24, 6, 3, 3)
    assert pruned.dims("c1.w")[0] == 24, "what only the dead group read goes too"
    assert only(pruned).attributes.get_int("group") == 3
    pruned.assert_equal()


def test_a_group_that_enters_as_zeros_leaves_as_its_bias():
    net = Net()
    graph = chain(net, before=range(8, 16))
    net.weights["t.b"][6:12] = -0.5  # cut off by the Relu
    pruned = Pruned(net.model(graph))
    assert pruned.dims("c1.w")[0] == 24
    assert pruned.dims("c2.w") == (8, 18, 3, 3)
    pruned.assert_equal()


@pytest.mark.parametrize(("shift", "kept"), [(-0.5, 16), (0.5, 32)])
def test_depthwise(shift, kept):
    net = Net()
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=range(16, 32))
    x = deconv(net, x, 32, "t", group=32)
    net.weights["t.b"][16:] = shift
    pruned = Pruned(net.model(net.conv(net.op("Relu", [x]), 8, "c2")))
    # What stays constant and not zero enters a padded Conv: one channel stands for all.
    width = kept if kept == 16 else 17
    assert pruned.dims("t.w") == (width, 1, 3, 3)
    assert only(pruned).attributes.get_int("group") == width
    pruned.assert_equal()


def test_depthwise_with_multiplier():
    net = Net()
    x = net.conv(net.input("x", IMAGE), 8, "c1", zero=range(4, 8))
    x = deconv(net, x, 16, "t", group=8)
    net.weights["t.b"][8:] = 0
    pruned = Pruned(net.model(net.conv(x, 8, "c2")))
    assert pruned.dims("t.w") == (4, 2, 3, 3)
    assert only(pruned).attributes.get_int("group") == 4
    pruned.assert_equal()


def test_depthwise_of_which_one_output_per_input_is_unread():
    net = Net()
    x = net.conv(net.input("x", IMAGE), 8, "c1")
    x = deconv(net, x, 16, "t", group=8)
    pruned = Pruned(net.model(net.conv(x, 8, "c2", unread=range(0, 16, 2))))
    assert pruned.dims("t.w") == (8, 1, 3, 3)
    pruned.assert_equal()


def test_residual_around_a_depthwise_conv_transpose():
    net = Net()
    dead = [1, 2, 5]
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 8, "c1", zero=dead)])
    weight = net.weight("t.w", net.random(8, 1, 3, 3))
    y = net.op("ConvTranspose", [x, weight], pads=[1] * 4, group=8)
    pruned = Pruned(net.model(net.conv(net.op("Add", [x, y]), 8, "c2")))
    assert pruned.dims("t.w") == (5, 1, 3, 3)
    pruned.assert_equal()


def test_weight_with_two_readers_is_a_barrier():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=[0, 8, 16, 24])])
    y = deconv(net, x, 32, "t", group=4)
    z = net.op("ConvTranspose", [y, "t.w"], group=4)
    pruned = Pruned(net.model(z))
    assert pruned.changes == 0
    assert "other readers" in pruned.reasons()


def random_net(seed: int) -> Pruned:
    """Random groups and zeros; what is left has to compute the same."""
    rng = np.random.default_rng(seed)

    def some(count: int) -> np.ndarray:
        return np.flatnonzero(rng.random(count) < rng.choice([0.0, 0.3, 0.7]))

    net = Net(seed)
    group = int(rng.choice([1, 2, 4, 8]))
    width = int(rng.choice([8, 16, 24]))
    x = net.conv(net.input("x", (2, 3, 4, 4)), 8, "c1", zero=some(8))
    x = net.op(str(rng.choice(["Relu", "Sigmoid", "Neg"])), [x])
    x = deconv(net, x, width, "t", group=group, zero=some(width), unread=some(8))
    x = net.op(str(rng.choice(["Relu", "Sigmoid", "Neg"])), [x])
    pruned = Pruned(net.model(net.conv(x, 4, "c2", unread=some(width))))
    pruned.assert_equal(seeds=1, tolerance=2e-6)
    return pruned


def test_random_groups_keep_their_outputs():
    assert sum(random_net(seed).changes > 0 for seed in range(40)) > 20
