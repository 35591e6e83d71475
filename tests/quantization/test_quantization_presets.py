"""Settings per target, and what this machine can say about them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantize_models import as_model, build, conv_net, images, info, proto_of, run, sqnr, weight

from onnxslim.quantization import engine
from onnxslim.quantization.engine import quantize_model
from onnxslim.quantization.gap import Gap, fake_real_gap, ratio
from onnxslim.quantization.presets import (
    PRESETS,
    QuantizePreset,
    preset_of,
    processor_flags,
    unverifiable,
)

FEEDS = images((4, 3, 8, 8), (2, 3, 8, 8))


def quantized(preset: str | QuantizePreset, proto: onnx.ModelProto | None = None):
    model, report = quantize_model(as_model(proto or conv_net()), FEEDS, preset=preset)
    return proto_of(model), report


def tensors_of(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}


def test_tensorrt_has_pairs_for_every_reader_and_weights_in_float() -> None:
    proto = conv_net()
    proto.graph.node.insert(2, helper.make_node("Conv", ["r", "w3"], ["e"], name="third"))
    proto.graph.initializer.append(weight("w3", 4, 16, 1, 1, seed=9))
    proto.graph.output.append(info("e", ["N", 4, "H", "W"]))
    after, report = quantized("tensorrt", proto)
    weights = tensors_of(after)
    assert {"w", "w2", "b"} <= set(weights)  # floats, behind a pair, bias as it is
    assert all(not array.any() for name, array in weights.items() if name.endswith("zero_point"))
    assert all(
        array.dtype == np.int8 for name, array in weights.items() if name.endswith("zero_point")
    )
    readers = [
        node for node in after.graph.node if node.op_type == "QuantizeLinear" and "r" in node.input
    ]
    assert len(readers) == 2  # one pair for each convolution that reads r
    convs = [node for node in after.graph.node if node.op_type == "Conv"]
    quantized_outputs = {name for node in after.graph.node for name in node.input
                         if node.op_type == "QuantizeLinear"}  # fmt: skip
    assert "c" not in quantized_outputs
    assert len(convs) == 3
    assert any("tensorrt" in line for line in report.warnings)


def test_qnn_has_one_scale_per_tensor_and_no_tiny_range() -> None:
    proto = conv_net()
    proto.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.full((16, 3, 3, 3), 1e-9, np.float32), "w")
    )
    after, _ = quantized("qnn", proto)
    weights = tensors_of(after)
    assert weights["w2_quantized"].dtype == np.uint8
    assert weights["w2_scale"].shape == ()
    scales = [array.min() for name, array in weights.items() if name.endswith("x_scale")]
    assert min(scales) >= 1e-4 / 255


def test_sixteen_bits_are_nearer_and_need_opset_21() -> None:
    after, report = quantized("qnn-a16")
    assert after.opset_import[0].version == 21
    assert "opset 17 was raised to 21, 16 bits need it" in report.warnings
    assert tensors_of(after)["x_zero_point"].dtype == np.uint16
    exact = run(conv_net(), FEEDS[0])[0]
    eight, _ = quantized("qnn")
    assert sqnr(exact, run(after, FEEDS[0])[0]) > sqnr(exact, run(eight, FEEDS[0])[0])


def test_depthwise_weights_keep_8_bits_where_their_kernels_add_in_32() -> None:
    proto = build(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], group=3, pads=[1] * 4),
            helper.make_node("Conv", ["c", "w2"], ["y"]),
        ],
        [info("x", ["N", 3, 8, 8])],
        [info("y", ["N", 4, 8, 8])],
        [weight("w", 3, 1, 3, 3), weight("w2", 4, 3, 1, 1)],
    )
    for preset, most in (("cpu-avx2", 127), ("portable", 64)):
        weights = tensors_of(quantized(preset, proto)[0])
        assert np.abs(weights["w_quantized"].astype(int)).max() == most
        assert np.abs(weights["w2_quantized"].astype(int)).max() == 64


@pytest.mark.parametrize(
    ("preset", "machine", "flags", "said"),
    [
        ("cpu-vnni", "x86_64", {"avx2"}, "lacks avx512_vnni or avx_vnni"),
        ("cpu-vnni", "x86_64", {"avx_vnni"}, None),
        ("cpu-avx2", "AMD64", {"avx2"}, None),
        ("cpu-avx512", "x86_64", {"avx2"}, "lacks avx512f"),
        ("cpu-arm", "x86_64", {"avx2"}, "lacks aarch64 or arm64"),
        ("cpu-arm", "arm64", set(), None),
        ("portable", "riscv64", set(), None),
        ("tensorrt", "x86_64", {"avx2"}, "no proof"),
    ],
)
def test_what_cannot_be_verified_is_said(
    preset: str, machine: str, flags: set[str], said: str | None
) -> None:
    found = unverifiable(PRESETS[preset], machine, frozenset(flags))
    assert (found is None) if said is None else (found is not None and said in found)


def test_auto_on_avx512_without_vnni() -> None:
    assert preset_of("x86_64", frozenset({"avx2", "avx512f"})) == "cpu-avx512"


def test_a_preset_for_elsewhere_warns_and_is_not_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "fake_real_gap", lambda *_: pytest.fail("measured here"))
    _, report = quantized("openvino")
    assert any("no proof" in line for line in report.warnings)


# -------- fake against real


def dense_net() -> onnx.ModelProto:
    """Weights all near their largest value: pairs of products overflow where that can happen."""
    rng = np.random.default_rng(0)
    values = rng.uniform(0.7, 1.0, (64, 32)).astype(np.float32)
    return build(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [info("x", ["N", 64])],
        [info("y", ["N", 32])],
        [numpy_helper.from_array(values, "w")],
    )


DENSE = [{"x": np.random.default_rng(1).uniform(0.5, 1.0, (16, 64)).astype(np.float32)}]


@pytest.mark.parametrize("preset", ["cpu-avx2", "portable"])
def test_seven_bits_have_no_gap_anywhere(preset: str) -> None:
    for proto, feeds in ((dense_net(), DENSE), (conv_net(), FEEDS)):
        model, _ = quantize_model(as_model(proto), feeds, preset=preset)
        gap = fake_real_gap(as_model(proto), model, feeds)
        assert abs(gap.decibels) <= 0.5
        assert gap.real > 25


def test_forced_full_range_is_exact_or_repaired() -> None:
    """With VNNI nothing overflows; without, weights come down to 7 bits and the report says why."""
    forced = QuantizePreset(
        "forced", activations=ir.DataType.INT8, symmetric_activations=True, reduce_range=False
    )
    model, report = quantize_model(as_model(dense_net()), DENSE, preset=forced)
    gap = fake_real_gap(as_model(dense_net()), model, DENSE)
    assert abs(gap.decibels) <= 0.5
    most = int(np.abs(tensors_of(proto_of(model))["w_quantized"].astype(int)).max())
    repaired = any("overflow" in line for line in report.warnings)
    assert most == (64 if repaired else 127)
    has_vnni = bool(processor_flags() & {"avx512_vnni", "avx_vnni"})
    assert not (repaired and has_vnni)


def test_a_gap_brings_weights_down_to_7_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens on processors that this test may not run on: the measured gap is given."""
    monkeypatch.setattr(engine, "fake_real_gap", lambda *_: Gap("y", 40.0, 12.0))
    forced = replace(PRESETS["portable"], name="forced", reduce_range=False)
    model, report = quantize_model(as_model(dense_net()), DENSE, preset=forced)
    codes = tensors_of(proto_of(model))["w_quantized"]
    assert np.abs(codes.astype(int)).max() == 64
    assert any("12.0 dB instead of 40.0 dB at output 'y'" in line for line in report.warnings)


def test_gap_of_an_exact_model_is_nothing() -> None:
    model = as_model(conv_net())
    gap = fake_real_gap(model, model, FEEDS)
    assert gap.real == 200  # the very session of the original
    assert not gap.is_overflow
    assert ratio(0.0, 1.0) == -200
    assert ratio(1.0, 0.1) == pytest.approx(10)
    assert not Gap("y", 30.0, 28.0).is_overflow
    assert Gap("y", 30.0, 26.0).is_overflow


def test_type_of_the_declared_tensors_is_kept() -> None:
    after, _ = quantized("auto")
    assert [v.type.tensor_type.elem_type for v in after.graph.output] == [TensorProto.FLOAT]
