"""Channel counts after the removal: the fewest, multiples of N, or never slower than before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from prune_models import Net, Pruned
from prune_networks import Builder

from onnxslim import presets
from onnxslim.api import channel_settings
from onnxslim.errors import UsageError
from onnxslim.pipeline import leaves
from onnxslim.rewrite.channels.costs import TARGETS, Rate, cost

IMAGE = (1, 16, 28, 28)


def pair(alive: int, old: int, *, image=IMAGE, kernel: int = 3, unread: bool = False) -> Net:
    """Two convolutions with ``old`` channels between them, of which ``alive`` are needed."""
    net = Net()
    dead = range(alive, old)
    zero, ignored = ((), dead) if unread else (dead, ())
    x = net.op("Relu", [net.conv(net.input("x", image), old, "c1", zero=zero, kernel=kernel)])
    net.outputs[net.conv(x, 48, "c2", unread=ignored, kernel=kernel)] = None
    return net


def prune(net: Net, align: int | None) -> Pruned:
    pruned = Pruned(net.model(*net.outputs), align=align)
    pruned.assert_equal(seeds=1)
    return pruned


@pytest.mark.parametrize("unread", [False, True])
@pytest.mark.parametrize(("align", "width"), [(1, 13), (8, 16), (5, 15), (None, 16), (64, 13)])
def test_thirteen_of_thirty_two(align, width, unread):
    pruned = prune(pair(13, 32, unread=unread), align)
    assert pruned.dims("c1.w") == (width, 16, 3, 3)
    assert pruned.dims("c2.w") == (48, width, 3, 3)


def test_report_says_what_was_held_back():
    pruned = prune(pair(13, 32), None)
    assert "holds 3 channels back: 16 channels are faster than 13 in Conv" in pruned.reasons()
    assert "holds 3 channels back: 16 instead of 13 is a multiple of 8" in (
        prune(pair(13, 32), 8).reasons()
    )


@pytest.mark.parametrize(
    ("alive", "old", "width"),
    [
        (57, 64, 60),
        (49, 64, 52),
        (47, 64, 48),
        (49, 50, 49),
        (31, 32, 32),
        (5, 64, 5),
        (32, 64, 32),
    ],
)
def test_no_convolution_leaves_the_fast_kernels(alive, old, width):
    assert prune(pair(alive, old), None).dims("c1.w")[0] == width


def test_layers_too_small_to_matter_lose_everything():
    assert prune(pair(13, 32, image=(1, 16, 2, 2)), None).dims("c1.w")[0] == 13


def test_never_above_the_old_count():
    pruned = prune(pair(25, 30), 8)
    assert pruned.dims("c1.w")[0] == 25


def test_matrices_have_no_step():
    net = Net()
    x = net.op("Relu", [net.linear(net.input("x", (64, 64), axis=1), 64, "l1", zero=range(13, 64))])
    net.outputs[net.linear(x, 32, "l2")] = None
    assert prune(net, None).dims("l1.w") == (64, 13)
    assert prune(net, 8).dims("l1.w") == (64, 16)


def test_depthwise_keeps_a_multiple_of_four():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 64, "up", kernel=1, zero=range(45, 64))])
    x = net.op("Relu", [net.conv(x, 64, "depth", group=64, zero=range(45, 64))])
    net.outputs[net.conv(x, 24, "down", kernel=1)] = None
    pruned = prune(net, None)
    assert pruned.dims("depth.w")[0] == 48
    assert pruned.dims("up.w")[0] == pruned.dims("down.w")[1] == 48


def test_groups_keep_equally_many():
    net = Net()
    dead = [channel for channel in range(32) if channel % 8 >= 5]
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=dead)])
    x = net.op("Relu", [net.conv(x, 32, "g", group=4, zero=dead)])
    net.outputs[net.conv(x, 8, "c3")] = None
    pruned = prune(net, 8)
    assert pruned.dims("g.w") == (24, 6, 3, 3)
    assert pruned.dims("c1.w")[0] == pruned.dims("c3.w")[1] == 24


def test_concat_aligns_each_part():
    net = Net()
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=range(11, 32))
    y = net.conv("x", 32, "c2", zero=range(21, 32))
    x = net.op("Relu", [net.op("Concat", [x, y], 64, axis=1)])
    net.outputs[net.conv(x, 8, "c3")] = None
    pruned = prune(net, 8)
    assert pruned.dims("c1.w")[0] == 16
    assert pruned.dims("c2.w")[0] == 24
    assert pruned.dims("c3.w")[1] == 40


@pytest.mark.parametrize("pad", [0, 1])
def test_constants_that_are_held_back_or_merged(pad):
    """With padding one constant stands for all; without it, those that go are folded."""
    net = Net()
    x = net.conv(net.input("x", IMAGE), 32, "c1")
    shift = {channel: 0.1 * channel - 2.2 for channel in range(20, 32)}
    x = net.op("Relu", [net.batch_norm(x, "bn", shift=shift, dead=range(20, 32))])
    net.outputs[net.conv(x, 8, "c2", pad=pad)] = None
    pruned = prune(net, 8)
    assert pruned.dims("c1.w")[0] == 24
    assert pruned.dims("c2.w")[1] == 24


def test_what_is_held_back_keeps_nothing_else():
    """Filters that nobody looks at do not keep the channels that only they read."""
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=range(5))])
    x = net.conv(x, 32, "c2", unread=range(5, 16))
    net.weights["c2.w"][20:, 5:16] = 1.0
    x = net.op("Relu", [x])
    net.outputs[net.conv(x, 8, "c3", unread=range(20, 32))] = None
    pruned = prune(net, 8)
    assert pruned.dims("c1.w")[0] == 16
    assert pruned.dims("c2.w")[:2] == (24, 16)


@pytest.fixture
def eager(monkeypatch) -> None:
    """A target with small blocks, where every gain counts: small graphs hold back too."""
    rates = dict.fromkeys(TARGETS["cpu"].rates, Rate(1.0, 20.0))
    small = {"blocks": (2, 4), "lane": 2, "direct_below": 2, "rates": rates}
    monkeypatch.setitem(TARGETS, "cpu", replace(TARGETS["cpu"], floor=0.0, noise=0.0, **small))


def random_chain(seed: int) -> Net:
    """Convolutions of odd widths with dead filters, some of them depthwise, with activations."""
    rng, net = np.random.default_rng(seed), Net(seed)
    x = net.input("x", ("n", 4, 5, 5))
    for index in range(4):
        width = int(rng.integers(5, 13))
        dead = rng.permutation(width)[: rng.integers(0, width - 1)]
        kernel = int(rng.choice([1, 3]))
        x = net.conv(x, width, f"c{index}", zero=dead, kernel=kernel)
        x = net.op(str(rng.choice(["Relu", "Sigmoid", "HardSwish"])), [x])
        if rng.random() < 0.4:
            x = net.op("Relu", [net.conv(x, width, f"d{index}", group=width)])
    net.outputs[net.conv(x, 3, "last", unread=range(0, net.channels[x], 3))] = None
    return net


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("align", [None, 3, 4])
def test_random_chains(align):
    held = 0
    for seed in range(15):
        held += "back: " in prune(random_chain(seed), align).reasons()
    assert held >= 5, "hardly anything was held back"


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("align", [None, 3])
def test_random_networks(align):
    for seed in range(25):
        builder = Builder(1000 + seed, np.float32)
        outputs = builder.build()
        pruned = Pruned(builder.net.model(*outputs), align=align)
        pruned.assert_equal(size=2, seeds=1, tolerance=1e-5)


def test_costs_know_the_measured_steps():
    def conv(kind: str, *counts: int) -> list[float]:
        both = np.array(counts)
        return cost(TARGETS["cpu"], kind, 784 * 9, both, both).tolist()

    for slow, fast in ((57, 56), (49, 48), (47, 48)):
        one, other = conv("spatial", slow, fast)
        assert one > 1.1 * other, (slow, fast)
    one, other = conv("depthwise", 63, 64)
    assert one > 4 * other
    plain = conv("plain", *range(1, 65))
    assert plain == sorted(plain)


def test_presets_choose_by_cost_and_take_another_alignment():
    def aligned(settings=None) -> list[int | None]:
        held = leaves(presets.build("default", settings=settings))
        return [step.align for step in held if step.name == "eliminate-zeroed-channels"]

    assert aligned() == [None]
    assert aligned(channel_settings(4, False, False)) == [4]
    assert aligned(channel_settings("1", False, False)) == [1]
    assert aligned(channel_settings("auto", True, True)) == [None]


@pytest.mark.parametrize("align", ["x", "0", "-8", "1.5", 0, ""])
def test_bad_alignment(align):
    with pytest.raises(UsageError, match="want auto, 1"):
        channel_settings(align, False, False)
