"""Every criterion picks what it is made to pick, on weights and data where the answer is plain."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from prune_models import Net

from onnxslim.ir import shapes
from onnxslim.pruning.criteria import CRITERIA, Ranking
from onnxslim.pruning.groups import analyse

UNITS = 6


def model(first: np.ndarray, second: np.ndarray) -> ir.Model:
    """x (N, 4) -> Gemm to six units -> Relu -> Gemm to three."""
    net = Net()
    x = net.input("x", ["N", 4])
    zeros = net.weight("b1", np.zeros(UNITS, dtype=np.float32))
    hidden = net.op("Gemm", [x, net.weight("w1", first), zeros], UNITS, transB=1)
    made = net.op("Gemm", [net.op("Relu", [hidden]), net.weight("w2", second)], 3, transB=1)
    result = net.model(made)
    shapes.infer(result)
    return result


def weights(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(UNITS, 4)).astype(np.float32)
    return first, rng.normal(size=(3, UNITS)).astype(np.float32)


def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(64, 4)).astype(np.float32)} for _ in range(4)]


def order(made: ir.Model, criterion: str, seed: int = 0) -> list[int]:
    analysis = analyse(made)
    (group,) = analysis.groups
    ranking = Ranking(analysis, feeds(), seed)
    found = ranking.order(group, criterion).tolist()
    assert sorted(found) == list(range(UNITS))
    return found


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_orders_all_units_and_repeats(criterion: str) -> None:
    made = model(*weights())
    assert order(made, criterion) == order(made, criterion)


@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
def test_magnitudes_count_on_both_sides(criterion: str, power: int) -> None:
    first, second = weights()
    rows = (np.abs(first) ** power).sum(axis=1) ** (1 / power)
    columns = (np.abs(second) ** power).sum(axis=0) ** (1 / power)
    expected = np.argsort(rows / rows.mean() + columns / columns.mean(), kind="stable")
    assert order(model(first, second), criterion) == expected.tolist()


def test_fpgm_gives_up_what_lies_in_the_middle_of_the_others() -> None:
    first, second = weights()
    first[2] = first[[0, 1, 3, 4, 5]].mean(axis=0)
    assert order(model(first, second), "fpgm")[0] == 2


def test_wanda_gives_up_what_never_fires_though_its_weights_are_large() -> None:
    first, second = weights()
    first[3] = 0
    second[:, 3] = 50
    assert order(model(first, second), "wanda")[0] == 3
    assert order(model(first, second), "l1")[-1] == 3


def test_flap_gives_up_what_hardly_varies() -> None:
    """A unit that is large but nearly constant goes: its mean can move into a bias."""
    first, second = weights()
    net = Net()
    x = net.input("x", ["N", 4])
    bias = np.zeros(UNITS, dtype=np.float32)
    first[4] *= 0.01
    bias[4] = 9
    hidden = net.op("Gemm", [x, net.weight("w1", first), net.weight("b1", bias)], UNITS, transB=1)
    made = net.op("Gemm", [net.op("Relu", [hidden]), net.weight("w2", second)], 3, transB=1)
    built = net.model(made)
    shapes.infer(built)
    assert order(built, "flap")[0] == 4
    assert order(built, "wanda")[-1] == 4


def test_obs_gives_up_one_of_two_that_say_the_same() -> None:
    first, second = weights()
    first[1] = 2 * first[5]  # a Relu passes a positive factor
    second[:, [1, 5]] = 3
    found = order(model(first, second), "obs")
    assert found[0] in (1, 5)
    assert {1, 5} - {found[0]} <= set(found[2:])  # the other one is worth much more then


def test_bn_takes_the_scales_and_l2_stands_in_without_any() -> None:
    made = model(*weights())
    analysis = analyse(made)
    (group,) = analysis.groups
    scales = np.array([3.0, -0.1, 2.0, 0.5, -4.0, 1.0])
    output = analysis.state.contractions[0].node.outputs[0].name
    ranking = Ranking(analysis, (), 0, {output: scales})
    assert ranking.order(group, "bn").tolist() == [1, 3, 5, 2, 0, 4]
    assert ranking.notes == []
    bare = Ranking(analysis, (), 0)
    assert bare.order(group, "bn").tolist() == bare.order(group, "l2").tolist()
    assert "l2 was used" in bare.notes[0]


def test_random_depends_on_the_seed_alone() -> None:
    made = model(*weights())
    assert order(made, "random", 1) == order(model(*weights(3)), "random", 1)
    assert len({tuple(order(made, "random", seed)) for seed in range(6)}) > 1
