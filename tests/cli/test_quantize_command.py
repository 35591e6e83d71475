"""`onnxslim quantize`: what is written, exit codes, and one line for bad data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxslim.cli import main

MODELS = Path(__file__).resolve().parents[2] / "models"
MODEL = str(MODELS / "digits_cnn.onnx")
CALIBRATION = str(MODELS / "digits_calibration.npz")
LABELS = str(MODELS / "digits_labels.npz")


def call(monkeypatch: pytest.MonkeyPatch, *words: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["onnxslim", *map(str, words)])
    return main()


def test_files_and_report(monkeypatch, tmp_path: Path) -> None:
    out, report, page, recipe, again = (
        tmp_path / name for name in ("o.onnx", "r.json", "r.html", "r.toml", "p.onnx")
    )
    code = call(
        monkeypatch, "quantize", MODEL, out, "--calibration", CALIBRATION, "--labels", LABELS,
        "--json", report, "--html", page, "--write-recipe", recipe, "-q",
    )  # fmt: skip
    assert code == 0
    found = json.loads(report.read_text())["steps"][-1]["quantization"]
    assert found["status"] in ("quantized", "int8-weights")
    assert found["after"]["drop"] <= 1.0
    assert found["after"]["drop_interval_95"] is not None
    assert out.stat().st_size < 0.4 * Path(MODEL).stat().st_size
    assert "Static int8" in page.read_text()
    words = ["--calibration", CALIBRATION, "--recipe", recipe, "-q"]
    assert call(monkeypatch, "quantize", MODEL, again, *words) == 0
    assert out.read_bytes() == again.read_bytes()


def bad_npz(folder: Path, **changes: Any) -> Path:
    """Calibration images with something wrong."""
    arrays = {"input": np.load(CALIBRATION)["input"][:32], **changes}
    path = folder / "bad.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def images(**at: float) -> np.ndarray:
    found = np.load(CALIBRATION)["input"][:32].copy()
    for index, value in at.items():
        found[int(index.removeprefix("at")), 0, 0, 0] = value
    return found


BAD = {
    "name": ({"input": None, "imput": images()}, ["'input'", "imput"]),
    "shape": ({"input": images()[:, :, :7]}, ["input", "[32, 1, 7, 8]", "8, 8]"]),
    "dtype": ({"input": (images() * 255).astype(np.int64)}, ["input", "int64", "float32"]),
    "nan": ({"input": images(at5=np.nan)}, ["sample 5", "'input'", "1 NaN or infinite"]),
    "inf": ({"input": images(at30=np.inf)}, ["sample 30", "'input'", "1 NaN or infinite"]),
    "empty": ({"input": images()[:0]}, ["input", "no samples"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_one_line_and_writes_nothing(
    case: str, monkeypatch, tmp_path: Path, capsys
) -> None:
    changes, words = BAD[case]
    data, out = bad_npz(tmp_path, **changes), tmp_path / "out.onnx"
    assert call(monkeypatch, "quantize", MODEL, out, "--calibration", data) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    for word in words:
        assert word in text, text
    assert not out.exists()


def test_no_data_says_what_is_needed(monkeypatch, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.onnx"
    assert call(monkeypatch, "quantize", MODEL, out) == 1
    assert "input float32" in (text := capsys.readouterr().err)
    assert "--random-data" in text
    assert not out.exists()


def test_labels_of_another_count(monkeypatch, tmp_path: Path, capsys) -> None:
    data = np.load(LABELS)
    path, out = tmp_path / "labels.npz", tmp_path / "out.onnx"
    np.savez(path, input=data["input"], labels=data["labels"][:-1])
    words = ["quantize", MODEL, out, "--calibration", CALIBRATION, "--labels", path]
    assert call(monkeypatch, *words) == 1
    assert "449 labels" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--preset", "avx3"],
        ["--format", "xml"],
        ["--method", "guess"],
        ["--metric", "nothing"],
        ["--exclude", "no_such_node"],
        ["--max-evaluations", "0"],
    ],
)
def test_usage_errors(words: list[str], monkeypatch, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.onnx"
    code = call(monkeypatch, "quantize", MODEL, out, "--calibration", CALIBRATION, *words)
    assert code == 2, capsys.readouterr().err
    assert not out.exists()


def test_strict_exits_with_3(monkeypatch, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.onnx"
    words = ["--calibration", CALIBRATION, "--labels", LABELS, "--max-drop", "-50", "--strict"]
    evaluations = ["--max-evaluations", "1", "--no-equalize"]
    assert call(monkeypatch, "quantize", MODEL, out, *words, *evaluations) == 3
    assert "cannot be kept" in capsys.readouterr().err
    assert not out.exists()


def test_metric_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "scores.py").write_text(
        "def good(outputs, labels):\n    return (outputs['logits'].argmax(1) == labels)\n"
        "def bad(outputs, labels):\n    raise ValueError('no labels here')\n"
    )
    base = [sys.executable, "-m", "onnxslim", "quantize", MODEL, "out.onnx"]
    base += ["--calibration", CALIBRATION, "--labels", LABELS, "-q", "--metric"]
    run = subprocess.run([*base, "scores:good"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (tmp_path / "out.onnx").unlink()
    run = subprocess.run([*base, "scores:bad"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1
    assert "metric scores:bad raised ValueError: no labels here" in run.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_the_main_command_quantizes_too(monkeypatch, tmp_path: Path) -> None:
    out, report = tmp_path / "out.onnx", tmp_path / "r.json"
    words = ["--quantize", "--calibration", CALIBRATION, "--max-drop", "1", "-q", "--json", report]
    assert call(monkeypatch, MODEL, out, *words) == 0
    found = json.loads(report.read_text())["steps"][-1]["quantization"]
    assert found["status"] in ("quantized", "int8-weights")
