"""Norms whose statistics run over channels: whole groups go, zeros go where that is made up for."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from prune_models import Net, Pruned, count_parameters

from onnxslim.passes.simplify.eliminate_dead_nodes import EliminateDeadNodes
from onnxslim.pipeline import Context

IMAGE = ("n", 3, 6, 6)
DEAD = [1, 6, 15, 16, 33, 40, 41, 63]


def ops(pruned: Pruned) -> list[str]:
    return [node.op_type for node in pruned.after.graph]


def only(pruned: Pruned, op_type: str):
    (node,) = [node for node in pruned.after.graph if node.op_type == op_type]
    return node


# -- groups ---------------------------------------------------------------------------------------


def grouped(net: Net, *, zero=(), unread=(), per_channel: bool, pad: int = 0, shift=0.3) -> str:
    """Conv 3 -> 32, GroupNormalization of 8 groups of 4, Relu, Conv -> 8."""
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=zero)
    count = 32 if per_channel else 8
    beta = net.random(count, scale=shift)
    names = [net.weight("gn.g", net.random(count) + net.dtype.type(2)), net.weight("gn.b", beta)]
    x = net.op("GroupNormalization", [x, *names], 32, num_groups=8)
    y = net.conv(net.op("Relu", [x]), 8, "c2", unread=unread, pad=pad)
    net.outputs[y] = ("n", 8, 4 + 2 * pad, 4 + 2 * pad)
    return y


@pytest.mark.parametrize(("opset", "per_channel"), [(18, False), (21, True)])
@pytest.mark.parametrize("way", ["zero", "unread"])
def test_one_dead_group_goes(opset, per_channel, way):
    net = Net(opset=opset)
    dead = range(8, 12)
    # The form of opset 18 is deprecated, which the checker calls an error.
    unchecked = "com.microsoft" if opset < 21 else None
    graph = grouped(net, **{way: dead}, per_channel=per_channel)
    pruned = Pruned(net.model(graph, extra_domain=unchecked))
    assert pruned.dims("c1.w") == (28, 3, 3, 3)
    assert pruned.dims("gn.g") == (28 if per_channel else 7,)
    assert only(pruned, "GroupNormalization").attributes.get_int("num_groups") == 7
    assert pruned.dims("c2.w") == (8, 28, 3, 3)
    pruned.assert_equal()


def test_part_of_a_group_stays_and_says_why():
    net = Net(opset=21)
    pruned = Pruned(net.model(grouped(net, zero=[8, 9, 10, 20], per_channel=True)))
    assert pruned.changes == 0
    assert "4 zeroed channels stay" in pruned.reasons()
    assert "statistics over groups of 4 channels" in pruned.reasons()


def test_a_group_of_zeros_with_a_shift_before_padding_stays():
    net = Net(opset=21)
    graph = grouped(net, zero=range(8, 12), per_channel=True, pad=1)
    net.weights["gn.b"][8:12] = [0.5, -1, -2, -3]
    pruned = Pruned(net.model(graph))
    assert pruned.changes == 0
    assert "padded Conv" in pruned.reasons() or "statistics" in pruned.reasons()


def test_a_group_whose_shifts_are_cut_off_goes_before_padding_too():
    net = Net(opset=21)
    graph = grouped(net, zero=range(8, 12), per_channel=True, pad=1)
    net.weights["gn.b"][8:12] = -1
    pruned = Pruned(net.model(graph))
    assert pruned.dims("c2.w") == (8, 28, 3, 3)
    pruned.assert_equal()


# -- layer norm -----------------------------------------------------------------------------------


def stream(
    net: Net, norm: str, *, dead=DEAD, unread=(), scale_zero=(), shift=True, readers: int = 1
) -> list[str]:
    """A stream of 64 channels: up, two residual branches of norm and feed-forward, norm, heads."""
    x = net.linear(net.input("x", ["n", 5, 12], axis=2), 64, "up", zero=dead)
    for index in range(2):
        y = normed(net, x, norm, f"n{index}", scale_zero, shift)
        y = net.op("Relu", [net.linear(y, 32, f"a{index}", unread=unread)])
        x = net.op("Add", [x, net.linear(y, 64, f"b{index}", zero=dead)])
    y = normed(net, x, norm, "last", scale_zero, shift)
    return [net.linear(y, 4, f"head{index}", unread=unread) for index in range(readers)]


def normed(net: Net, x: str, norm: str, name: str, scale_zero=(), shift: bool = True) -> str:
    gamma = net.random(64) + net.dtype.type(2)
    gamma[list(scale_zero)] = 0
    names = [net.weight(f"{name}.g", gamma)]
    if norm == "primitive":
        return primitive_rms(net, x, names[0], name)
    if norm == "by hand":
        del net.weights[names[0]]
        return primitive_layer_norm(net, x, name, scale_zero=scale_zero)
    if norm == "LayerNormalization" and shift:
        names.append(net.weight(f"{name}.b", net.random(64, scale=0.3)))
    return net.op(norm, [x, *names], axis=-1, epsilon=1e-3)


def primitive_rms(net: Net, x: str, gamma: str, name: str, form: str = "div") -> str:
    two = net.weight(f"{name}.two", np.array(2, net.dtype))
    epsilon = net.weight(f"{name}.eps", np.array(1e-3, net.dtype))
    axes = {"axes": [-1]} if net.opset < 18 else {}
    more = [] if axes else [net.weight(f"{name}.axes", np.array([-1]))]
    mean = net.op("ReduceMean", [net.op("Pow", [x, two]), *more], 1, **axes)
    root = net.op("Sqrt", [net.op("Add", [mean, epsilon])])
    if form == "div":
        return net.op("Mul", [gamma, net.op("Div", [x, root])], 64)
    one = net.weight(f"{name}.one", np.array(1, net.dtype))
    inverse = net.op("Div", [one, root], 1) if form == "over" else net.op("Reciprocal", [root], 1)
    return net.op("Mul", [net.op("Mul", [x, inverse]), gamma], 64)


def primitive_layer_norm(net: Net, x: str, name: str, *, scale_zero=()) -> str:
    """Layer norm as exporters write it before opset 17."""
    numbers = {"two": 2, "eps": 1e-3}
    two, epsilon = (net.weight(f"{name}.{k}", np.array(v, net.dtype)) for k, v in numbers.items())
    centred = net.op("Sub", [x, net.op("ReduceMean", [x], 1, axes=[-1])])
    spread = net.op("ReduceMean", [net.op("Pow", [centred, two])], 1, axes=[-1])
    root = net.op("Sqrt", [net.op("Add", [spread, epsilon])])
    gamma = net.random(64) + net.dtype.type(2)
    gamma[list(scale_zero)] = 0
    y = net.op("Mul", [net.op("Div", [centred, root]), net.weight(f"{name}.g", gamma)])
    return net.op("Add", [y, net.weight(f"{name}.b", net.random(64, scale=0.3))])


NORMS = [("LayerNormalization", 17), ("RMSNormalization", 23), ("primitive", 17), ("primitive", 18)]


@pytest.mark.parametrize(("norm", "opset"), NORMS)
def test_a_stream_through_norms_stays_by_default(norm, opset):
    net = Net(opset=opset)
    pruned = Pruned(net.model(*stream(net, norm)))
    assert pruned.changes == 0
    assert "8 zeroed channels stay" in pruned.reasons()
    assert "compensated norms can do without zeros" in pruned.reasons()


def assert_stream(pruned: Pruned, width: int, tolerance: float = 1e-5) -> None:
    assert pruned.dims("up.w") == (12, width)
    for index in range(2):
        assert pruned.dims(f"a{index}.w") == (width, 32)
        assert pruned.dims(f"b{index}.w") == (32, width)
    pruned.assert_equal(tolerance=tolerance)


def test_rms_norm_changes_its_constants():
    net = Net(opset=23)
    pruned = Pruned(net.model(*stream(net, "RMSNormalization")), compensate_norms=True)
    assert_stream(pruned, 56)
    norms = [node for node in pruned.after.graph if node.op_type == "RMSNormalization"]
    assert len(norms) == 3
    for node, name in zip(norms, ("n0", "n1", "last"), strict=True):
        epsilon = node.attributes.get_float("epsilon")
        assert epsilon == pytest.approx(1e-3 * 64 / 56, rel=1e-6)
        before = np.delete(net.weights[f"{name}.g"], DEAD)
        scale = node.inputs[1].const_value.numpy()
        np.testing.assert_allclose(scale, before * (64 / 56) ** 0.5, rtol=1e-6)


@pytest.mark.parametrize("opset", [17, 18])
def test_rms_norm_of_primitives_stays_one(opset):
    net = Net(opset=opset)
    model = net.model(*stream(net, "primitive"))
    pruned = Pruned(model, compensate_norms=True)
    assert_stream(pruned, 56)
    assert len(ops(pruned)) == len(list(model.graph)), "only constants change"


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("way", ["unread", "scale_zero"])
def test_layer_norm_is_written_in_primitives(opset, way, shift):
    net = Net(opset=opset)
    graph = stream(net, "LayerNormalization", **{way: DEAD}, shift=shift)
    pruned = Pruned(net.model(*graph), compensate_norms=True)
    assert "LayerNormalization" not in ops(pruned)
    assert_stream(pruned, 56)


@pytest.mark.parametrize("form", ["div", "over", "reciprocal"])
def test_forms_of_an_rms_norm(form):
    net = Net()
    x = net.linear(net.input("x", ["n", 12]), 64, "up", zero=DEAD)
    y = primitive_rms(net, x, net.weight("g", net.random(64)), "n", form)
    model = net.model(net.linear(y, 4, "head"))
    pruned = Pruned(model, compensate_norms=True)
    assert pruned.dims("head.w") == (56, 4)
    assert len(ops(pruned)) == len(list(model.graph)), "only constants change"
    pruned.assert_equal(tolerance=1e-5)


def test_an_rms_norm_whose_mean_has_other_readers_is_multiplied():
    net = Net()
    x = net.linear(net.input("x", ["n", 12]), 64, "up", zero=DEAD)
    y = primitive_rms(net, x, net.weight("g", net.random(64)), "n")
    (mean,) = [node.output[0] for node in net.nodes if node.op_type == "ReduceMean"]
    seen = net.op("Sqrt", [mean], 1)
    model = net.model(net.linear(y, 4, "head"), seen)
    pruned = Pruned(model, compensate_norms=True)
    assert pruned.dims("head.w") == (56, 4)
    assert len(ops(pruned)) == len(list(model.graph)) + 1
    pruned.assert_equal(tolerance=1e-5)


@pytest.mark.parametrize("way", ["unread", "scale_zero"])
@pytest.mark.parametrize("compensate", [False, True])
def test_layer_norm_of_primitives(way, compensate):
    net = Net()
    scale_zero, unread = (DEAD, ()) if way == "scale_zero" else ((), DEAD)
    x = net.linear(net.input("x", ["n", 12]), 64, "up", zero=DEAD)
    y = primitive_layer_norm(net, x, "n", scale_zero=scale_zero)
    model = net.model(net.linear(y, 4, "head", unread=unread))
    pruned = Pruned(model, compensate_norms=compensate)
    assert pruned.dims("head.w") == (56 if compensate else 64, 4)
    assert ("compensated norms can do without" in pruned.reasons()) is not compensate
    pruned.assert_equal(tolerance=1e-5)


def test_a_large_mean_does_not_cancel():
    net = Net()
    graph = stream(net, "LayerNormalization", unread=DEAD)
    alive = [channel for channel in range(64) if channel not in DEAD]
    net.weights["up.b"][alive] += 100
    pruned = Pruned(net.model(*graph), compensate_norms=True)
    assert_stream(pruned, 56)


def test_float16_layer_norm_sums_in_float32():
    net = Net(dtype=np.float16)
    graph = stream(net, "LayerNormalization", unread=DEAD)
    pruned = Pruned(net.model(*graph), compensate_norms=True)
    assert "Cast" in ops(pruned)
    assert_stream(pruned, 56, tolerance=1e-2)


def test_float64_layer_norm_is_exact():
    net = Net(dtype=np.float64)
    graph = stream(net, "LayerNormalization", unread=DEAD)
    assert_stream(Pruned(net.model(*graph), compensate_norms=True), 56, tolerance=1e-12)


@pytest.mark.parametrize("readers", [1, 2])
@pytest.mark.parametrize("norm", ["LayerNormalization", "by hand"])
def test_zeros_that_readers_need_become_one_channel(norm, readers):
    net = Net()
    graph = stream(net, norm, readers=readers)
    assert_stream(Pruned(net.model(*graph), compensate_norms=True), 57)


def test_other_axes_of_a_layer_norm_pass():
    net = Net()
    x = net.conv(net.input("x", IMAGE), 16, "c1", zero=range(8))
    x = net.op("LayerNormalization", [x, net.weight("g", net.random(6, 6))], axis=2)
    pruned = Pruned(net.model(net.conv(x, 4, "c2")))
    assert pruned.dims("c2.w") == (4, 8, 3, 3)
    pruned.assert_equal()


def test_layer_norm_over_channels_and_space():
    net = Net()
    x = net.conv(net.input("x", IMAGE), 16, "c1", zero=range(8))
    gamma = net.random(16, 6, 6)
    gamma[:8] = 0
    x = net.op("LayerNormalization", [x, net.weight("g", gamma)], axis=1)
    pruned = Pruned(net.model(net.conv(x, 4, "c2")), compensate_norms=True)
    assert pruned.dims("g") == (8, 6, 6)
    assert pruned.dims("c2.w") == (4, 8, 3, 3)
    pruned.assert_equal(tolerance=1e-5)


def test_a_statistic_as_output_is_a_barrier():
    net = Net()
    x = net.linear(net.input("x", ["n", 12]), 64, "up", zero=DEAD)
    y = net.op("LayerNormalization", [x, net.weight("g", net.random(64))])
    net.nodes[-1].output.append("mean")
    pruned = Pruned(net.model(net.linear(y, 4, "head", unread=DEAD), "mean"), compensate_norms=True)
    assert pruned.changes == 0
    assert "statistics are used as outputs" in pruned.reasons()


def test_lp_normalization_does_without_zeros():
    net = Net()
    x = net.linear(net.input("x", ["n", 12]), 64, "up", zero=DEAD)
    x = net.op("LpNormalization", [x], axis=1, p=2)
    pruned = Pruned(net.model(net.linear(x, 4, "head", unread=DEAD)))
    assert pruned.dims("head.w") == (56, 4)
    pruned.assert_equal()


# -- reductions over the channels -----------------------------------------------------------------


@pytest.mark.parametrize("op_type", ["ReduceSum", "ReduceMean", "ReduceL2", "ReduceSumSquare"])
def test_reduction_of_channels(op_type):
    net = Net(opset=18)
    x = net.conv(net.input("x", IMAGE), 16, "c1", zero=range(4))
    axes = net.weight("axes", np.array([1]))
    gate = net.op("Sigmoid", [net.op(op_type, [x, axes], 1)])
    pruned = Pruned(net.model(net.conv(net.op("Mul", [x, gate]), 4, "c2")))
    assert pruned.dims("c2.w") == (4, 12, 3, 3)
    pruned.assert_equal()


@pytest.mark.parametrize("op_type", ["ReduceSum", "ReduceMean"])
def test_constants_that_are_summed_up_stay(op_type):
    net = Net(opset=18)
    x = net.op("Sigmoid", [net.conv(net.input("x", IMAGE), 16, "c1", zero=range(4))])
    axes = net.weight("axes", np.array([1]))
    pruned = Pruned(net.model(net.op(op_type, [x, axes], 1)))
    assert pruned.changes == 0
    assert "sums it up" in pruned.reasons()


@pytest.mark.parametrize(
    ("op_type", "attrs", "reason"),
    [
        ("LRN", {"size": 3}, "neighbouring channels"),
        ("ReduceMax", {"axes": [1]}, "reduces over the channels"),
        ("Hardmax", {"axis": 1}, "depends on many channels"),
        ("ArgMax", {"axis": 1}, "compares the channels"),
    ],
)
def test_barriers_name_the_operator(op_type, attrs, reason):
    net = Net()
    x = net.conv(net.input("x", IMAGE), 16, "c1", zero=range(4))
    y = net.op(op_type, [x], 1 if op_type in ("ReduceMax", "ArgMax") else 16, **attrs)
    model = net.model(y) if op_type != "ArgMax" else arg_max(net, y)
    pruned = Pruned(model)
    assert pruned.changes == 0
    assert op_type in pruned.reasons()
    assert reason in pruned.reasons()


def arg_max(net: Net, y: str):
    return net.model(net.op("Cast", [y], 1, to=helper.np_dtype_to_tensor_dtype(net.dtype)))


# -- group norm in three nodes --------------------------------------------------------------------


def split_norm(net: Net, x: str, target: list[int] | None) -> str:
    """8 groups of 4 channels as exporters write them before opset 18."""
    size, groups = net.channels[x], 8
    names = [net.weight("one", np.ones(groups, net.dtype))]
    names.append(net.weight("zero", np.zeros(groups, net.dtype)))
    y = net.op("Reshape", [x, net.weight("apart", np.array([0, groups, -1]))], groups)
    y = net.op("InstanceNormalization", [y, *names], epsilon=1e-3)
    back = net.op("Shape", [x], 0) if target is None else net.weight("back", np.array(target))
    y = net.op("Mul", [net.op("Reshape", [y, back], size), net.weight("g", net.random(size, 1, 1))])
    return net.op("Add", [y, net.weight("b", -np.abs(net.random(size, 1, 1)))], size)


@pytest.mark.parametrize("target", [[0, 32, 6, 6], [0, 32, 6, -1], [0, -1, 6, 6], None])
@pytest.mark.parametrize("way", ["zero", "unread"])
def test_a_dead_group_of_a_norm_in_three_nodes(target, way):
    net = Net()
    side = "h" if target is None else 6
    dead = range(8, 12)
    zero, unread = (dead, ()) if way == "zero" else ((), dead)
    x = net.conv(net.input("x", ("n", 3, side, 6)), 32, "c1", zero=zero)
    y = net.op("Relu", [split_norm(net, x, target)])
    pruned = Pruned(net.model(net.conv(y, 8, "c2", unread=unread)))
    assert pruned.dims("c1.w") == (28, 3, 3, 3)
    assert pruned.dims("one") == pruned.dims("zero") == (7,)
    assert pruned.dims("g") == (28, 1, 1)
    assert pruned.dims("c2.w") == (8, 28, 3, 3)
    pruned.assert_equal()


@pytest.mark.parametrize("target", [[0, 32, 6, 6], None])
def test_part_of_a_group_in_three_nodes_stays(target):
    net = Net()
    x = net.conv(net.input("x", ("n", 3, 6, 6)), 32, "c1", zero=[8, 9, 10, 20])
    pruned = Pruned(net.model(net.conv(split_norm(net, x, target), 8, "c2")))
    assert pruned.changes == 0
    assert "statistics over groups of 4 channels" in pruned.reasons()
    pruned.assert_equal()


def test_a_shape_that_something_else_reads_too_keeps_the_channels():
    net = Net()
    x = net.conv(net.input("x", ("n", 3, "h", 6)), 32, "c1", zero=range(8, 12))
    y = split_norm(net, x, None)
    (shape,) = [node.output[0] for node in net.nodes if node.op_type == "Shape"]
    z = net.op("Reshape", [net.op("Relu", [x]), shape])
    pruned = Pruned(net.model(net.conv(net.op("Add", [y, z]), 8, "c2")))
    assert pruned.changes == 0
    pruned.assert_equal()


def test_an_all_zero_branch_becomes_its_constants():
    net = Net()
    x = net.input("x", ("n", 16, 8, 8))
    y = net.op("Relu", [net.conv(x, 32, "c1", zero=range(32))])
    model = net.model(net.op("Add", [x, net.conv(y, 16, "c2")]))
    pruned = Pruned(model)
    assert pruned.after.graph.node(-1).op_type == "Add"
    EliminateDeadNodes()(pruned.after, Context(pruned.after))
    assert ops(pruned) == ["Add"]
    assert count_parameters(model) == 9264
    assert pruned.parameters() == 16
    pruned.assert_equal()


# -- random streams -------------------------------------------------------------------------------


def random_stream(seed: int) -> tuple[Pruned, Pruned]:
    """A random stream of norms and feed-forwards with random zeros, pruned in both ways."""
    rng = np.random.default_rng(seed)

    def some(count: int) -> np.ndarray:
        return np.flatnonzero(rng.random(count) < rng.choice([0, 0.3, 0.6]))

    net = Net(seed, opset=int(rng.choice([17, 23])))
    dead = some(64)
    x = net.linear(net.input("x", ["n", 5, 6], axis=2), 64, "up", zero=dead)
    for index in range(int(rng.integers(1, 4))):
        y = random_norm(net, rng, x, f"n{index}", some(64))
        y = net.linear(y, 8, f"a{index}", zero=some(8), unread=(dead, some(64))[rng.integers(2)])
        y = net.op(str(rng.choice(["Relu", "Sigmoid", "Tanh"])), [y])
        zero = dead if rng.random() < 0.7 else some(64)
        y = net.linear(y, 64, f"b{index}", zero=zero, unread=some(8))
        x = net.op("Add", [x, y]) if rng.random() < 0.8 else y
    model = net.model(net.linear(x, 3, "out", unread=(dead, some(64))[rng.integers(2)]))
    align = int(rng.choice([1, 1, 4]))
    both = [Pruned(model, compensate_norms=way, align=align) for way in (False, True)]
    for pruned in both:
        pruned.assert_equal(size=2, seeds=1, tolerance=2e-5)
    return both[0], both[1]


def random_norm(net: Net, rng: np.random.Generator, x: str, name: str, scale_zero) -> str:
    kinds = ["LayerNormalization", "LpNormalization", "primitive", "none"]
    kind = str(rng.choice([*kinds, "RMSNormalization" if net.opset == 23 else "by hand"]))
    if kind == "none":
        return x
    if kind == "by hand":
        return primitive_layer_norm(net, x, name, scale_zero=scale_zero)
    if kind == "LpNormalization":
        return net.op(kind, [x], axis=-1, p=2)
    return normed(net, x, kind, name, scale_zero, bool(rng.random() < 0.5))


def test_random_streams_keep_their_outputs():
    pairs = [random_stream(seed) for seed in range(30)]
    assert sum(one.changes > 0 for one, _ in pairs) > 15
    assert sum(other.parameters() < one.parameters() for one, other in pairs) > 7


@pytest.mark.slow
def test_many_more_random_streams_keep_their_outputs():
    for seed in range(30, 300):
        random_stream(seed)


def test_shapes_are_known_behind_a_group_norm():
    """onnx infers none there, and a residual could not be followed without."""
    net = Net(opset=21)
    dead = range(8, 12)
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=dead)
    names = [net.weight("g", net.random(32)), net.weight("b", -np.abs(net.random(32)))]
    y = net.op("Relu", [net.op("GroupNormalization", [x, *names], 32, num_groups=8)])
    z = net.conv(net.op("Add", [x, y]), 8, "c2", pad=1)
    net.outputs[z] = ("n", 8, 6, 6)
    pruned = Pruned(net.model(z))
    assert pruned.dims("c2.w") == (8, 28, 3, 3)
    pruned.assert_equal()
