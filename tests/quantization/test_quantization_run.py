"""`onnxslim.quantize` on trained models: what is written, why, and what the report says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from quantize_models import build, conv_net, images, info, weight
from unbalanced_models import MODELS, depthwise, transformer

import onnxslim
from onnxslim.errors import (
    DataError,
    DemandMissedError,
    InvalidModelError,
    OnnxSlimError,
    UsageError,
)
from onnxslim.quantization import latency, search
from onnxslim.quantization.latency import Latency, Pair

CALIBRATION = str(MODELS / "digits_calibration.npz")
LABELS = str(MODELS / "digits_labels.npz")


def figures(result: onnxslim.api.Optimized) -> dict[str, Any]:
    """The figures of the quantization, as they are in the JSON report."""
    found = result.report.steps[-1].details["quantization"]
    return json.loads(json.dumps(found, allow_nan=False))


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency as on a processor where int8 is twice as fast: times here depend on the hour."""

    def compare(before, after, feeds, *, threads):
        return [Pair(b, Latency((2.0,), 2.0, 2.0), Latency((1.0,), 1.0, 1.0)) for b in feeds]

    monkeypatch.setattr("onnxslim.quantization.gate.compare", compare)
    return


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency as on a processor where conversions cost more than int8 gains."""

    def compare(before, after, feeds, *, threads):
        ops = {node.op_type for node in after.graph}
        factor = 1.3 if ops & {"QuantizeLinear", "DynamicQuantizeLinear"} else 1.0
        times = Latency((factor,), factor, factor)
        return [Pair(b, Latency((1.0,), 1.0, 1.0), times) for b in feeds]

    monkeypatch.setattr("onnxslim.quantization.gate.compare", compare)
    return


@pytest.mark.parametrize("preset", ["auto", "portable"])
def test_unbalanced_depthwise_network_is_fully_int8_within_a_point(preset: str, fast) -> None:
    result = onnxslim.quantize(depthwise(4), calibration=CALIBRATION, labels=LABELS, preset=preset)
    found = figures(result)
    assert found["status"] == "quantized"
    assert found["after"]["drop"] <= 1.0
    assert found["int8_kernel_share"] == 1.0
    assert found["steps"][0].startswith("preset:")
    assert "lost" in found["steps"][0]
    assert any(line.startswith("cross-layer: model") for line in found["steps"])
    assert found["fake_real_gap"]["gap_db"] <= 0.5


@pytest.mark.slow
def test_outliers_of_a_transformer_are_smoothed_and_named(fast) -> None:
    result = onnxslim.quantize(transformer(100.0), calibration=CALIBRATION, labels=LABELS)
    found = figures(result)
    assert found["status"] == "quantized"
    assert found["after"]["drop"] <= 0.5
    smoothed = [line for line in found["steps"] if line.startswith("smooth: ")]
    assert any("norm1" in line and "alpha" in line for line in smoothed)


def test_slow_int8_gives_way_to_int8_weights(slow) -> None:
    source = MODELS / "digits_cnn.onnx"
    result = onnxslim.quantize(source, calibration=CALIBRATION, labels=LABELS)
    found = figures(result)
    assert found["status"] == "int8-weights"
    assert result.report.after.file_bytes < 0.4 * source.stat().st_size
    assert any("full int8 is slower here" in reason for reason in found["reasons"])
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(result.report.after.operators)


def small_conv() -> onnx.ModelProto:
    return build(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], name="c")],
        [info("x", ["N", 3, 8, 8])],
        [info("y", ["N", 4, 8, 8])],
        [weight("w", 4, 3, 3, 3)],
    )


def test_slow_int8_of_small_weights_keeps_the_float_model(slow) -> None:
    result = onnxslim.quantize(small_conv(), calibration=images((8, 3, 8, 8)))
    found = figures(result)
    assert found["status"] == "kept-fp32"
    assert len(found["reasons"]) >= 2
    assert "QuantizeLinear" not in result.report.after.operators


def test_force_writes_slow_int8(slow) -> None:
    result = onnxslim.quantize(conv_net(), calibration=images((8, 3, 8, 8)), force=True)
    found = figures(result)
    assert found["status"] == "quantized"
    assert "QuantizeLinear" in result.report.after.operators
    assert any("--force" in reason for reason in found["reasons"])


@pytest.mark.slow
def test_dynamic_form_is_taken_where_it_is_the_fastest(monkeypatch) -> None:
    def compare(before, after, feeds, *, threads):
        dynamic = any(node.op_type == "DynamicQuantizeLinear" for node in after.graph)
        times = Latency((0.5,), 0.5, 0.5) if dynamic else Latency((1.2,), 1.2, 1.2)
        return [Pair(b, Latency((1.0,), 1.0, 1.0), times) for b in feeds]

    monkeypatch.setattr("onnxslim.quantization.gate.compare", compare)
    source = MODELS / "digits_transformer.onnx"
    found = figures(onnxslim.quantize(source, calibration=CALIBRATION, labels=LABELS))
    assert found["status"] == "quantized"
    assert found["form"] == "activations rounded at run time"
    assert found["after"]["drop"] <= 1.0


def test_an_unattainable_target_is_an_error_where_that_is_asked_for(fast, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    options = {"max_drop": -30.0, "strict": True, "max_evaluations": 1}
    with pytest.raises(DemandMissedError, match="--max-drop -30 cannot be kept"):
        onnxslim.quantize(
            MODELS / "digits_cnn.onnx", target, calibration=CALIBRATION, labels=LABELS, **options
        )
    assert not target.exists()


@pytest.mark.slow
def test_an_unattainable_target(fast, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    options = {"calibration": CALIBRATION, "labels": LABELS, "max_drop": -30.0}
    result = onnxslim.quantize(MODELS / "digits_depthwise.onnx", target, **options)
    found = figures(result)
    assert found["status"] == "target-not-met"
    assert found["evaluations"] <= 24
    assert target.exists()
    assert any("TARGET NOT MET" in line for line in result.report.warnings)


def test_fake_figures_where_the_target_is_another_processor(monkeypatch) -> None:
    flags = frozenset({"avx2"})
    monkeypatch.setattr("onnxslim.quantization.presets.processor_flags", lambda *_: flags)
    result = onnxslim.quantize(
        MODELS / "digits_cnn.onnx", calibration=CALIBRATION, labels=LABELS, preset="vnni"
    )
    found = figures(result)
    assert found["preset"] == "cpu-vnni"
    assert found["status"] == "quantized"
    assert found["latency"] == []
    assert found["fake_real_gap"] is None
    assert any("cannot be verified here" in line for line in result.report.warnings)
    assert any("latency was not measured" in line for line in result.report.warnings)


def test_overflowing_kernels_are_noticed_and_repaired(monkeypatch, fast) -> None:
    from onnxslim.quantization.gap import Gap

    shown = iter([Gap("logits", 40.0, 12.0)])
    monkeypatch.setattr(
        "onnxslim.quantization.run.fake_real_gap",
        lambda *_: next(shown, Gap("logits", 38.0, 38.0)),
    )
    result = onnxslim.quantize(MODELS / "digits_cnn.onnx", calibration=CALIBRATION)
    assert "reduce_range = true" in figures(result)["recipe"]
    assert any("weights have 7 bits" in line for line in result.report.warnings)


def rounding_net() -> onnx.ModelProto:
    """Twelve products side by side; seven of them read numbers that int8 cannot hold."""
    nodes, weights, parts = [], [], []
    scale = np.ones(16, np.float32)
    scale[0] = 3000.0
    spread, gather = np.float32(scale), np.float32(1 / scale)
    weights += [onnx.numpy_helper.from_array(spread, "spread")]
    nodes.append(helper.make_node("Mul", ["x", "spread"], ["wide"], name="widen"))
    for number in range(12):
        bad = number < 7
        matrix = np.random.default_rng(number).standard_normal((16, 16)).astype(np.float32) / 4
        if bad:
            matrix *= gather[:, None]
        weights.append(onnx.numpy_helper.from_array(matrix, f"w{number}"))
        nodes.append(
            helper.make_node(
                "MatMul", ["wide" if bad else "x", f"w{number}"], [f"p{number}"], name=f"m{number}"
            )
        )
        parts.append(f"p{number}")
    nodes.append(helper.make_node("Sum", parts, ["y"], name="sum"))
    return build(nodes, [info("x", ["N", 16])], [info("y", ["N", 16])], weights)


def test_bad_regions_go_back_to_float_and_no_more(fast) -> None:
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((32, 16)).astype(np.float32)} for _ in range(16)]

    def relative(outputs, labels):
        wanted = TRUTH["y"]
        error = np.square(outputs["y"] - wanted).sum() / np.square(wanted).sum()
        return 100.0 * (1.0 - error)

    from onnxslim.runtime.session import open_session

    held_out = [feed for number, feed in enumerate(feeds) if number % 4 == 3]
    session = open_session(rounding_net().SerializeToString(), optimize=True)
    TRUTH["y"] = np.concatenate([session.run(feed)[0] for feed in held_out])
    result = onnxslim.quantize(
        rounding_net(), calibration=feeds, metric=relative, max_drop=0.1, equalize=False
    )
    found = figures(result)
    assert found["status"] == "quantized"
    assert found["evaluations"] <= 24
    assert found["after"]["drop"] <= 0.1
    worst = {name for entry in found["sensitivity"][:7] for name in entry["nodes"]}
    assert {f"m{number}" for number in range(7)} <= worst
    recipe = found["recipe"]
    kept = [number for number in range(12) if f'"m{number}"' in recipe]
    assert set(kept) <= set(range(7))
    assert result.report.after.operators["MatMul"] == 12


TRUTH: dict[str, np.ndarray] = {}


def test_a_recipe_repeats_the_bytes(fast, tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    onnxslim.save(depthwise(3), source)
    first, again, recipe = (tmp_path / name for name in ("a.onnx", "b.onnx", "r.toml"))
    result = onnxslim.quantize(source, first, calibration=CALIBRATION, labels=LABELS)
    recipe.write_text(figures(result)["recipe"])
    assert "cross-layer" in recipe.read_text()
    onnxslim.quantize(source, again, calibration=CALIBRATION, recipe=str(recipe))
    assert first.read_bytes() == again.read_bytes()
    with pytest.raises(DataError, match="for another model"):
        onnxslim.quantize(MODELS / "digits_cnn.onnx", calibration=CALIBRATION, recipe=str(recipe))
    with pytest.raises(DataError, match="other calibration data"):
        onnxslim.quantize(source, calibration=LABELS, recipe=str(recipe))
    recipe.write_text("command = 'optimize'")
    with pytest.raises(UsageError, match="no recipe of a quantization"):
        onnxslim.quantize(source, calibration=CALIBRATION, recipe=str(recipe))


def test_interrupted_search_gives_the_best_so_far(monkeypatch, fast) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(search, "equalize", stop)
    result = onnxslim.quantize(depthwise(4), calibration=CALIBRATION, labels=LABELS, force=True)
    assert any("interrupted" in line for line in result.report.warnings)
    assert figures(result)["evaluations"] == 1
    assert result.report.after.operators["QuantizeLinear"] > 0


def test_quantized_models_are_refused_or_taken_back(fast, tmp_path: Path) -> None:
    int8 = tmp_path / "int8.onnx"
    onnxslim.quantize(MODELS / "digits_cnn.onnx", int8, calibration=CALIBRATION, force=True)
    with pytest.raises(InvalidModelError, match="already quantized"):
        onnxslim.quantize(int8, calibration=CALIBRATION)
    again = onnxslim.quantize(int8, calibration=CALIBRATION, labels=LABELS, requantize=True)
    assert figures(again)["after"]["drop"] <= 1.0
    assert any("taken back" in line for line in again.report.warnings)


def test_labelled_samples_that_ranges_were_measured_on_are_pointed_out(fast) -> None:
    data = np.load(LABELS)
    feeds = [{"input": data["input"][:64]}]
    result = onnxslim.quantize(MODELS / "digits_cnn.onnx", calibration=feeds, labels=LABELS)
    assert any("64 of 450 labelled samples" in line for line in result.report.warnings)


def test_without_labels_the_report_says_what_stands_in(fast) -> None:
    found = figures(onnxslim.quantize(MODELS / "digits_cnn.onnx", calibration=CALIBRATION))
    assert "no labels" in found["judged_by"]
    assert found["after"]["metric"] == "agreement"
    assert found["after"]["samples"] == 64


def test_random_data_makes_no_claim(fast) -> None:
    result = onnxslim.quantize(MODELS / "digits_cnn.onnx", random_data=True)
    found = figures(result)
    assert found["before"] is None
    assert found["after"] is None
    assert found["max_drop"] is None
    assert any("RANDOM DATA" in line for line in result.report.warnings)
    for options in ({"max_drop": 1.0}, {"labels": LABELS}, {"strict": True}, {"calibration": "x"}):
        with pytest.raises(UsageError):
            onnxslim.Quantization(random_data=True, **options)


def test_names_and_patterns(fast) -> None:
    model = MODELS / "digits_cnn.onnx"
    options = {"calibration": CALIBRATION, "force": True}
    full = onnxslim.quantize(model, **options).report.after.operators
    less = onnxslim.quantize(model, exclude=["*features.0*"], **options).report.after.operators
    only = onnxslim.quantize(model, include=["*Gemm*"], **options)
    assert less["DequantizeLinear"] < full["DequantizeLinear"]
    assert figures(only)["quantized"] == {"Gemm": 2}
    with pytest.raises(UsageError, match="did you mean"):
        onnxslim.quantize(model, exclude=["/hidden/Gem"], **options)


def test_a_regression_is_judged_by_energy(fast) -> None:
    found = figures(onnxslim.quantize(small_conv(), calibration=images(*[(4, 3, 8, 8)] * 8)))
    assert found["after"]["metric"] == "fidelity"
    assert found["after"]["drop"] < 1.0
    assert found["after"]["outputs"][0]["sqnr_db"] > 20


def test_integers_are_passed_on_as_they_are(fast) -> None:
    proto = build(
        [
            helper.make_node("Gather", ["table", "ids"], ["e"], name="lookup"),
            helper.make_node("Add", ["e", "x"], ["s"], name="join"),
            helper.make_node("MatMul", ["s", "w"], ["y"], name="last"),
        ],
        [info("ids", ["N", 4], TensorProto.INT64), info("x", ["N", 4, 16])],
        [info("y", ["N", 4, 8])],
        [weight("table", 32, 16), weight("w", 16, 8, seed=1)],
    )
    rng = np.random.default_rng(0)
    feeds = [
        {
            "ids": rng.integers(0, 32, (4, 4)),
            "x": rng.standard_normal((4, 4, 16)).astype(np.float32),
        }
        for _ in range(8)
    ]
    result = onnxslim.quantize(proto, calibration=feeds, force=True)
    assert result.model.graph.inputs[0].dtype == ir.DataType.INT64
    assert figures(result)["quantized"]["MatMul"] == 1


def test_latency_of_a_model_beside_itself_is_even() -> None:
    model = onnxslim.load(MODELS / "digits_cnn.onnx")
    data = np.load(CALIBRATION)["input"]
    pairs = latency.compare(model, model, {1: {"input": data[:1]}, 8: {"input": data[:8]}})
    assert [pair.batch for pair in pairs] == [1, 8]
    for pair in pairs:
        assert 0.7 < pair.typical < 1.4
        assert pair.before.best <= pair.before.p50 <= pair.before.p90


def test_weights_beside_the_model_are_read_and_never_written(fast, tmp_path: Path) -> None:
    source, target = tmp_path / "in" / "m.onnx", tmp_path / "out" / "m.onnx"
    for path in (source, target):
        path.parent.mkdir()
    onnxslim.save(onnxslim.load(MODELS / "digits_cnn.onnx"), source, external_data=True)
    before = {path.name: path.read_bytes() for path in source.parent.iterdir()}
    assert len(before) == 2
    options = {"optimizing": {"external_data": True}, "force": True}
    result = onnxslim.quantize(source, target, calibration=CALIBRATION, labels=LABELS, **options)
    assert {path.name: path.read_bytes() for path in source.parent.iterdir()} == before
    assert len(list(target.parent.iterdir())) == 2
    assert sum(result.report.files.values()) < 0.4 * sum(map(len, before.values()))


def test_the_output_may_not_be_a_folder_that_is_not_there(fast, tmp_path: Path) -> None:
    with pytest.raises(OnnxSlimError, match="no_such"):
        onnxslim.quantize(
            MODELS / "digits_cnn.onnx", tmp_path / "no_such" / "o.onnx", calibration=CALIBRATION
        )


def test_the_float_model_is_not_replaced(fast, tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes((MODELS / "digits_cnn.onnx").read_bytes())
    before = source.read_bytes()
    with pytest.raises(UsageError, match="also the input"):
        onnxslim.quantize(source, tmp_path / "." / "m.onnx", calibration=CALIBRATION)
    assert source.read_bytes() == before
