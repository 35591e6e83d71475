"""Pruning of QDQ models: weights, scales, zero points and biases are cut, integers stay equal."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from graph_check import as_written, parse
from prune_models import Net, Pruned, count_parameters

from onnxslim.passes.simplify.eliminate_identity import EliminateIdentity
from onnxslim.pipeline import Context

HALF = range(16, 32)
IMAGE = ("n", 16, 6, 6)
MODELS = Path(__file__).parents[2] / "models"


class Reader:
    """Calibration data for onnxruntime's quantizer."""

    def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def quantize(model: ir.Model, feeds: list[dict[str, np.ndarray]], **options) -> ir.Model:
    """The model as onnxruntime's static quantization writes it."""
    from onnxruntime.quantization import QuantFormat, quantize_static

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        ir.save(model, source)
        options = {"quant_format": QuantFormat.QDQ, **options}
        quantize_static(source, target, Reader(feeds), **options)
        return ir.from_proto(onnx.load(target))


def run(model: ir.Model, feeds: dict[str, np.ndarray], *, optimize: bool) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimize:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    content = ir.to_proto(as_written(model)).SerializeToString()
    return onnxruntime.InferenceSession(content, options).run(None, feeds)


def assert_equal_bits(pruned: Pruned, feeds: list[dict[str, np.ndarray]]) -> None:
    """Equal outputs with onnxruntime's own fusions (integer arithmetic) and without."""
    for optimize in (True, False):
        for feed in feeds:
            before = run(pruned.before, feed, optimize=optimize)
            after = run(pruned.after, feed, optimize=optimize)
            for one, other in zip(before, after, strict=True):
                np.testing.assert_array_equal(one, other)


def random_feeds(count: int = 4, dims: tuple[int, ...] = (2, 16, 6, 6)) -> list:
    rng = np.random.default_rng(3)
    return [{"x": rng.standard_normal(dims).astype(np.float32)} for _ in range(count)]


def small_cnn() -> ir.Model:
    """Zero filters with and without bias, a residual, a depthwise Conv and a classifier."""
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)])
    net.weights["c1.b"][24:] = -0.3  # zero behind the Relu
    y = net.conv(x, 32, "dw", group=32, zero=HALF)
    y = net.conv(net.op("Relu", [y]), 24, "c2", zero=range(5))
    z = net.conv(x, 24, "c3", kernel=1, zero=range(4), bias=False)
    y = net.op("Relu", [net.op("Add", [y, z])])
    y = net.conv(y, 16, "c4", kernel=1, unread=range(20, 24))
    y = net.op("Flatten", [net.op("GlobalAveragePool", [y])])
    y = net.gemm(y, 32, "g1", zero=HALF)
    return net.model(net.gemm(net.op("Relu", [y]), 10, "g2"))


def settings():
    from onnxruntime.quantization import QuantType

    for per_channel in (False, True):
        for activation in (QuantType.QUInt8, QuantType.QInt8):
            for symmetric in (True, False):
                yield {
                    "per_channel": per_channel,
                    "activation_type": activation,
                    "weight_type": QuantType.QInt8,
                    "extra_options": {"WeightSymmetric": symmetric},
                }


@pytest.mark.parametrize("options", list(settings()))
def test_a_quantized_cnn_is_cut_like_the_float_one(options):
    feeds = random_feeds()
    model = small_cnn()
    whole = Pruned(model)
    assert whole.dims("c1.w") == (16, 16, 3, 3)
    pruned = Pruned(quantize(model, feeds, **options))
    assert pruned.dims("c1.w_quantized") == (16, 16, 3, 3)
    assert pruned.dims("dw.w_quantized") == (16, 1, 3, 3)
    assert pruned.dims("c2.w_quantized") == (16, 16, 3, 3)
    assert pruned.dims("c3.w_quantized") == (16, 16, 1, 1)
    assert pruned.dims("c4.w_quantized") == (16, 16, 1, 1)
    assert pruned.dims("g1.w_quantized") == (16, 16)
    assert pruned.dims("g2.w_quantized") == (10, 16)
    assert pruned.dims("c1.b_quantized") == (16,)
    if options["per_channel"]:
        assert pruned.dims("c1.w_scale") == (16,)
        assert pruned.dims("c2.w_zero_point") == (16,)
    assert_equal_bits(pruned, feeds)
    assert Pruned(pruned.after).changes == 0


@pytest.mark.parametrize("per_channel", [False, True])
def test_pruned_then_quantized_digits(per_channel):
    model = ir.load(MODELS / "digits_resnet_pruned.onnx")
    name = model.graph.inputs[0].name
    images = np.load(MODELS / "digits_calibration.npz")[name]
    feeds = [{name: images[start : start + 8]} for start in range(0, 64, 8)]
    quantized = quantize(model, feeds, per_channel=per_channel)
    for one in (model, quantized):
        EliminateIdentity()(one, Context(one))
    pruned = Pruned(quantized)
    # Zero through two residual joins, the pool and the Flatten, up to the quantized classifier
    assert pruned.dims("stage2.0.conv2.weight_quantized") == (32, 29, 3, 3)
    assert pruned.dims("classifier.weight_quantized") == (10, 32)
    float_ratio = Pruned(model).parameters() / count_parameters(model)
    assert pruned.parameters() / count_parameters(pruned.before) < float_ratio * 1.1
    test = np.load(MODELS / "digits_test.npz")[name][:200]
    assert_equal_bits(pruned, [{name: test}])


# A weight of int8 with per-channel scales and zero points; rows 1 and 3 equal their zero points.
PER_CHANNEL = """
agraph (float[n,3] x) => (float[n,2] y) <
  int8[4,3] w = {1,2,3, 5,5,5, -4,0,7, 0,0,0},
  float[4] ws = {0.5,0.25,0.125,1}, int8[4] wz = {0,5,1,0},
  int32[4] b = {8,0,-8,-16}, float[4] bs = {0.125,0.0625,0.0625,0.25}, int32[4] bz = {0,0,0,0},
  float s = {0.25}, uint8 z = {10},
  uint8[2,4] v = {130,7,120,128, 128,9,128,99}, float vs = {0.5}, uint8 vz = {128}
>
{
  xq = QuantizeLinear (x, s, z)
  xd = DequantizeLinear (xq, s, z)
  wd = DequantizeLinear <axis = 0> (w, ws, wz)
  bd = DequantizeLinear <axis = 0> (b, bs, bz)
  h = Gemm <transB = 1> (xd, wd, bd)
  r = Relu (h)
  rq = QuantizeLinear (r, s, z)
  rd = DequantizeLinear (rq, s, z)
  vd = DequantizeLinear (v, vs, vz)
  y = Gemm <transB = 1> (rd, vd)
}
"""


def constant(pruned: Pruned, name: str) -> list:
    return pruned.after.graph.initializers[name].const_value.numpy().tolist()


def small_feeds(*dims: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": (rng.standard_normal(dims) * 3).astype(np.float32)} for _ in range(3)]


def test_rows_at_their_zero_points_go_with_scale_zero_point_and_bias():
    pruned = Pruned(parse(PER_CHANNEL))
    # Row 1 is zero with a zero bias, row 3 has a negative bias, which the Relu makes zero.
    assert constant(pruned, "w") == [[1, 2, 3], [-4, 0, 7]]
    assert constant(pruned, "ws") == [0.5, 0.125]
    assert constant(pruned, "wz") == [0, 1]
    assert constant(pruned, "b") == [8, -8]
    assert constant(pruned, "bs") == [0.125, 0.0625]
    assert constant(pruned, "bz") == [0, 0]
    assert constant(pruned, "v") == [[130, 120], [128, 128]]
    assert_equal_bits(pruned, small_feeds(5, 3))


def test_a_constant_that_an_integer_bias_would_have_to_take_up_stays():
    pruned = Pruned(parse(PER_CHANNEL.replace("8,0,-8,-16", "8,0,-8,16")))
    assert len(constant(pruned, "w")) == 3
    assert "enters a quantized Gemm, whose integer sums it would change" in pruned.reasons()
    assert_equal_bits(pruned, small_feeds(5, 3))


def test_a_constant_that_rounds_to_the_zero_point_is_zero():
    # Row 3: 0.11 / 0.25 rounds to 0, 0.125 / 0.25 is as near to 0 as to 1 and counts as unknown.
    near = PER_CHANNEL.replace("8,0,-8,-16", "8,0,-8,1")
    for scale, rows in (("0.11", 2), ("0.125", 3), ("0.12", 2)):
        model = near.replace(
            "bs = {0.125,0.0625,0.0625,0.25}", f"bs = {{0.125,0.0625,0.0625,{scale}}}"
        )
        pruned = Pruned(parse(model))
        assert len(constant(pruned, "w")) == rows
        assert_equal_bits(pruned, small_feeds(5, 3))


# Only the weights are integers: sums are of floats, and a float bias takes constants up.
WEIGHT_ONLY = """
agraph (float[n,3] x) => (float[n,2] y) <
  int8[3,4] w = {1,0,3,0, -4,0,7,0, 2,0,1,0}, float ws = {0.5}, float[4] b = {1,0.5,0,0},
  int8[4,2] v = {1,2,3,4,5,6,7,8}, float[2] vs = {0.5,0.25}, float[2] c = {0,1}
>
{
  wd = DequantizeLinear (w, ws)
  p = MatMul (x, wd)
  h = Add (p, b)
  vd = DequantizeLinear <axis = 1> (v, vs)
  q = MatMul (h, vd)
  y = Add (q, c)
}
"""


def test_a_float_operator_with_a_quantized_weight_folds_constants():
    pruned = Pruned(parse(WEIGHT_ONLY))
    assert constant(pruned, "w") == [[1, 3], [-4, 7], [2, 1]]
    assert constant(pruned, "v") == [[1, 2], [5, 6]]
    assert constant(pruned, "vs") == [0.5, 0.25]
    assert constant(pruned, "c_folded") == [0.75, 1.5]  # 0.5 * 3 * 0.5 and 1 + 0.5 * 4 * 0.25
    pruned.assert_equal()


@pytest.mark.parametrize("axis", [1, 2])
def test_scales_of_activations_along_the_channels_or_another_axis(axis):
    net = Net(opset=19)
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)
    size = (0, 32, 6)[axis]
    names = [
        net.weight("s", (2.0 ** -np.arange(3, 3 + size).clip(3, 8)).astype(np.float32)),
        net.weight("z", np.full(size, 7, np.uint8)),
    ]
    x = net.op("QuantizeLinear", [net.op("Relu", [x]), *names], axis=axis)
    x = net.op("DequantizeLinear", [x, *names], axis=axis)
    pruned = Pruned(net.model(net.conv(x, 8, "c2")))
    assert pruned.dims("c1.w")[0] == 16
    assert pruned.dims("s") == pruned.dims("z") == ((16,) if axis == 1 else (6,))
    pruned.assert_equal()


def test_zero_points_that_differ_along_another_axis_make_a_constant_none():
    net = Net(opset=19)
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)
    scale = net.weight("s", np.full(6, 0.25, np.float32))
    zero = net.weight("z", np.array([1, 1, 2, 1, 1, 1], np.uint8))
    x = net.op("Relu", [net.op("QuantizeLinear", [x, scale, zero], axis=2)])
    x = net.op("Cast", [x], to=onnx.TensorProto.FLOAT)
    model = net.model(net.conv(x, 8, "c2"))
    assert Pruned(model).dims("c1.w")[0] == 32


def quantized_weight(net: Net, content: np.ndarray, axis: int | None) -> str:
    """A weight in steps of powers of two, per tensor or along an axis."""
    shape = [1] * content.ndim
    scale = np.float32(2.0**-6)
    if axis is not None:
        scale = (2.0 ** -np.random.default_rng(1).integers(5, 8, content.shape[axis])).astype("f4")
        shape[axis] = -1
    steps = np.clip(np.round(content / scale.reshape(shape)), -127, 127).astype(np.int8)
    names = [net.weight("wq", steps), net.weight("ws", scale)]
    attrs = {} if axis is None else {"axis": axis}
    return net.op("DequantizeLinear", names, **attrs)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_conv_transpose(axis):
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)])
    weight = net.random(32, 24, 3, 3, scale=0.2)
    weight[:, 20:] = 0
    y = net.op("ConvTranspose", [x, quantized_weight(net, weight, axis)], 24)
    pruned = Pruned(net.model(net.conv(y, 8, "c2")))
    assert pruned.dims("wq") == (16, 20, 3, 3)
    assert pruned.dims("ws") == ((), (16,), (20,))[0 if axis is None else axis + 1]
    pruned.assert_equal()


@pytest.mark.parametrize("axis", [None, 0])
def test_grouped_conv(axis):
    net = Net()
    x = net.conv(net.input("x", IMAGE), 32, "c1")
    weight = net.random(32, 8, 3, 3, scale=0.2)
    weight.reshape(4, 8, 8, 3, 3)[:, 5:] = 0
    weight[:, 6:] = 0
    names = [x, quantized_weight(net, weight, axis)]
    y = net.op("Conv", names, 32, group=4, pads=[1] * 4)
    pruned = Pruned(net.model(net.conv(y, 8, "c2")))
    assert pruned.dims("wq") == (20, 6, 3, 3)
    assert pruned.dims("ws") == (() if axis is None else (20,))
    pruned.assert_equal()


def test_scales_of_a_grouped_weight_along_its_inputs_are_a_barrier():
    net = Net()
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)
    names = [x, quantized_weight(net, net.random(32, 8, 3, 3), 1)]
    y = net.op("Conv", names, 32, group=4, pads=[1] * 4)
    pruned = Pruned(net.model(net.conv(y, 8, "c2")))
    assert pruned.dims("c1.w")[0] == 32
    assert "do not count its outputs" in pruned.reasons()


def test_int4_weights():
    net = Net(opset=21)
    x = net.op("Relu", [net.linear(net.input("x", ["n", 16]), 32, "l1", zero=HALF)])
    steps = np.random.default_rng(0).integers(-8, 8, (32, 6)).astype(ir.DataType.INT4.numpy())
    model = net.model(net.op("Add", [net.op("MatMul", [x, dequantized(net, steps)]), "b"]))
    pruned = Pruned(model)
    assert pruned.dims("wq") == (16, 6)
    assert pruned.after.graph.initializers["wq"].dtype == ir.DataType.INT4
    pruned.assert_equal()


def dequantized(net: Net, steps: np.ndarray) -> str:
    net.weight("b", net.random(6))
    names = [net.weight("wq", steps), net.weight("ws", np.float32(0.125))]
    return net.op("DequantizeLinear", names, steps.shape[1])


def test_blocks_are_not_cut():
    net = Net(opset=21)
    x = net.op("Relu", [net.linear(net.input("x", ["n", 16]), 32, "l1", zero=HALF)])
    steps = np.random.default_rng(0).integers(-100, 100, (32, 6)).astype(np.int8)
    names = [net.weight("wq", steps), net.weight("ws", np.full((4, 6), 0.01, np.float32))]
    weight = net.op("DequantizeLinear", names, axis=0, block_size=8)
    pruned = Pruned(net.model(net.op("MatMul", [x, weight], 6)))
    assert pruned.dims("l1.w") == (16, 32)
    assert "quantized in blocks" in pruned.reasons()
    pruned.assert_equal()


def test_a_quantized_weight_with_two_readers_is_not_cut():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)])
    weight = quantized_weight(net, net.random(8, 32, 3, 3), 0)
    y = net.op(
        "Add", [net.op("Conv", [x, weight], 8), net.op("Conv", [net.op("Neg", [x]), weight])]
    )
    pruned = Pruned(net.model(y))
    assert pruned.dims("c1.w")[0] == 32
    assert "has other readers" in pruned.reasons()


def test_integer_operators_are_a_barrier_with_a_reason():
    from onnxruntime.quantization import QuantFormat

    model = quantize(small_cnn(), random_feeds(), quant_format=QuantFormat.QOperator)
    pruned = Pruned(model)
    assert pruned.changes == 0
    reason = "c1.w_quantized: 16 zero filters stay: QLinearConv is not pruned, its QDQ form is"
    assert reason in pruned.reasons()


def test_scales_that_are_computed_are_a_barrier():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)])
    scale = net.op("ReduceMax", [net.op("Abs", ["x"])], keepdims=0)
    x = net.op("QuantizeLinear", [x, scale])
    x = net.op("DequantizeLinear", [x, scale])
    pruned = Pruned(net.model(net.conv(x, 8, "c2")))
    assert pruned.dims("c1.w")[0] == 32
    assert "scale or zero point is not constant" in pruned.reasons()


CAPTURED = """
agraph (float[n,3] x, bool flag) => (float[n,2] y) <
  int8[4,3] w = {1,2,3, 0,0,0, -4,0,7, 0,0,0}, float s = {0.5}, int32[4] b = {1,0,2,0},
  int8[2,4] v = {1,2,3,4,5,6,7,8}, int32[2] c = {1,2}
>
{
  wd = DequantizeLinear (w, s)
  bd = DequantizeLinear (b, s)
  vd = DequantizeLinear (v, s)
  cd = DequantizeLinear (c, s)
  y = If (flag) <
    then_branch = g1 () => (float[n,2] y1) {
      h = Gemm <transB = 1> (x, wd, bd)
      y1 = Gemm <transB = 1> (h, vd, cd)
    },
    else_branch = g2 () => (float[n,2] y2) {
      h2 = Gemm <transB = 1> (x, wd, bd)
      y2 = Gemm <transB = 1> (h2, vd, cd)
    }
  >
}
"""


def test_weights_that_an_outer_graph_dequantizes_are_left_alone():
    pruned = Pruned(parse(CAPTURED))
    assert pruned.changes == 0
    assert constant(pruned, "w")[1] == [0, 0, 0]
    pruned.assert_equal()
