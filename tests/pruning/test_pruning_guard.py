"""The limit of accuracy: never broken in what is returned, and named when it cannot be kept."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graph_check import run
from prune_models import Net

from onnxslim.errors import DemandMissedError, UsageError
from onnxslim.ir import shapes
from onnxslim.pruning.data import PruningData
from onnxslim.pruning.judge import Judge
from onnxslim.pruning.request import Pruning, read_pruning_data, run_pruning
from onnxslim.pruning.structured import StructuredRequest, prune_structured
from onnxslim.validated_run import no_progress


def classifier() -> ir.Model:
    """Eight features to ten classes through two hidden layers that say most things twice."""
    net = Net(seed=3)
    x = net.op("Relu", [net.gemm(net.input("x", ["N", 8]), 24, "g1")])
    made = net.gemm(net.op("Relu", [net.gemm(x, 24, "g2")]), 10, "g3")
    for name in ("g1", "g2"):
        for part in (net.weights[f"{name}.w"], net.weights[f"{name}.b"]):
            part[8:16] = 1.5 * part[:8]
            part[16:24] = 0.5 * part[:8]
    model = net.model(made)
    shapes.infer(model)
    return model


def feeds(count: int, seed: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(64, 8)).astype(np.float32)} for _ in range(count)]


def data(max_drop: float | None) -> PruningData:
    return PruningData(fit=feeds(6, 0), guard=feeds(3, 1), max_drop=max_drop)


def drop(model: ir.Model, limits: PruningData) -> float:
    judge = Judge(classifier(), limits)
    return judge.drop(judge.score(model))


@pytest.mark.parametrize("limit", [0.0, 5.0])
def test_what_is_returned_keeps_the_limit(limit: float) -> None:
    """Scenario 47, with nothing asked for but a limit: as much goes as it allows."""
    limits = data(limit)
    outcome = prune_structured(
        classifier(), StructuredRequest(repair="least-squares"), limits, no_progress
    )
    assert drop(outcome.model, limits) <= limit
    assert outcome.costs["macs"][1] < outcome.costs["macs"][0]
    assert outcome.status == "done"


def test_a_larger_limit_lets_more_go() -> None:
    left = [
        prune_structured(
            classifier(), StructuredRequest(repair="least-squares"), data(limit), no_progress
        ).costs["macs"][1]
        for limit in (0.0, 30.0)
    ]
    assert left[1] < left[0]


def test_a_target_that_the_limit_forbids_is_named_with_what_can_be_had() -> None:
    request = StructuredRequest(target={"macs": 0.05}, repair="least-squares")
    with pytest.raises(DemandMissedError, match=r"macs=0\.05 was missed.*macs=0\.\d\d can be"):
        prune_structured(classifier(), request, data(0.5), no_progress)


def test_an_amount_that_the_limit_forbids_is_missed_too() -> None:
    request = StructuredRequest(0.9, repair="least-squares")
    with pytest.raises(DemandMissedError, match=r"amount 0\.9 was missed.*accuracy") as caught:
        prune_structured(classifier(), request, data(0.5), no_progress)
    assert caught.value.exit_code == 3


def test_the_rung_that_is_judged_best_is_taken() -> None:
    limits = data(None)
    best = prune_structured(classifier(), StructuredRequest(0.5), limits, no_progress)
    assert best.rung in ("least-squares", "residual", "second-sweep")
    bare = prune_structured(
        classifier(), StructuredRequest(0.5, repair="none"), limits, no_progress
    )
    assert best.after.closeness > bare.after.closeness
    assert best.summary().startswith("lossy: 24 of 48 channels stay")


def test_ctrl_c_keeps_the_best_so_far() -> None:
    seen: list[str] = []

    def stop_at_least_squares(stage: str, done: int, total: int) -> None:
        seen.append(stage)
        if stage == "repairing (least-squares)":
            raise KeyboardInterrupt

    outcome = prune_structured(
        classifier(), StructuredRequest(0.5), data(None), stop_at_least_squares
    )
    assert outcome.status == "interrupted"
    assert outcome.rung in ("none", "bias", "affine")
    assert run(outcome.model, feeds(1, 0)[0])[0].shape == (64, 10)
    assert any("interrupted" in line for line in outcome.warnings)


def test_ctrl_c_before_anything_is_found_is_passed_on() -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "measuring sensitivity":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_structured(classifier(), StructuredRequest(target={"macs": 0.5}), data(1.0), stop)


@pytest.mark.slow
def test_a_latency_target_is_measured() -> None:
    net = Net(seed=4)
    x = net.op("Relu", [net.gemm(net.input("x", ["N", 256]), 512, "g1")])
    model = net.model(net.gemm(net.op("Relu", [net.gemm(x, 512, "g2")]), 10, "g3"))
    shapes.infer(model)
    rng = np.random.default_rng(0)
    given = [{"x": rng.normal(size=(256, 256)).astype(np.float32)} for _ in range(2)]
    request = StructuredRequest(target={"latency": 0.7}, criterion="l2", repair="bias")
    outcome = prune_structured(model, request, PruningData(fit=given), no_progress)
    assert outcome.speed is not None
    assert outcome.speed.ratio < 0.9


def test_a_limit_alone_is_a_request_and_cuts_channels() -> None:
    pruning = Pruning(max_drop=3.0, calibration=feeds(10, 0))
    assert pruning.cuts_channels
    model = classifier()
    limits = read_pruning_data(model, pruning)
    pruned = run_pruning(model, pruning, limits, no_progress)
    assert pruned.shrinks
    before, after = pruned.details["costs"]["size"]
    assert after < before
    assert drop(pruned.model, limits) <= 3.0


def test_no_request_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match="or max-drop alone; given: nothing"):
        Pruning()
