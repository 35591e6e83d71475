"""The writer against ``onnxruntime.quantization``, the operator form, and the way back to float."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantize_models import (
    Feeds,
    as_model,
    build,
    conv_net,
    data_of,
    images,
    info,
    kernels,
    proto_of,
    run,
    sqnr,
    weight,
    wide_net,
)

from onnxslim.calibration.run import calibrate
from onnxslim.calibration.store import Calibration
from onnxslim.errors import DataError, InvalidModelError, UsageError
from onnxslim.quantization.engine import (
    Prepared,
    QuantPlan,
    candidates,
    prepare_float,
    quantize_model,
    quantize_once,
    tensors_to_calibrate,
)
from onnxslim.quantization.presets import PRESETS
from onnxslim.quantization.strip import to_float

FEEDS = images((4, 3, 8, 8), (2, 3, 8, 8))
NETS = {"conv": conv_net, "wide": wide_net}


def calibrated(
    proto: onnx.ModelProto, preset: str = "portable", feeds: Feeds = FEEDS
) -> tuple[Prepared, Calibration, QuantPlan]:
    plan = QuantPlan(PRESETS[preset])
    prepared = prepare_float(as_model(proto), preset=plan.preset)
    names = tensors_to_calibrate(prepared, plan)
    return prepared, calibrate(prepared.model, feeds, tensors=names), plan


@pytest.mark.parametrize("preset", ["portable", "cpu-vnni", "cpu-arm"])
def test_the_same_numbers_as_the_engine_of_onnxruntime(preset: str, tmp_path: Path) -> None:
    found = calibrated(conv_net(), preset)
    own, _ = quantize_once(*found)
    plain, _ = quantize_once(*found[:2], replace(found[2], engine="onnxruntime"))
    np.testing.assert_array_equal(run(own, FEEDS[0])[0], run(plain, FEEDS[0])[0])
    assert kernels(own, tmp_path) == kernels(plain, tmp_path)


def test_no_fewer_int8_kernels_than_the_engine_of_onnxruntime(tmp_path: Path) -> None:
    found = calibrated(wide_net())
    own, report = quantize_once(*found)
    plain, _ = quantize_once(*found[:2], replace(found[2], engine="onnxruntime"))
    for one in (own, plain):
        assert sqnr(run(wide_net(), FEEDS[0])[0], run(one, FEEDS[0])[0]) > 25
    ours, theirs = kernels(own, tmp_path), kernels(plain, tmp_path)
    for name in {*ours, *theirs}:
        if name.startswith("QLinear"):
            assert ours.count(name) >= theirs.count(name), name
    assert not {"Conv", "MatMul"} & set(ours)
    assert report.kept_float == {}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("preset", ["portable", "cpu-vnni"])
def test_operators_give_the_numbers_of_the_pairs(net: str, preset: str, tmp_path: Path) -> None:
    found = calibrated(NETS[net](), preset)
    pairs, _ = quantize_once(*found)
    operators, _ = quantize_once(*found[:2], replace(found[2], form="qoperator"))
    proto_of(pairs)
    np.testing.assert_array_equal(run(pairs, FEEDS[0])[0], run(operators, FEEDS[0])[0])
    kinds = {node.op_type for node in operators.graph}
    assert not {"Conv", "MatMul", "Gemm", "Add"} & kinds
    ours, theirs = kernels(operators, tmp_path), kernels(pairs, tmp_path)
    assert ours.count("DequantizeLinear") <= theirs.count("DequantizeLinear")
    assert ours.count("QLinearConv") == theirs.count("QLinearConv")
    assert len(data_of(operators)) < len(data_of(pairs))


def test_dynamic_needs_no_data() -> None:
    proto = build(
        [
            helper.make_node("Gather", ["table", "ids"], ["e"]),
            helper.make_node("MatMul", ["e", "w"], ["m"]),
            helper.make_node("Relu", ["m"], ["r"]),
            helper.make_node("Gemm", ["r", "g", "gb"], ["y"], transB=1, alpha=0.5, beta=2.0),
        ],
        [info("ids", ["N"], TensorProto.INT64)],
        [info("y", ["N", 5])],
        [weight("table", 30, 16), weight("w", 16, 24, seed=1), weight("g", 5, 24, seed=2),
         weight("gb", 5, seed=3)],
    )  # fmt: skip
    plan = QuantPlan(PRESETS["cpu-vnni"], dynamic=True)
    model, report = quantize_once(prepare_float(as_model(proto)), None, plan)
    assert report.quantized == {"Gather": 1, "MatMul": 1, "Gemm": 1}
    feed = {"ids": np.arange(30)}
    assert sqnr(run(proto, feed)[0], run(proto_of(model), feed)[0]) > 30
    floats = [t for t in proto_of(model).graph.initializer if t.data_type == TensorProto.FLOAT]
    assert max(np.prod(t.dims) for t in floats) <= 24
    with pytest.raises(UsageError, match="needs a calibration"):
        quantize_once(prepare_float(as_model(proto)), None, replace(plan, dynamic=False))


def test_plans_choose_nodes_by_stable_names() -> None:
    found = calibrated(conv_net())
    names = candidates(found[0], found[2])
    assert names == ["Conv_c", "Relu_r", "second", "GlobalAveragePool_p", "Flatten_f", "Gemm_y"]
    assert names == candidates(prepare_float(as_model(conv_net())), found[2])
    alone = replace(found[2], only=frozenset({"second"}))
    model, report = quantize_once(*found[:2], alone)
    assert report.quantized == {"Conv": 1}
    assert [node.name for node in model.graph if node.op_type in ("Conv", "Gemm")] == [
        "", "second", ""
    ]  # fmt: skip
    by_type = replace(found[2], op_types=("Gemm",))
    assert quantize_once(*found[:2], by_type)[1].quantized == {"Gemm": 1}
    with pytest.raises(UsageError, match="no_such"):
        quantize_once(*found[:2], replace(found[2], float_nodes=frozenset({"no_such"})))
    empty = replace(found[1], tensors={})
    with pytest.raises(DataError, match="no statistics of tensor"):
        quantize_once(found[0], empty, found[2])


def test_the_same_plan_gives_the_same_bytes_and_leaves_the_model() -> None:
    found = calibrated(wide_net())
    before = data_of(found[0].model)
    first, second = (data_of(quantize_once(*found)[0]) for _ in range(2))
    assert first == second
    assert data_of(found[0].model) == before


def test_scales_and_ranges_can_be_given() -> None:
    found = calibrated(conv_net())
    steps = np.linspace(0.01, 0.02, 16).astype(np.float32)
    plan = replace(found[2], weight_scales={"w": steps}, ranges={"x": (-10.0, 245.0)})
    model = proto_of(quantize_once(*found[:2], plan)[0])
    tensors = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    np.testing.assert_array_equal(tensors["w_scale"], steps)
    assert (tensors["x_scale"], tensors["x_zero_point"]) == (1.0, 10)


def test_excluded_by_pattern_output_or_generated_name() -> None:
    for wanted, count in ((["Conv_*"], 1), (["d"], 1), (["Gemm_y", "second"], 1)):
        _, report = quantize_model(as_model(conv_net()), FEEDS, exclude=wanted)
        assert report.kept_float["Conv"] == {"excluded": count}
    with pytest.raises(UsageError, match="Conv_x.*did you mean Conv_c"):
        quantize_model(as_model(conv_net()), FEEDS, exclude=["Conv_x"])


# -------- back to float


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_back_to_float_is_exact_in_the_weights(net: str, form: str) -> None:
    proto = NETS[net]()
    found = calibrated(proto)
    model, _ = quantize_once(*found[:2], replace(found[2], form=form))
    stored = {t.name: numpy_helper.to_array(t) for t in proto_of(model).graph.initializer}
    to_float(model)
    back = proto_of(model)
    assert not [node for node in back.graph.node if "Linear" in node.op_type]
    weights = {t.name: numpy_helper.to_array(t) for t in back.graph.initializer}
    scale = stored["w_scale"].reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(weights["w"], stored["w_quantized"].astype(np.float32) * scale)
    exact = run(proto, FEEDS[0])[0]
    rounded = sqnr(exact, run(quantize_once(*found)[0], FEEDS[0])[0])
    assert sqnr(exact, run(back, FEEDS[0])[0]) > rounded - 3  # the Relu is there


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_quantized_again_with_other_settings(form: str) -> None:
    first, _ = quantize_model(as_model(conv_net()), FEEDS, preset="portable", form=form)
    with pytest.raises(InvalidModelError, match=r"already quantized.*requantize"):
        quantize_model(first, FEEDS)
    again, report = quantize_model(first, FEEDS, preset="cpu-vnni", requantize=True)
    assert report.quantized["Conv"] == 2
    assert any("taken back" in line for line in report.warnings)
    exact = run(conv_net(), FEEDS[0])[0]
    assert sqnr(exact, run(again, FEEDS[0])[0]) > sqnr(exact, run(first, FEEDS[0])[0]) - 3


def test_what_cannot_be_taken_back_is_named() -> None:
    node = helper.make_node("DequantizeLinear", ["x", "s"], ["f"], name="entry")
    proto = build(
        [node, helper.make_node("Relu", ["f"], ["y"])],
        [info("x", [4], TensorProto.UINT8)],
        [info("y", [4])],
        [numpy_helper.from_array(np.array(0.5, np.float32), "s")],
    )
    with pytest.raises(InvalidModelError, match="'entry'.*codes from elsewhere"):
        to_float(as_model(proto))


# -------- every part of a model, as a search asks for them


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize("preset", ["portable", "tensorrt", "qnn"])
def test_every_node_alone_and_every_node_left_out(preset: str, form: str) -> None:
    prepared, calibration, plan = calibrated(wide_net(), preset)
    plan = replace(plan, form=form)
    exact = run(wide_net(), FEEDS[0])[0]
    names = candidates(prepared, plan)
    subsets = [replace(plan, float_nodes=frozenset({name})) for name in names]
    for name in names:
        if prepared.names[name].op_type in ("Conv", "MatMul"):
            subsets.append(replace(plan, only=frozenset({name})))
    for one in subsets:
        model, report = quantize_once(prepared, calibration, one)
        assert report.quantized
        assert sqnr(exact, run(model, FEEDS[0])[0]) > (25 if preset == "portable" else 15)


def test_an_engine_that_fails_leaves_one_line_and_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxruntime import quantization

    found = calibrated(conv_net())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def fail(*_args: object, **_options: object) -> None:
        assert os.listdir(tmp_path)
        raise AssertionError("scale\nissue")

    monkeypatch.setattr(quantization, "quantize_static", fail)
    with pytest.raises(InvalidModelError, match="cannot quantize the model: scale issue"):
        quantize_once(*found[:2], replace(found[2], engine="onnxruntime"))
    assert os.listdir(tmp_path) == []
