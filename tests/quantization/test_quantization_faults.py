"""Known faults of static int8, one test each; ids are numbers of onnxruntime reports.

Every case says what must come out: which nodes are in int8, and answers near those of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantize_models import (
    Feeds,
    as_model,
    build,
    conv_net,
    images,
    info,
    kernels,
    proto_of,
    run,
    sqnr,
    weight,
)

from onnxslim.calibration.run import calibrate
from onnxslim.errors import DataError
from onnxslim.quantization.engine import (
    QuantizeReport,
    QuantPlan,
    prepare_float,
    quantize_model,
    quantize_once,
    tensors_to_calibrate,
)
from onnxslim.quantization.presets import PRESETS
from onnxslim.quantization.ranges import check_calibration

make = helper.make_node


@dataclass
class Fault:
    """A model, its data, and what must hold afterwards."""

    proto: onnx.ModelProto
    feeds: Feeds
    quantized: dict[str, int]
    least: float = 25.0
    options: dict[str, Any] = field(default_factory=dict)
    check: Callable[[onnx.ModelProto, QuantizeReport], None] | None = None


def two_convs(*middle: onnx.NodeProto, **more: Any) -> onnx.ModelProto:
    """Conv, the nodes given (from c to e), Conv."""
    options = {"opset": 17, "extra": (), "weights": []} | more
    return build(
        [
            make("Conv", ["x", "w"], ["c"], name="first"),
            *middle,
            make("Conv", ["e", "w2"], ["y"], name="second"),
        ],
        [info("x", ["N", 3, 6, 6])],
        [info("y", ["N", 2, 6, 6])],
        [weight("w", 4, 3, 1, 1), weight("w2", 2, 4, 1, 1, seed=2), *options["weights"]],
        options["opset"],
        options["extra"],
    )


PIXELS = images((8, 3, 6, 6), (4, 3, 6, 6))


def duplicated_bias() -> Fault:
    proto = build(
        [
            make("Conv", ["x", "w", "b"], ["b_quantized"], pads=[1, 1, 1, 1]),
            make("Conv", ["b_quantized", "w2", "b"], ["b_1"]),
            make("Add", ["b_quantized", "b_1"], ["y"]),
        ],
        [info("x", ["N", 3, 6, 6])],
        [info("y", ["N", 4, 6, 6])],
        [weight("w", 4, 3, 3, 3), weight("b", 4, seed=1), weight("w2", 4, 4, 1, 1, seed=2)],
    )
    return Fault(proto, PIXELS, {"Conv": 2, "Add": 1})


def grouped_transposed() -> Fault:
    values = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    proto = build(
        [make("ConvTranspose", ["x", "w", "b"], ["y"], group=2, strides=[2, 2])],
        [info("x", ["N", 4, 5, 5])],
        [info("y", ["N", 6, "H", "W"])],
        [numpy_helper.from_array(values, "w"), weight("b", 6)],
    )
    return Fault(proto, images((3, 4, 5, 5)), {"ConvTranspose": 1})


def transposed_per_channel() -> Fault:
    values = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    values *= np.logspace(-2, 1, 3, dtype=np.float32).reshape(1, 3, 1, 1)
    proto = build(
        [make("ConvTranspose", ["x", "w"], ["y"])],
        [info("x", ["N", 4, 5, 5])],
        [info("y", ["N", 3, "H", "W"])],
        [numpy_helper.from_array(values, "w")],
    )

    def check(after: onnx.ModelProto, _: QuantizeReport) -> None:
        scales = {t.name: t for t in after.graph.initializer}["w_scale"]
        assert list(scales.dims) == [3]
        node = next(n for n in after.graph.node if "w_quantized" in n.input)
        assert {a.name: a.i for a in node.attribute} == {"axis": 1}

    return Fault(proto, images((3, 4, 5, 5)), {"ConvTranspose": 1}, check=check)


def excluded_gemm() -> Fault:
    proto = build(
        [
            make("Gemm", ["x", "g"], ["a"], name="keep_me", transB=1),
            make("Relu", ["a"], ["r"]),
            make("Gemm", ["r", "h", "hb"], ["y"], name="head"),
        ],
        [info("x", ["N", 8])],
        [info("y", ["N", 3])],
        [weight("g", 6, 8), weight("h", 6, 3, seed=1), weight("hb", 3, seed=2)],
    )

    def check(after: onnx.ModelProto, report: QuantizeReport) -> None:
        assert report.kept_float["Gemm"] == {"excluded": 1}
        assert "g" in {t.name for t in after.graph.initializer}

    return Fault(proto, images((16, 8)), {"Gemm": 1}, options={"exclude": ["keep_me"]}, check=check)


def gemm_factors() -> Fault:
    proto = build(
        [make("Gemm", ["x", "g", "b"], ["y"], alpha=0.25, beta=-3.0, transB=1)],
        [info("x", ["N", 8])],
        [info("y", ["N", 6])],
        [weight("g", 6, 8), weight("b", 1, 6, seed=1)],
    )
    return Fault(proto, images((16, 8)), {"Gemm": 1}, least=30)


def kv_cache() -> Fault:
    proto = build(
        [
            make("MatMul", ["x", "w"], ["k"]),
            make("Concat", ["past", "k"], ["present"], axis=1),
            make("MatMul", ["present", "w2"], ["y"]),
        ],
        [info("past", ["N", "P", 4]), info("x", ["N", "T", 6])],
        [info("y", ["N", "S", 5]), info("present", ["N", "S", 4])],
        [weight("w", 6, 4), weight("w2", 4, 5, seed=1)],
    )
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 6)).astype(np.float32)
    feeds = [
        {"past": np.zeros((2, 0, 4), np.float32), "x": x},
        {"past": x[:, :3, :4], "x": x[:, :1]},
    ]
    return Fault(proto, feeds, {"MatMul": 2, "Concat": 1})


def loop_captures() -> Fault:
    body = helper.make_graph(
        [
            make("Identity", ["going"], ["still"]),
            make("MatMul", ["state", "w"], ["next0"]),
            make("Add", ["next0", "c"], ["next"]),
        ],
        "body",
        [info("i", [], TensorProto.INT64), info("going", [], TensorProto.BOOL),
         info("state", ["N", 6])],
        [info("still", [], TensorProto.BOOL), info("next", ["N", 6])],
    )  # fmt: skip
    proto = build(
        [
            make("MatMul", ["x", "w"], ["c"]),
            make("Loop", ["count", "yes", "c"], ["last"], body=body),
            make("MatMul", ["last", "w"], ["y"]),
        ],
        [info("x", ["N", 6])],
        [info("y", ["N", 6])],
        [weight("w", 6, 6, scale=0.3), numpy_helper.from_array(np.array(2), "count"),
         numpy_helper.from_array(np.array(True), "yes")],
    )  # fmt: skip

    def check(_: onnx.ModelProto, report: QuantizeReport) -> None:
        assert "the subgraphs of a Loop stay in float" in report.warnings
        assert report.kept_float["Loop"] == {"subgraphs stay in float": 1}

    return Fault(proto, images((16, 6)), {"MatMul": 2}, check=check)


def symmetric_relu() -> Fault:
    proto = two_convs(make("Relu", ["c"], ["e"]))

    def check(after: onnx.ModelProto, report: QuantizeReport) -> None:
        assert "Relu" in {node.op_type for node in after.graph.node}

    preset = replace(PRESETS["portable"], symmetric_activations=True)
    return Fault(proto, PIXELS, {"Conv": 2, "Relu": 1}, options={"preset": preset}, check=check)


def clip_above_zero() -> Fault:
    """A Clip whose lower bound is above zero: no grid ends there, so it must stay."""
    weights = [
        numpy_helper.from_array(np.array(value, np.float32), name)
        for name, value in (("low", 0.5), ("high", 2.0))
    ]
    proto = two_convs(make("Clip", ["c", "low", "high"], ["e"]), weights=weights)

    def check(after: onnx.ModelProto, _: QuantizeReport) -> None:
        assert "Clip" in {node.op_type for node in after.graph.node}

    return Fault(proto, PIXELS, {"Conv": 2, "Clip": 1}, check=check)


def old_opset(opset: int) -> Callable[[], Fault]:
    def fault() -> Fault:
        def check(after: onnx.ModelProto, _: QuantizeReport) -> None:
            assert after.opset_import[0].version >= 13

        found = {"Conv": 2, "Relu": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
        return Fault(conv_net(opset), images((4, 3, 8, 8)), found, check=check)

    return fault


def half() -> Fault:
    proto = conv_net()
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    feeds = [{"x": feed["x"].astype(np.float16)} for feed in images((4, 3, 8, 8))]

    def check(after: onnx.ModelProto, _: QuantizeReport) -> None:
        types = [v.type.tensor_type.elem_type for v in (*after.graph.input, *after.graph.output)]
        assert types == [TensorProto.FLOAT16] * 2

    found = {"Conv": 2, "Relu": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    return Fault(proto, feeds, found, check=check)


def custom_operator() -> Fault:
    extra = [helper.make_opsetid("com.microsoft", 1)]
    proto = two_convs(make("FastGelu", ["c"], ["e"], domain="com.microsoft"), extra=extra)

    def check(_: onnx.ModelProto, report: QuantizeReport) -> None:
        assert report.kept_float == {"FastGelu": {"operator of another domain": 1}}

    return Fault(proto, PIXELS, {"Conv": 2}, check=check)


def two_inputs() -> Fault:
    proto = build(
        [
            make("Gather", ["table", "ids"], ["e"]),
            make("Conv", ["x", "w"], ["c"]),
            make("GlobalAveragePool", ["c"], ["p"]),
            make("Flatten", ["p"], ["f"]),
            make("MatMul", ["e", "m"], ["g"]),
            make("Add", ["g", "f"], ["y"]),
            make("Add", ["ids", "one"], ["next"]),
        ],
        [info("ids", ["N"], TensorProto.INT64), info("x", ["N", 3, 6, 6])],
        [info("y", ["N", 4]), info("next", ["N"], TensorProto.INT64)],
        [weight("table", 9, 5), weight("w", 4, 3, 1, 1), weight("m", 5, 4, seed=3),
         numpy_helper.from_array(np.array(1), "one")],
    )  # fmt: skip
    feeds = [{**PIXELS[0], "ids": np.arange(8)}, {**PIXELS[1], "ids": np.arange(4)}]

    def check(after: onnx.ModelProto, _: QuantizeReport) -> None:
        assert list(after.graph.input) == list(proto.graph.input)
        assert list(after.graph.output) == list(proto.graph.output)

    counts = {"Gather": 1, "Conv": 1, "GlobalAveragePool": 1, "Flatten": 1, "MatMul": 1, "Add": 1}
    return Fault(proto, feeds, counts, check=check)


def detector_head() -> Fault:
    """Boxes of hundreds of pixels beside scores below one."""
    proto = build(
        [
            make("Conv", ["x", "w"], ["c"], name="backbone"),
            make("Relu", ["c"], ["r"]),
            make("Conv", ["r", "wb"], ["b0"], name="boxes"),
            make("Conv", ["r", "ws"], ["s0"], name="scores"),
            make("Mul", ["b0", "stride"], ["b1"], name="decode"),
            make("Sigmoid", ["s0"], ["s1"], name="squash"),
            make("Concat", ["b1", "s1"], ["k"], axis=1, name="head"),
            make("Reshape", ["k", "flat"], ["y"], name="rows"),
        ],
        [info("x", ["N", 3, 6, 6])],
        [info("y", ["N", 6, 36])],
        [weight("w", 4, 3, 1, 1), weight("wb", 4, 4, 1, 1, seed=1),
         weight("ws", 2, 4, 1, 1, seed=2),
         numpy_helper.from_array(np.array(320, np.float32), "stride"),
         numpy_helper.from_array(np.array([0, 6, 36], np.int64), "flat")],
    )  # fmt: skip

    def check(after: onnx.ModelProto, report: QuantizeReport) -> None:
        assert report.quantized == {"Conv": 3, "Relu": 1}
        assert set(report.kept_float) == {"Mul", "Sigmoid", "Concat", "Reshape"}
        feed = PIXELS[0]
        exact, found = run(proto, feed)[0][:, 4:], run(after, feed)[0][:, 4:]
        assert sqnr(exact, found) > 30  # with one grid for both: every score is 0

    return Fault(proto, PIXELS, {"Conv": 3, "Relu": 1}, check=check)


def uneven_concat_inside() -> Fault:
    """The same in the middle of a network stays in int8."""
    proto = build(
        [
            make("Conv", ["x", "w"], ["c"]),
            make("Concat", ["c", "x"], ["k"], axis=1),
            make("Conv", ["k", "w2"], ["y"]),
        ],
        [info("x", ["N", 3, 6, 6])],
        [info("y", ["N", 2, 6, 6])],
        [weight("w", 4, 3, 1, 1, scale=20), weight("w2", 2, 7, 1, 1, seed=2)],
    )
    return Fault(proto, PIXELS, {"Conv": 2, "Concat": 1})


def pad_with_numbers() -> Fault:
    weights = [
        numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads"),
        numpy_helper.from_array(np.array(9, np.float32), "nine"),
    ]
    proto = two_convs(make("Pad", ["c", "pads", "nine"], ["e"]), weights=weights)
    proto.graph.output[0].CopyFrom(info("y", ["N", 2, 8, 8]))

    def check(_: onnx.ModelProto, report: QuantizeReport) -> None:
        assert report.kept_float == {"Pad": {"it pads with other numbers than zero": 1}}

    return Fault(proto, PIXELS, {"Conv": 2}, check=check)


def transposed_weight() -> Fault:
    proto = build(
        [
            make("Transpose", ["w"], ["t"], perm=[1, 0]),
            make("MatMul", ["x", "t"], ["y"]),
        ],
        [info("x", ["N", 8])],
        [info("y", ["N", 6])],
        [weight("w", 6, 8)],
    )
    return Fault(proto, images((16, 8)), {"MatMul": 1})


def tied_weights() -> Fault:
    proto = build(
        [
            make("MatMul", ["x", "w"], ["a"]),
            make("Tanh", ["a"], ["t"]),
            make("MatMul", ["t", "w"], ["y"]),
        ],
        [info("x", ["N", 8])],
        [info("y", ["N", 8])],
        [weight("w", 8, 8)],
    )

    def check(after: onnx.ModelProto, _: QuantizeReport) -> None:
        codes = [t for t in after.graph.initializer if t.data_type == TensorProto.INT8]
        assert len([t for t in codes if len(t.dims) == 2]) == 1
        assert not [t for t in after.graph.initializer if len(t.dims) == 2 and t.data_type == 1]

    return Fault(proto, images((16, 8)), {"MatMul": 2}, check=check)


def tiny_bias_scale() -> Fault:
    """A bias that would need more than 32 bits in steps of both scales."""
    proto = build(
        [make("Gemm", ["x", "g", "b"], ["y"])],
        [info("x", ["N", 8])],
        [info("y", ["N", 3])],
        [weight("g", 8, 3, scale=1e-9), numpy_helper.from_array(
            np.array([100, -50, 25], np.float32), "b"
        )],
    )  # fmt: skip
    return Fault(proto, images((16, 8)), {"Gemm": 1}, least=40)


def zero_weights() -> Fault:
    proto = two_convs(make("Relu", ["c"], ["e"]))
    values = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    values[1] = 0
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))
    return Fault(proto, PIXELS, {"Conv": 2, "Relu": 1})


FAULTS = {
    "24705-duplicated-bias-name": duplicated_bias,
    "19694-grouped-convtranspose": grouped_transposed,
    "19694-convtranspose-axis": transposed_per_channel,
    "19503-12556-excluded-gemm": excluded_gemm,
    "gemm-alpha-beta": gemm_factors,
    "13667-16738-23600-empty-tensors": kv_cache,
    "loop-captures": loop_captures,
    "11660-9425-11225-symmetric-relu": symmetric_relu,
    "clip-above-zero": clip_above_zero,
    "opset-9-per-channel": old_opset(9),
    "opset-11-per-channel": old_opset(11),
    "opset-12-per-channel": old_opset(12),
    "15341-22741-32719-float16": half,
    "8770-custom-operator": custom_operator,
    "integer-inputs": two_inputs,
    "14233-10787-17410-detector-head": detector_head,
    "10787-uneven-concat-inside": uneven_concat_inside,
    "pad-with-numbers": pad_with_numbers,
    "12800-17718-transposed-weight": transposed_weight,
    "21277-tied-weights": tied_weights,
    "bias-beyond-32-bits": tiny_bias_scale,
    "channel-of-zeros": zero_weights,
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name: str) -> None:
    fault = FAULTS[name]()
    options = {"preset": "portable"} | fault.options
    model, report = quantize_model(as_model(fault.proto), fault.feeds, **options)
    after = proto_of(model)
    assert dict(report.quantized) == fault.quantized
    for feed in fault.feeds:
        exact, found = run(fault.proto, feed), run(after, feed)
        for one, other in zip(exact, found, strict=True):
            assert one.shape == other.shape
            assert one.dtype == other.dtype
            assert one.dtype.kind != "f" or sqnr(one, other) >= fault.least
    if fault.check is not None:
        fault.check(after, report)


def test_18792_data_of_any_shape_for_every_method() -> None:
    feeds = images((4, 3, 8, 8), (3, 3, 12, 6), (1, 3, 5, 9))
    for method in ("minmax", "percentile", "entropy", "mse", "auto"):
        model, _ = quantize_model(as_model(conv_net()), feeds, method=method)
        assert sqnr(run(conv_net(), feeds[0])[0], run(model, feeds[0])[0]) > 15


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_never_become_a_scale(bad: float) -> None:
    feeds = images((4, 3, 8, 8), (4, 3, 8, 8))
    feeds[1]["x"][2, 0, 0, 0] = bad
    with pytest.raises(DataError, match=r"sample.*x.*NaN or infinite"):
        quantize_model(as_model(conv_net()), feeds)


def test_statistics_of_other_weights_are_noticed() -> None:
    """The cache of the engine of onnxruntime takes any model with the same names."""
    prepared = prepare_float(as_model(conv_net()))
    names = tensors_to_calibrate(prepared, QuantPlan(PRESETS["portable"]))
    found = calibrate(prepared.model, images((4, 3, 8, 8)), tensors=names)
    check_calibration(prepared.model, found)
    changed = conv_net()
    changed.graph.initializer[1].CopyFrom(weight("b", 16, seed=99))
    with pytest.raises(DataError, match="of other weights"):
        check_calibration(prepare_float(as_model(changed)).model, found)
    other = two_convs(make("Relu", ["c"], ["e"]))
    with pytest.raises(DataError, match="of another model"):
        check_calibration(prepare_float(as_model(other)).model, found)


def test_statistics_with_bad_numbers_give_no_range() -> None:
    prepared = prepare_float(as_model(two_convs(make("Exp", ["c"], ["e"]))))
    plan = QuantPlan(PRESETS["portable"])
    feeds = [{"x": np.full((1, 3, 6, 6), 2000, np.float32)}]
    found = calibrate(prepared.model, feeds, tensors=tensors_to_calibrate(prepared, plan))
    with pytest.raises(DataError, match=r"tensor 'e' held \d+ NaN or infinite"):
        quantize_once(prepared, found, plan)


def test_inner_infinity_is_found() -> None:
    proto = two_convs(make("Exp", ["c"], ["e"]))
    feeds = [{"x": np.full((1, 3, 6, 6), 2000, np.float32)}]
    proto.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w")
    )
    with pytest.raises(DataError, match=r"tensor 'e' holds \d+ NaN or infinite"):
        quantize_model(as_model(proto), feeds)


def test_unnamed_nodes_stay_unnamed_and_equal_names_are_told_apart(tmp_path: Path) -> None:
    proto = two_convs(make("Relu", ["c"], ["e"]))
    for node in proto.graph.node:
        node.name = ""
    model, _ = quantize_model(as_model(proto), PIXELS)
    names = [node.name for node in model.graph if node.op_type == "Conv"]
    assert names == ["", ""]
    assert kernels(model, tmp_path).count("QLinearConv") == 2
