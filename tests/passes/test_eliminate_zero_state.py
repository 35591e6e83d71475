"""EliminateZeroState: recurrent networks that start from zeros need no initial state."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graph_check import apply, assert_same_outputs, run

from onnxslim.passes.simplify.eliminate_zero_state import EliminateZeroState

PASS = EliminateZeroState()
GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
HIDDEN, WIDTH = 5, 3


def recurrent(kind: str, state: str, fill: float = 0.0, peepholes: bool = False) -> ir.Model:
    """A layer whose initial state is made in the way that ``state`` names."""
    rng = np.random.default_rng(3)
    gates = GATES[kind] * HIDDEN
    tensors = {
        "w": rng.standard_normal((1, gates, WIDTH)).astype(np.float32),
        "r": rng.standard_normal((1, gates, HIDDEN)).astype(np.float32),
        "constant": np.full((1, 2, HIDDEN), fill, np.float32),
        "p": rng.standard_normal((1, 3 * HIDDEN)).astype(np.float32),
        "shape": np.array([1, 2, HIDDEN]),
        "long": np.array([4, 2, HIDDEN]),
        "pieces": np.array([1, 3]),
        "zero": np.array([0]),
        "one": np.array([1]),
    }
    value = onnx.numpy_helper.from_array(np.array([fill], np.float32))
    makers = {
        "constant": [],
        "filled": [onnx.helper.make_node("ConstantOfShape", ["shape"], ["h"], value=value)],
        "sliced": [
            onnx.helper.make_node("ConstantOfShape", ["long"], ["all"], value=value),
            onnx.helper.make_node("Slice", ["all", "zero", "one", "zero"], ["h"]),
        ],
        "split": [
            onnx.helper.make_node("ConstantOfShape", ["long"], ["all"], value=value),
            onnx.helper.make_node("Split", ["all", "pieces"], ["h", "rest"], axis=0),
        ],
        "input": [],
    }
    name = {"constant": "constant", "input": "h0"}.get(state, "h")
    states = [name, name] if kind == "LSTM" else [name]
    inputs = ["x", "w", "r", "", "", *states, *(["p"] if peepholes else [])]
    node = onnx.helper.make_node(kind, inputs, ["y"], hidden_size=HIDDEN)
    used = {item for each in (*makers[state], node) for item in each.input}
    graph = onnx.helper.make_graph(
        [*makers[state], node],
        "g",
        [
            onnx.helper.make_tensor_value_info("x", 1, ["T", 2, WIDTH]),
            onnx.helper.make_tensor_value_info("h0", 1, [1, 2, HIDDEN]),
        ],
        [onnx.helper.make_tensor_value_info("y", 1, ["T", 1, 2, HIDDEN])],
        [onnx.numpy_helper.from_array(array, key) for key, array in tensors.items() if key in used],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    return ir.from_proto(onnx.helper.make_model(graph, ir_version=9, opset_imports=opsets))


FEEDS = {
    "x": np.random.default_rng(0).standard_normal((4, 2, WIDTH)).astype(np.float32),
    "h0": np.zeros((1, 2, HIDDEN), np.float32),
}


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("state", ["constant", "filled", "sliced", "split"])
def test_zeros_go(kind, state):
    model = recurrent(kind, state)
    expected = run(model, FEEDS)
    assert apply(PASS, model) == (2 if kind == "LSTM" else 1)
    node = next(item for item in model.graph if item.op_type == kind)
    assert len(node.inputs) == 3
    assert_same_outputs(expected, run(model, FEEDS), exact=True)
    assert apply(PASS, model) == 0


def test_peepholes_stay_in_their_place():
    model = recurrent("LSTM", "filled", peepholes=True)
    expected = run(model, FEEDS)
    assert apply(PASS, model) == 2
    node = next(item for item in model.graph if item.op_type == "LSTM")
    assert [value is None for value in node.inputs[3:]] == [True, True, True, True, False]
    assert_same_outputs(expected, run(model, FEEDS), exact=True)


@pytest.mark.parametrize("fill", [1.0, -0.0])
@pytest.mark.parametrize("state", ["constant", "filled", "sliced"])
def test_other_numbers_stay(state, fill):
    assert apply(PASS, recurrent("GRU", state, fill)) == 0


def test_a_state_that_the_caller_gives_stays():
    assert apply(PASS, recurrent("LSTM", "input")) == 0
