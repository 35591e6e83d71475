"""Bad input: one line, the right exit code, no output left, nothing touched."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

GOOD = """<ir_version: 9, opset_import: ["" : 17]>
g (float[N,4] x) => (float[N,4] y) { h = Identity (x) y = Relu (h) }"""


def onnxslim(*arguments: str, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "onnxslim", *arguments], cwd=cwd, input=stdin, capture_output=True
    )


def good_bytes() -> bytes:
    return onnx.parser.parse_model(GOOD).SerializeToString()


def invalid_graph() -> bytes:
    model = onnx.parser.parse_model(GOOD)
    model.graph.node[1].input[0] = "nowhere"
    return model.SerializeToString()


def missing_data_file() -> bytes:
    model = onnx.parser.parse_model(GOOD)
    tensor = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="gone.data")
    model.graph.initializer.append(tensor)
    model.graph.node.append(helper.make_node("MatMul", ["y", "w"], ["z"]))
    model.graph.output[0].name = "z"
    return model.SerializeToString()


BAD = {
    "empty": (b"", "empty"),
    "truncated": (good_bytes()[:40], "truncated or not an ONNX model"),
    "text": (b"hello, this is no model\n" * 20, "not an ONNX model"),
    "invalid graph": (invalid_graph(), "reads 'nowhere'"),
    "missing data": (missing_data_file(), "gone.data"),
}


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_one_line(result: subprocess.CompletedProcess[bytes], code: int, words: str) -> None:
    text = result.stderr.decode()
    assert result.returncode == code, text
    assert "Traceback" not in text
    assert len(text.strip().splitlines()) == 1, text
    assert text.startswith("onnxslim: error: ")
    assert words in text
    assert result.stdout == b""


@pytest.mark.parametrize("kind", sorted(BAD))
def test_bad_models(kind: str, tmp_path: Path) -> None:
    content, words = BAD[kind]
    (tmp_path / "in.onnx").write_bytes(content)
    before = snapshot(tmp_path)
    assert_one_line(onnxslim("in.onnx", "out.onnx", cwd=tmp_path), 1, words)
    assert snapshot(tmp_path) == before


def test_directory_and_missing_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert_one_line(onnxslim("folder", "out.onnx", cwd=tmp_path), 1, "is a directory")
    assert_one_line(onnxslim("none.onnx", "out.onnx", cwd=tmp_path), 1, "does not exist")
    assert not (tmp_path / "out.onnx").exists()


def test_unwritable_targets(tmp_path: Path) -> None:
    (tmp_path / "in.onnx").write_bytes(good_bytes())
    (tmp_path / "folder").mkdir()
    before = snapshot(tmp_path)
    assert_one_line(onnxslim("in.onnx", "no/such/out.onnx", cwd=tmp_path), 1, "no/such")
    assert_one_line(onnxslim("in.onnx", "folder", cwd=tmp_path), 1, "directory")
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    (tmp_path / "in.onnx").write_bytes(good_bytes())
    (tmp_path / "shut").mkdir(mode=0o500)
    assert_one_line(onnxslim("in.onnx", "shut/out.onnx", cwd=tmp_path), 1, "shut")


def test_nan_weights_are_kept(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(GOOD)
    weight = np.full((4, 4), np.nan, np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model.graph.node.append(helper.make_node("MatMul", ["y", "w"], ["z"]))
    model.graph.output[0].name = "z"
    (tmp_path / "in.onnx").write_bytes(model.SerializeToString())
    result = onnxslim("in.onnx", "out.onnx", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    kept = onnx.load(tmp_path / "out.onnx").graph.initializer[0]
    assert np.isnan(numpy_helper.to_array(kept)).all()


def test_zero_size_dims(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 17]>
    g (float[0,4] x) => (float[0,4] y) { h = Identity (x) y = Relu (h) }"""
    (tmp_path / "in.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    result = onnxslim("in.onnx", "out.onnx", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node] == ["Relu"]


def test_usage_errors(tmp_path: Path) -> None:
    (tmp_path / "in.onnx").write_bytes(good_bytes())
    cases = [
        (["in.onnx", "out.onnx", "--skip-pass", "fold-constant"], "did you mean fold-constants"),
        (["in.onnx", "out.onnx", "--input-shape", "x=1,4"], "want NAME:"),
        (["in.onnx", "out.onnx", "--input-shape", "z:1,4"], "no input is called 'z'"),
        (
            ["in.onnx", "out.onnx", "--calibration", "c.npz"],
            "for --quantize, --prune and --compress",
        ),
        (["in.onnx", "out.onnx", "--quantize"], "x float32 [N, 4]"),
    ]
    for arguments, words in cases:
        assert_one_line(onnxslim(*arguments, cwd=tmp_path), 2, words)
    assert onnxslim("in.onnx", "out.onnx", "--nonsense", cwd=tmp_path).returncode == 2
    assert onnxslim("in.onnx", "out.onnx", "third.onnx", cwd=tmp_path).returncode == 2
    assert not (tmp_path / "out.onnx").exists()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = onnxslim("none.onnx", "out.onnx", "--debug", cwd=tmp_path)
    assert result.returncode == 1
    assert b"Traceback" in result.stderr


def test_an_unforeseen_error_is_one_line_too(tmp_path: Path) -> None:
    program = (
        "import sys; sys.argv = ['onnxslim', 'inspect', 'in.onnx']\n"
        "import onnxslim.api, onnxslim.cli.app as app\n"
        "def broken(source): raise ZeroDivisionError('on purpose')\n"
        "onnxslim.api.inspect = broken\n"
        "app.main()"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True)
    assert_one_line(result, 1, "ZeroDivisionError: on purpose")
