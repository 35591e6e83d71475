"""``onnxslim compress`` and ``--compress``: files come out, limits hold, bad input is one line."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import unittest.mock
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from graph_check import run
from stored_models import model_of

from onnxslim.cli.app import main

NET = """g (float[N,64] x) => (float[N,10] y) {
    a = Gemm (x, w1, b1)
    r = Relu (a)
    y = MatMul (r, w2)
}"""


def onnxslim(*arguments: str | Path, cwd: Path) -> tuple[int, str, str]:
    """Runs the command in this process; exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    argv = ["onnxslim", *map(str, arguments)]
    with (
        contextlib.chdir(cwd),
        unittest.mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code or 0
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, data, and labels that are the model's own answers."""
    model = model_of(NET, {"w1": (64, 96), "b1": (96,), "w2": (96, 10)}, opset=17, ir_version=8)
    onnx.save(ir.to_proto(model), tmp_path / "in.onnx")
    x = np.random.default_rng(0).normal(size=(200, 64)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    np.savez(tmp_path / "labels.npz", x=x, labels=run(model, {"x": x})[0].argmax(1))
    return tmp_path


def test_the_default_is_int8(folder):
    code, out, err = onnxslim("compress", "in.onnx", "out.onnx", cwd=folder)
    assert (code, err) == (0, "")
    assert "2 int8; 2 of 2 folded when opened" in " ".join(out.split())
    sizes = [(folder / name).stat().st_size for name in ("in.onnx", "out.onnx")]
    assert sizes[1] < 0.36 * sizes[0]
    onnx.checker.check_model(folder / "out.onnx", full_check=True)
    onnxruntime.InferenceSession(folder / "out.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "options",
    [
        ("--weights", "int4"),
        ("--weights", "auto", "--max-error", "0.01"),
        ("--weights", "palette16"),
        ("--weights", "int4", "--target", "ort"),
        ("--weights", "bf16", "--external-data"),
        ("--weights", "exact", "--share-transposed"),
    ],
)
def test_options(folder, options):
    arguments = ("compress", "in.onnx", "out.onnx", *options, "--json", "report.json")
    code, _, err = onnxslim(*arguments, cwd=folder)
    assert (code, err) == (0, "")
    report = json.loads((folder / "report.json").read_text())
    step = report["steps"][-1]
    assert step["name"] == "compress"
    forms = {entry["form"] for entry in step["compression"]["weights"]}
    assert bool(forms) == (options[1] != "exact")
    onnxruntime.InferenceSession(folder / "out.onnx", providers=["CPUExecutionProvider"])


def test_labels_and_drop(folder):
    arguments = ("compress", "in.onnx", "out.onnx", "--labels", "labels.npz", "--max-drop")
    code, out, _ = onnxslim(*arguments, "5", cwd=folder)
    assert code == 0
    assert "100.00 %" in out
    (folder / "out.onnx").unlink()
    code, _, err = onnxslim(*arguments, "0.01", "--weights", "palette16", cwd=folder)
    assert code == 3
    assert "points are lost, 0.01 are allowed" in err
    assert err.count("\n") == 1
    assert not (folder / "out.onnx").exists()


def test_as_a_step_of_the_main_command(folder):
    arguments = ("in.onnx", "out.onnxz", "--prune", "l1=0.5", "--compress", "int8")
    code, out, _ = onnxslim(*arguments, "--labels", "labels.npz", "--verbose", cwd=folder)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    names = [line[0] for line in lines if line]
    table = names.index("step")
    assert [name for name in names[table:] if name in ("original", "slim", "prune", "compress")][
        :4
    ] == ["original", "slim", "prune", "compress"]
    header = next(line for line in lines if line[:1] == ["step"])
    assert header == ["step", "file", "packed", "nodes", "accuracy", "note"]
    assert (folder / "out.onnxz").stat().st_size < 6000


BAD = [
    (("--weights", "int5"), 2, "there is no such form"),
    (("--target", "gpu"), 2, "want portable or ort"),
    (("--max-error", "-1"), 2, "max-error"),
    (("--max-drop", "1"), 2, "needs data to measure the drop on"),
    (("--labels", "no.npz"), 1, "no.npz"),
    (("--weights", "fp16", "--target", "ort"), 2, "no operator for fp16"),
]


@pytest.mark.parametrize(("options", "code", "message"), BAD)
def test_bad_options_are_one_line(folder, options, code, message):
    found, _, err = onnxslim("compress", "in.onnx", "out.onnx", *options, cwd=folder)
    assert found == code
    assert message in err
    assert err.count("\n") == 1
    assert not (folder / "out.onnx").exists()


def test_not_a_model(folder):
    (folder / "text.onnx").write_text("hello")
    code, _, err = onnxslim("compress", "text.onnx", "out.onnx", cwd=folder)
    assert code == 1
    assert err.count("\n") == 1


def test_data_without_a_step_that_needs_it(folder):
    code, _, err = onnxslim("in.onnx", "o.onnx", "--calibration", "data.npz", cwd=folder)
    assert code == 2
    assert "--compress" in err
