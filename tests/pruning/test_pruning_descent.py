"""The refit of what attention computes: where it applies, that it helps, what it never moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graph_check import parse

from onnxslim import api, io
from onnxslim.ir import shapes
from onnxslim.pruning import descent
from onnxslim.pruning.cut import Cut, cut
from onnxslim.pruning.data import read_data
from onnxslim.pruning.descent import can_descend, descend, trial
from onnxslim.pruning.groups import Analysis, analyse, choose
from onnxslim.pruning.repair import repair
from onnxslim.pruning.sampling import Teacher, run_tapped
from onnxslim.pruning.stretches import stretches_of
from onnxslim.pruning.structured import StructuredRequest, prune_structured
from onnxslim.pruning.tape import Tape
from onnxslim.runtime.session import open_session
from onnxslim.validated_run import no_progress

MODELS = Path(__file__).resolve().parents[2] / "models"


def digits_transformer() -> tuple[ir.Model, Analysis]:
    model = io.load(api.optimize(MODELS / "digits_transformer.onnx", preset="default").model)
    shapes.infer(model)
    return model, analyse(model)


def images(count: int) -> list[dict[str, np.ndarray]]:
    with np.load(MODELS / "digits_calibration.npz") as data:
        return [{"input": part} for part in np.split(data["input"][:count], count // 16)]


def halved(model: ir.Model, analysis: Analysis) -> Cut:
    gone = [choose(one, np.arange(one.size), one.size // 2) for one in analysis.groups]
    return cut(model, np.concatenate(gone))


def error(model: ir.Model, other: ir.Model, feeds: list[dict[str, np.ndarray]]) -> float:
    one, two = open_session(model, optimize=True), open_session(other, optimize=True)
    apart = signal = 0.0
    for feed in feeds:
        wanted, found = one.run(feed)[0], two.run(feed)[0]
        apart += float(np.square(wanted - found).sum())
        signal += float(np.square(wanted).sum())
    return apart / signal


def test_a_transformer_is_divided_at_its_residual_stream() -> None:
    model, analysis = digits_transformer()
    made = halved(model, analysis)
    stretches = stretches_of(model, made.model, made)
    assert [[goal.name for goal in one.goals] for one in stretches] == [
        ["/layers/layers.0/Add_1_output_0"],
        ["/layers/layers.0/Add_2_output_0"],
        ["/layers/layers.1/Add_1_output_0"],
        ["/layers/layers.1/Add_2_output_0", "logits"],
    ]
    nodes = [node for one in stretches for node in one.nodes]
    assert len(nodes) == len(set(nodes))
    assert can_descend(model, made)


def test_a_tape_computes_what_the_model_does() -> None:
    model, analysis = digits_transformer()
    made = halved(model, analysis)
    stretch = stretches_of(model, made.model, made)[2]
    tape = Tape.of(made.model, stretch)
    assert tape is not None
    assert "/layers/layers.1/qkv/Transpose_output_0" in tape.weights
    feed = images(16)[0]
    inner = [*tape.sources, stretch.goals[0].name]
    (whole,) = run_tapped(made.model, inner, [feed])
    values = tape.values(whole, tape.weights)
    np.testing.assert_allclose(values[inner[-1]], whole[inner[-1]], rtol=1e-5, atol=1e-5)


def test_gradients_are_slopes_of_the_whole_stretch() -> None:
    model, analysis = digits_transformer()
    made = halved(model, analysis)
    stretch = stretches_of(model, made.model, made)[0]
    tape = Tape.of(made.model, stretch)
    assert tape is not None
    goal = stretch.goals[0].name or ""
    (given,) = run_tapped(made.model, tape.sources, images(16))
    values = tape.values(given, tape.weights)
    mixed = np.random.default_rng(0).normal(size=values[goal].shape).astype(np.float32)
    found = tape.gradients(values, {goal: mixed})
    assert set(found) == set(tape.weights)
    rng = np.random.default_rng(1)
    for name, gradient in found.items():
        along = rng.normal(size=gradient.shape).astype(np.float32)
        sums = []
        for sign in (1, -1):
            moved = {**tape.weights, name: tape.weights[name] + sign * np.float32(1e-2) * along}
            after = tape.values(given, moved)[goal].astype(np.float64)
            sums.append(float((mixed * after).sum()))
        slope = (sums[0] - sums[1]) / 2e-2
        size = float(np.linalg.norm(gradient))
        assert float((gradient * along).sum()) == pytest.approx(slope, abs=0.05 * size, rel=0.05)


def test_a_descent_is_closer_than_least_squares_and_repeats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(descent, "_STEPS", 20)
    monkeypatch.setattr(descent, "_LAST_STEPS", 30)
    monkeypatch.setattr(descent, "_BATCH", 32)
    model, analysis = digits_transformer()
    made, feeds = halved(model, analysis), images(256)
    teacher = Teacher(model, feeds[:12], 0)
    first = repair(teacher, made, "residual")
    before = io.to_proto(made.model).SerializeToString()
    results = [descend(teacher, made) for _ in range(2)]
    assert io.to_proto(made.model).SerializeToString() == before
    one, two = (io.to_proto(result).SerializeToString() for result in results)
    assert one == two
    held_out = feeds[12:]
    assert error(model, results[0], held_out) < 0.9 * error(model, first.model, held_out)


def test_a_descent_goes_on_from_where_it_came_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent, "_STEPS", 15)
    monkeypatch.setattr(descent, "_LAST_STEPS", 15)
    model, analysis = digits_transformer()
    made, feeds = halved(model, analysis), images(256)
    teacher = Teacher(model, feeds, 0)
    first = descend(teacher, made)
    before = io.to_proto(first).SerializeToString()
    seen: list[tuple[int, int]] = []
    second = descend(teacher, made, first, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 1)]
    assert io.to_proto(first).SerializeToString() == before
    assert error(model, second, feeds) < error(model, first, feeds)


def test_a_trial_tells_a_large_cut_from_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent, "_TRIAL_STEPS", 5)
    monkeypatch.setattr(descent, "_TRIAL_SAMPLES", 64)
    model, analysis = digits_transformer()
    teacher = Teacher(model, images(256), 0)
    heads = next(group for group in analysis.groups if group.kind == "heads")
    errors = [trial(teacher, cut(model, np.concatenate(heads.units[:count]))) for count in (1, 3)]
    assert errors[0] is not None
    assert errors[1] is not None
    assert 0 < errors[0] < errors[1]


def test_nothing_to_descend_along_without_a_softmax_or_a_cut() -> None:
    model = parse("""
        agraph (float[N, 4] x) => (float[N, 2] y)
        <float[4, 6] a = {1,2,3,4,5,6, 1,2,3,4,5,6, 1,2,3,4,5,6, 1,2,3,4,5,6},
         float[6, 2] b = {1,2, 3,4, 5,6, 1,2, 3,4, 5,6}>
        { h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b) }""")
    shapes.infer(model)
    analysis = analyse(model)
    made = halved(model, analysis)
    assert stretches_of(model, made.model, made)
    assert not can_descend(model, made)
    assert not stretches_of(model, model, Cut(model, {}))


@pytest.mark.slow
def test_half_of_a_transformer_costs_a_point_at_most() -> None:
    """Half the heads and half the feed-forward units of every layer, on 450 held-out digits."""
    model = api.optimize(MODELS / "digits_transformer.onnx", preset="default").model
    data = read_data(model, str(MODELS / "digits_calibration.npz"))
    outcome = prune_structured(model, StructuredRequest(0.5), data, no_progress)
    assert outcome.rung == "descent"
    assert all(group.after == group.before // 2 for group in outcome.groups)
    with np.load(MODELS / "digits_labels.npz") as held_out:
        feed, labels = {"input": held_out["input"]}, held_out["labels"]
    right = [
        float((open_session(one, optimize=True).run(feed)[0].argmax(axis=1) == labels).mean())
        for one in (model, outcome.model)
    ]
    assert right[1] >= right[0] - 0.01
