"""Embeddings: the columns of a table are channels, also where the output layer is tied to it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from prune_models import Net, Pruned

DEAD = [1, 6, 7, 20]
WORDS, WIDTH = 50, 32


def looked_up(net: Net, *, zero=(), constant=None) -> str:
    """Rows of a table of 50 words by 32 numbers."""
    net.inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 5]))
    table = net.random(WORDS, WIDTH)
    table[:, list(zero)] = 0
    for column, value in (constant or {}).items():
        table[:, column] = value
    return net.op("Gather", [net.weight("table", table), "ids"], WIDTH, axis=0)


def feed_forward(net: Net, x: str, *, dead=()) -> str:
    """x + FFN(x), with zero outputs at ``dead``."""
    y = net.op("Relu", [net.linear(x, 16, "up")])
    return net.op("Add", [x, net.linear(y, WIDTH, "down", zero=dead)])


def head(net: Net, x: str, way: str) -> str:
    """An output layer with the table as its weight, read in one of three ways."""
    if way == "gemm":
        x = net.op("Reshape", [x, net.weight("rows", np.array([-1, WIDTH]))], WIDTH)
        return net.op("Gemm", [x, "table"], WORDS, transB=1)
    turned = net.op("Transpose", ["table"], WORDS, perm=[1, 0])
    return net.op("MatMul", [x, turned], WORDS)


@pytest.mark.parametrize("way", ["zero", "unread"])
def test_columns_go(way):
    net = Net()
    x = looked_up(net, zero=DEAD if way == "zero" else ())
    y = net.linear(x, 4, "out", unread=DEAD if way == "unread" else ())
    pruned = Pruned(net.model(y))
    assert pruned.dims("table") == (WORDS, 28)
    assert pruned.dims("out.w") == (28, 4)
    pruned.assert_equal()


def test_a_constant_column_is_folded():
    net = Net()
    x = looked_up(net, constant={3: 0.5, 9: -2})
    pruned = Pruned(net.model(net.linear(x, 4, "out")))
    assert pruned.dims("table") == (WORDS, 30)
    pruned.assert_equal()


def test_columns_of_a_stream():
    net = Net()
    x = feed_forward(net, looked_up(net, zero=DEAD), dead=DEAD)
    pruned = Pruned(net.model(net.linear(x, 4, "out")))
    assert pruned.dims("table") == (WORDS, 28)
    assert pruned.dims("up.w") == (28, 16)
    assert pruned.dims("down.w") == (16, 28)
    pruned.assert_equal()


@pytest.mark.parametrize("way", ["gemm", "transpose"])
def test_a_tied_head_and_the_table_lose_a_column_together(way):
    net = Net()
    x = feed_forward(net, looked_up(net, zero=DEAD), dead=DEAD)
    pruned = Pruned(net.model(head(net, x, way)))
    assert pruned.dims("table") == (WORDS, 28)
    assert pruned.dims("up.w") == (28, 16)
    pruned.assert_equal()


@pytest.mark.parametrize("way", ["gemm", "transpose"])
def test_a_column_that_the_stream_fills_in_between(way):
    """Zero in the table, so neither use needs it, though something is added to the stream."""
    net = Net()
    x = feed_forward(net, looked_up(net, zero=DEAD))
    pruned = Pruned(net.model(head(net, net.op("Relu", [net.linear(x, WIDTH, "last")]), way)))
    assert pruned.dims("table") == (WORDS, WIDTH), "the feed-forward reads it"
    net = Net()
    x = feed_forward(net, looked_up(net, zero=DEAD))
    net.weights["up.w"][DEAD] = 0
    pruned = Pruned(net.model(head(net, x, way)))
    assert pruned.dims("table") == (WORDS, 28)
    assert pruned.dims("down.w") == (16, 28)
    pruned.assert_equal()


@pytest.mark.parametrize("way", ["gemm", "transpose"])
def test_a_column_that_only_one_use_can_do_without_stays(way):
    net = Net()
    x = net.linear(looked_up(net), WIDTH, "mix", unread=DEAD)
    pruned = Pruned(net.model(head(net, x, way)))
    assert pruned.dims("table") == (WORDS, WIDTH)
    pruned.assert_equal()


def test_a_table_that_is_an_output_too_stays():
    net = Net()
    x = net.linear(looked_up(net, zero=DEAD), 4, "out")
    seen = net.op("Transpose", ["table"], WORDS, perm=[1, 0])
    pruned = Pruned(net.model(x, seen))
    assert pruned.changes == 0
    assert "shared with another reader" in pruned.reasons()


def test_indices_into_columns_are_a_barrier():
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, [5]))
    x = net.op("Gather", [net.weight("table", net.random(8, WIDTH)), "ids"], 5, axis=1)
    pruned = Pruned(net.model(net.linear(x, 4, "out", size=5)))
    assert pruned.changes == 0
    pruned.assert_equal()


def test_two_tables_that_are_added():
    net = Net()
    x = looked_up(net, zero=DEAD)
    places = net.random(10, WIDTH)
    places[:, DEAD] = 0
    y = net.op("Gather", [net.weight("places", places), "ids_of_places"], WIDTH, axis=0)
    net.inputs.append(helper.make_tensor_value_info("ids_of_places", TensorProto.INT64, [1, 5]))
    pruned = Pruned(net.model(net.linear(net.op("Add", [x, y]), 4, "out")))
    assert pruned.dims("table") == (WORDS, 28)
    assert pruned.dims("places") == (10, 28)
    pruned.assert_equal()


def test_a_large_table_is_cut_where_it_is_zero():
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"]))
    table = net.random(40_000, WIDTH)
    table[:, DEAD] = 0
    x = net.op("Gather", [net.weight("table", table), "ids"], WIDTH, axis=0)
    pruned = Pruned(net.model(net.linear(x, 4, "out")))
    assert pruned.dims("table") == (40_000, 28)
    pruned.assert_equal(seeds=1)


def test_a_quantized_table_is_cut_where_it_is_at_its_zero_point():
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"]))
    content = net.rng.integers(-100, 100, (WORDS, WIDTH)).astype(np.int8)
    content[:, DEAD] = 3
    x = net.op("Gather", [net.weight("table", content), "ids"], WIDTH, axis=0)
    scale = net.weight("scale", np.array(0.1, np.float32))
    zero = net.weight("zero", np.array(3, np.int8))
    x = net.op("DequantizeLinear", [x, scale, zero], WIDTH)
    pruned = Pruned(net.model(net.linear(x, 4, "out")))
    assert pruned.dims("table") == (WORDS, 28)
    assert pruned.dims("out.w") == (28, 4)
    pruned.assert_equal()


def test_a_table_of_integers_is_only_cut_where_nothing_reads_it():
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"]))
    content = np.arange(24, dtype=np.int64).reshape(4, 6)
    content[:, 2] = 0
    x = net.op("Gather", [net.weight("table", content), "ids"], 6, axis=0)
    x = net.op("Cast", [x], 6, to=TensorProto.FLOAT)
    pruned = Pruned(net.model(net.linear(x, 4, "out", unread=[5])))
    assert pruned.after.graph.initializers["table"].dtype == ir.DataType.INT64
    assert pruned.dims("table") == (4, 5)
    pruned.assert_equal()
