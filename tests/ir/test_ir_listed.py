"""Weights that are listed as graph inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxslim import api, io
from onnxslim.errors import UsageError
from onnxslim.ir.listed import take_listed
from onnxslim.runtime.session import open_session

LISTED = """
<ir_version: {version}, opset_import: ["" : 13]>
net (float[2,4] x, float[4,3] w, float[3] b) => (float[2,3] y)
<float[4,3] w = {{1,2,3,4,5,6,7,8,9,10,11,12}}, float[3] b = {{1,2,3}}> {{
    h = MatMul (x, w)
    a = Add (h, b)
    y = Identity (a)
}}
"""

PARTLY = """
<ir_version: 8, opset_import: ["" : 13]>
net (float[2,4] x, float[3] b) => (float[2,3] y)
<float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[3] b = {1,2,3}> {
    h = MatMul (x, w)
    y = Add (h, b)
}
"""

OPTION = """
<ir_version: 8, opset_import: ["" : 13]>
net (float[2,4] x, float[4] scale) => (float[2,4] y)
<float[4] scale = {1,1,1,1}> {
    y = Mul (x, scale)
}
"""


def loaded(text: str) -> ir.Model:
    return io.load(onnx.parser.parse_model(text))


def inputs(model: ir.Model) -> list[str | None]:
    return [value.name for value in model.graph.inputs]


def slimmed(text: str, **options: Any) -> api.Optimized:
    return api.optimize(onnx.parser.parse_model(text), **options)


@pytest.mark.parametrize("version", [3, 8])
def test_where_all_are_listed_they_are_constants(version: int) -> None:
    optimized = slimmed(LISTED.format(version=version))
    assert [node.op_type for node in optimized.model.graph] == ["Gemm"]
    assert optimized.report.validation["status"] == "passed"
    assert any("2 weights are listed" in note for note in optimized.report.warnings)


def test_before_version_4_what_remains_is_listed_again() -> None:
    optimized = slimmed(LISTED.format(version=3))
    assert inputs(optimized.model) == ["x", "w", "b"]
    assert optimized.model.ir_version == 3
    onnx.checker.check_model(io.to_proto(optimized.model))


def test_from_version_4_on_only_the_data_is_an_input() -> None:
    assert inputs(slimmed(LISTED.format(version=8)).model) == ["x"]


@pytest.mark.parametrize("text", [PARTLY, OPTION], ids=["some listed", "no weight of a matrix"])
def test_options_of_a_model_stay(text: str) -> None:
    model = loaded(text)
    before = inputs(model)
    assert take_listed(model) is None
    assert inputs(model) == before


def test_the_caller_can_say_that_they_are_constants() -> None:
    model = loaded(PARTLY)
    assert take_listed(model, "constants") is not None
    assert inputs(model) == ["x"]


def test_the_caller_can_say_that_they_are_defaults() -> None:
    optimized = slimmed(LISTED.format(version=8), listed_initializers="defaults")
    assert inputs(optimized.model) == ["x", "w", "b"]
    w = np.ones((4, 3), np.float32)
    x = np.ones((2, 4), np.float32)
    expected = x @ w + np.array([1, 2, 3], np.float32)
    assert np.array_equal(
        open_session(optimized.model, optimize=True).run({"x": x, "w": w})[0], expected
    )


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(UsageError, match="auto, constants or defaults"):
        take_listed(loaded(PARTLY), "perhaps")


def test_validate_takes_the_weights_the_same_way() -> None:
    original = onnx.parser.parse_model(LISTED.format(version=8))
    assert api.validate(original, slimmed(LISTED.format(version=8)).model).status == "passed"
