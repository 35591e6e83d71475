"""Every derivative against differences of what onnxruntime computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxslim.pruning.derivatives import is_known, pull_back, pull_back_split
from onnxslim.runtime.evaluate import evaluate

Inputs = list[np.ndarray | None]
STEP = 1e-5


def values(*shape: int, seed: int = 0, low: float | None = None) -> np.ndarray:
    found = np.random.default_rng([seed, *shape]).normal(size=shape)
    return np.asarray(found if low is None else np.abs(found) + low)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


CASES: dict[str, tuple[str, Inputs, dict[str, object]]] = {
    "add, broadcast": ("Add", [values(2, 3, 4), values(4)], {}),
    "sub, broadcast on the left": ("Sub", [values(3, 1), values(2, 3, 4)], {}),
    "mul": ("Mul", [values(2, 3), values(2, 1, seed=1)], {}),
    "div by a scalar": ("Div", [values(2, 3), values(low=0.5)], {}),
    "div, broadcast": ("Div", [values(3), values(2, 3, low=0.5)], {}),
    "pow": ("Pow", [values(2, 3), np.array(3.0)], {}),
    "neg": ("Neg", [values(2, 3)], {}),
    "sqrt": ("Sqrt", [values(2, 3, low=0.5)], {}),
    "erf": ("Erf", [values(2, 3)], {}),
    "tanh": ("Tanh", [values(2, 3)], {}),
    "sigmoid": ("Sigmoid", [values(2, 3)], {}),
    "relu": ("Relu", [values(2, 3)], {}),
    "reshape": ("Reshape", [values(2, 6), ints(3, 4)], {}),
    "transpose": ("Transpose", [values(2, 3, 4)], {"perm": [2, 0, 1]}),
    "transpose, all turned": ("Transpose", [values(2, 3, 4)], {}),
    "unsqueeze": ("Unsqueeze", [values(2, 3), ints(1)], {}),
    "expand": ("Expand", [values(3, 1), ints(2, 3, 4)], {}),
    "slice": ("Slice", [values(2, 5), ints(1), ints(4), ints(1)], {}),
    "slice backwards": ("Slice", [values(2, 5), ints(-1), ints(-99), ints(1), ints(-2)], {}),
    "gather, one": ("Gather", [values(2, 5, 3), np.array(1)], {"axis": 1}),
    "gather, with repeats": ("Gather", [values(2, 5, 3), ints(1, -1, 1)], {"axis": 1}),
    "concat": ("Concat", [values(2, 3), values(2, 1)], {"axis": 1}),
    "where": ("Where", [np.array([True, False, True]), values(2, 3), values(1, 3)], {}),
    "matmul by a weight": ("MatMul", [values(2, 3, 4), values(4, 5)], {}),
    "matmul of batches": ("MatMul", [values(2, 3, 4), values(2, 4, 5)], {}),
    "matmul, broadcast": ("MatMul", [values(3, 4), values(2, 4, 5)], {}),
    "matmul of a vector": ("MatMul", [values(4), values(4, 5)], {}),
    "matmul by a vector": ("MatMul", [values(2, 3, 4), values(4)], {}),
    "gemm": ("Gemm", [values(3, 4), values(4, 5), values(5)], {}),
    "gemm, turned": (
        "Gemm",
        [values(4, 3), values(5, 4), values(3, 1)],
        {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0},
    ),
    "softmax": ("Softmax", [values(2, 3, 4)], {}),
    "softmax, inner axis": ("Softmax", [values(2, 3, 4)], {"axis": 1}),
    "mean": ("ReduceMean", [values(2, 3, 4), ints(1)], {"keepdims": 0}),
    "mean of all": ("ReduceMean", [values(2, 3)], {}),
    "layer norm": ("LayerNormalization", [values(2, 3, 4), values(4), values(4, seed=1)], {}),
    "layer norm, no bias": ("LayerNormalization", [values(2, 3, 4), values(4)], {"epsilon": 0.1}),
    "gelu": ("Gelu", [values(2, 3)], {}),
}


def node_of(operator: str, inputs: Inputs, attributes: dict[str, object]) -> ir.Node:
    read = [
        ir.Value(name=f"x{place}", const_value=ir.tensor(one), shape=ir.Shape(one.shape))
        for place, one in enumerate(inputs)
    ]
    made = [ir.Value(name="y")]
    node = ir.node(operator, inputs=read, attributes=attributes, outputs=made)
    ir.Graph([], made, nodes=[node], initializers=read)
    return node


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_derivative_is_that_of_the_operator(case: str) -> None:
    operator, inputs, attributes = CASES[case]
    node = node_of(operator, inputs, attributes)
    assert is_known(node)

    def run(given: Inputs) -> np.ndarray:
        wide = operator in ("Tanh", "Sigmoid", "Gelu", "Erf")
        dtype = np.float32 if wide else np.float64
        plain = [one.astype(dtype) if one.dtype.kind == "f" else one for one in given]
        return evaluate(node, plain, {"": 20})[0].astype(np.float64)

    output = run(inputs)
    weights = np.random.default_rng(5).normal(size=output.shape)
    found = pull_back(node, inputs, [output], weights)
    # float32 kernels need larger steps for as many digits.
    step, near = (1e-2, 5e-3) if operator in ("Tanh", "Sigmoid", "Gelu", "Erf") else (STEP, 1e-6)
    for index, gradient in found.items():
        whole = inputs[index]
        if whole.dtype.kind != "f" or (operator == "Pow" and index):
            continue
        assert gradient.shape == whole.shape
        for place in np.ndindex(whole.shape):
            sums = []
            for sign in (1, -1):
                moved = [np.array(one) for one in inputs]
                moved[index][place] += sign * step
                sums.append(float((weights * run(moved)).sum()))
            slope = (sums[0] - sums[1]) / (2 * step)
            assert gradient[place] == pytest.approx(slope, rel=near, abs=near)
    floats = [one.dtype.kind == "f" for one in inputs]
    assert len(found) == sum(floats) - (operator == "Pow")


def test_the_parts_of_a_split_come_back_as_one() -> None:
    node = ir.node("Split", inputs=[ir.Value(name="x")], attributes={"axis": -1}, num_outputs=2)
    parts = [values(2, 3), values(2, 1)]
    np.testing.assert_array_equal(pull_back_split(node, parts)[0], np.concatenate(parts, axis=-1))


def test_operators_without_a_rule_say_so() -> None:
    assert not is_known(ir.node("Conv", inputs=[ir.Value(name="x"), ir.Value(name="w")]))
    open_ends = [ir.Value(name=name) for name in ("x", "starts", "ends")]
    assert not is_known(ir.node("Slice", inputs=open_ends))
    tanh = ir.node("Gelu", inputs=[ir.Value(name="x")], attributes={"approximate": "tanh"})
    assert not is_known(tanh)
