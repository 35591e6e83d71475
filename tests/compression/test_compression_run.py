"""`run_compression`: the form per weight, the opset, the demand, and what the runtime does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graph_check import make_feeds, run
from stored_models import branch_model, layer, model_of, weight_bytes

import onnxslim
from onnxslim import io
from onnxslim.compression import Compression, run_compression, weight_only_int8
from onnxslim.errors import DemandMissedError, UsageError
from onnxslim.ir.schema import default_opset
from onnxslim.runtime.loaded import loaded_graph

NET = """g (float[N,64] x) => (float[N,10] y) {
    a = Gemm (x, w1, b1)
    r = Relu (a)
    y = MatMul (r, w2)
}"""
SHAPES = {"w1": (64, 96), "b1": (96,), "w2": (96, 10)}
MODELS = Path(__file__).resolve().parents[2] / "models"
PORTABLE = ("fp16", "bf16", "int8", "int4", "palette16", "palette256", "auto")


def net(opset: int = 17) -> ir.Model:
    return model_of(NET, SHAPES, opset=opset, ir_version=8)


@pytest.mark.parametrize("weights", PORTABLE)
@pytest.mark.parametrize("opset", [12, 17, 21])
def test_every_form_from_every_opset(weights, opset):
    model = net(opset)
    before = ir.to_proto(model).SerializeToString()
    result = run_compression(model, Compression(weights))
    assert ir.to_proto(model).SerializeToString() == before, "the input was changed"
    assert not result.unfolded
    assert {record.name for record in result.records} == {"w1", "w2"}
    assert weight_bytes(result.model) < 0.56 * weight_bytes(model)
    assert all(output.sqnr_db is not None for output in result.accuracy.outputs)
    assert result.accuracy.outputs[0].sqnr_db > 15
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)
    needed = {"bf16": 13, "int4": 21, "palette16": 21, "auto": 21}.get(weights, 7)
    assert default_opset(result.model) == max(opset, needed)
    assert any("was raised" in line for line in result.warnings) == (opset < needed)


def test_a_weight_above_the_limit_takes_the_next_form():
    codes = np.random.default_rng(0).integers(-8, 8, (96, 10))
    codes[::32] = -8
    model = model_of(NET, {**SHAPES, "w2": (codes * 0.25).astype(np.float32)})
    result = run_compression(model, Compression("int4", max_error=0.05))
    assert {record.name: record.form for record in result.records} == {"w1": "int8", "w2": "int4"}
    tight = run_compression(model, Compression("int4", max_error=1e-3))
    assert {record.name: record.form for record in tight.records} == {"w1": "fp16", "w2": "int4"}
    assert all(record.error <= 1e-3 for record in tight.records)
    none = run_compression(net(21), Compression("int4", max_error=0))
    assert none.records == []
    assert any("above 0" in entry.reason for entry in none.context.refusals.values())


def test_exact_changes_no_bit():
    content = np.random.default_rng(1).normal(size=(64, 96)).astype(np.float16).astype(np.float32)
    model = model_of(NET, {**SHAPES, "w1": content})
    result = run_compression(model, Compression("exact"))
    assert [record.form for record in result.records] == ["fp16"]
    feeds = make_feeds(model)
    np.testing.assert_array_equal(run(model, feeds)[0], run(result.model, feeds)[0])


@pytest.mark.parametrize("weights", ["int8", "int4", "auto"])
def test_for_onnxruntime(weights):
    model = net()
    result = run_compression(model, Compression(weights, runtime="ort"))
    assert result.loaded.operators["com.microsoft.MatMulNBits"] == 2
    assert "2 MatMulNBits" in result.summary()
    assert result.accuracy.outputs[0].sqnr_db > 15


def test_transposed_weights_are_shared_only_when_asked():
    content = np.random.default_rng(2).normal(size=(64, 96)).astype(np.float32)
    text = "g (float[N,64] x) => (float[N,64] y) { a = MatMul (x, w) y = MatMul (a, v) }"
    model = model_of(text, {"w": content, "v": content.T.copy()})
    apart = run_compression(model, Compression("fp16"))
    shared = run_compression(model, Compression("fp16", share_transposed=True))
    assert weight_bytes(apart.model) == 2 * weight_bytes(shared.model)
    assert not shared.unfolded
    feeds = make_feeds(model)
    np.testing.assert_array_equal(run(apart.model, feeds)[0], run(shared.model, feeds)[0])


def test_branches_are_folded_too():
    result = run_compression(branch_model(16), Compression("int4"))
    assert len(result.records) == 2
    assert not result.unfolded


def labelled(model: ir.Model, path, samples: int = 200) -> str:
    x = np.random.default_rng(3).normal(size=(samples, 64)).astype(np.float32)
    labels = run(model, {"x": x})[0].argmax(1)
    np.savez(path, x=x, labels=labels)
    return str(path)


def test_the_demand_on_labels(tmp_path):
    model = net(21)
    labels = labelled(model, tmp_path / "labels.npz")
    good = run_compression(model, Compression("int8", labels=labels, max_drop=3.0))
    assert good.accuracy.before.value == 1.0
    assert good.accuracy.after.value >= 0.97
    with pytest.raises(DemandMissedError, match="points are lost, 0.1 are allowed"):
        run_compression(model, Compression("palette16", labels=labels, max_drop=0.1))


def test_the_demand_on_agreement():
    model = net(21)
    feeds = [{"x": np.random.default_rng(4).normal(size=(300, 64)).astype(np.float32)}]
    run_compression(model, Compression("fp16", calibration=feeds, max_drop=1.0))
    with pytest.raises(DemandMissedError, match="y agrees"):
        run_compression(model, Compression("int4", calibration=feeds, max_drop=0.1))


def test_much_changed_outputs_are_noted():
    text = "g (float[N,64] x) => (float[N,48] y) { y = MatMul (x, w) }"
    content = np.random.default_rng(5).normal(0, 1e-3, (64, 48)).astype(np.float32)
    content[0] = 1e3  # which the input below does not see
    model = model_of(text, {"w": content})
    feeds = [{"x": np.ones((2, 64), np.float32) * (np.arange(64) > 0).astype(np.float32)}]
    result = run_compression(model, Compression("int8", calibration=feeds, max_error=0.5))
    assert any("the outputs changed much: y" in line for line in result.warnings)


@pytest.mark.parametrize("weights", ["int8", "int4", "exact"])
@pytest.mark.parametrize("ir_version", [3, 8])
def test_weights_listed_as_inputs_are_folded(weights, ir_version, tmp_path):
    text = "g (float[1,16,6,6] x, float[24,16,3,3] w) => (float[1,24,4,4] y) { y = Conv (x, w) }"
    content = np.random.default_rng(6).integers(-8, 8, (24, 16, 3, 3)).astype(np.float32)
    content[0, 0, 0, 0] = -0.0
    model = model_of(text, {"w": content}, opset=9, ir_version=ir_version)
    io.save(model, tmp_path / "in.onnx")
    done = onnxslim.compress(tmp_path / "in.onnx", tmp_path / "out.onnx", weights=weights)
    assert len(done.report.steps[-1].details["compression"]["weights"]) == 1
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)
    left = loaded_graph(tmp_path / "out.onnx").operators
    assert not {"Cast", "Gather", "Mul", "Reshape"} & set(left)
    assert [value.name for value in onnx.load(tmp_path / "out.onnx").graph.input] == ["x"]


def test_models_without_weights_pass_through():
    model = model_of("g (float[N] x) => (float[N] y) { y = Relu (x) }", {}, opset=13, ir_version=7)
    result = run_compression(model, Compression("int4"))
    assert result.records == []
    assert default_opset(result.model) == 13
    assert ir.to_proto(result.model) == ir.to_proto(model)


def test_weight_only_int8():
    model = net()
    result, notes = weight_only_int8(model)
    assert weight_bytes(result) < 0.3 * weight_bytes(model)
    assert len(notes) == 2
    assert all("int8, relative error" in note for note in notes)
    left, reasons = weight_only_int8(model, max_error=1e-9)
    assert weight_bytes(left) == weight_bytes(model)
    assert any("stays" in note for note in reasons)


BAD = [
    ({"weights": "int5"}, "did you mean"),
    ({"runtime": "tpu"}, "want portable or ort"),
    ({"max_error": -0.1}, "max-error"),
    ({"max_drop": -1.0, "labels": "x.npz"}, "max-drop"),
    ({"max_drop": 1.0}, "needs data"),
    ({"weights": "bf16", "runtime": "ort"}, "no operator for bf16"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_requests(options, message):
    with pytest.raises(UsageError, match=message):
        Compression(**options)


def test_the_chain_says_size_and_accuracy_after_each_step(tmp_path):
    model = net(21)
    labels = labelled(model, tmp_path / "labels.npz")
    io.save(model, tmp_path / "in.onnx")
    target = tmp_path / "out.onnxz"
    done = onnxslim.optimize(
        tmp_path / "in.onnx",
        target,
        pruning=onnxslim.Pruning(amount=0.3, labels=labels),
        compression=Compression("int8", labels=labels),
    )
    report = done.report.to_dict()
    assert [step["name"] for step in report["steps"]] == ["slim", "prune", "compress"]
    assert report["accuracy_before"]["value"] == 1.0
    assert report["steps"][0]["accuracy_after"]["value"] == 1.0
    pruned, compressed = (step["accuracy_after"] for step in report["steps"][1:])
    assert 0.3 < pruned["value"] < 1
    assert abs(compressed["value"] - pruned["value"]) < 0.05
    packed = [step["packed_file_bytes"] for step in report["steps"]]
    assert packed == sorted(packed, reverse=True)
    assert packed[-1] == target.stat().st_size


def test_written_files_are_the_same_every_time(tmp_path):
    io.save(net(), tmp_path / "in.onnx")
    files = []
    for name in ("a.onnx", "b.onnx"):
        onnxslim.compress(tmp_path / "in.onnx", tmp_path / name, weights="auto")
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]


def test_layers_are_listed_in_the_report():
    done = onnxslim.compress(ir.to_proto(layer("conv")), weights="int8")
    details = done.report.to_dict()["steps"][-1]["compression"]
    entry = details["weights"][0]
    assert entry["name"] == "w"
    assert entry["shape"] == [24, 16, 3, 3]
    assert entry["bytes_before"] == 24 * 16 * 9 * 4
    assert details["weight_bytes_after"] == entry["bytes_after"]
    assert details["unfolded"] == []
    assert len(details["load_ms"]) == 2


@pytest.mark.slow
def test_twenty_times_smaller_within_one_point(tmp_path):
    """Channels cut, weights in 4 bits, packed: one run, accuracy on held-out digits."""
    labels, calibration = (str(MODELS / f"digits_{kind}.npz") for kind in ("labels", "calibration"))
    source, target = MODELS / "digits_cnn.onnx", tmp_path / "tiny.onnxz"
    done = onnxslim.optimize(
        source,
        target,
        pruning=onnxslim.Pruning(
            amount=0.5, structured=True, removes=True, labels=labels, calibration=calibration
        ),
        compression=Compression("palette16", labels=labels, calibration=calibration),
    )
    assert target.stat().st_size * 20 < source.stat().st_size
    before, after = done.report.accuracy_before, done.report.steps[-1].accuracy
    assert after["value"] >= before["value"] - 0.01


def test_names_of_nodes_are_not_used_twice():
    text = """g (float[N,64] x) => (float[N,48] y) {
        [w_cast] r = Relu (x)
        [w_mul] w_cast_1 = MatMul (r, w)
        y = Gemm <transB = 1> (w_cast_1, v)
    }"""
    model = model_of(text, {"w": (64, 64), "v": (48, 64)})
    result = run_compression(model, Compression("int8"))
    assert {record.name for record in result.records} == {"w", "v"}
    assert not result.unfolded
    names = [node.name for node in result.model.graph if node.name]
    assert len(set(names)) == len(names)


def test_what_the_runtime_leaves_unfolded_is_known():
    result = run_compression(net(), Compression("int8"))
    left = next(record for record in result.records if record.name == "w2").nodes[-1]
    result.loaded = replace(result.loaded, names=result.loaded.names | {left})
    assert result.unfolded == ["w2"]
    assert "1 of 2 folded" in result.summary()
