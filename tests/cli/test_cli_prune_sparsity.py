"""``onnxslim prune`` and ``--prune``: files come out, limits hold, bad input is one line."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import unittest.mock
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest

from onnxslim.cli.app import main

MODELS = Path(__file__).resolve().parents[2] / "models"
Array = np.ndarray[Any, Any]


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def onnxslim(*arguments: str | Path, cwd: Path) -> Done:
    """Runs the command in this process: starting one for every bad call takes too long."""
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
    return Done(code, out.getvalue(), err.getvalue())


def initializer(name: str, *shape: int, seed: int) -> onnx.TensorProto:
    content = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return onnx.numpy_helper.from_array(content, name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model, and data that fits it."""
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 17]>
        g (float[N,6] x) => (float[N,4] y) { h = Gemm (x, a, b) r = Relu (h) y = Gemm (r, c) }""")
    model.graph.initializer.extend(
        [
            initializer("a", 6, 17, seed=0),
            initializer("b", 17, seed=1),
            initializer("c", 17, 4, seed=2),
        ]
    )
    onnx.save(model, tmp_path / "in.onnx")
    rng = np.random.default_rng(3)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(60, 6)).astype(np.float32))
    np.savez(
        tmp_path / "labels.npz",
        x=rng.normal(size=(40, 6)).astype(np.float32),
        labels=rng.integers(0, 4, 40),
    )
    return tmp_path


def zeros(path: Path) -> dict[str, int]:
    found = {}
    for tensor in onnx.load(path).graph.initializer:
        content = onnx.numpy_helper.to_array(tensor)
        if content.ndim > 1:
            found[str(content.shape)] = int(np.sum(content == 0))
    return found


def test_amount_gives_exact_counts_and_a_report(folder: Path) -> None:
    done = onnxslim(
        *("prune", "in.onnx", "out.onnx", "--amount", "0.3", "--calibration", "data.npz"),
        *("--labels", "labels.npz", "--json", "report.json"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert sum(zeros(folder / "out.onnx").values()) == round(0.3 * 102) + round(0.3 * 68)
    report = json.loads((folder / "report.json").read_text())
    step = report["steps"][-1]
    pruning = step["pruning"]
    assert step["name"] == "prune"
    assert pruning["exactness"] == "lossy"
    assert {t["zeros"] for t in pruning["tensors"]} == {round(0.3 * 102), round(0.3 * 68)}
    assert pruning["before"]["metric"] == pruning["after"]["metric"] == "top1"
    assert 0 < pruning["packed_bytes"] <= pruning["packed_bytes_before"]
    assert "lossy" in done.stdout


def test_seeds_of_random_pruning(folder: Path) -> None:
    for name, seed in (("one", 1), ("same", 1), ("two", 2)):
        arguments = ("--amount", "0.5", "--method", "random", "--seed", str(seed), "-q")
        assert onnxslim("prune", "in.onnx", f"{name}.onnx", *arguments, cwd=folder).returncode == 0
    one, same, two = ((folder / f"{n}.onnx").read_bytes() for n in ("one", "same", "two"))
    assert one == same
    assert one != two


def test_pattern_without_data_says_so_loudly(folder: Path) -> None:
    done = onnxslim("prune", "in.onnx", "out.onnx", "--pattern", "2:4", cwd=folder)
    assert done.returncode == 0
    assert "BY MASKING ONLY" in done.stdout
    # K = 6: a block of 4 and 2 left over; K = 17: four blocks and 1 left over
    assert sum(zeros(folder / "out.onnx").values()) == 17 * (2 + 1) + 4 * (4 * 2)


def test_main_command_prunes_and_packs(folder: Path) -> None:
    done = onnxslim(
        *("in.onnx", "out.onnxz", "--prune", "l1=0.5", "--calibration", "data.npz"), cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "out.onnxz").exists()
    assert "refitted" in done.stdout


def test_main_command_cuts_channels(folder: Path) -> None:
    arguments = ("in.onnx", "out.onnx", "--prune", "0.5", "--calibration", "data.npz")
    done = onnxslim(*arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    hidden = {shape.strip("()") for shape in zeros(folder / "out.onnx")}
    assert hidden in ({"6, 8", "8, 4"}, {"6, 9", "9, 4"}), hidden
    assert "lossy" in done.stdout


def test_limit_that_is_missed(folder: Path) -> None:
    done = onnxslim(
        *("prune", "in.onnx", "out.onnx", "--amount", "0.95", "--method", "random"),
        *("--calibration", "data.npz", "--max-drop", "0.5"),
        cwd=folder,
    )
    assert done.returncode == 3
    assert "--max-drop 0.5 was missed by" in done.stderr
    assert "agreement with the original" in done.stderr
    assert not (folder / "out.onnx").exists()


def test_one_sample_is_a_warning(folder: Path) -> None:
    np.savez(folder / "one.npz", x=np.ones((1, 6), np.float32))
    done = onnxslim(
        *("prune", "in.onnx", "out.onnx", "--amount", "0.3", "--calibration", "one.npz"), cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert "one sample only" in " ".join(done.stdout.split())


def save(folder: Path, **arrays: Array) -> None:
    np.savez(folder / "bad.npz", **arrays)  # type: ignore[arg-type]


BAD_DATA = {
    "name": ({"z": np.ones((9, 6), np.float32)}, "no array 'x'"),
    "shape": ({"x": np.ones((9, 5), np.float32)}, "does not fit [N, 6]"),
    "dtype": ({"x": np.ones((9, 6), np.int32)}, "the model wants float32"),
    "nan": ({"x": np.full((9, 6), np.nan, np.float32)}, "NaN in sample 0"),
    "infinite": (
        {"x": np.concatenate([np.ones((3, 6)), np.full((1, 6), np.inf)]).astype(np.float32)},
        "infinity in sample 3",
    ),
    "empty": ({"x": np.ones((0, 6), np.float32)}, "no sample"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_one_line(case: str, folder: Path) -> None:
    arrays, message = BAD_DATA[case]
    save(folder, **arrays)
    arguments = ("prune", "in.onnx", "out.onnx", "--amount", "0.5", "--calibration", "bad.npz")
    done = onnxslim(*arguments, cwd=folder)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (folder / "out.onnx").exists()


BAD_CALLS = {
    "no mode": ((), "needs a mode"),
    "amount above": (("--amount", "1.5"), "between 0 and 1"),
    "amount below": (("--amount", "-0.1"), "between 0 and 1"),
    "amount above, channels": (("--structured", "--amount", "50"), "between 0 and 1"),
    "pattern": (("--pattern", "4:2"), "want N:M"),
    "target": (("--target", "speed=0.5"), "macs=0.5"),
    "target of one": (("--target", "macs=1.5"), "macs=1.5"),
    "method": (("--amount", "0.5", "--method", "l3"), "l1 or random"),
    "scope": (("--amount", "0.5", "--scope", "layer"), "tensor or global"),
    "two modes": (("--amount", "0.5", "--pattern", "2:4"), "amount and pattern"),
    "no data to update": (("--amount", "0.5", "--update"), "x float32 [N, 6]"),
    "no data to judge": (("--amount", "0.5", "--max-drop", "1"), "--max-drop needs data"),
    "data for exact": (("--exact", "--calibration", "data.npz"), "--exact needs no data"),
    "negative drop": (
        ("--amount", "0.5", "--labels", "labels.npz", "--max-drop", "-1"),
        "points of 0 or more",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_are_one_line(case: str, folder: Path) -> None:
    arguments, message = BAD_CALLS[case]
    done = onnxslim("prune", "in.onnx", "out.onnx", *arguments, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (folder / "out.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prune", "much"), "want 0.5 (channels)"),
        (("--prune", "2.5"), "between 0 and 1"),
        (("--prune", "l1=7"), "between 0 and 1"),
        (("--max-drop", "1"), "--max-drop is the limit of --quantize, --prune and --compress"),
        (("--calibration", "data.npz"), "--quantize, --prune and --compress"),
    ],
)
def test_bad_specs_are_one_line(arguments: tuple[str, ...], message: str, folder: Path) -> None:
    done = onnxslim("in.onnx", "out.onnx", *arguments, cwd=folder)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (folder / "out.onnx").exists()
