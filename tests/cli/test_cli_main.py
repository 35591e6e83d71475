"""The commands as a user runs them: real files, real processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

MODELS = sorted((Path(__file__).resolve().parents[2] / "models").glob("*.onnx"))

TEXT = """<ir_version: 9, opset_import: ["" : 17]>
g (float[N,4] x) => (float[N,4] y) {
  h = Identity (x)
  a = Relu (h)
  b = Relu (h)
  y = Add (a, b)
}"""


def onnxslim(*arguments: str, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    result = subprocess.run(
        [sys.executable, "-m", "onnxslim", *arguments], cwd=cwd, input=stdin, capture_output=True
    )
    assert b"Traceback" not in result.stderr, result.stderr.decode()
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in.onnx").write_bytes(onnx.parser.parse_model(TEXT).SerializeToString())
    return tmp_path


def test_main_job(folder: Path) -> None:
    result = onnxslim("in.onnx", "out.onnx", "--json", "report.json", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert b"passed" in result.stdout
    assert [node.op_type for node in onnx.load(folder / "out.onnx").graph.node] == ["Relu", "Add"]
    report = json.loads((folder / "report.json").read_text())
    assert report["validation"]["status"] == "passed"
    assert report["before"]["nodes"] == 4
    assert report["after"]["nodes"] == 2
    assert {entry["pass_name"] for entry in report["rewrites"]} >= {"eliminate-identity"}


def test_second_run_changes_no_byte(folder: Path) -> None:
    onnxslim("in.onnx", "once.onnx", cwd=folder)
    onnxslim("once.onnx", "twice.onnx", cwd=folder)
    assert (folder / "once.onnx").read_bytes() == (folder / "twice.onnx").read_bytes()


def test_source_may_be_the_target(folder: Path) -> None:
    assert onnxslim("in.onnx", "in.onnx", cwd=folder).returncode == 0
    assert len(onnx.load(folder / "in.onnx").graph.node) == 2


def test_pipes(folder: Path) -> None:
    content = (folder / "in.onnx").read_bytes()
    result = onnxslim("-", "-", cwd=folder, stdin=content)
    assert result.returncode == 0, result.stderr
    assert len(onnx.ModelProto.FromString(result.stdout).graph.node) == 2
    assert b"passed" in result.stderr


def test_no_validate_says_so(folder: Path) -> None:
    result = onnxslim("in.onnx", "out.onnx", "--no-validate", cwd=folder)
    assert b"--no-validate was given" in result.stdout


def test_packed_target_and_back(folder: Path) -> None:
    assert onnxslim("in.onnx", "out.onnx", cwd=folder).returncode == 0
    assert onnxslim("in.onnx", "out.onnxz", cwd=folder).returncode == 0
    assert onnxslim("unpack", "out.onnxz", "back.onnx", cwd=folder).returncode == 0
    assert (folder / "back.onnx").read_bytes() == (folder / "out.onnx").read_bytes()
    assert onnxslim("ls", "out.onnxz", cwd=folder).returncode == 0


def test_external_data(folder: Path) -> None:
    model = onnx.load(folder / "in.onnx")
    weight = np.random.default_rng(0).standard_normal((4, 4096)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model.graph.node.append(onnx.helper.make_node("MatMul", ["y", "w"], ["z"]))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, ["N", 4096]))
    onnx.save(model, folder / "in.onnx")
    result = onnxslim("in.onnx", "out.onnx", "--external-data", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert (folder / "out.onnx.data").stat().st_size >= weight.nbytes
    kept = onnx.load(folder / "out.onnx").graph.initializer[0]
    assert np.array_equal(numpy_helper.to_array(kept), weight)


def test_validate_command(folder: Path) -> None:
    onnxslim("in.onnx", "out.onnx", cwd=folder)
    assert onnxslim("validate", "in.onnx", "out.onnx", cwd=folder).returncode == 0
    other = onnx.parser.parse_model(TEXT.replace("y = Add", "y = Sub"))
    onnx.save(other, folder / "other.onnx")
    result = onnxslim("validate", "in.onnx", "other.onnx", cwd=folder)
    assert result.returncode == 3
    assert len(result.stderr.strip().splitlines()) == 1


def test_inspect_command(folder: Path) -> None:
    result = onnxslim("inspect", "in.onnx", "--json", "-", cwd=folder)
    data = json.loads(result.stdout)
    assert data["snapshot"]["operators"] == {"Add": 1, "Identity": 1, "Relu": 2}
    assert data["inputs"] == {"x": "float[N,4]"}


def test_input_shape(folder: Path) -> None:
    assert onnxslim("in.onnx", "out.onnx", "--input-shape", "x:2,4", cwd=folder).returncode == 0
    shape = onnx.load(folder / "out.onnx").graph.input[0].type.tensor_type.shape
    assert [size.dim_value for size in shape.dim] == [2, 4]


def test_passes_and_version(folder: Path) -> None:
    assert b"eliminate-identity" in onnxslim("passes", cwd=folder).stdout
    assert onnxslim("--version", cwd=folder).stdout.startswith(b"onnxslim 1.")


def test_help_is_quick(folder: Path) -> None:
    def once() -> float:
        started = time.perf_counter()
        assert onnxslim("--help", cwd=folder).returncode == 0
        return time.perf_counter() - started

    heavy = (
        "import onnxslim.cli.app, sys; "
        "sys.exit(bool({'onnx', 'onnx_ir', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", heavy]).returncode == 0
    assert min(once() for _ in range(3)) < 1.5  # 0.15 s on an idle machine


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_shipped_models_come_through_validated(path: Path, tmp_path: Path) -> None:
    result = onnxslim(str(path), "out.onnx", "--json", "report.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["validation"]["status"] == "passed"
    assert report["warnings"] == []
    assert report["after"]["nodes"] <= report["before"]["nodes"]
    assert (tmp_path / "out.onnx").stat().st_size <= path.stat().st_size
