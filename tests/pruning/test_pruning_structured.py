"""Groups and cuts: every cut is a valid model, and computes what the original does without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graph_check import make_feeds, run
from prune_models import Net

from onnxslim import api, io
from onnxslim.errors import DemandMissedError, UsageError
from onnxslim.ir import shapes
from onnxslim.ir.cost import snapshot
from onnxslim.pruning.allocation import applied, greedy, most, uniform
from onnxslim.pruning.costs import CostModel
from onnxslim.pruning.cut import cut
from onnxslim.pruning.data import PruningData, read_data
from onnxslim.pruning.groups import Analysis, analyse, choose
from onnxslim.pruning.structured import StructuredOutcome, StructuredRequest, prune_structured
from onnxslim.rewrite.channels.emit import store
from onnxslim.validated_run import no_progress

MODELS = Path(__file__).resolve().parents[2] / "models"


def chain(net: Net) -> str:
    x = net.op("Relu", [net.conv(net.input("x", ["N", 3, 8, 8]), 8, "c1")])
    return net.conv(net.op("Relu", [net.conv(x, 12, "c2")]), 4, "c3")


def residual(net: Net) -> str:
    x = net.op("Relu", [net.conv(net.input("x", ["N", 3, 8, 8]), 8, "c1")])
    inner = net.conv(net.op("Relu", [net.conv(x, 6, "c2")]), 8, "c3")
    return net.conv(net.op("Relu", [net.op("Add", [x, inner])]), 4, "c4")


def grouped(net: Net) -> str:
    x = net.op("Relu", [net.conv(net.input("x", ["N", 3, 8, 8]), 12, "c1")])
    x = net.op("Relu", [net.conv(x, 16, "c2", group=4)])
    return net.conv(x, 4, "c3")


def depthwise(net: Net) -> str:
    x = net.op("Relu", [net.conv(net.input("x", ["N", 3, 8, 8]), 8, "c1", kernel=1)])
    x = net.op("Relu", [net.conv(x, 8, "dw", group=8)])
    return net.conv(x, 4, "c3", kernel=1)


def concat(net: Net) -> str:
    x = net.input("x", ["N", 3, 8, 8])
    branches = [net.op("Relu", [net.conv(x, 8, name)]) for name in ("c1", "c2")]
    return net.conv(net.op("Concat", branches, 16, axis=1), 4, "c3")


def flattened(net: Net) -> str:
    x = net.op("Relu", [net.conv(net.input("x", ["N", 3, 4, 4]), 8, "c1")])
    x = net.op("Flatten", [x], 8 * 16)
    return net.gemm(net.op("Relu", [net.gemm(x, 20, "g1")]), 5, "g2")


NETS = {
    "chain": (chain, [8, 12]),
    "residual": (residual, [6, 8]),
    "grouped": (grouped, [12, 16]),
    "depthwise": (depthwise, [8]),
    "concat": (concat, [8, 8]),
    "flattened": (flattened, [8, 20]),
}


def built(name: str) -> ir.Model:
    net = Net()
    model = net.model(NETS[name][0](net))
    shapes.infer(model)
    return model


def without(analysis: Analysis, dead: np.ndarray) -> ir.Model:
    """The original in which no operator reads the atoms that go, weight by weight: an oracle."""
    copy = io.load(analysis.model)
    by_name = {value.name: value for value in copy.graph.initializers.values()}
    gone = np.isin(analysis.roots, analysis.roots[dead])
    for part in analysis.state.contractions:
        value = by_name[part.node.inputs[1].name]
        content = np.array(value.const_value.numpy())
        mask = gone[part.inputs.ids]
        groups = part.node.attributes.get_int("group", 1)
        if groups > 1:
            rows = len(content) // groups
            for group, columns in enumerate(mask.reshape(groups, -1)):
                content[group * rows : (group + 1) * rows, columns] = 0
        else:
            np.moveaxis(content, 1 - part.weight.out_axis, 0)[mask] = 0
        store(value, ir.tensor(content, name=value.name))
    return copy


@pytest.mark.parametrize("name", NETS)
def test_groups_are_found(name: str) -> None:
    found = sorted(group.size for group in analyse(built(name)).groups)
    assert found == sorted(NETS[name][1])


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_cut_leaves_what_is_not_read(name: str, seed: int) -> None:
    """Random units go; the rest computes what the original does when nobody reads them."""
    model = built(name)
    analysis = analyse(model)
    rng = np.random.default_rng(seed)
    dead = np.concatenate(
        [choose(group, rng.permutation(group.size), group.size // 2) for group in analysis.groups]
    )
    made = cut(model, dead)
    assert snapshot(made.model, 0).parameters < 0.6 * snapshot(model, 0).parameters
    feeds = make_feeds(model, seed, 2)
    for one, other in zip(run(without(analysis, dead), feeds), run(made.model, feeds), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_grouped_convs_lose_equally_many_of_each_group() -> None:
    model = built("grouped")
    analysis = analyse(model)
    for group in analysis.groups:
        assert group.step == 4
        gone = choose(group, np.arange(group.size), 7)  # rounded down to 4: one of each bin
        assert len(gone) == 4
    dead = np.concatenate([choose(g, np.arange(g.size), 4) for g in analysis.groups])
    weights = {
        value.name: tuple(value.const_value.shape.numpy())
        for value in cut(model, dead).model.graph.initializers.values()
    }
    assert weights["c2.w"] == (12, 2, 3, 3)


def test_outputs_and_inputs_are_in_no_group() -> None:
    net = Net()
    model = net.model(net.conv(net.input("x", ["N", 3, 8, 8]), 8, "c1"))
    shapes.infer(model)
    assert analyse(model).groups == []
    with pytest.raises(UsageError, match="no channels that can be cut"):
        prune_structured(model, StructuredRequest(0.5), PruningData(), no_progress)


def test_heads_of_an_attention_go_as_a_whole() -> None:
    model = api.optimize(MODELS / "digits_transformer.onnx", preset="simplify").model
    model = io.load(model)
    shapes.infer(model)
    analysis = analyse(model)
    heads = [group for group in analysis.groups if group.kind == "heads"]
    assert [group.size for group in heads] == [4, 4]
    assert sorted(group.size for group in analysis.groups) == [4, 4, 128, 128]
    dead = np.concatenate([choose(g, np.arange(g.size), g.size // 2) for g in analysis.groups])
    made = cut(model, dead).model
    shaped = {tuple(v.const_value.shape.numpy()) for v in made.graph.initializers.values()}
    assert {(64, 96), (32, 64), (64, 64)} <= shaped
    feeds = {"input": np.load(MODELS / "digits_test.npz")["input"][:4]}
    assert run(made, feeds)[0].shape == (4, 10)


def test_units_of_an_lstm_go_equally_in_both_directions() -> None:
    model = io.load(api.optimize(MODELS / "digits_lstm.onnx", preset="simplify").model)
    shapes.infer(model)
    (group,) = analyse(model).groups
    assert (group.kind, group.size, group.step) == ("units", 128, 2)
    order = np.random.default_rng(0).permutation(128)
    made = cut(model, choose(group, order, 64)).model
    lstm = next(node for node in made.graph if node.op_type == "LSTM")
    assert lstm.attributes.get_int("hidden_size") == 32
    feeds = {"input": np.load(MODELS / "digits_test.npz")["input"][:4]}
    assert run(made, feeds)[0].shape == (4, 10)


def digits(**options: object) -> tuple[ir.Model, PruningData]:
    model = api.optimize(MODELS / "digits_cnn.onnx", preset="default").model
    return model, read_data(model, **options)


def pruned(request: StructuredRequest, **options: object) -> StructuredOutcome:
    model, data = digits(**options)
    return prune_structured(model, request, data, no_progress)


@pytest.mark.parametrize(("cost", "share"), [("macs", 0.5), ("size", 0.5), ("macs", 0.3)])
def test_targets_are_met_closely(cost: str, share: float) -> None:
    """Scenario 46: within 2 %, measured on the model that came out."""
    outcome = pruned(StructuredRequest(target={cost: share}))
    before, after = outcome.costs[cost]
    assert share - 0.02 <= after / before <= share
    assert "nothing was refitted" in outcome.warnings[0]


def test_the_formula_tells_the_costs_of_a_cut() -> None:
    for name in ("chain", "residual", "grouped", "depthwise", "concat", "flattened"):
        model = built(name)
        analysis = analyse(model)
        plan = uniform(analysis.groups, 0.5)
        dead = np.concatenate(
            [
                choose(group, np.arange(group.size), gone)
                for group, gone in zip(analysis.groups, plan, strict=True)
            ]
        )
        taken = snapshot(cut(model, dead).model, 0)
        assert CostModel(analysis, "macs").cost(plan) == taken.macs, name
        assert CostModel(analysis, "size").cost(plan) == taken.weight_bytes, name


def test_a_target_out_of_reach_names_what_can_be_reached() -> None:
    with pytest.raises(DemandMissedError, match=r"macs=0\.001 cannot be reached.*macs=0\.0\d"):
        pruned(StructuredRequest(target={"macs": 0.001}))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (StructuredRequest(), "give either"),
        (StructuredRequest(amount=1.5), r"between 0 and 1"),
        (StructuredRequest(target={"weight": 0.5}), "macs, size or latency"),
        (StructuredRequest(amount=0.5, criterion="best"), "choose l1"),
        (StructuredRequest(amount=0.5, criterion="obs"), "calibration"),
        (StructuredRequest(target={"latency": 0.5}), "calibration"),
        (StructuredRequest(amount=0.5, exclude=("nothing*",)), "no group is called so"),
    ],
)
def test_senseless_requests_are_refused(request_: StructuredRequest, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pruned(request_)


def test_align_and_exclude_are_kept_to() -> None:
    outcome = pruned(StructuredRequest(amount=0.4, align=8, exclude=("hidden*",)))
    assert [(one.before, one.after) for one in outcome.groups] == [(16, 16), (32, 24), (32, 24)]


def test_greedy_takes_the_cheapest_first_and_leaves_a_tenth() -> None:
    analysis = analyse(built("chain"))
    groups = analysis.groups
    model = CostModel(analysis, "macs")
    moves = greedy(
        groups,
        [{4: 1.0, 6: 9.0}, {6: 0.001, 9: 0.002}],
        lambda plan: model.total - model.cost(plan),
    )
    assert {move.group for move in moves[:8]} == {1}
    assert applied(moves, len(moves), 2) == tuple(most(group) for group in groups)
    assert all(group.size - most(group) >= 1 for group in groups)


def test_half_of_everything_keeps_the_answers() -> None:
    """Half the width in every layer, repaired on 256 images without labels, against no repair."""
    outcome = pruned(
        StructuredRequest(0.5, criterion="l2", repair="least-squares"),
        calibration=MODELS / "digits_calibration.npz",
        labels=MODELS / "digits_labels.npz",
    )
    assert outcome.after.points >= outcome.before.points - 2.0
    bare = pruned(
        StructuredRequest(0.5, criterion="l2", repair="none"),
        calibration=MODELS / "digits_calibration.npz",
        labels=MODELS / "digits_labels.npz",
    )
    assert bare.after.points < outcome.after.points - 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "amount", "exclude", "points"),
    [
        ("digits_cnn", 0.5, (), 0.5),
        ("digits_cnn", 0.75, (), 2.5),
        ("digits_transformer", 0.5, ("*qkv*",), 1.0),
    ],
)
def test_accuracy_with_unlabelled_images_alone(
    name: str, amount: float, exclude: tuple[str, ...], points: float
) -> None:
    model = api.optimize(MODELS / f"{name}.onnx", preset="default").model
    data = read_data(model, MODELS / "digits_calibration.npz")
    request = StructuredRequest(amount, exclude=exclude)
    outcome = prune_structured(model, request, data, no_progress)
    with np.load(MODELS / "digits_labels.npz") as held_out:
        feeds, labels = {"input": held_out["input"]}, held_out["labels"]
    before, after = (
        100 * (run(one, feeds)[0].argmax(axis=1) == labels).mean() for one in (model, outcome.model)
    )
    assert after >= before - points
