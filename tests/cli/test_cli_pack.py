"""``onnxslim pack``, ``unpack`` and ``ls`` as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper


def onnxslim(
    *arguments: str, cwd: Path, stdin: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    run = [sys.executable, "-m", "onnxslim", *arguments]
    result = subprocess.run(run, cwd=cwd, capture_output=True, input=stdin)
    assert b"Traceback" not in result.stderr, result.stderr
    return result


def model(path: Path, scale: float) -> bytes:
    """Three matrices; two of them are multiplied by ``scale``, a third is the first transposed."""
    rng = np.random.default_rng(0)
    first = (rng.standard_normal((200, 150)) * scale).astype("<f4")
    tensors = [
        numpy_helper.from_array(first, "first"),
        numpy_helper.from_array(rng.standard_normal((90, 300)).astype("<f4"), "kept"),
        numpy_helper.from_array(np.ascontiguousarray(first.T), "turned"),
    ]
    graph = helper.make_graph([], "graph", [], [], initializer=tensors)
    data: bytes = helper.make_model(graph).SerializeToString()
    path.write_bytes(data)
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model(tmp_path / "old.onnx", 1)
    model(tmp_path / "new.onnx", 1.0001)
    return tmp_path


def test_pack_unpack_and_list(folder: Path) -> None:
    assert onnxslim("pack", "old.onnx", "old.onnxz", cwd=folder).returncode == 0
    listing = onnxslim("ls", "old.onnxz", "--json", "-", cwd=folder)
    codecs = {item["name"]: item["codec"] for item in json.loads(listing.stdout)["tensors"]}
    assert codecs == {"first": "rot-planes", "kept": "rot-planes", "turned": "transposed"}
    assert b"transposed" in onnxslim("ls", "old.onnxz", cwd=folder).stdout
    assert onnxslim("unpack", "old.onnxz", "again.onnx", cwd=folder).returncode == 0
    assert (folder / "again.onnx").read_bytes() == (folder / "old.onnx").read_bytes()


def test_an_update_needs_its_base(folder: Path) -> None:
    onnxslim("pack", "new.onnx", "new.onnxz", cwd=folder)
    done = onnxslim("pack", "new.onnx", "update.onnxz", "--base", "old.onnx", cwd=folder)
    assert done.returncode == 0
    small, whole = ((folder / name).stat().st_size for name in ("update.onnxz", "new.onnxz"))
    assert small < 0.4 * whole
    refused = onnxslim("unpack", "update.onnxz", "again.onnx", cwd=folder)
    assert refused.returncode == 1
    assert b"--base" in refused.stderr
    wrong = onnxslim("unpack", "update.onnxz", "again.onnx", "--base", "new.onnx", cwd=folder)
    assert wrong.returncode == 1
    assert b"another base" in wrong.stderr
    assert not (folder / "again.onnx").exists()
    onnxslim("unpack", "update.onnxz", "again.onnx", "--base", "old.onnx", cwd=folder)
    assert (folder / "again.onnx").read_bytes() == (folder / "new.onnx").read_bytes()


def test_pipes_both_ways(folder: Path) -> None:
    data = (folder / "old.onnx").read_bytes()
    packed = onnxslim("pack", "-", "-", "--profile", "stdlib", cwd=folder, stdin=data)
    assert packed.stdout.startswith(b"ONNXZ")
    assert onnxslim("unpack", "-", "-", cwd=folder, stdin=packed.stdout).stdout == data
    assert onnx.load_from_string(data).graph.initializer[1].name == "kept"


def test_what_cannot_be_packed(folder: Path) -> None:
    (folder / "text.onnx").write_bytes(b"hello\n" * 300)
    done = onnxslim("pack", "text.onnx", "text.onnxz", cwd=folder)
    assert done.returncode == 1
    assert b"not an ONNX model" in done.stderr
    done = onnxslim("pack", "old.onnx", "p.onnxz", "--profile", "best", cwd=folder)
    assert done.returncode == 2
    assert b"default, stdlib, max" in done.stderr
    assert not (folder / "text.onnxz").exists()
    assert not (folder / "p.onnxz").exists()
