"""Exact removal of channels: what goes, what stays and why, and equal outputs in the runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graph_check import parse
from onnx import helper
from prune_models import Net, Pruned, count_parameters

from onnxslim.passes.prune.eliminate_zeroed_channels import EliminateZeroedChannels
from onnxslim.passes.simplify.eliminate_dead_nodes import EliminateDeadNodes
from onnxslim.pipeline import Context

HALF = range(16, 32)
IMAGE = ("n", 16, 6, 6)


def test_zero_filters_before_batch_norm_with_negative_shift():
    net = Net()
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=[3, 7], bias=False)
    x = net.op("Relu", [net.batch_norm(x, "bn", shift={3: -0.2, 7: -1.0})])
    pruned = Pruned(net.model(net.conv(x, 8, "c2")))
    assert pruned.dims("c1.w") == (30, 16, 3, 3)
    assert pruned.dims("bn.g") == pruned.dims("bn.v") == (30,)
    assert pruned.dims("c2.w") == (8, 30, 3, 3)
    assert pruned.context.journal[0].site == "c1.w"
    assert "32 -> 30 channels" in pruned.context.journal[0].detail
    pruned.assert_equal()


@pytest.mark.parametrize(("pad", "kept"), [(1, 31), (0, 30)])
def test_nonzero_constant_is_folded_only_without_padding(pad, kept):
    net = Net()
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=[3, 7], bias=False)
    x = net.op("Relu", [net.batch_norm(x, "bn", shift={3: 0.2, 7: 1.0})])
    pruned = Pruned(net.model(net.conv(x, 8, "c2", pad=pad)))
    assert pruned.dims("c1.w")[0] == kept
    assert ("padded Conv" in pruned.reasons()) is (pad == 1)
    pruned.assert_equal()


def test_zero_gamma_is_a_constant_whatever_enters():
    net = Net()
    x = net.conv(net.input("x", IMAGE), 32, "c1")
    shift = {0: -0.1, 1: 0.0, 2: 0.2, 3: 0.3, 4: -1.0}
    x = net.op("Relu", [net.batch_norm(x, "bn", shift=shift, dead=range(5))])
    pruned = Pruned(net.model(net.conv(x, 8, "c2", kernel=1)))
    assert pruned.dims("c1.w")[0] == 27
    pruned.assert_equal()


@pytest.mark.parametrize(
    ("op_type", "attrs", "pad", "kept"),
    [
        ("Relu", {}, 1, 16),
        ("LeakyRelu", {"alpha": 0.1}, 1, 16),
        ("HardSwish", {}, 1, 16),
        ("Tanh", {}, 1, 16),
        ("Elu", {}, 1, 16),
        ("Sigmoid", {}, 1, 17),
        ("Sigmoid", {}, 0, 16),
        ("HardSigmoid", {}, 0, 16),
        ("Softplus", {}, 0, 16),
        ("Softplus", {}, 1, 17),
        ("Exp", {}, 0, 16),
    ],
)
def test_what_an_activation_makes_of_zero(op_type, attrs, pad, kept):
    net = Net()
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)
    pruned = Pruned(net.model(net.conv(net.op(op_type, [x], **attrs), 8, "c2", pad=pad)))
    assert pruned.dims("c1.w")[0] == kept
    pruned.assert_equal()


@pytest.mark.parametrize(("low", "kept"), [(0.0, 16), (0.1, 17)])
def test_clip(low, kept):
    net = Net()
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)
    bounds = [net.weight("low", np.float32(low)), net.weight("high", np.float32(6))]
    pruned = Pruned(net.model(net.conv(net.op("Clip", [x, *bounds]), 8, "c2")))
    assert pruned.dims("c1.w")[0] == kept
    pruned.assert_equal()


def test_gelu_of_opset_20():
    net = Net(opset=20)
    x = net.linear(net.input("x", ["n", 5, 64], axis=2), 256, "up", zero=range(128))
    pruned = Pruned(net.model(net.linear(net.op("Gelu", [x]), 64, "down")))
    assert pruned.dims("down.w") == (128, 64)
    pruned.assert_equal()


def test_unread_channels_of_dense_filters():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1")])
    pruned = Pruned(net.model(net.conv(x, 8, "c2", unread=HALF)))
    assert pruned.dims("c1.w") == (16, 16, 3, 3)
    assert "unread" in pruned.context.journal[0].detail
    pruned.assert_equal()


def test_unread_channels_reach_back_through_a_chain():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1")])
    x = net.op("Relu", [net.conv(x, 32, "c2")])
    model = net.model(net.conv(x, 8, "c3", unread=HALF))
    weight = model.graph.initializers["c2.w"].const_value.numpy().copy()
    weight[:16, 24:] = 0  # what is left of c2 ignores a quarter of c1
    model.graph.initializers["c2.w"].const_value = ir.tensor(weight)
    pruned = Pruned(model)
    assert pruned.dims("c1.w")[0] == 24
    assert pruned.dims("c2.w") == (16, 24, 3, 3)
    pruned.assert_equal()


def test_uneven_layers():
    net = Net()
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=range(3), bias=False)
    x = net.conv(net.op("Relu", [x]), 32, "c2", zero=range(20), bias=False)
    model = net.model(net.conv(net.op("Relu", [x]), 8, "c3", bias=False))
    pruned = Pruned(model)
    assert count_parameters(model) == 16128
    assert pruned.parameters() == 29 * 144 + 12 * 29 * 9 + 8 * 12 * 9
    pruned.assert_equal()


def residual(net: Net, *, stem: range, branch: range) -> str:
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "stem", zero=stem)])
    y = net.op("Relu", [net.conv(x, 32, "a")])
    y = net.conv(y, 32, "b", zero=branch)
    return net.conv(net.op("Relu", [net.op("Add", [y, x])]), 8, "head")


def test_residual_with_the_same_zeros_in_both_branches():
    net = Net()
    pruned = Pruned(net.model(residual(net, stem=HALF, branch=HALF)))
    assert pruned.dims("stem.w")[0] == 16
    assert pruned.dims("a.w") == (32, 16, 3, 3)
    assert pruned.dims("b.w") == (16, 32, 3, 3)
    assert pruned.dims("head.w") == (8, 16, 3, 3)
    pruned.assert_equal()


def test_residual_with_zeros_in_one_branch_stays_and_says_why():
    net = Net()
    pruned = Pruned(net.model(residual(net, stem=range(0), branch=HALF)))
    assert pruned.changes == 0
    assert "does not give it as a constant" in pruned.reasons()
    pruned.assert_equal()


def test_residual_of_constant_and_zero_is_folded():
    net = Net()
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=[5])
    net.weights["c1.b"][5] = 0.7
    y = net.conv("x", 32, "c2", zero=[5])
    pruned = Pruned(net.model(net.conv(net.op("Add", [x, y]), 8, "c3", kernel=1)))
    assert pruned.dims("c1.w")[0] == pruned.dims("c2.w")[0] == 31
    pruned.assert_equal()


def test_concat_cuts_the_reader_at_the_right_offsets():
    net = Net()
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=range(0, 32, 2))
    y = net.conv("x", 32, "c2", zero=HALF)
    x = net.op("Relu", [net.op("Concat", [x, y], 64, axis=1)])
    pruned = Pruned(net.model(net.conv(x, 8, "c3")))
    assert pruned.dims("c3.w") == (8, 32, 3, 3)
    pruned.assert_equal()


@pytest.mark.parametrize("second", [[1, 2], [9, 10, 11]])
def test_split_halves_that_multiply(second):
    net = Net()
    zero = [*range(8), *(16 + index for index in second)]
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=zero)
    net.weight("sizes", np.array([16, 16]))
    net.nodes.append(helper.make_node("Split", [x, "sizes"], ["s", "t"], axis=1))
    net.channels["m"] = 16
    net.op("Mul", ["s", "t"], 16, out="m")
    pruned = Pruned(net.model(net.conv("m", 8, "c2")))
    alive = 16 - len({*range(8), *second})
    assert pruned.dims("c1.w")[0] == 2 * alive
    assert pruned.dims("c2.w")[1] == alive
    pruned.assert_equal()


def test_squeeze_and_excite():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)])
    gate = net.op("GlobalAveragePool", [x])
    gate = net.op("Relu", [net.conv(gate, 8, "down", kernel=1)])
    gate = net.op("Sigmoid", [net.conv(gate, 32, "up", kernel=1)])
    pruned = Pruned(net.model(net.conv(net.op("Mul", [x, gate]), 8, "c2")))
    assert pruned.dims("c1.w")[0] == 16
    assert pruned.dims("down.w") == (8, 16, 1, 1)
    assert pruned.dims("up.w") == (16, 8, 1, 1)
    pruned.assert_equal()


def test_a_gate_of_one_channel_keeps_it():
    net = Net()
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)
    gate = net.op("Sigmoid", [net.conv("x", 1, "gate")])
    pruned = Pruned(net.model(net.conv(net.op("Mul", [x, gate]), 8, "c2")))
    assert pruned.dims("c1.w")[0] == 16
    assert pruned.dims("gate.w")[0] == 1
    pruned.assert_equal()


@pytest.mark.parametrize(("bias", "kernel", "kept"), [(-0.3, 3, 16), (0.3, 1, 16), (0.3, 3, 17)])
def test_depthwise(bias, kernel, kept):
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "expand", kernel=1, zero=HALF)])
    x = net.conv(x, 32, "depthwise", group=32)
    net.weights["depthwise.b"][16:] = bias
    pruned = Pruned(net.model(net.conv(net.op("Relu", [x]), 8, "project", kernel=kernel)))
    assert pruned.dims("depthwise.w") == (kept, 1, 3, 3)
    assert pruned.dims("expand.w")[0] == kept
    pruned.assert_equal()


def test_depthwise_with_multiplier():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 8, "c1", zero=[2, 5])])
    x = net.conv(x, 16, "depthwise", group=8)
    net.weights["depthwise.b"][[4, 5, 10, 11]] = -1
    pruned = Pruned(net.model(net.conv(net.op("Relu", [x]), 4, "c2")))
    assert pruned.dims("depthwise.w") == (12, 1, 3, 3)
    pruned.assert_equal()


@pytest.mark.parametrize("way", ["Flatten", "Reshape -1", "Reshape 0", "Reshape literal"])
def test_flatten_and_gemm(way):
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", ["n", 16, 8, 8]), 32, "c1", zero=range(0, 32, 2))])
    if way == "Flatten":
        x = net.op("Flatten", [x], 2048)
    else:
        target = {"-1": [-1, 2048], "0": [0, -1], "literal": [-1, 2048]}[way.split()[1]]
        x = net.op("Reshape", [x, net.weight("target", np.array(target))], 2048)
    pruned = Pruned(net.model(net.gemm(x, 10, "fc")))
    assert pruned.dims("c1.w")[0] == 16
    assert pruned.dims("fc.w") == (10, 1024)
    pruned.assert_equal()


def test_shape_arithmetic_before_a_reshape():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", ["n", 16, 8, 8]), 32, "c1", zero=HALF)])
    net.weight("first", np.array(0))
    batch = net.op("Gather", [net.op("Shape", [x]), "first"], axis=0)
    batch = net.op("Unsqueeze", [batch, net.weight("axes", np.array([0]))])
    target = net.op("Concat", [batch, net.weight("rest", np.array([2048]))], axis=0)
    pruned = Pruned(net.model(net.gemm(net.op("Reshape", [x, target], 2048), 10, "fc")))
    assert pruned.dims("fc.w") == (10, 1024)
    pruned.assert_equal()


def test_the_number_of_channels_is_read():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)])
    y = net.conv(x, 8, "c2")
    count = net.op(
        "Cast", [net.op("Gather", [net.op("Shape", [x]), net.weight("one", np.array(1))])], to=1
    )
    pruned = Pruned(net.model(net.op("Mul", [y, count])))
    assert pruned.changes == 0
    assert "number of channels" in pruned.reasons()


def test_nhwc_transpose_and_matmul():
    net = Net()
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)
    x = net.op("Transpose", [net.op("Relu", [x])], perm=[0, 2, 3, 1])
    pruned = Pruned(net.model(net.linear(x, 8, "fc", size=32)))
    assert pruned.dims("fc.w") == (16, 8)
    pruned.assert_equal()


def test_conv_transpose():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)])
    weight = net.random(32, 24, 2, 2, scale=0.1)
    weight[:, 12:] = 0
    x = net.op("ConvTranspose", [x, net.weight("up.w", weight)], 24, strides=[2, 2])
    pruned = Pruned(net.model(net.conv(net.op("Relu", [x]), 8, "c2")))
    assert pruned.dims("up.w") == (16, 12, 2, 2)
    pruned.assert_equal()


@pytest.mark.parametrize("activation", ["Relu", "Tanh"])
def test_feed_forward(activation):
    net = Net()
    x = net.linear(net.input("x", ["n", "t", 64], axis=2), 256, "up", zero=range(64, 192))
    model = net.model(net.linear(net.op(activation, [x]), 64, "down"))
    pruned = Pruned(model)
    assert count_parameters(model) == 33088
    assert pruned.parameters() == 16576
    pruned.assert_equal()


def test_gated_feed_forward():
    net = Net()
    net.input("x", ["n", "t", 64], axis=2)
    up = net.linear("x", 256, "up", zero=range(64))
    gate = net.linear("x", 256, "gate", zero=range(64, 128))
    gate = net.op("Mul", [gate, net.op("Sigmoid", [gate])])
    pruned = Pruned(net.model(net.linear(net.op("Mul", [up, gate]), 64, "down")))
    assert pruned.dims("up.w") == pruned.dims("gate.w") == (64, 128)
    assert pruned.dims("down.w") == (128, 64)
    pruned.assert_equal()


@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_pools(op_type, bias):
    net = Net()
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)
    net.weights["c1.b"][16:] = bias
    x = net.op(op_type, [x], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])
    pruned = Pruned(net.model(net.conv(x, 8, "c2", kernel=1)))
    assert pruned.dims("c1.w")[0] == 16
    pruned.assert_equal()


@pytest.mark.parametrize(("value", "kept"), [(0.0, 32), (0.5, 16)])
def test_pad_with_another_value(value, kept):
    net = Net()
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)
    net.weights["c1.b"][16:] = 0.5
    pads = net.weight("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    x = net.op("Pad", [x, pads, net.weight("value", np.float32(value))])
    pruned = Pruned(net.model(net.conv(x, 8, "c2", pad=0)))
    assert pruned.dims("c1.w")[0] == kept
    pruned.assert_equal()


@pytest.mark.parametrize("by", ["scales", "sizes"])
def test_resize(by):
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", [2, 16, 6, 6]), 32, "c1", zero=HALF)])
    if by == "scales":
        tail = ["", net.weight("s", np.array([1, 1, 2, 2], dtype=np.float32))]
    else:
        tail = ["", "", net.weight("s", np.array([2, 32, 12, 12]))]
    x = net.op("Resize", [x, *tail], mode="linear")
    pruned = Pruned(net.model(net.conv(x, 8, "c2")))
    assert pruned.dims("c1.w")[0] == 16
    pruned.assert_equal()


@pytest.mark.parametrize("keepdims", [0, 1])
def test_mean_over_space(keepdims):
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)])
    x = net.op("ReduceMean", [x], axes=[2, 3], keepdims=keepdims)
    y = net.gemm(x, 8, "fc", size=32) if not keepdims else net.conv(x, 8, "c2", kernel=1)
    pruned = Pruned(net.model(y))
    assert pruned.dims("c1.w")[0] == 16
    pruned.assert_equal()


@pytest.mark.parametrize(
    ("op_type", "attrs"),
    [("Softmax", {"axis": 1}), ("ReduceMax", {"axes": [1]}), ("LRN", {"size": 3})],
)
def test_operators_that_mix_channels_are_barriers(op_type, attrs):
    net = Net()
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)
    y = net.op(op_type, [x], 1 if op_type == "ReduceMax" else 32, **attrs)
    pruned = Pruned(net.model(net.conv(y, 8, "c2")))
    assert pruned.changes == 0
    assert op_type in pruned.reasons()


def test_layer_norm_is_a_barrier():
    net = Net()
    x = net.linear(net.input("x", ["n", 16], axis=1), 32, "up", zero=HALF)
    x = net.op("LayerNormalization", [x, net.weight("g", net.random(32))])
    pruned = Pruned(net.model(net.linear(x, 4, "down")))
    assert pruned.changes == 0
    assert "LayerNormalization" in pruned.reasons()


def test_shared_weight_is_cut_only_where_all_its_readers_agree():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 16, "c1", zero=range(4, 8))])
    shared = net.random(16, 16, 3, 3, scale=0.1)
    shared[8:] = 0
    net.weight("shared", shared)
    first = net.op("Conv", [x, "shared"], 16, pads=[1] * 4)
    second = net.op("Conv", ["x", "shared"], 16, pads=[1] * 4)
    z = net.op("Add", [net.conv(first, 4, "c3"), net.conv(second, 4, "c4")])
    pruned = Pruned(net.model(z))
    assert pruned.dims("shared") == (8, 16, 3, 3)
    assert pruned.dims("c3.w") == pruned.dims("c4.w") == (4, 8, 3, 3)
    pruned.assert_equal()


def test_weight_shared_along_a_chain_ties_its_two_axes():
    net = Net()
    shared = net.random(16, 16, scale=0.3)
    shared[:, 8:] = 0
    net.weight("shared", shared)
    x = net.gemm(net.input("x", ["n", 8]), 16, "fc", zero=range(12, 16))
    x = net.op("Relu", [net.op("MatMul", [net.op("Relu", [x]), "shared"])])
    x = net.op("Relu", [net.op("MatMul", [x, "shared"])])
    pruned = Pruned(net.model(net.gemm(x, 4, "last")))
    assert pruned.dims("shared") == (12, 12)
    pruned.assert_equal()


def test_weight_that_is_also_an_output_stays():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)])
    y = net.conv(x, 8, "c2")
    net.outputs["c2.w"] = (8, 32, 3, 3)
    pruned = Pruned(net.model(y, "c2.w"))
    assert pruned.changes == 0
    pruned.assert_equal()


def test_weight_that_a_caller_can_override_stays():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)])
    y = net.conv(x, 8, "c2")
    net.inputs.append(helper.make_tensor_value_info("c1.w", 1, [32, 16, 3, 3]))
    pruned = Pruned(net.model(y))
    assert pruned.changes == 0
    pruned.assert_equal()


def test_outputs_and_inputs_keep_their_channels():
    net = Net()
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF, unread=range(8))
    pruned = Pruned(net.model(x))
    assert pruned.changes == 0
    assert "graph output" in pruned.reasons()


def test_float16():
    net = Net(dtype=np.float16)
    x = net.op("Sigmoid", [net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)])
    pruned = Pruned(net.model(net.conv(x, 8, "c2", pad=0)))
    assert pruned.dims("c1.w")[0] == 16
    pruned.assert_equal(tolerance=2e-3)


def test_float64():
    net = Net(dtype=np.float64)
    x = net.op("Sigmoid", [net.gemm(net.input("x", ["n", 16]), 32, "fc1", zero=HALF)])
    pruned = Pruned(net.model(net.gemm(x, 8, "fc2")))
    assert pruned.dims("fc1.w")[0] == 16
    pruned.assert_equal(tolerance=1e-14)


def test_one_channel_stays_where_all_are_zero():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=range(32))])
    pruned = Pruned(net.model(net.conv(x, 16, "c2")))
    assert pruned.dims("c1.w")[0] == 1
    assert pruned.dims("c2.w") == (16, 1, 3, 3)
    pruned.assert_equal()


def test_a_branch_of_zeros_becomes_a_vector():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 16, "c1", zero=range(16))])
    x = net.op("Add", [net.conv(x, 16, "c2"), "x"])
    pruned = Pruned(net.model(net.conv(x, 8, "c3")))
    assert pruned.context.journal[0].detail == "the same constant in every place of a channel"
    EliminateDeadNodes()(pruned.after, Context(pruned.after))
    assert [node.op_type for node in pruned.after.graph] == ["Add", "Conv"]
    assert pruned.parameters() == 16 + 8 * 16 * 9 + 8
    pruned.assert_equal()


def test_a_constant_operand_that_gives_the_result_its_shape_stays():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 16, "c1", zero=range(16))])
    y = net.op("GlobalAveragePool", ["x"])
    pruned = Pruned(net.model(net.conv(net.op("Add", [x, y]), 8, "c2")))
    operators = [node.op_type for node in pruned.after.graph]
    assert operators == [node.op_type for node in pruned.before.graph]
    pruned.assert_equal()


def test_dynamic_batch_height_and_width():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", ["n", 16, "h", "w"]), 32, "c1", zero=HALF)])
    pruned = Pruned(net.model(net.conv(x, 8, "c2")))
    assert pruned.dims("c1.w")[0] == 16
    for size in (4, 9):
        pruned.assert_equal(size=size)


def test_operator_of_another_domain_is_a_barrier():
    net = Net()
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)
    net.nodes.append(helper.make_node("Twist", [x], ["y"], domain="example.org"))
    net.channels["y"] = 32
    y = net.op("Relu", [net.conv("y", 32, "c2", zero=HALF)])
    pruned = Pruned(net.model(net.conv(y, 8, "c3"), extra_domain="example.org"))
    assert pruned.dims("c1.w")[0] == 32
    assert pruned.dims("c2.w")[0] == 16
    assert "Twist" in pruned.reasons()


CAPTURED = """
agraph (float[n,4] x, bool flag) => (float[n,2] y) <
  float[4,4] w = {1,2,0,0, 3,4,0,0, 5,6,0,0, 7,8,0,0},
  float[4,2] v = {1,2,3,4,5,6,7,8}>
{
  h = MatMul (x, w)
  r = Relu (h)
  y = If (flag) <
    then_branch = a () => (float[n,2] p) { p = MatMul (r, v) },
    else_branch = b () => (float[n,2] q) { s = Neg (r)  q = MatMul (s, v) }>
}
"""


def test_values_that_a_subgraph_captures_stay():
    pruned = Pruned(parse(CAPTURED))
    assert pruned.changes == 0
    assert "subgraph" in pruned.reasons()


INSIDE = """
agraph (float[n,4] x, bool flag) => (float[n,2] y) <
  float[4,2] o = {1,2,3,4,5,6,7,8}>
{
  y = If (flag) <
    then_branch = a () => (float[n,2] p) <
      float[4,4] w = {1,2,0,0, 3,4,0,0, 5,6,0,0, 7,8,0,0},
      float[4,2] v = {1,2,3,4,5,6,7,8}>
    { h = MatMul (x, w)  r = Relu (h)  p = MatMul (r, v) },
    else_branch = b () => (float[n,2] q) { q = MatMul (x, o) }>
}
"""


def test_channels_inside_a_subgraph_go():
    pruned = Pruned(parse(INSIDE))
    assert pruned.changes == 1
    branch = next(iter(pruned.after.graph.subgraphs()))
    assert tuple(branch.initializers["w"].const_value.shape.numpy()) == (4, 2)
    pruned.assert_equal()


FUNCTION = """
<ir_version: 10, opset_import: ["" : 17, "local" : 1]>
agraph (float[n,4] x) => (float[n,2] y) { y = local.block (x) }
<domain: "local", opset_import: ["" : 17]>
block (x) => (y)
{
  w = Constant <value = float[4,4] {1,2,0,0, 3,4,0,0, 5,6,0,0, 7,8,0,0}> ()
  b = Constant <value = float[4] {0,0,1,0}> ()
  v = Constant <value = float[4,2] {1,2,3,4,5,6,7,8}> ()
  h = Gemm (x, w, b)
  r = Relu (h)
  y = Gemm (r, v)
}
"""


def test_function_body_with_constant_nodes():
    pruned = Pruned(parse(FUNCTION))
    assert pruned.changes == 1
    (function,) = pruned.after.functions.values()
    sizes = sorted(node.attributes.get_tensor("value").size for node in function if not node.inputs)
    assert sizes == [2, 2, 4, 8]
    pruned.assert_equal()


def test_old_opset_is_left_alone():
    net = Net(opset=6)
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF, bias=False)
    pruned = Pruned(net.model(net.conv(x, 8, "c2", bias=False)))
    assert pruned.changes == 0


def test_a_site_that_is_switched_off_stays():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)])
    x = net.op("Relu", [net.conv(x, 32, "c2", zero=HALF)])
    model = net.model(net.conv(x, 8, "c3"))
    context = Context(model, disabled=[(EliminateZeroedChannels.name, "c1.w")])
    pruned = Pruned(model, context=context)
    assert pruned.dims("c1.w")[0] == 32
    assert pruned.dims("c2.w") == (16, 32, 3, 3)
    for limit in range(3):
        limited = Pruned(model, context=Context(model, limit=limit))
        assert limited.changes == limit
        limited.assert_equal(once=True)


def test_negative_zero_counts_as_zero_and_tiny_does_not():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 8, "c1", zero=[1, 2], bias=False)])
    y = net.conv(x, 4, "c2")
    net.weights["c1.w"][1] = -0.0
    net.weights["c1.w"][2, 3, 1, 1] = 1e-30
    pruned = Pruned(net.model(y))
    assert pruned.dims("c1.w")[0] == 7
    pruned.assert_equal()


def test_nan_weights_are_not_zero():
    net = Net()
    x = net.conv(net.input("x", IMAGE), 8, "c1", zero=[1, 2])
    y = net.conv(x, 4, "c2")
    net.weights["c1.w"][1, 0, 0, 0] = np.nan
    net.weights["c1.b"][2] = np.inf
    assert Pruned(net.model(y)).changes == 0


@pytest.mark.parametrize("ends", [[24], [1000], [-4]])
@pytest.mark.parametrize("width", [np.int64, np.int32])
def test_slice_of_channels(ends, width):
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=[0, 1, 9, 10, 30])])
    kept = len(range(32)[8 : ends[0]])
    bounds = [np.array([8], width), np.array(ends, width), np.array([1], width)]
    names = [net.weight(f"s{index}", content) for index, content in enumerate(bounds)]
    y = net.op("Slice", [x, *names], kept)
    y = net.op("Concat", [net.conv(y, 8, "c2"), net.conv(x, 8, "c3")], 16, axis=1)
    pruned = Pruned(net.model(y))
    assert pruned.dims("c1.w")[0] == 27
    assert pruned.dims("c3.w")[1] == 27
    pruned.assert_equal()


def test_channels_that_no_slice_picks_are_unread():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1")])
    names = [net.weight(f"s{index}", np.array([number])) for index, number in enumerate((4, 12, 1))]
    pruned = Pruned(net.model(net.conv(net.op("Slice", [x, *names], 8), 8, "c2")))
    assert pruned.dims("c1.w")[0] == 8
    pruned.assert_equal()


def test_gather_of_channels():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=range(8))])
    indices = net.weight("indices", np.array([31, 2, -1, 9, 9, 3, 20]))
    pruned = Pruned(net.model(net.conv(net.op("Gather", [x, indices], 7, axis=1), 8, "c2")))
    assert pruned.dims("c1.w")[0] == 3
    assert pruned.dims("c2.w")[1] == 5
    pruned.assert_equal()


def test_gather_and_slice_of_other_axes():
    net = Net()
    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=HALF)])
    bounds = [
        net.weight(f"s{i}", np.array(part)) for i, part in enumerate(([1, 0], [5, 4], [2, 3]))
    ]
    x = net.op("Slice", [x, *bounds])
    x = net.op("Gather", [x, net.weight("row", np.array(1))], axis=2)
    x = net.op("Transpose", [x], perm=[0, 2, 1])
    pruned = Pruned(net.model(net.linear(x, 8, "fc", size=32)))
    assert pruned.dims("fc.w") == (16, 8)
    pruned.assert_equal()


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 18, 21])
def test_opsets(opset):
    """Axes, sizes and bounds as attributes or as inputs, as each version spells them."""
    net = Net(opset=opset)

    def numbers(name: str, *content: int) -> str:
        return net.weight(name, np.array(content))

    x = net.op("Relu", [net.conv(net.input("x", IMAGE), 32, "c1", zero=range(0, 32, 4))])
    net.nodes.append(helper.make_node("Split", [x], ["s", "t"], axis=1))
    if opset >= 18:
        net.nodes[-1].attribute.append(helper.make_attribute("num_outputs", 2))
    x = net.op("Mul", ["s", "t"], 16)
    pads = [0, 0, 1, 1, 0, 0, 1, 1]
    x = net.op("Pad", [x, numbers("p", *pads)]) if opset >= 11 else net.op("Pad", [x], pads=pads)
    if opset >= 18:
        x = net.op("ReduceMean", [x, numbers("r", 3)], keepdims=1)
    else:
        x = net.op("ReduceMean", [x], axes=[3], keepdims=1)
    if opset >= 13:
        x = net.op("Unsqueeze", [net.op("Squeeze", [x, numbers("q", 3)]), numbers("u", 1)])
    else:
        x = net.op("Unsqueeze", [net.op("Squeeze", [x], axes=[3])], axes=[1])
    x = net.op("Transpose", [x], perm=[0, 1, 3, 2])
    pruned = Pruned(net.model(net.linear(x, 8, "fc", size=16)))
    assert pruned.dims("c1.w")[0] == 24
    assert pruned.dims("fc.w") == (12, 8)
    pruned.assert_equal()


def test_parameters_that_exporters_share_are_copied():
    net = Net()
    x = net.conv(net.input("x", IMAGE), 32, "c1", zero=range(8), bias=False)
    shared = [
        net.weight("ones", np.ones(32, np.float32)),
        net.weight("zeros", np.zeros(32, np.float32)),
    ]
    x = net.op("BatchNormalization", [x, *shared, shared[1], shared[0]])
    x = net.conv(net.op("Relu", [x]), 32, "c2", zero=range(20, 32), bias=False)
    x = net.op("BatchNormalization", [x, *shared, shared[1], shared[0]])
    pruned = Pruned(net.model(net.conv(net.op("Relu", [x]), 8, "c3")))
    assert pruned.dims("c1.w")[0] == 24
    assert pruned.dims("c2.w") == (20, 24, 3, 3)
    assert not {"ones", "zeros"} & set(pruned.after.graph.initializers)
    pruned.assert_equal()
