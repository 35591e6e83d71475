"""Equalization as a whole: networks that 8 bits break come back, sound ones stay as they are."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx_ir as ir
import pytest
from scaled_graphs import graph
from unbalanced_models import depthwise, images, top1, transformer

from onnxslim.errors import DataError
from onnxslim.io import load
from onnxslim.ir.edit import add_initializer, replace_node
from onnxslim.quantization.engine import QuantPlan, prepare_float, quantize_once
from onnxslim.quantization.equalize import (
    CLIPS,
    LAYERS,
    NORMS,
    STEPS,
    Equalized,
    correct_biases,
    equalize,
)
from onnxslim.quantization.presets import find_preset
from onnxslim.runtime.session import open_session

PLAN = QuantPlan(find_preset("portable"), method="minmax")
AUTO = QuantPlan(find_preset("portable"))


def slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


def equalized(model: ir.Model, plan: QuantPlan = PLAN) -> tuple[Equalized, ir.Model]:
    """The outcome, and the int8 model made of it with corrected biases."""
    feeds = images(64)
    found = equalize(prepare_float(model), feeds, plan)
    int8, _ = quantize_once(found.prepared, found.calibration, plan)
    return found, correct_biases(found.prepared.model, int8, feeds)[0]


def plain_top1(model: ir.Model, plan: QuantPlan) -> float:
    """Accuracy of int8 without any equalization."""
    found = equalize(prepare_float(model), images(64), plan, steps=())
    return top1(quantize_once(found.prepared, found.calibration, plan)[0])


def float_answers(model: ir.Model) -> np.ndarray:
    return open_session(model, optimize=False, threads=1).run(images(8, 248)[0])[0]


@cache
def float_top1(name: str) -> float:
    return top1(depthwise(0) if name == "depthwise" else transformer(1.0))


@pytest.mark.parametrize(
    ("octaves", "plan"), [(4, PLAN), slow(4, AUTO), slow(8, AUTO), slow(2, AUTO)]
)
def test_a_depthwise_network_out_of_balance_is_within_a_point_and_fully_int8(
    octaves: int, plan: QuantPlan
) -> None:
    model = depthwise(octaves)
    assert top1(model) == float_top1("depthwise")
    if octaves >= 4:
        assert plain_top1(model, plan) < 0.5
    found, int8 = equalized(model, plan)
    assert [n.kept for n in found.notes if (n.step, n.site) == ("cross-layer", "model")] == [True]
    assert top1(int8) >= float_top1("depthwise") - 0.01
    assert found.after_db > 25
    products = [node for node in int8.graph if node.op_type in ("Conv", "Gemm")]
    assert len(products) == 10
    assert all(node.inputs[0].producer().op_type == "DequantizeLinear" for node in products)
    np.testing.assert_array_equal(float_answers(found.prepared.model), float_answers(model))


@pytest.mark.parametrize(("factor", "plan"), [(100.0, PLAN), slow(100.0, AUTO), slow(1000.0, AUTO)])
def test_a_transformer_with_outliers_is_within_half_a_point(factor: float, plan: QuantPlan) -> None:
    model = transformer(factor)
    assert abs(top1(model) - float_top1("transformer")) < 0.003
    assert plain_top1(model, plan) < float_top1("transformer") - 0.1
    found, int8 = equalized(model, plan)
    assert top1(int8) >= float_top1("transformer") - 0.005
    assert found.after_db > found.before_db + 20
    kept = [note for note in found.notes if note.step == "smooth" and note.kept]
    sites = [note for note in kept if "LayerNormalization" in note.site]
    assert len(sites) == 5  # two in each layer, and the last
    assert all(note.text.startswith("alpha 0.") for note in sites)
    np.testing.assert_array_equal(float_answers(found.prepared.model), float_answers(model))


def test_a_step_that_does_not_help_leaves_nothing_behind() -> None:
    model = depthwise(0)
    prepared = prepare_float(model)
    found = equalize(prepared, images(64), PLAN, steps=("cross-layer",))
    verdict = next(n for n in found.notes if n.site == "model" and n.step == "cross-layer")
    assert not verdict.kept
    assert found.prepared is prepared
    assert not any(note.kept for note in found.notes)
    assert any(note.text.endswith("; not kept") for note in found.notes)
    assert found.after_db == found.before_db


def test_what_was_given_stays_as_it_was() -> None:
    model = depthwise(4)
    prepared = prepare_float(model)
    before = {
        n: v.const_value.numpy().tobytes() for n, v in prepared.model.graph.initializers.items()
    }
    equalize(prepared, images(32), PLAN)
    after = {
        n: v.const_value.numpy().tobytes() for n, v in prepared.model.graph.initializers.items()
    }
    assert before == after


def test_it_is_the_same_every_time() -> None:
    def once() -> tuple[list, list[bytes]]:
        found = equalize(prepare_float(depthwise(4)), images(32), PLAN)
        values = found.prepared.model.graph.initializers.values()
        return found.notes, [value.const_value.numpy().tobytes() for value in values]

    assert once() == once()


def test_transposed_and_shared_constants_are_no_obstacle() -> None:
    text = """g (float[N,5,8] x, float[8] wg, float[8] bb, float[6,8] w1, float[4,6] w2)
        => (float[N,5,4] y)
    { n = LayerNormalization(x, wg, bb) t1 = Transpose<perm = [1, 0]>(w1) m = MatMul(n, t1)
      r = LayerNormalization(m, b6, b6) t2 = Transpose<perm = [1, 0]>(w2)
      y = MatMul(r, t2) }""".replace("float[4,6] w2)", "float[4,6] w2, float[6] b6)")
    model = graph(text)
    for name in ("wg", "bb"):
        value = model.graph.initializers[name]
        array = value.const_value.numpy().copy()
        array[3] *= 256
        value.const_value = ir.tensor(array, name=name)
    weight = model.graph.initializers["w1"]
    array = weight.const_value.numpy().copy()
    array[:, 3] /= 256
    weight.const_value = ir.tensor(array, name="w1")
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((8, 5, 8)).astype(np.float32)} for _ in range(8)]
    found = equalize(prepare_float(model), feeds, PLAN)
    assert {note.site for note in found.notes if note.kept and note.step == "smooth"} >= {"n"}
    assert found.after_db > found.before_db + 10
    session = open_session(found.prepared.model, optimize=False, threads=1)
    wanted = open_session(model, optimize=False, threads=1).run(feeds[0])[0]
    np.testing.assert_array_equal(session.run(feeds[0])[0], wanted)


def test_no_data_is_an_error_and_little_data_a_note() -> None:
    prepared = prepare_float(depthwise(0))
    with pytest.raises(DataError, match="no calibration samples"):
        equalize(prepared, [], PLAN)
    found = equalize(prepared, images(16), PLAN, steps=())
    assert "judged on calibration samples" in str(found.notes[0])


def test_steps_and_progress() -> None:
    seen: list[tuple[int, int]] = []
    equalize(prepare_float(depthwise(0)), images(32), PLAN, progress=lambda *at: seen.append(at))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert STEPS == ("cross-layer", CLIPS, NORMS, LAYERS)


def test_the_saved_result_quantizes_the_same(tmp_path) -> None:
    from onnxslim.io import save

    found = equalize(prepare_float(depthwise(4)), images(32), PLAN)
    save(found.prepared.model, tmp_path / "float.onnx")
    again = load(tmp_path / "float.onnx")
    np.testing.assert_array_equal(float_answers(again), float_answers(found.prepared.model))


def with_relu6(model: ir.Model, bound: float) -> ir.Model:
    """The depthwise network with bounds in the place of its Relus."""
    graph = model.graph
    low, high = (
        add_initializer(graph, np.array(v, np.float32), n) for v, n in ((0, "low"), (bound, "high"))
    )
    for node in list(graph):
        if node.op_type == "Relu":
            replace_node(node, ir.node("Clip", [node.inputs[0], low, high], name=node.name))
    return model


def test_bounds_out_of_reach_give_way_only_where_that_gains_much() -> None:
    broken = equalize(prepare_float(with_relu6(depthwise(4), 1e4)), images(32), PLAN)
    (verdict,) = [n for n in broken.notes if n.step == CLIPS]
    assert verdict.kept
    assert broken.after_db > 20
    kinds = [node.op_type for node in broken.prepared.model.graph]
    assert "Clip" not in kinds
    assert any("became Relu" in note.text for note in broken.notes if note.kept)
    sound = equalize(prepare_float(with_relu6(depthwise(0), 1e4)), images(32), PLAN)
    assert "Relu" not in [node.op_type for node in sound.prepared.model.graph]


def test_bounds_that_are_reached_stay() -> None:
    model = with_relu6(depthwise(4), 1.0)
    found = equalize(prepare_float(model), images(32), PLAN)
    assert [node.op_type for node in found.prepared.model.graph].count("Clip") == 9
    texts = [note.text for note in found.notes if note.step == "cross-layer"]
    assert any("the data reaches" in text for text in texts)
    np.testing.assert_array_equal(float_answers(found.prepared.model), float_answers(model))


def test_scores_are_judged_before_the_softmax() -> None:
    model = depthwise(4)
    (output,) = model.graph.outputs
    softmax = ir.node("Softmax", [output], {"axis": 1})
    softmax.outputs[0].name = "probabilities"
    softmax.outputs[0].type, softmax.outputs[0].shape = output.type, output.shape
    model.graph.append(softmax)
    model.graph.outputs[0] = softmax.outputs[0]
    plain = equalize(prepare_float(depthwise(4)), images(32), PLAN)
    squashed = equalize(prepare_float(model), images(32), PLAN)
    assert abs(plain.after_db - squashed.after_db) < 1.5
