"""``onnxslim store`` and ``onnxslim cat`` as a user runs them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper


def onnxslim(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    run = [sys.executable, "-m", "onnxslim", *arguments]
    result = subprocess.run(run, cwd=cwd, capture_output=True)
    assert b"Traceback" not in result.stderr, result.stderr
    return result


def weights(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((200, 150)).astype("<f4")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, seeds in (("one", (1, 2)), ("two", (2, 3))):
        tensors = [numpy_helper.from_array(weights(seed), f"w{seed}") for seed in seeds]
        raw = np.arange(8, dtype="<u2").tobytes()
        tensors.append(TensorProto(name="b", data_type=16, dims=[8], raw_data=raw))
        graph = helper.make_graph([], name, [], [], initializer=tensors)
        (tmp_path / f"{name}.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    return tmp_path


def test_add_list_get_remove_collect(folder: Path) -> None:
    assert onnxslim("store", "add", "s", "one.onnx", cwd=folder).returncode == 0
    added = onnxslim("store", "add", "s", "two.onnx", "--as", "two@v2", "--json", "-", cwd=folder)
    report = json.loads(added.stdout)
    assert (report["name"], report["version"], report["shared_bytes"]) == ("two", "v2", 120_000)
    listed = json.loads(onnxslim("store", "ls", "s", "--json", "-", cwd=folder).stdout)
    assert [(item["name"], item["version"]) for item in listed["models"]] == [
        ("one", "1"),
        ("two", "v2"),
    ]
    assert listed["stored_bytes"] < 0.7 * listed["raw_bytes"]
    assert b"2 models" in onnxslim("store", "ls", "s", cwd=folder).stdout
    assert onnxslim("store", "rm", "s", "one", cwd=folder).returncode == 0
    collected = onnxslim("store", "gc", "s", "--json", "-", cwd=folder)
    assert json.loads(collected.stdout)["objects"] == 2
    assert onnxslim("store", "get", "s", "two", "back.onnx", cwd=folder).returncode == 0
    assert (folder / "back.onnx").read_bytes() == (folder / "two.onnx").read_bytes()
    streamed = onnxslim("store", "get", "s", "two@v2", "-", cwd=folder)
    assert streamed.stdout == (folder / "two.onnx").read_bytes()


def test_check_names_the_models_that_are_hit(folder: Path) -> None:
    onnxslim("store", "add", "s", "one.onnx", cwd=folder)
    assert b"sound" in onnxslim("store", "fsck", "s", cwd=folder).stdout
    victim = next(path for path in (folder / "s" / "objects").rglob("*.rot-planes"))
    data = bytearray(victim.read_bytes())
    data[1000] ^= 8
    victim.write_bytes(data)
    checked = onnxslim("store", "fsck", "s", "--json", "report.json", cwd=folder)
    assert checked.returncode == 1
    assert b"one@1" in checked.stderr
    assert list(json.loads((folder / "report.json").read_text())["models"]) == ["one@1"]
    refused = onnxslim("store", "get", "s", "one", "back.onnx", cwd=folder)
    assert refused.returncode == 1
    assert not (folder / "back.onnx").exists()
    assert onnxslim("store", "fsck", "s", "--remove-damaged", cwd=folder).returncode == 1
    onnxslim("store", "add", "s", "one.onnx", cwd=folder)
    assert onnxslim("store", "fsck", "s", cwd=folder).returncode == 0


def test_mistakes_have_their_exit_codes(folder: Path) -> None:
    for arguments, code, message in (
        (("get", "none", "m", "x.onnx"), 1, b"is not a store"),
        (("add", "s", "missing.onnx"), 1, b"does not exist"),
        (("add", "s", "one.onnx", "--as", "../x"), 2, b"cannot be used"),
        (("rm", "s", "m"), 1, b"no model"),
        (("check", "s"), 2, b"No such command"),
    ):
        done = onnxslim("store", *arguments, cwd=folder)
        assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    assert not (folder / "none").exists()


def test_cat_shows_one_tensor_or_writes_it(folder: Path) -> None:
    onnxslim("pack", "one.onnx", "one.onnxz", cwd=folder)
    shown = onnxslim("cat", "one.onnxz", "w1", cwd=folder)
    assert b"w1: FLOAT 200\xc3\x97150" in shown.stdout
    assert onnxslim("cat", "one.onnxz", "w1", "--npy", "w.npy", cwd=folder).returncode == 0
    assert np.array_equal(np.load(folder / "w.npy"), weights(1))
    bits = onnxslim("cat", "one.onnxz", "b", "--npy", "-", cwd=folder).stdout
    assert np.array_equal(np.load(io.BytesIO(bits)), np.arange(8, dtype="<u2"))
    missing = onnxslim("cat", "one.onnxz", "w9", cwd=folder)
    assert (missing.returncode, b"no tensor 'w9'" in missing.stderr) == (1, True)
