"""Hidden units of LSTM, GRU and RNN: zeroed or unread units and features go."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from prune_models import Net, Pruned

GATES = {"LSTM": (4, 3), "GRU": (3, 2), "RNN": (1, 0)}
HALF = range(16, 32)


def recurrent(
    net: Net,
    x: str,
    op_type: str,
    name: str,
    *,
    units: int = 32,
    zero=(),
    unread=(),
    inputs: dict[int, str] | None = None,
    **attrs,
) -> str:
    """``zero``: units whose candidate gate is zero; ``unread``: units no other unit reads."""
    gates, candidate = GATES[op_type]
    size = net.channels[x]
    w = net.random(gates, units, size, scale=size**-0.5)
    r = net.random(gates, units, units, scale=units**-0.5)
    b = net.random(2, gates, units, scale=0.3)
    for part in (w, r):
        part[candidate, list(zero)] = 0
    b[:, candidate, list(zero)] = 0
    r[:, :, list(unread)] = 0
    names = [
        net.weight(f"{name}.w", w.reshape(1, gates * units, size)),
        net.weight(f"{name}.r", r.reshape(1, gates * units, units)),
        net.weight(f"{name}.b", b.reshape(1, -1)),
    ]
    more = [(inputs or {}).get(index, "") for index in range(4, 8)]
    while more and not more[-1]:
        more.pop()
    y = net.op(op_type, [x, *names, *more], units, hidden_size=units, **attrs)
    net.nodes[-1].output.append(f"{y}_h")
    net.channels[f"{y}_h"] = units
    if op_type == "LSTM":
        net.nodes[-1].output.append(f"{y}_c")
        net.channels[f"{y}_c"] = units
    return y


def squeezed(net: Net, y: str, axis: int = 1) -> str:
    return net.op("Squeeze", [y, net.weight(f"{y}.axis", np.array([axis]))])


def sequence(net: Net) -> str:
    return net.input("x", [5, "n", 12], axis=2)


def dims(pruned: Pruned, name: str, units: int, size: int, op_type: str) -> None:
    gates, _ = GATES[op_type]
    assert pruned.dims(f"{name}.w") == (1, gates * units, size)
    assert pruned.dims(f"{name}.r") == (1, gates * units, units)
    assert pruned.dims(f"{name}.b") == (1, 2 * gates * units)
    (node,) = [
        n for n in pruned.after.graph if n.op_type == op_type and n.inputs[1].name == f"{name}.w"
    ]
    assert node.attributes.get_int("hidden_size") == units


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_zeroed_units_go(op_type, direction):
    net = Net()
    y = recurrent(net, sequence(net), op_type, "a", zero=HALF, direction=direction)
    pruned = Pruned(net.model(net.linear(squeezed(net, y), 8, "out")))
    dims(pruned, "a", 16, 12, op_type)
    assert pruned.dims("out.w") == (16, 8)
    pruned.assert_equal()


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("last", [False, True])
def test_unread_units_go(op_type, last):
    net = Net()
    y = recurrent(net, sequence(net), op_type, "a", unread=HALF)
    seen = squeezed(net, f"{y}_h", 0) if last else squeezed(net, y)
    pruned = Pruned(net.model(net.linear(seen, 8, "out", unread=HALF)))
    dims(pruned, "a", 16, 12, op_type)
    pruned.assert_equal()


@pytest.mark.parametrize("op_type", GATES)
def test_units_that_another_unit_reads_stay(op_type):
    net = Net()
    y = recurrent(net, sequence(net), op_type, "a", unread=range(24, 32))
    pruned = Pruned(net.model(net.linear(squeezed(net, y), 8, "out", unread=HALF)))
    dims(pruned, "a", 24, 12, op_type)
    pruned.assert_equal()


@pytest.mark.parametrize("op_type", GATES)
def test_dead_units_read_only_each_other(op_type):
    net = Net()
    y = recurrent(net, sequence(net), op_type, "a")
    gates, _ = GATES[op_type]
    net.weights["a.r"].reshape(gates, 32, 32)[:, :16, 16:] = 0
    pruned = Pruned(net.model(net.linear(squeezed(net, y), 8, "out", unread=HALF)))
    dims(pruned, "a", 16, 12, op_type)
    pruned.assert_equal()


@pytest.mark.parametrize("op_type", GATES)
def test_stacked_layers(op_type):
    net = Net()
    y = recurrent(net, sequence(net), op_type, "a", zero=[0, 31], unread=range(8))
    y = recurrent(net, squeezed(net, y), op_type, "b", units=16, zero=range(4))
    gates, _ = GATES[op_type]
    net.weights["b.w"].reshape(gates, 16, 32)[:, :, :8] = 0
    pruned = Pruned(net.model(net.linear(squeezed(net, y), 8, "out")))
    dims(pruned, "a", 23, 12, op_type)
    dims(pruned, "b", 12, 23, op_type)
    pruned.assert_equal()


def test_all_outputs_of_an_lstm_with_peepholes():
    net = Net()
    peepholes = {7: net.weight("p", net.random(1, 96, scale=0.3))}
    y = recurrent(net, sequence(net), "LSTM", "a", zero=HALF, inputs=peepholes)
    heads = [
        net.linear(squeezed(net, y), 8, "o1"),
        net.linear(squeezed(net, f"{y}_h", 0), 8, "o2"),
        net.linear(squeezed(net, f"{y}_c", 0), 8, "o3"),
    ]
    pruned = Pruned(net.model(*heads))
    dims(pruned, "a", 16, 12, "LSTM")
    assert pruned.dims("p") == (1, 48)
    pruned.assert_equal()


@pytest.mark.parametrize(("start", "units"), [(0.0, 16), (0.5, 32)])
@pytest.mark.parametrize("which", [5, 6])
def test_constant_initial_state(start, units, which):
    net = Net()
    x = net.input("x", [5, 3, 12], axis=2)
    state = net.weight("state", np.full((1, 3, 32), start, np.float32))
    y = recurrent(net, x, "LSTM", "a", zero=HALF, inputs={which: state})
    pruned = Pruned(net.model(net.linear(squeezed(net, y), 8, "out")))
    dims(pruned, "a", units, 12, "LSTM")
    assert pruned.dims("state") == (1, 3, units)
    pruned.assert_equal()


@pytest.mark.parametrize("op_type", GATES)
def test_initial_state_as_an_input_keeps_the_units(op_type):
    net = Net()
    x = sequence(net)
    start = net.input("h0", [1, "n", 32], axis=2)
    y = recurrent(net, x, op_type, "a", zero=HALF, inputs={5: start})
    pruned = Pruned(net.model(net.linear(squeezed(net, y), 8, "out", unread=HALF)))
    assert pruned.changes == 0
    pruned.assert_equal()


def test_state_as_an_output_keeps_the_units():
    net = Net()
    y = recurrent(net, sequence(net), "GRU", "a", zero=HALF)
    pruned = Pruned(net.model(net.linear(squeezed(net, y), 8, "out"), f"{y}_h"))
    assert pruned.changes == 0
    pruned.assert_equal()


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("part", ["w", "r", "b"])
def test_one_weight_of_the_candidate_gate_moves_a_unit(op_type, part):
    net = Net()
    y = recurrent(net, sequence(net), op_type, "a", zero=HALF)
    gates, candidate = GATES[op_type]
    shape = (2, gates, 32, 1) if part == "b" else (gates, 32, -1)
    moved = net.weights[f"a.{part}"].reshape(shape)
    moved[(0, candidate, 20, 0) if part == "b" else (candidate, 20, 3)] = 0.5
    pruned = Pruned(net.model(net.linear(squeezed(net, y), 8, "out")))
    dims(pruned, "a", 17, 12, op_type)
    pruned.assert_equal()


@pytest.mark.parametrize("op_type", GATES)
def test_two_directions_lose_equally_many_units(op_type):
    net = Net()
    gates, candidate = GATES[op_type]
    w = net.random(2, gates, 8, 12, scale=0.3)
    r = net.random(2, gates, 8, 8, scale=0.3)
    for direction, dead in enumerate(([0, 1, 4, 6, 7], [0, 2, 3, 4, 5, 6, 7])):
        w[direction, candidate, dead] = 0
        r[direction, candidate, dead] = 0
    names = [
        net.weight("w", w.reshape(2, gates * 8, 12)),
        net.weight("r", r.reshape(2, gates * 8, 8)),
    ]
    y = net.op(op_type, [sequence(net), *names], 8, hidden_size=8, direction="bidirectional")
    y = net.op("Transpose", [y], perm=[0, 2, 1, 3])
    y = net.op("Reshape", [y, net.weight("joined", np.array([0, 0, -1]))], 16)
    pruned = Pruned(net.model(net.linear(y, 8, "out")))
    assert pruned.dims("w") == (2, gates * 3, 12)  # five of each, at other places
    assert pruned.dims("r") == (2, gates * 3, 3)
    assert pruned.dims("out.w") == (6, 8)
    pruned.assert_equal()


def test_only_the_last_state_is_an_output():
    net = Net()
    y = recurrent(net, sequence(net), "GRU", "a", zero=HALF)
    net.nodes[-1].output[0] = ""
    pruned = Pruned(net.model(net.linear(squeezed(net, f"{y}_h", 0), 8, "out")))
    dims(pruned, "a", 16, 12, "GRU")
    pruned.assert_equal()


def test_weight_with_two_readers_is_a_barrier():
    net = Net()
    y = recurrent(net, sequence(net), "RNN", "a", zero=HALF)
    seen = net.op("Relu", ["a.r"], 32)
    pruned = Pruned(net.model(net.linear(squeezed(net, y), 8, "out"), seen))
    assert pruned.changes == 0
    pruned.assert_equal()


def test_other_activations_do_not_keep_zero():
    net = Net()
    activations = ["Sigmoid", "Sigmoid", "Tanh"]
    y = recurrent(net, sequence(net), "LSTM", "a", zero=HALF, activations=activations)
    pruned = Pruned(net.model(net.linear(squeezed(net, y), 8, "out")))
    dims(pruned, "a", 32, 12, "LSTM")
    pruned.assert_equal()


@pytest.mark.parametrize("reset", [0, 1])
def test_gru_resets(reset):
    net = Net()
    y = recurrent(
        net, sequence(net), "GRU", "a", zero=range(4), unread=HALF, linear_before_reset=reset
    )
    pruned = Pruned(net.model(net.linear(squeezed(net, y), 8, "out", unread=HALF)))
    dims(pruned, "a", 12, 12, "GRU")
    pruned.assert_equal()


def test_bias_that_two_layers_share_is_copied():
    net = Net()
    y = recurrent(net, sequence(net), "LSTM", "a", zero=HALF)
    z = recurrent(net, squeezed(net, y), "LSTM", "b")
    net.weights["a.b"][:] = 0
    net.nodes[-1].input[3] = "a.b"
    pruned = Pruned(net.model(net.linear(squeezed(net, z), 8, "out")))
    assert pruned.dims("a.w") == (1, 64, 12)
    assert pruned.dims("b.w") == (1, 128, 16)
    pruned.assert_equal()


def test_sequence_lengths():
    net = Net()
    x = net.input("x", [5, 3, 12], axis=2)
    lengths = net.weight("lengths", np.array([5, 2, 3], np.int32))
    y = recurrent(net, x, "LSTM", "a", zero=HALF, inputs={4: lengths})
    pruned = Pruned(net.model(net.linear(squeezed(net, y), 8, "out")))
    dims(pruned, "a", 16, 12, "LSTM")
    pruned.assert_equal()


def both_ways(net: Net, x: str, op_type: str, name: str, units: int, zero, unread) -> str:
    """A bidirectional layer whose outputs are joined as exporters do it."""
    y = recurrent(net, x, op_type, name, units=units, zero=zero, unread=unread)
    for part in (f"{name}.w", f"{name}.r", f"{name}.b"):
        held = net.weights[part]
        other = held[:, ::-1] if net.rng.random() < 0.5 else held * net.rng.choice([1, 0.5])
        net.weights[part] = np.concatenate([held, other]).astype(held.dtype)
    net.nodes[-1].attribute.append(helper.make_attribute("direction", "bidirectional"))
    y = net.op("Transpose", [y], perm=[0, 2, 1, 3])
    return net.op("Reshape", [y, net.weight(f"{name}.to", np.array([0, 0, -1]))], 2 * units)


def stack(seed: int) -> Pruned:
    """A random stack of layers with random zeros, before and after."""
    rng = np.random.default_rng(seed)

    def some(count):
        return np.flatnonzero(rng.random(count) < rng.choice([0, 0.3, 0.7, 1]))

    net = Net(seed)
    x = net.input("x", [5, 2, 12], axis=2)
    for layer in range(int(rng.integers(1, 4))):
        op_type, units = str(rng.choice(list(GATES))), int(rng.choice([4, 8]))
        name, zero, unread = f"l{layer}", some(units), some(units)
        way = str(rng.choice(["forward", "reverse", "bidirectional"]))
        if way == "bidirectional":
            x = both_ways(net, x, op_type, name, units, zero, unread)
        else:
            start = np.zeros((1, 2, units), np.float32)
            start[:, :, some(units)] = 0.5
            inputs = {5: net.weight(f"{name}.start", start)} if rng.random() < 0.3 else {}
            args = {"units": units, "zero": zero, "unread": unread, "inputs": inputs}
            x = squeezed(net, recurrent(net, x, op_type, name, direction=way, **args))
        recurrence, weight = net.weights[f"{name}.r"], net.weights[f"{name}.w"]
        recurrence[rng.random(recurrence.shape) < rng.choice([0, 0.9])] = 0
        weight[:, :, some(weight.shape[2])] = 0
        if rng.random() < 0.5:
            x = net.op(str(rng.choice(["Relu", "Sigmoid", "Neg"])), [x])
    pruned = Pruned(net.model(net.linear(x, 3, "out", unread=some(net.channels[x]))))
    pruned.assert_equal(size=2, seeds=1, tolerance=1e-5)
    return pruned


def test_random_stacks_keep_their_outputs():
    cut = [stack(seed).changes > 0 for seed in range(60)]
    assert sum(cut) > 40


@pytest.mark.slow
def test_many_more_random_stacks_keep_their_outputs():
    for seed in range(60, 1000):
        stack(seed)


def two_ways(net: Net, op_type: str, *, dead, units: int = 8, inputs=None, last: bool = False):
    """A bidirectional layer of which each direction has its own dead units."""
    gates, candidate = GATES[op_type]
    w, r = net.random(2, gates, units, 12, scale=0.3), net.random(2, gates, units, units, scale=0.3)
    b = net.random(2, 2, gates, units, scale=0.3)
    for direction, zero in enumerate(dead):
        w[direction, candidate, zero] = r[direction, candidate, zero] = 0
        b[direction, :, candidate, zero] = 0
    names = [
        net.weight("w", w.reshape(2, gates * units, 12)),
        net.weight("r", r.reshape(2, gates * units, units)),
        net.weight("b", b.reshape(2, -1)),
    ]
    more = [(inputs or {}).get(index, "") for index in range(4, 8)]
    while more and not more[-1]:
        more.pop()
    x = sequence(net)
    y = net.op(op_type, [x, *names, *more], units, hidden_size=units, direction="bidirectional")
    if last:
        net.nodes[-1].output.append(f"{y}_h")
        net.channels[f"{y}_h"] = units
        parts = [
            net.op("Gather", [f"{y}_h", net.weight(f"way{way}", np.array(way))], units, axis=0)
            for way in (-2, -1)
        ]
        return net.op("Concat", parts, 2 * units, axis=1)
    y = net.op("Transpose", [y], perm=[0, 2, 1, 3])
    return net.op("Reshape", [y, net.weight("to", np.array([0, 0, -1]))], 2 * units)


DEAD = ([0, 1, 4, 6, 7], [0, 2, 3, 4, 5, 6, 7])


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("reset", [0, 1])
def test_each_direction_loses_other_units(op_type, reset):
    net = Net()
    y = two_ways(net, op_type, dead=DEAD)
    if op_type == "GRU":
        net.nodes[0].attribute.append(helper.make_attribute("linear_before_reset", reset))
    pruned = Pruned(net.model(net.linear(y, 8, "out")))
    dims_of_two(pruned, op_type, 3)
    assert pruned.dims("out.w") == (6, 8)
    pruned.assert_equal()


def dims_of_two(pruned: Pruned, op_type: str, units: int) -> None:
    gates, _ = GATES[op_type]
    assert pruned.dims("w") == (2, gates * units, 12)
    assert pruned.dims("r") == (2, gates * units, units)
    assert pruned.dims("b") == (2, 2 * gates * units)
    (node,) = [node for node in pruned.after.graph if node.op_type == op_type]
    assert node.attributes.get_int("hidden_size") == units


@pytest.mark.parametrize("op_type", GATES)
def test_last_states_of_both_directions(op_type):
    net = Net()
    pruned = Pruned(net.model(net.linear(two_ways(net, op_type, dead=DEAD, last=True), 8, "out")))
    dims_of_two(pruned, op_type, 3)
    pruned.assert_equal()


def test_a_direction_of_zeros_keeps_as_many_units_as_the_other():
    net = Net()
    y = two_ways(net, "LSTM", dead=(range(8), [0, 1]))
    pruned = Pruned(net.model(net.linear(y, 8, "out")))
    dims_of_two(pruned, "LSTM", 6)
    assert "both directions of LSTM stay" in pruned.reasons()
    pruned.assert_equal()


def test_two_directions_with_peepholes_and_constant_states():
    net = Net()
    start = np.zeros((2, 3, 8), np.float32)
    start[0, :, 1] = 0.5
    inputs = {
        5: net.weight("h0", start),
        6: net.weight("c0", np.zeros((2, 3, 8), np.float32)),
        7: net.weight("p", net.random(2, 24, scale=0.3)),
    }
    y = two_ways(net, "LSTM", dead=DEAD, inputs=inputs)
    net.inputs[0].type.tensor_type.shape.dim[1].dim_value = 3
    pruned = Pruned(net.model(net.linear(y, 8, "out")))
    dims_of_two(pruned, "LSTM", 4)  # one unit does not start at zero
    assert pruned.dims("p") == (2, 12)
    assert pruned.dims("h0") == pruned.dims("c0") == (2, 3, 4)
    pruned.assert_equal()


@pytest.mark.parametrize("expanded", [False, True])
def test_states_that_are_filled_with_zeros_for_the_batch(expanded):
    net = Net()
    sizes = [net.weight("two", np.array([2])), "batch", net.weight("units", np.array([8]))]
    start = filled(net, "LSTM", sizes, expanded=expanded)
    y = two_ways(net, "LSTM", dead=DEAD, inputs={5: start, 6: start})
    order = [net.nodes[index] for index in (-3, *range(len(net.nodes) - 3), -2, -1)]
    net.nodes = [*order[1:-2], order[0], *order[-2:]]
    pruned = Pruned(net.model(net.linear(y, 8, "out")))
    # A small constant that is expanded is one for both directions: 0, 4, 6 and 7 go.
    dims_of_two(pruned, "LSTM", 4 if expanded else 3)
    pruned.assert_equal()


def filled(net: Net, op_type: str, sizes: list[str], *, expanded: bool) -> str:
    shape = net.op("Shape", ["x"], 0)
    net.channels["x"] = 12
    batch = net.op("Gather", [shape, net.weight("one", np.array([1]))], 0, axis=0, out="batch")
    assert batch in sizes
    shape = net.op("Concat", sizes, 0, axis=0)
    if expanded:
        zeros = net.weight("zeros", np.zeros((2, 1, 8), np.float32))
        return net.op("Expand", [zeros, shape], 8)
    return net.op("ConstantOfShape", [shape], 8)


def test_a_state_that_is_an_input_is_named():
    net = Net()
    start = net.input("h0", [1, "n", 32], axis=2)
    net.inputs.clear()
    x = sequence(net)
    net.input("h0", [1, "n", 32], axis=2)
    y = recurrent(net, x, "GRU", "a", zero=HALF, inputs={5: start})
    pruned = Pruned(net.model(net.linear(squeezed(net, y), 8, "out")))
    assert pruned.changes == 0
    assert "a.w: 16 zeroed units stay: the initial state 'h0' is not zero" in pruned.reasons()


def test_a_form_that_is_not_pruned_is_named():
    net = Net()
    y = recurrent(net, sequence(net), "GRU", "a", zero=HALF, layout=1)
    net.inputs[0].type.tensor_type.shape.dim[1].dim_value = 4
    pruned_model = net.model(net.linear(squeezed(net, y, 2), 8, "out"))
    pruned = Pruned(pruned_model)
    assert pruned.changes == 0
    assert "a.w: zeroed units or features stay: GRU with the batch first" in pruned.reasons()
