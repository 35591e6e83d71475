"""``onnxslim prune`` as a user runs it: exact removal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_check import make_feeds, run
from prune_models import Net

from onnxslim import api, io
from onnxslim.errors import UsageError


def onnxslim(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-m", "onnxslim", *arguments], cwd=cwd, capture_output=True, text=True
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result


def net() -> Net:
    """13 of 32 channels alive; a residual whose other branch keeps the zeros of one."""
    net = Net()
    x = net.input("x", (1, 16, 28, 28))
    x = net.op("Relu", [net.conv(x, 32, "c1", zero=range(13, 32))])
    x = net.conv(x, 16, "c2", zero=range(4))
    net.outputs["y"] = (1, 8, 28, 28)
    x = net.op("Relu", [net.op("Add", [x, "x"])])
    weight = net.weight("c3.w", net.random(8, 16, 1, 1))
    net.op("Conv", [x, weight], 8, out="y")
    return net


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    io.save(net().model("y"), tmp_path / "in.onnx")
    return tmp_path


def widths(path: Path) -> dict[str, tuple[int, ...]]:
    return {item.name: tuple(item.dims) for item in onnx.load(path).graph.initializer}


@pytest.mark.parametrize(
    ("options", "width"), [((), 16), (("--align", "1"), 13), (("--align", "5"), 15)]
)
def test_exact(folder: Path, options: tuple[str, ...], width: int) -> None:
    result = onnxslim("prune", "in.onnx", "out.onnx", "--exact", *options, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "outputs passed" in result.stdout
    assert widths(folder / "out.onnx")["c1.w"] == (width, 16, 3, 3)
    before, after = io.load(folder / "in.onnx"), io.load(folder / "out.onnx")
    feeds = make_feeds(before)
    (one,), (other,) = run(before, feeds), run(after, feeds)
    assert np.abs(one - other).max() <= 1e-6 * np.abs(one).max()


def test_exact_alone_fuses_nothing(folder: Path) -> None:
    onnxslim("prune", "in.onnx", "out.onnx", "--exact", cwd=folder)
    kinds = [
        [node.op_type for node in onnx.load(folder / name).graph.node]
        for name in ("in.onnx", "out.onnx")
    ]
    assert kinds[0] == kinds[1]


def test_second_run_changes_no_byte(folder: Path) -> None:
    onnxslim("prune", "in.onnx", "once.onnx", "--exact", cwd=folder)
    onnxslim("prune", "once.onnx", "twice.onnx", "--exact", cwd=folder)
    assert (folder / "once.onnx").read_bytes() == (folder / "twice.onnx").read_bytes()


def test_explanation_is_data_and_a_table(folder: Path) -> None:
    options = ("--exact", "--explain", "--json", "report.json")
    result = onnxslim("prune", "in.onnx", "out.onnx", *options, cwd=folder)
    report = json.loads((folder / "report.json").read_text())
    groups = {entry["site"]: entry for entry in report["explanations"]}
    first = groups["c1.w"]
    assert (first["before"], first["after"]) == (32, 16)
    assert first["shapes"]["c1.w"] == [[32, 16, 3, 3], [16, 16, 3, 3]]
    assert first["removed"] == {"zero filter": 16}
    held = first["kept"][0]
    assert held["idle"]
    assert held["channels"] == 3
    assert held["reason"].startswith("16 channels are faster than 13 in Conv -> ")
    assert held["node"].startswith("Conv -> ")
    second = groups["c2.w"]
    assert (second["before"], second["after"], second["removed"]) == (16, 16, {})
    assert second["kept"][0]["channels"] == 4
    assert "is not computed from prunable weights" in second["kept"][0]["reason"]
    assert "32 → 16" in result.stdout
    assert "stays because" in result.stdout
    assert "16 zero filter" in result.stdout


def test_main_command_takes_the_same_options(folder: Path) -> None:
    options = ("--align", "1", "--explain", "--json", "-")
    result = onnxslim("in.onnx", "out.onnx", "--quiet", *options, cwd=folder)
    report = json.loads(result.stdout)
    assert widths(folder / "out.onnx")["c1.w"][0] == 13
    assert [entry["after"] for entry in report["explanations"] if entry["site"] == "c1.w"] == [13]
    plain = json.loads(onnxslim("in.onnx", "o2.onnx", "-q", "--json", "-", cwd=folder).stdout)
    assert plain["explanations"] == []


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (("in.onnx", "out.onnx", "--exact", "--align", "x"), "want auto, 1 (no alignment)", 2),
        (("in.onnx", "out.onnx", "--exact", "--align", "0"), "want auto, 1 (no alignment)", 2),
        (("none.onnx", "out.onnx", "--exact"), "none.onnx", 1),
        (("in.onnx", "out.onnx"), "prune needs", 2),
    ],
)
def test_errors_are_one_line_and_write_nothing(
    folder: Path, arguments: tuple[str, ...], message: str, code: int
) -> None:
    result = onnxslim("prune", *arguments, cwd=folder)
    assert result.returncode == code
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (folder / "out.onnx").exists()


def test_help_has_examples(tmp_path: Path) -> None:
    text = onnxslim("prune", "--help", cwd=tmp_path).stdout
    assert "onnxslim prune pruned.onnx small.onnx --exact" in text
    assert "--align" in text
    assert "--explain" in text


def test_api_returns_model_and_report() -> None:
    pruned = api.prune(net().model("y"), align=1, explain=True)
    weight = pruned.model.graph.initializers["c1.w"].const_value
    assert weight is not None
    assert weight.shape[0] == 13
    assert pruned.report.explanations[0].after == 13
    with pytest.raises(UsageError, match="align"):
        api.prune(net().model("y"), align="many")


def test_source_stays_as_it_is() -> None:
    model = net().model("y")
    before = io.to_proto(model).SerializeToString()
    api.prune(model)
    assert io.to_proto(model).SerializeToString() == before
