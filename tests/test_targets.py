"""The options that decide where rewrites pay: opset, target, and measured latency."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest

from onnxslim import api, measured_run, presets
from onnxslim.errors import UsageError
from onnxslim.pipeline import leaves

GELU = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,64] x) => (float[N,64] y) <float r = {1.4142135}, float one = {1}, float h = {0.5}>
{ a = Div (x, r) e = Erf (a) s = Add (e, one) q = Mul (x, s) y = Mul (q, h) }"""


def model() -> onnx.ModelProto:
    return onnx.parser.parse_model(GELU)


def operators(result: api.Optimized) -> list[str]:
    return [node.op_type for node in result.model.graph]


def test_opset_makes_later_operators_possible():
    assert operators(api.optimize(model())) == ["Div", "Erf", "Add", "Mul", "Mul"]
    result = api.optimize(model(), opset=20)
    assert operators(result) == ["Gelu"]
    assert result.model.graph.opset_imports[""] == 20
    assert result.report.validation["status"] == "passed"
    assert result.report.before.nodes == 5


@pytest.mark.parametrize("opset", [0, 9999])
def test_opset_that_does_not_exist(opset):
    with pytest.raises(UsageError, match=f"opset {opset}: want 1 to "):
        api.optimize(model(), opset=opset)


def test_target_leaves_out_what_does_not_pay():
    assert operators(api.optimize(model(), opset=20, runtime="portable"))[0] == "Div"
    named = api.optimize(model(), opset=20, runtime="portable", passes=["fuse-gelu"])
    assert operators(named) == ["Gelu"]


@pytest.mark.parametrize("target", sorted(presets.LATE))
def test_what_a_target_leaves_out_is_in_the_pipeline(target):
    whole = {step.name for step in leaves(presets.build())}
    rest = {step.name for step in leaves(presets.build(target=target))}
    assert rest == whole - presets.LATE[target]
    assert presets.LATE[target] <= whole


def test_unknown_target():
    with pytest.raises(UsageError, match="did you mean portable"):
        api.optimize(model(), runtime="portble")


def times(monkeypatch: pytest.MonkeyPatch, with_it: float, without: float) -> None:
    """Lets the runs take so many milliseconds; the models are timed nonetheless."""
    from onnxslim.quantization import latency

    race = latency.race

    def raced(models, feed, *, threads=1):
        assert set(race(models, feed, threads=threads)) == {"with", "without"}
        found = {"with": with_it, "without": without}
        return {label: latency.Latency((found[label],) * 3, 0, 0) for label in models}

    monkeypatch.setattr(latency, "race", raced)


def test_what_makes_it_slower_is_taken_back(monkeypatch):
    times(monkeypatch, 2.0, 1.0)
    result = api.optimize(model(), opset=20, measure_latency=True)
    assert operators(result)[0] == "Div"
    notes = " ".join(result.report.warnings)
    assert "fuse-gelu was taken back: 2.000 ms a run with it, 1.000 ms without" in notes
    assert result.report.validation["status"] == "passed"


def test_noise_takes_nothing_back(monkeypatch):
    times(monkeypatch, measured_run.MARGIN, 1.0)
    result = api.optimize(model(), opset=20, measure_latency=True)
    assert operators(result) == ["Gelu"]
    assert any("measured without each of 1 passes; 1 stayed" in w for w in result.report.warnings)


def test_nothing_to_measure():
    plain = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Relu (x) }'
    )
    result = api.optimize(plain, measure_latency=True)
    assert any("without each of 0 passes" in w for w in result.report.warnings)
