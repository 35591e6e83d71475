"""Nodes out of order: sorted, said so, and the same answers."""

from __future__ import annotations

import onnx
import pytest

from onnxslim import api
from onnxslim.errors import InvalidModelError


def model(body: str) -> onnx.ModelProto:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) {{ {body} }}'
    return onnx.parser.parse_model(text)


def test_nodes_out_of_order_are_sorted() -> None:
    optimized = api.optimize(model("y = Relu (h)  h = Neg (x)"))
    assert [node.op_type for node in optimized.model.graph] == ["Neg", "Relu"]
    assert optimized.report.validation["status"] == "passed"
    assert any("out of order" in note for note in optimized.report.warnings)


def test_nodes_in_order_are_not_mentioned() -> None:
    assert not api.optimize(model("h = Neg (x)  y = Relu (h)")).report.warnings


@pytest.mark.parametrize("body", ["y = Add (h, x)  h = Neg (y)", "y = Relu (missing)"])
def test_a_cycle_or_a_missing_value_is_refused(body: str) -> None:
    with pytest.raises(InvalidModelError, match="no earlier node"):
        api.optimize(model(body))
