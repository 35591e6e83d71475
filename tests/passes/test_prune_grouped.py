"""Grouped convolutions and channel shuffles: what stays equal in number, and in which order."""

from __future__ import annotations

import numpy as np
import pytest
from prune_models import Net, Pruned

from onnxslim.pipeline import Context

IMAGE = ("n", 16, 6, 6)


def chain(net: Net, *, before=(), inside=(), after=(), pad: int = 1) -> str:
    """Conv 16 -> 32, grouped Conv 32 -> 32 of four groups, Conv 32 -> 8; with zero filters."""
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=before)])
    x = net.op("Relu", [net.conv(x, 32, "g", group=4, zero=inside, pad=pad)])
    return net.conv(x, 8, "c3", unread=after)


@pytest.mark.parametrize(
    ("dead", "kept"),
    [
        ([0, 5, 8, 9, 18, 23, 30, 31], 24),  # two in each group, at other places
        ([0, 5, 8, 9, 18, 30, 31], 28),  # only one in the third group
        ([0, 5, 8, 9, 18, 23], 32),  # none in the last
    ],
)
def test_every_group_loses_equally_many_inputs(dead, kept):
    net = Net()
    pruned = Pruned(net.model(chain(net, before=dead)))
    assert pruned.dims("c1.w")[0] == kept
    assert pruned.dims("g.w") == (32, kept // 4, 3, 3)
    assert ("equally many" in pruned.reasons()) is (kept > 24)
    pruned.assert_equal()


@pytest.mark.parametrize(("side", "dims"), [("inside", (24, 8, 3, 3)), ("after", (24, 8, 3, 3))])
def test_every_group_loses_equally_many_outputs(side, dims):
    net = Net()
    pruned = Pruned(net.model(chain(net, **{side: [0, 5, 8, 9, 18, 23, 30, 31]})))
    assert pruned.dims("g.w") == dims
    assert pruned.dims("g.b") == (24,)
    assert pruned.dims("c3.w") == (8, 24, 3, 3)
    pruned.assert_equal()


def test_inputs_and_outputs_together():
    net = Net()
    dead = [0, 1, 2, 8, 9, 10, 16, 17, 18, 24, 25, 26]
    pruned = Pruned(net.model(chain(net, before=dead, inside=[3, 4, 8, 9, 20, 21, 30, 31])))
    assert pruned.dims("g.w") == (24, 5, 3, 3)
    pruned.assert_equal()


@pytest.mark.parametrize("after", [range(8, 16), [*range(8, 16), 0, 16, 31]])
def test_a_whole_group_goes(after):
    net = Net()
    pruned = Pruned(net.model(chain(net, after=after)))
    width = 8 if len(after) == 8 else 7
    assert pruned.dims("g.w") == (3 * width, 8, 3, 3)
    assert pruned.dims("c1.w")[0] == 24, "what only the dead group read goes too"
    assert pruned.dims("c3.w") == (8, 3 * width, 3, 3)
    (node,) = [node for node in pruned.after.graph if node.attributes.get_int("group", 1) > 1]
    assert node.attributes.get_int("group") == 3
    pruned.assert_equal()


def test_one_group_left_is_a_plain_conv():
    net = Net()
    pruned = Pruned(net.model(chain(net, after=range(8, 32))))
    assert pruned.dims("g.w") == (8, 8, 3, 3)
    assert pruned.dims("c1.w")[0] == 8
    pruned.assert_equal()


def test_zeros_that_enter_a_group_of_outputs_stay_for_the_count():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=range(16, 32))])
    pruned = Pruned(net.model(net.conv(x, 32, "c2", group=4)))
    assert pruned.changes == 0
    assert "equally many channels in every group" in pruned.reasons()


@pytest.mark.parametrize(("pad", "kept"), [(0, 24), (1, 32)])
def test_constants_fold_into_the_bias_without_padding(pad, kept):
    net = Net()
    dead = [0, 5, 8, 9, 18, 23, 30, 31]
    x = net.op("Sigmoid", [net.conv(net.input("x", IMAGE), 32, "c1", zero=dead)])
    x = net.op("Relu", [net.conv(x, 32, "g", group=4, pad=pad, bias=False)])
    pruned = Pruned(net.model(net.conv(x, 8, "c3")))
    assert pruned.dims("c1.w")[0] == kept
    pruned.assert_equal()


def test_residual_around_a_grouped_conv():
    net = Net()
    dead = [0, 1, 9, 10, 17, 18, 25, 26]
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=dead)])
    y = net.conv(x, 32, "g", group=4, zero=dead)
    pruned = Pruned(net.model(net.conv(net.op("Add", [x, y]), 8, "c3")))
    assert pruned.dims("g.w") == (24, 6, 3, 3)
    assert pruned.dims("c3.w") == (8, 24, 3, 3)
    pruned.assert_equal()


def test_grouped_weight_with_two_readers_is_a_barrier():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=[0, 8, 16, 24])])
    y = net.conv(x, 32, "g", group=4)
    z = net.op("Conv", [y, "g.w"], group=4, pads=[1] * 4)
    pruned = Pruned(net.model(z))
    assert pruned.changes == 0
    assert "other readers" in pruned.reasons()


def test_grouped_float16():
    net = Net(dtype=np.float16)
    pruned = Pruned(net.model(chain(net, before=[0, 5, 8, 9, 18, 23, 30, 31])))
    assert pruned.dims("g.w") == (32, 6, 3, 3)
    pruned.assert_equal(tolerance=2e-3)


def test_a_refused_site_keeps_the_groups_equal():
    net = Net()
    model = net.model(chain(net, before=[0, 8, 16, 24], inside=[1, 9, 17, 25]))
    context = Context(model, limit=1)
    pruned = Pruned(model, context=context)
    assert pruned.changes == 1
    pruned.assert_equal(once=True)


def shuffle(net: Net, x: str, rows: int, *, dims=None) -> str:
    count = net.channels[x]
    split = [0, rows, count // rows, 6, 6] if dims is None else dims
    y = net.op("Reshape", [x, net.weight("split", np.array(split))])
    y = net.op("Transpose", [y], perm=[0, 2, 1, 3, 4])
    return net.op("Reshape", [y, net.weight("join", np.array([-1, count, 6, 6]))])


@pytest.mark.parametrize(
    "dead",
    [
        [*range(8), *range(20, 28)],  # other channels in each row
        [*range(4, 12), *range(20, 28)],  # the same in each row
        range(16),  # a whole row
        [*range(15), 31],  # rows of different lengths
    ],
)
def test_shuffle_keeps_the_order_of_what_is_left(dead):
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=dead)])
    pruned = Pruned(net.model(net.conv(shuffle(net, x, 2), 8, "c2")))
    assert pruned.dims("c1.w")[0] == 16
    assert pruned.dims("c2.w") == (8, 16, 3, 3)
    pruned.assert_equal()


def test_shuffle_between_grouped_convs():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1")])
    x = net.conv(x, 32, "g1", kernel=1, group=4, zero=[0, 2, 12, 14, 17, 19, 29, 31])
    x = net.conv(shuffle(net, x, 4), 32, "g2", group=4)
    pruned = Pruned(net.model(net.conv(x, 8, "c2")))
    assert pruned.dims("g1.w")[0] == 4 * pruned.dims("g2.w")[1] == 24
    pruned.assert_equal()


def test_unread_channels_behind_a_shuffle():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1")])
    pruned = Pruned(net.model(net.conv(shuffle(net, x, 4), 8, "c2", unread=range(5))))
    assert pruned.dims("c1.w")[0] == 27
    pruned.assert_equal()


def test_what_is_seen_inside_a_shuffle_stays():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=range(3))])
    y = net.conv(shuffle(net, x, 2), 8, "c2")
    inner = net.op("Neg", [net.nodes[-3].output[0]], 8, out="inner")
    pruned = Pruned(net.model(y, inner))
    assert pruned.dims("c1.w")[0] == 32
    pruned.assert_equal()
