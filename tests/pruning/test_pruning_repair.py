"""What a repair brings back: exactly where that is possible, and down the ladder where not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graph_check import run
from prune_models import Net

from onnxslim import api, io
from onnxslim.errors import DataError
from onnxslim.ir import shapes
from onnxslim.pruning.cut import Cut, cut
from onnxslim.pruning.data import PruningData, read_data
from onnxslim.pruning.fitting import Problem
from onnxslim.pruning.groups import analyse, choose
from onnxslim.pruning.layers import layers_of
from onnxslim.pruning.repair import repair, sweep_again
from onnxslim.pruning.sampling import Teacher, with_noise
from onnxslim.pruning.structured import StructuredRequest, prune_structured
from onnxslim.pruning.tokens import positions_read
from onnxslim.validated_run import no_progress

MODELS = Path(__file__).resolve().parents[2] / "models"


def feeds(count: int = 6, size: int = 16, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(size, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


def twins(*, residual: bool = False) -> ir.Model:
    """Conv, Relu, Conv, Relu, Conv in which filters 4..7 repeat 0..3, larger by half."""
    net = Net()
    x = net.conv(net.input("x", ["N", 3, 8, 8]), 8, "c1")
    net.weights["c1.w"][4:] = 1.5 * net.weights["c1.w"][:4]
    net.weights["c1.b"][4:] = 1.5 * net.weights["c1.b"][:4]
    x = net.op("Relu", [x])
    inner = net.conv(x, 8, "c2")
    x = net.op("Relu", [net.op("Add", [x, inner]) if residual else inner])
    model = net.model(net.conv(x, 4, "c3"))
    shapes.infer(model)
    return model


def halved(model: ir.Model, place: int = 0) -> Cut:
    group = analyse(model).groups[place]
    return cut(model, choose(group, np.arange(group.size)[::-1], group.size // 2))


def error(model: ir.Model, other: ir.Model) -> float:
    """Relative error of the outputs on feeds that no fit has seen."""
    total = 0.0
    for feed in feeds(2, seed=9):
        (one,), (two,) = run(model, feed), run(other, feed)
        total += float(np.square(one - two).sum() / np.square(one).sum())
    return (total / 2) ** 0.5


def test_what_is_said_twice_is_brought_back_by_least_squares_alone() -> None:
    model = twins()
    made, teacher = halved(model), Teacher(model, feeds(), 0)
    assert made.model.graph.initializers["c1.w"].shape.numpy() == (4, 3, 3, 3)
    left = {rung: error(model, repair(teacher, made, rung).model) for rung in ("none", "bias")}
    assert left["none"] > left["bias"] > 0.1
    fitted = repair(teacher, made, "least-squares")
    assert error(model, fitted.model) < 1e-3
    assert fitted.layers == 2
    assert error(model, made.model) == left["none"], "the cut itself was changed"


def test_a_refit_is_closer_than_a_bias_alone() -> None:
    model = twins()
    made, teacher = halved(model, 1), Teacher(model, feeds(), 0)
    left = [error(model, repair(teacher, made, rung).model) for rung in ("none", "bias")]
    left.append(error(model, repair(teacher, made, "least-squares").model))
    assert left[2] < 0.9 * min(left[:2])


def test_a_layer_that_adds_into_a_sum_makes_up_for_the_shortcut() -> None:
    """Shortcut and branch lose half of what they carry; only the sum can be made right."""
    model = twins(residual=True)
    group = next(one for one in analyse(model).groups if len(one.producers) > 1)
    made = cut(model, choose(group, np.arange(group.size)[::-1], 2))
    teacher = Teacher(model, feeds(), 0)
    plain, summed = (repair(teacher, made, rung) for rung in ("least-squares", "residual"))
    assert error(model, summed.model) <= 1.05 * error(model, plain.model)
    again = sweep_again(teacher, made, summed)
    assert again.rung == "second-sweep"
    assert error(model, again.model) < error(model, made.model)


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 1, 1, 1]},
        {"pads": [0, 1, 2, 0], "strides": [2, 1]},
        {"dilations": [2, 2], "pads": [2, 2, 2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER"},
        {"auto_pad": "VALID"},
        {"pads": [1, 1, 1, 1], "group": 2},
        {"pads": [1, 1, 1, 1], "group": 4},
    ],
)
def test_unfolded_rows_times_weights_are_the_outputs(attributes: dict[str, object]) -> None:
    net = Net()
    groups = int(attributes.get("group", 1))
    x = net.input("x", ["N", 4, 7, 9])
    weight = net.weight("w", net.random(8, 4 // groups, 3, 3))
    bias = net.weight("b", net.random(8))
    model = net.model(net.op("Conv", [x, weight, bias], 8, kernel_shape=[3, 3], **attributes))
    shapes.infer(model)
    (layer,) = layers_of(model.graph)
    source = np.random.default_rng(0).normal(size=(3, 4, 7, 9)).astype(np.float32)
    (output,) = run(model, {"x": source})
    places = np.array([0, 3, layer.places(output) - 1])
    rows = layer.rows(source, places)
    answer = np.einsum("ngk,gok->ngo", rows, layer.weights()).reshape(len(rows), -1)
    np.testing.assert_allclose(answer + layer.bias(), layer.targets(output, places), atol=1e-4)


def test_behind_a_relu_only_what_is_above_zero_has_to_fit() -> None:
    """One unknown, goals below zero that no line through the others meets: they do not matter."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 1, 1))
    wanted = np.where(rows[:, 0] > 0, 2 * rows[:, 0], -9.0)
    reached = {}
    for rectified in (False, True):
        problem = Problem(intercept=True)
        for part, goal in zip(np.split(rows, 4), np.split(wanted, 4), strict=True):
            problem.add(part, np.zeros_like(goal), goal)
        change, shift = problem.solve(rectified=rectified)
        made = np.maximum(rows[:, 0] * change[0, 0] + shift, 0)
        reached[rectified] = float(np.abs(made - np.maximum(wanted, 0)).mean())
    assert reached[True] < 0.5 * reached[False], reached


def test_rows_that_are_not_finite_are_left_out() -> None:
    problem = Problem(intercept=False)
    rows = np.array([[[1.0]], [[np.nan]], [[2.0]], [[3.0]]])
    wanted = np.array([[2.0], [1.0], [4.0], [np.inf]])
    problem.add(rows, np.zeros((4, 1)), wanted)
    problem.add(rows, np.zeros((4, 1)), wanted)
    assert problem.count == 4
    change, _ = problem.solve()
    assert change.item() == pytest.approx(2.0, rel=1e-2)


def test_noise_is_for_few_float_samples_and_repeats() -> None:
    given = feeds(2)
    made = with_noise(given, 0)
    assert len(made) == 16
    assert made[0] is given[0]
    assert not np.array_equal(made[2]["x"], given[0]["x"])
    assert np.array_equal(made[2]["x"], with_noise(given, 0)[2]["x"])
    whole = [{"x": np.arange(8).reshape(4, 2)}]
    assert with_noise(whole, 0) == whole
    many = [{"x": np.zeros((4096, 1), dtype=np.float32)}]
    assert len(with_noise(many, 0)) == 1


def test_the_same_data_gives_the_same_bytes() -> None:
    model = twins()
    data = PruningData(fit=feeds(4), guard=feeds(1, seed=5))
    made = [
        prune_structured(model, StructuredRequest(0.5), data, no_progress).model for _ in range(2)
    ]
    assert io.to_proto(made[0]).SerializeToString() == io.to_proto(made[1]).SerializeToString()


# -- scenario 48: data that is bad, scarce or missing ----------------------------------------------


def test_feeds_with_nan_are_left_out_with_a_warning() -> None:
    bad = feeds(4)
    bad[1]["x"][0, 0, 0, 0] = np.nan
    request = StructuredRequest(0.5, repair="least-squares")
    outcome = prune_structured(twins(), request, PruningData(fit=bad), no_progress)
    assert any("1 of 4 calibration feeds hold NaN" in line for line in outcome.warnings)
    assert error(twins(), outcome.model) < 0.5


def test_nan_in_a_data_file_is_refused_in_one_line() -> None:
    bad = feeds(2)
    bad[0]["x"][0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        read_data(twins(), bad)


def test_one_sample_leads_down_the_ladder_with_a_warning() -> None:
    data = read_data(twins(), feeds(1, size=1))
    outcome = prune_structured(twins(), StructuredRequest(0.5), data, no_progress)
    assert outcome.rung == "bias"
    assert any("one sample is too few" in line for line in outcome.warnings)
    assert run(outcome.model, feeds(1)[0])[0].shape == (16, 4, 8, 8)


def test_without_data_nothing_is_refitted_and_that_is_said() -> None:
    outcome = prune_structured(twins(), StructuredRequest(0.5), PruningData(), no_progress)
    assert (outcome.rung, outcome.criterion) == ("none", "l2")
    assert "give --calibration" in outcome.warnings[0]


def test_positions_that_nobody_reads_do_not_count() -> None:
    """Behind the last attention of the digits transformer only the class token goes on."""
    model = api.optimize(MODELS / "digits_transformer.onnx", preset="simplify").model
    model = io.load(model)
    shapes.infer(model)
    read = {
        layer.node.inputs[1].name: positions_read(layer.output) for layer in layers_of(model.graph)
    }
    assert read["/layers/layers.1/project/Transpose_output_0"] == {0}
    assert read["/layers/layers.1/mlp/mlp.2/Transpose_output_0"] == {0}
    assert read["/layers/layers.0/mlp/mlp.2/Transpose_output_0"] is None
    assert read["/layers/layers.1/qkv/Transpose_output_0"] is None
