"""Bad sources and targets: one clear line, nothing left behind."""

from __future__ import annotations

import io as stdio
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim import io
from onnxslim.errors import InvalidModelError, ModelLoadError, ModelSaveError


def model() -> onnx.ModelProto:
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, [1000])],
        [helper.make_tensor_value_info("y", kind, [1000])],
        [numpy_helper.from_array(np.arange(1000, dtype=np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"hello, this is a text file\n" * 100, "truncated or not an ONNX model"),
        (b"{}", "truncated or not an ONNX model"),
        (b"\x08\x08", "holds no graph"),
        (model().SerializeToString()[:-1], "truncated or not an ONNX model"),
        (model().SerializeToString()[:2000], "truncated or not an ONNX model"),
        (model().SerializeToString()[:1], "truncated or not an ONNX model"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "truncated or not an ONNX model"),
    ],
)
@pytest.mark.parametrize("way", ["path", "bytes", "stream"])
def test_not_a_model(data: bytes, words: str, way: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    source = {"path": path, "bytes": data, "stream": stdio.BytesIO(data)}[way]
    with pytest.raises(ModelLoadError, match=words) as caught:
        io.load(source)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="'.*none.onnx' does not exist"):
        io.load(tmp_path / "none.onnx")
    with pytest.raises(ModelLoadError, match="is a directory"):
        io.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelLoadError, match="not a regular file"):
        io.load(tmp_path / "pipe")
    with pytest.raises(ModelLoadError, match="no graph"):
        io.load(onnx.ModelProto())


def test_rules_of_the_graph() -> None:
    proto = model()
    proto.graph.node.append(proto.graph.node[0])
    with pytest.raises(InvalidModelError, match="'y' is redeclared") as caught:
        io.load(proto)
    assert "\n" not in str(caught.value)
    proto = model()
    proto.graph.node[0].attribute.extend([helper.make_attribute("a", 1)] * 2)
    with pytest.raises(InvalidModelError, match="attribute twice"):
        io.load(proto)


def test_targets(tmp_path: Path) -> None:
    loaded = io.load(model())
    with pytest.raises(ModelSaveError, match="is a directory"):
        io.save(loaded, tmp_path)
    with pytest.raises(ModelSaveError, match="folder '.*none' does not exist"):
        io.save(loaded, tmp_path / "none" / "m.onnx")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelSaveError, match="does not exist"):
        io.check_target(tmp_path / "file" / "m.onnx")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelSaveError, match="not a regular file"):
        io.check_target(tmp_path / "pipe")
    with pytest.raises(ModelSaveError, match="external data needs a path"):
        io.save(loaded, stdio.BytesIO(), external_data=True)
    assert sorted(os.listdir(tmp_path)) == ["file", "pipe"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ModelSaveError, match="no permission"):
        io.check_target(tmp_path / "m.onnx")
    tmp_path.chmod(0o700)


def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(ModelSaveError, match="space"):
        io.save(io.load(model()), full)


def test_standard_streams(tmp_path: Path) -> None:
    """Through a pipe and through redirection; the latter is read like a path."""
    path = tmp_path / "m.onnx"
    path.write_bytes(model().SerializeToString())
    script = (
        "from onnxslim import io; m = io.load('-'); "
        "import sys; print(io.source_path(m), file=sys.stderr); io.save(m, '-')"
    )
    command = [sys.executable, "-c", script]
    piped = subprocess.run(command, input=path.read_bytes(), capture_output=True, check=True)
    assert piped.stdout == path.read_bytes()
    with path.open("rb") as file, (tmp_path / "out.onnx").open("wb") as out:
        subprocess.run(command, stdin=file, stdout=out, check=True, stderr=subprocess.DEVNULL)
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()
    broken = subprocess.run(command, input=b"", capture_output=True, check=False)
    assert b"standard input is empty" in broken.stderr


def test_importing_the_room_starts_no_runtime() -> None:
    script = "import sys, onnxslim.io; print('onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.strip() == b"False"
