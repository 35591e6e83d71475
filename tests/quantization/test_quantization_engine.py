"""Static int8: what it does to graphs of every kind, and what it declines."""

from __future__ import annotations

import io
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim.errors import DataError, InvalidModelError, UsageError
from onnxslim.io import load, save
from onnxslim.quantization import checks
from onnxslim.quantization.engine import quantize_model
from onnxslim.quantization.presets import PRESETS, find_preset, preset_of, processor_flags

Feeds = list[dict[str, np.ndarray]]


def weight(name: str, *dims: int, seed: int = 0, scale: float = 0.4) -> onnx.TensorProto:
    values = np.random.default_rng(seed).standard_normal(dims) * scale
    return numpy_helper.from_array(values.astype(np.float32), name)


def info(name: str, dims: Sequence[int | str], dtype: int = TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, dims)


def build(nodes, inputs, outputs, weights, opset=17, ir_version=8, extra=()) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "net", inputs, outputs, weights)
    imports = [helper.make_opsetid("", opset), *extra]
    return helper.make_model(
        graph, opset_imports=imports, ir_version=ir_version, producer_name="trainer"
    )


def conv_net(opset: int = 17, ir_version: int = 8) -> onnx.ModelProto:
    return build(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Conv", ["r", "w2"], ["d"], name="second"),
            helper.make_node("GlobalAveragePool", ["d"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "g", "gb"], ["y"], transB=1),
        ],
        [info("x", ["N", 3, "H", "W"])],
        [info("y", ["N", 5])],
        [
            weight("w", 16, 3, 3, 3),
            weight("b", 16, seed=1),
            weight("w2", 16, 16, 3, 3, seed=2, scale=0.1),
            weight("g", 5, 16, seed=3),
            weight("gb", 5, seed=4),
        ],
        opset,
        ir_version,
    )


def images(*shapes: Sequence[int]) -> Feeds:
    rng = np.random.default_rng(7)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for shape in shapes]


IMAGES = images((4, 3, 8, 8), (4, 3, 10, 6), (1, 3, 8, 8))


def data_of(model: ir.Model) -> bytes:
    stream = io.BytesIO()
    save(model, stream)
    return stream.getvalue()


def run(data: bytes, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"]).run(None, feed)


def quantized(proto: onnx.ModelProto, feeds: Feeds, **options):
    """Quantizes, checks that the result is valid and near, and gives proto and report."""
    model, report = quantize_model(load(proto), feeds, **options)
    data = data_of(model)
    onnx.checker.check_model(data, full_check=True)
    for feed in feeds:
        for one, other in zip(run(proto.SerializeToString(), feed), run(data, feed), strict=True):
            assert one.shape == other.shape
            assert one.dtype == other.dtype
            assert np.linalg.norm(one - other) <= 0.06 * np.linalg.norm(one)
    return onnx.load_from_string(data), report


def weights_of(proto: onnx.ModelProto) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for tensor in proto.graph.initializer:
        found.setdefault(tensor.data_type, []).append(tensor.name)
    return found


@pytest.mark.parametrize("preset", ["auto", *PRESETS])
def test_conv_net_under_every_preset(preset: str) -> None:
    before = conv_net()
    after, report = quantized(before, IMAGES, preset=preset)
    assert report.preset == (preset if preset != "auto" else find_preset("auto").name)
    found = {"Conv": 2, "Relu": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    if preset == "tensorrt":  # it wants what is between a convolution and its activation in float
        assert found.pop("Relu") == report.kept_float["Relu"]["its tensors are not in int8"]
    else:
        assert report.kept_float == {}
    assert report.quantized == found
    assert [line for line in report.warnings if preset not in line and "opset" not in line] == []
    assert report.feeds == 3
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)


def test_weights_have_a_scale_per_channel_and_seven_bits_where_asked() -> None:
    for preset, most in (("cpu-avx2", 64), ("cpu-vnni", 127)):
        after, _ = quantized(conv_net(), IMAGES, preset=preset)
        tensors = {item.name: numpy_helper.to_array(item) for item in after.graph.initializer}
        codes = tensors["w_quantized"]
        assert codes.dtype == np.int8
        assert np.abs(codes.astype(int)).max() == most
        assert tensors["w_scale"].shape == (16,)


def test_activations_are_signed_on_arm_only() -> None:
    for preset, dtype in (("cpu-arm", np.int8), ("cpu-vnni", np.uint8)):
        after, _ = quantized(conv_net(), IMAGES, preset=preset)
        tensors = {item.name: numpy_helper.to_array(item) for item in after.graph.initializer}
        assert tensors["x_zero_point"].dtype == dtype


def test_the_same_bytes_twice() -> None:
    data = [data_of(quantize_model(load(conv_net()), IMAGES)[0]) for _ in range(2)]
    assert data[0] == data[1]


def test_any_iterable_of_feeds_is_read_once() -> None:
    from_list = data_of(quantize_model(load(conv_net()), IMAGES)[0])
    assert data_of(quantize_model(load(conv_net()), iter(IMAGES))[0]) == from_list


def test_the_model_given_stays_as_it_is() -> None:
    model = load(conv_net())
    before = data_of(model)
    quantize_model(model, IMAGES)
    assert data_of(model) == before


def test_names_notes_and_metadata_come_back() -> None:
    proto = conv_net()
    proto.doc_string, proto.graph.doc_string = "about the model", "about the graph"
    proto.metadata_props.add(key="classes", value="five")
    proto.graph.node[2].doc_string = "second convolution"
    proto.graph.input[0].doc_string = "pixels"
    after, _ = quantized(proto, IMAGES)
    assert (after.doc_string, after.graph.doc_string) == ("about the model", "about the graph")
    assert {item.key: item.value for item in after.metadata_props} == {"classes": "five"}
    assert (after.producer_name, after.graph.name) == ("trainer", "net")
    assert list(after.opset_import) == list(proto.opset_import)
    assert after.graph.input[0].doc_string == "pixels"
    assert not after.graph.value_info
    convs = [node for node in after.graph.node if node.op_type == "Conv"]
    assert [node.name for node in convs] == ["", "second"]
    assert convs[1].doc_string == "second convolution"
    assert list(convs[0].output) == ["r"]  # the Relu is part of the range


@pytest.mark.parametrize("opset", [9, 11, 12])
def test_old_opsets_are_raised(opset: int) -> None:
    after, report = quantized(conv_net(opset, 7), IMAGES)
    assert after.opset_import[0].version == 17
    assert report.warnings == [f"opset {opset} was raised to 17, scales per channel need it"]
    assert report.quantized["Conv"] == 2


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_other_opsets_stay(opset: int) -> None:
    after, _ = quantized(conv_net(opset, 10), IMAGES)
    assert after.opset_import[0].version == opset


def test_weights_in_constant_nodes_are_stored_as_int8() -> None:
    proto = conv_net()
    moved = [item for item in proto.graph.initializer if item.name in ("w", "g")]
    for tensor in moved:
        node = helper.make_node("Constant", [], [tensor.name], value=tensor)
        proto.graph.initializer.remove(tensor)
        proto.graph.node.insert(0, node)
    after, report = quantized(proto, IMAGES)
    assert report.quantized["Conv"] == 2
    assert {"w_quantized", "g_quantized"} <= set(weights_of(after)[TensorProto.INT8])
    assert not [node for node in after.graph.node if node.op_type == "Constant"]


def test_names_that_the_engine_would_make_up() -> None:
    taken = ("b_quantized", "b1", "w_scale", "x_QuantizeLinear_Output")
    proto = build(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["b_quantized"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["b_quantized"], ["b1"]),
            helper.make_node("Conv", ["b1", "w2", "b"], ["w_scale"]),
            helper.make_node("Relu", ["w_scale"], ["x_QuantizeLinear_Output"]),
            helper.make_node("Add", ["x_QuantizeLinear_Output", "b1"], ["y"]),
        ],
        [info("x", ["N", 3, 6, 6])],
        [info("y", ["N", 4, 6, 6])],
        [weight("w", 4, 3, 3, 3), weight("b", 4, seed=1), weight("w2", 4, 4, 1, 1, seed=2)],
    )
    after, report = quantized(proto, images((3, 3, 6, 6), (2, 3, 6, 6)))
    assert report.quantized["Conv"] == 2
    assert taken[0] not in {item.name for item in after.graph.initializer}


def test_one_weight_for_two_axes_and_a_subgraph() -> None:
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"])], "then", [], [info("t", ["N", 8])]
    )
    other = helper.make_graph([helper.make_node("Relu", ["a"], ["e"])], "else", [], [
        info("e", ["N", 8])
    ])  # fmt: skip
    proto = build(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Relu", ["a"], ["r"]),
            helper.make_node("Gemm", ["r", "w"], ["g"], transB=1),
            helper.make_node("If", ["flag"], ["i"], then_branch=branch, else_branch=other),
            helper.make_node("Add", ["g", "i"], ["y"]),
        ],
        [info("x", ["N", 8]), info("flag", [], TensorProto.BOOL)],
        [info("y", ["N", 8])],
        [numpy_helper.from_array(_uneven(8, 8), "w")],
    )
    rng = np.random.default_rng(0)
    feeds = [
        {"x": rng.standard_normal((n, 8)).astype(np.float32), "flag": np.array(n == 4)}
        for n in (4, 9)
    ]
    after, report = quantized(proto, feeds)
    assert report.quantized["MatMul"] == 1
    assert report.kept_float["If"] == {"subgraphs stay in float": 1}
    assert report.kept_float["Relu"] == {"its input is wanted as it is": 1}
    assert "the subgraphs of a If stay in float" in report.warnings
    assert {"w_quantized", "w_axis0_quantized"} <= set(weights_of(after)[TensorProto.INT8])


def _uneven(*dims: int) -> np.ndarray:
    """Weights whose columns differ in size a thousandfold: one scale for all would lose some."""
    values = np.random.default_rng(1).standard_normal(dims)
    return (values * np.logspace(-2, 1, dims[-1])).astype(np.float32)


def test_the_input_of_an_activation_that_is_an_output_keeps_its_range() -> None:
    proto = build(
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Conv", ["r", "w2"], ["y"]),
        ],
        [info("x", ["N", 3, 6, 6])],
        [info("y", ["N", 2, 6, 6]), info("c", ["N", 4, 6, 6])],
        [weight("w", 4, 3, 1, 1), weight("w2", 2, 4, 1, 1, seed=2)],
    )
    _, report = quantized(proto, images((4, 3, 6, 6)))
    assert report.kept_float["Relu"] == {"its input is wanted as it is": 1}


def test_subgraphs_read_moved_tensors_before_they_are_converted() -> None:
    """onnxruntime moves conversions past Transpose and dies at the subgraph behind it."""
    branch = helper.make_graph(
        [helper.make_node("Abs", ["t"], ["p"])], "then", [], [info("p", ["W", "N", "H", 3])]
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["t"], ["q"])], "else", [], [info("q", ["W", "N", "H", 3])]
    )
    proto = build(
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[3, 0, 2, 1]),
            helper.make_node("If", ["flag"], ["i"], then_branch=branch, else_branch=other),
            helper.make_node("Transpose", ["t"], ["u"], perm=[1, 3, 2, 0]),
            helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1]),
        ],
        [info("x", ["N", 3, "H", "W"]), info("flag", [], TensorProto.BOOL)],
        [info("y", ["N", 4, "H", "W"]), info("i", ["W", "N", "H", 3]), info("u", [
            "N", 3, "H", "W"
        ])],
        [weight("w", 4, 3, 3, 3)],
    )  # fmt: skip
    feeds = [{**feed, "flag": np.array(i == 0)} for i, feed in enumerate(IMAGES)]
    after, report = quantized(proto, feeds)
    assert report.quantized == {"Conv": 1}
    first = next(node for node in after.graph.node if node.op_type == "Transpose")
    assert list(first.input) == ["x"]


def test_a_process_that_ends_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_OPEN", "import os; os.abort()")
    branch = helper.make_graph([helper.make_node("Abs", ["y0"], ["p"])], "b", [], [info("p", None)])
    proto = build(
        [
            helper.make_node("MatMul", ["x", "w"], ["y0"]),
            helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch),
        ],
        [info("x", ["N", 6]), info("flag", [], TensorProto.BOOL)],
        [info("y", ["N", 4])],
        [weight("w", 6, 4)],
    )
    feeds = [{**images((8, 6))[0], "flag": np.array(True)}]
    assert "the quantized model does not run" in refusal(InvalidModelError, proto, feeds)
    monkeypatch.undo()
    quantized(proto, feeds)


def test_float_nodes_read_float_tensors() -> None:
    proto = conv_net()
    proto.graph.node.append(helper.make_node("Abs", ["x"], ["side"]))
    proto.graph.node.append(helper.make_node("Abs", ["r"], ["side2"]))
    proto.graph.output.extend(
        [info(name, ["N", k, "H", "W"]) for name, k in (("side", 3), ("side2", 16))]
    )
    after, _ = quantized(proto, IMAGES)
    inputs = [list(node.input) for node in after.graph.node if node.op_type == "Abs"]
    # a float reader of r would make the runtime compute the convolution in float
    assert sorted(inputs) == [["r_DequantizeLinear_Output"], ["x"]]
    feed = IMAGES[0]
    one, other = run(proto.SerializeToString(), feed), run(after.SerializeToString(), feed)
    np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((2, 3, 4, 6), (3, 6, 5)),
        ((4, 6), (6,)),
        ((5, 4), (4, 6)),
        ((3, 5, 4), (4, 6)),
        ((4,), (4, 6)),
    ],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_matmul_weights_that_are_no_right_hand_matrix_have_one_scale(
    left: tuple[int, ...], right: tuple[int, ...], side: str
) -> None:
    dims, inputs = (left, right) if side == "left" else (right, left)
    order = ["w", "x"] if side == "left" else ["x", "w"]
    shape = (np.zeros(left) @ np.zeros(right)).shape
    proto = build(
        [helper.make_node("MatMul", order, ["y"])],
        [info("x", inputs)],
        [info("y", shape)],
        [numpy_helper.from_array(_uneven(*dims), "w")],
    )
    after, report = quantized(proto, images(inputs, inputs))
    assert report.quantized == {"MatMul": 1}
    scales = {item.name: item for item in after.graph.initializer}["w_scale"]
    per_channel = side == "right" and len(dims) == 2
    assert list(scales.dims) == ([dims[1]] if per_channel else [])


def test_grouped_transposed_convolution_has_one_scale() -> None:
    proto = build(
        [helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], group=2, strides=[2, 2])],
        [info("x", ["N", 4, 5, 5])],
        [info("y", ["N", 6, "H", "W"])],
        [weight("w", 4, 3, 3, 3), weight("b", 6)],
    )
    after, report = quantized(proto, images((3, 4, 5, 5)))
    assert report.quantized == {"ConvTranspose": 1}
    assert list({item.name: item for item in after.graph.initializer}["w_scale"].dims) == []


def test_tied_embedding_is_stored_once() -> None:
    proto = build(
        [
            helper.make_node("Gather", ["table", "ids"], ["e"]),
            helper.make_node("Tanh", ["e"], ["h"]),
            helper.make_node("Transpose", ["table"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["h", "t"], ["y"]),
        ],
        [info("ids", ["B", "T"], TensorProto.INT64)],
        [info("y", ["B", "T", 64])],
        [weight("table", 64, 32)],
    )
    feeds = [{"ids": np.arange(64).reshape(4, 16)}, {"ids": np.array([[3, 63]])}]
    for preset in ("cpu-avx2", "cpu-vnni"):
        after, report = quantized(proto, feeds, preset=preset)
        assert report.quantized["Gather"] == 1
        assert not [t for t in after.graph.initializer if t.data_type == 1 and len(t.dims) == 2]


def test_other_domains_are_left_alone() -> None:
    proto = build(
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("Gelu", ["c"], ["g"], domain="com.microsoft"),
            helper.make_node("Conv", ["g", "w2"], ["y"]),
        ],
        [info("x", ["N", 3, 6, 6])],
        [info("y", ["N", 2, 6, 6])],
        [weight("w", 4, 3, 1, 1), weight("w2", 2, 4, 1, 1, seed=2)],
        extra=[helper.make_opsetid("com.microsoft", 1)],
    )
    after, report = quantized(proto, images((4, 3, 6, 6)))
    assert report.quantized == {"Conv": 2}  # the type behind Gelu is known to onnxruntime only
    assert report.kept_float == {"Gelu": {"operator of another domain": 1}}
    assert {item.domain for item in after.opset_import} == {"", "com.microsoft"}


def test_an_operator_that_is_only_called_like_a_standard_one() -> None:
    body = helper.make_function(
        "own", "Conv", ["a", "b"], ["c"], [helper.make_node("Mul", ["a", "b"], ["c"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    proto = build(
        [
            helper.make_node("Conv", ["x", "s"], ["c"], domain="own"),
            helper.make_node("MatMul", ["c", "w"], ["y"]),
        ],
        [info("x", ["N", 6])],
        [info("y", ["N", 4])],
        [weight("s", 1), weight("w", 6, 4)],
        extra=[helper.make_opsetid("own", 1)],
    )
    proto.functions.append(body)
    after, report = quantized(proto, images((8, 6)))
    assert report.quantized == {"MatMul": 1}
    assert report.kept_float == {"Conv": {"operator of another domain": 1}}
    assert len(after.functions) == 1


def test_integers_pass_through() -> None:
    proto = build(
        [
            helper.make_node("Gather", ["table", "ids"], ["e"]),
            helper.make_node("Add", ["ids", "one"], ["next"]),
            helper.make_node("MatMul", ["e", "w"], ["m"]),
            helper.make_node("Add", ["m", "x"], ["y"]),
        ],
        [info("ids", ["B"], TensorProto.INT64), info("x", ["B", 4])],
        [info("y", ["B", 4]), info("next", ["B"], TensorProto.INT64)],
        [weight("table", 9, 6), numpy_helper.from_array(np.array(1), "one"), weight("w", 6, 4)],
    )
    rng = np.random.default_rng(0)
    feed = {"ids": np.arange(9), "x": rng.standard_normal((9, 4)).astype(np.float32)}
    _, report = quantized(proto, [feed])
    assert report.quantized == {"Add": 1, "Gather": 1, "MatMul": 1}
    assert report.kept_float == {"Add": {"no float numbers": 1}}


def test_what_has_no_product_beside_it_stays_in_float() -> None:
    proto = conv_net()
    proto.graph.node.append(helper.make_node("Sigmoid", ["x"], ["side"]))
    proto.graph.node.append(helper.make_node("LpNormalization", ["side"], ["z"]))
    proto.graph.node.append(helper.make_node("Mul", ["z", "z"], ["zz"]))
    proto.graph.output.append(info("zz", ["N", 3, "H", "W"]))
    _, report = quantized(proto, IMAGES)
    assert report.kept_float == {
        "Sigmoid": {"no int8 weights or products beside it": 1},
        "LpNormalization": {"no int8 kernel": 1},
        "Mul": {"it stands among float operators": 1},
    }


def test_a_product_of_activations_depends_on_the_preset() -> None:
    proto = build(
        [
            helper.make_node("MatMul", ["x", "w"], ["q"]),
            helper.make_node("Transpose", ["q"], ["k"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["q", "k"], ["y"]),
        ],
        [info("x", ["N", "T", 6])],
        [info("y", ["N", "T", "T"])],
        [weight("w", 6, 8)],
    )
    feeds = images((2, 5, 6), (1, 3, 6))
    assert quantized(proto, feeds, preset="cpu-vnni")[1].quantized["MatMul"] == 2
    report = quantized(proto, feeds, preset="cpu-avx2")[1]
    assert report.quantized["MatMul"] == 1
    assert report.kept_float["MatMul"] == {"a product of two activations": 1}


@pytest.mark.parametrize("name", ["second", "d"])
def test_excluded_nodes_stay_in_float(name: str) -> None:
    after, report = quantized(conv_net(), IMAGES, exclude=[name])
    assert report.kept_float == {"Conv": {"excluded": 1}}
    assert "w2" in {item.name for item in after.graph.initializer}


def test_a_constant_that_a_caller_can_override_is_no_weight() -> None:
    proto = conv_net()
    proto.graph.input.append(info("w2", [16, 16, 3, 3]))
    after, report = quantized(proto, IMAGES)
    assert report.kept_float["Conv"] == {"a caller can override its constants": 1}
    assert [item.name for item in after.graph.input] == ["x", "w2"]
    assert "w2" in {item.name for item in after.graph.initializer}


def test_weights_of_old_ir_versions_are_constants() -> None:
    proto = conv_net(9, 3)
    proto.graph.input.extend(info(item.name, item.dims) for item in proto.graph.initializer)
    after, report = quantized(proto, IMAGES)
    assert report.quantized["Conv"] == 2
    assert [item.name for item in after.graph.input] == ["x"]
    assert "weights are no longer inputs: IR version 3 listed them as such" in report.warnings


def test_half_precision_is_computed_in_float32_between_inputs_and_outputs() -> None:
    half = TensorProto.FLOAT16
    w2 = numpy_helper.from_array(np.ones((6, 4), np.float16), "w2")
    proto = build(
        [
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("Cast", ["m"], ["h"], to=half),
            helper.make_node("MatMul", ["h", "w2"], ["y"]),
        ],
        [info("x", ["N", 6])],
        [info("y", ["N", 4], half)],
        [weight("w", 6, 6), w2],
    )
    after, report = quantized(proto, images((8, 6)))
    assert report.quantized["MatMul"] == 2
    assert not [item for item in after.graph.initializer if item.data_type == half]
    assert list(after.graph.output) == list(proto.graph.output)
    assert any("float16" in line for line in report.warnings)


def test_empty_tensors_on_the_way() -> None:
    proto = build(
        [
            helper.make_node("Concat", ["past", "x"], ["c"], axis=1),
            helper.make_node("MatMul", ["c", "w"], ["y"]),
        ],
        [info("past", ["N", "P", 6]), info("x", ["N", "T", 6])],
        [info("y", ["N", "S", 4])],
        [weight("w", 6, 4)],
    )
    rng = np.random.default_rng(0)
    past = np.zeros((2, 0, 6), np.float32)
    feeds = [{"past": past, "x": rng.standard_normal((2, 5, 6)).astype(np.float32)}]
    _, report = quantized(proto, feeds)
    assert "tensor 'past' was empty in all feeds; its scale is a guess" in report.warnings


# -------- what is declined


def refusal(error: type[Exception], proto: onnx.ModelProto, feeds: Feeds, **options) -> str:
    with pytest.raises(error) as caught:
        quantize_model(load(proto), feeds, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_already_quantized_is_declined() -> None:
    model, _ = quantize_model(load(conv_net()), IMAGES)
    with pytest.raises(InvalidModelError, match="already quantized"):
        quantize_model(model, IMAGES)


def test_unknown_preset_and_node() -> None:
    message = refusal(UsageError, conv_net(), IMAGES, preset="cpu-avx")
    assert "did you mean cpu-avx2" in message
    assert "known: auto" in refusal(UsageError, conv_net(), IMAGES, preset="###")
    assert "did you mean second" in refusal(UsageError, conv_net(), IMAGES, exclude=["secund"])


def test_feeds_that_do_not_fit() -> None:
    proto, x = conv_net(), IMAGES[0]["x"]
    assert "no calibration samples" in refusal(DataError, proto, [])
    assert "no calibration samples" in refusal(DataError, proto, iter(()))
    assert "uint8 but the model wants float32" in refusal(
        DataError, proto, [{"x": x.astype(np.uint8)}]
    )
    assert "'z' is no input; inputs: x" in refusal(DataError, proto, [{"z": x}])
    assert "no value for input x" in refusal(DataError, proto, [{}])
    flat = {"x": x.reshape(4, 3, 64)}
    message = refusal(DataError, proto, [IMAGES[0], flat])
    assert "sample 1: input x has shape [4, 3, 64] but the model wants [N, 3, H, W]" in message
    gray = {"x": x[:, :1]}
    assert "sample 0: input x has shape [4, 1, 8, 8]" in refusal(DataError, proto, [gray])
    assert "is dict, not an array" in refusal(DataError, proto, [{"x": {}}])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_name_the_tensor(bad: float) -> None:
    x = IMAGES[0]["x"].copy()
    x[1, 2, 3, 4] = bad
    message = refusal(DataError, conv_net(), [IMAGES[1], {"x": x}])
    assert "sample 1: tensor 'x' holds 1 NaN or infinite" in message


def test_bad_weights_are_named() -> None:
    proto = conv_net()
    values = numpy_helper.to_array(proto.graph.initializer[2]).copy()
    values[0, 0, 0, 0] = np.nan
    proto.graph.initializer[2].CopyFrom(numpy_helper.from_array(values, "w2"))
    assert "weight 'w2' holds NaN" in refusal(InvalidModelError, proto, IMAGES)


def test_nothing_to_quantize() -> None:
    proto = build([helper.make_node("Relu", ["x"], ["y"])], [info("x", [2])], [info("y", [2])], [])
    assert "no Conv, Gemm or MatMul" in refusal(InvalidModelError, proto, images((2,)))


def test_an_opset_that_cannot_be_raised() -> None:
    proto = conv_net(11)
    proto.graph.node.append(helper.make_node("NoSuchOperator", ["x"], ["u"]))
    message = refusal(InvalidModelError, proto, IMAGES)
    assert "cannot be converted from opset 11 to 17" in message


def test_a_conversion_that_changes_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: ir.Model, target: int) -> ir.Model:
        other = conv_net(target)
        other.graph.initializer[0].CopyFrom(weight("w", 16, 3, 3, 3, seed=99))
        return load(other)

    monkeypatch.setattr("onnxslim.quantization.prepare.convert_opset", wrong)
    message = refusal(InvalidModelError, conv_net(11), IMAGES)
    assert "raising the opset, which int8 needs, changes output 'y'" in message


# -------- files, and what the engine says


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("external", [False, True])
def test_files_stay_as_they_are(tmp_path: Path, scratch: Path, external: bool) -> None:
    path = tmp_path / "models" / "net.onnx"
    path.parent.mkdir()
    save(load(conv_net()), path, external_data=external)
    before = {item.name: item.read_bytes() for item in path.parent.iterdir()}
    model, _ = quantize_model(load(path), IMAGES)
    assert {item.name: item.read_bytes() for item in path.parent.iterdir()} == before
    assert os.listdir(scratch) == []
    save(model, tmp_path / "int8.onnx")  # the weights outlive the temporary folder
    expected = run(data_of(quantize_model(load(conv_net()), IMAGES)[0]), IMAGES[0])
    got = run((tmp_path / "int8.onnx").read_bytes(), IMAGES[0])
    np.testing.assert_array_equal(expected[0], got[0])


def test_large_models_go_by_way_of_external_data(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inline = data_of(quantize_model(load(conv_net()), IMAGES)[0])
    monkeypatch.setattr(checks, "INLINE_BYTES", 1000)
    model, _ = quantize_model(load(conv_net()), IMAGES)
    np.testing.assert_array_equal(run(data_of(model), IMAGES[0])[0], run(inline, IMAGES[0])[0])
    assert os.listdir(scratch) == []


def test_the_engine_is_quiet_and_logging_stays_as_it_was(
    capfd: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger()
    before = (list(root.handlers), list(root.filters), root.level)
    quantize_model(load(conv_net()), IMAGES)
    assert (list(root.handlers), list(root.filters), root.level) == before
    out, err = capfd.readouterr()
    assert out + err == ""


def test_report_is_plain_data() -> None:
    import json

    report = quantize_model(load(conv_net()), IMAGES, exclude=["second"], preset="cpu-vnni")[1]
    data = json.loads(json.dumps(report.to_dict()))
    assert data["quantized"]["Conv"] == 1
    assert data["kept_float"] == {"Conv": {"excluded": 1}}
    assert report.summary() == (
        f"5 nodes in int8, 1 in float, {data['ranges']} ranges from 3 feeds, preset cpu-vnni"
    )


def test_progress_counts_feeds() -> None:
    seen: list[tuple[int, int]] = []
    quantize_model(load(conv_net()), IMAGES, progress=lambda *pair: seen.append(pair))
    assert seen == [(1, 3), (2, 3), (3, 3)]


# -------- presets


@pytest.mark.parametrize(
    ("machine", "flags", "name"),
    [
        ("x86_64", {"avx2", "fma"}, "cpu-avx2"),
        ("x86_64", {"avx2", "avx512_vnni"}, "cpu-vnni"),
        ("AMD64", {"avx2", "avx_vnni"}, "cpu-vnni"),
        ("AMD64", set(), "portable"),
        ("aarch64", {"asimddp"}, "cpu-arm"),
        ("arm64", set(), "cpu-arm"),
        ("riscv64", set(), "portable"),
    ],
)
def test_preset_of_a_processor(machine: str, flags: set[str], name: str) -> None:
    assert preset_of(machine, frozenset(flags)) == name


def test_processor_flags(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    assert processor_flags(path) == frozenset()
    path.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx_vnni\nprocessor\t: 1\nflags\t: fpu\n")
    assert processor_flags(path) == {"fpu", "avx2", "avx_vnni"}
    path.write_text("Features\t: fp asimd asimddp\n")
    assert processor_flags(path) == {"fp", "asimd", "asimddp"}
    path.write_text("nothing here\n")
    assert processor_flags(path) == frozenset()
