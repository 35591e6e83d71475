"""Saving: atomic, in place, streamed, and careful with other people's files."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim import io
from onnxslim.errors import ModelSaveError
from onnxslim.io import copying


def model(size: int = 5000, fill: int = 0) -> onnx.ModelProto:
    kind = TensorProto.FLOAT
    weight = np.arange(size, dtype=np.float32) + fill
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, [size])],
        [helper.make_tensor_value_info("y", kind, [size])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(weight * 2, "v")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def same(path: Path, proto: onnx.ModelProto) -> bool:
    loaded = onnx.load(path)
    for tensor in (*loaded.graph.initializer, *proto.graph.initializer):
        tensor.ClearField("data_location")
    return loaded == proto


@pytest.mark.parametrize("external", [False, True])
def test_in_place(external: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    io.save(io.load(model()), path, external_data=external)
    for _ in range(4):  # and again over what it wrote
        loaded = io.load(path)
        loaded.doc_string = "changed"
        io.save(loaded, path, external_data=external)
    proto = model()
    proto.doc_string = "changed"
    assert same(path, proto)
    assert len(os.listdir(tmp_path)) == (2 if external else 1)


def test_from_external_to_inline_removes_nothing_foreign(tmp_path: Path) -> None:
    io.save(io.load(model()), tmp_path / "a.onnx", external_data=True)
    io.save(io.load(tmp_path / "a.onnx"), tmp_path / "b.onnx", external_data=True)
    before = (tmp_path / "a.onnx.data").read_bytes()
    io.save(io.load(model(fill=1)), tmp_path / "b.onnx", external_data=True)
    assert (tmp_path / "a.onnx.data").read_bytes() == before
    assert same(tmp_path / "a.onnx", model())
    assert same(tmp_path / "b.onnx", model(fill=1))


def test_a_data_file_of_the_source_is_not_overwritten(tmp_path: Path) -> None:
    """Saving to a new name whose data file would be the one that the source uses."""
    io.save(io.load(model()), tmp_path / "a.onnx", external_data=True)
    (tmp_path / "a.onnx").rename(tmp_path / "b.onnx")
    changed = io.load(tmp_path / "b.onnx")
    changed.graph.initializers["w"].const_value = ir.Tensor(np.ones(5000, np.float32))
    io.save(changed, tmp_path / "a.onnx", external_data=True)
    assert not same(tmp_path / "a.onnx", model())
    assert same(tmp_path / "b.onnx", model())
    assert (tmp_path / "a.onnx.data").exists()


def test_target_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    real = tmp_path / "store" / "real.onnx"
    real.write_bytes(model().SerializeToString())
    link = tmp_path / "link.onnx"
    link.symlink_to(real)
    io.save(io.load(model(fill=3)), link)
    assert link.is_symlink()
    assert same(real, model(fill=3))


def test_modes(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        io.save(io.load(model()), tmp_path / "new.onnx", external_data=True)
    finally:
        os.umask(old)
    for name in ("new.onnx", "new.onnx.data"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o640
    (tmp_path / "new.onnx").chmod(0o604)
    io.save(io.load(model()), tmp_path / "new.onnx")
    assert (tmp_path / "new.onnx").stat().st_mode & 0o777 == 0o604


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize("external", [False, True])
def test_failure_leaves_nothing(
    error: BaseException | type[BaseException],
    external: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model().SerializeToString())
    loaded = io.load(path)

    class Bad(ir.Tensor[np.ndarray]):
        def numpy(self) -> np.ndarray:
            raise error

    loaded.graph.initializers["v"].const_value = Bad(np.ones(5000, np.float32), name="v")
    with pytest.raises((KeyboardInterrupt, ModelSaveError)):
        io.save(loaded, path, external_data=external)
    assert os.listdir(tmp_path) == ["m.onnx"]
    assert same(path, model())


def test_a_tensor_of_another_size_is_refused(tmp_path: Path) -> None:
    loaded = io.load(model())
    lazy = ir.LazyTensor(
        lambda: ir.Tensor(np.ones(4999, np.float32)),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape([5000]),
        name="v",
    )
    loaded.graph.initializers["v"].const_value = lazy
    with pytest.raises(ModelSaveError, match="'v' holds 19996 bytes, .* need 20000"):
        io.save(loaded, tmp_path / "m.onnx")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("how", ["rewrite", "truncate", "touch", "append"])
@pytest.mark.parametrize("external", [False, True])
def test_source_changed_in_place(how: str, external: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model().SerializeToString())
    loaded = io.load(path)
    with path.open("r+b") as file:
        if how == "rewrite":
            file.seek(1000)
            file.write(b"changed")
        elif how == "truncate":
            file.truncate(2000)
        elif how == "append":
            file.seek(0, os.SEEK_END)
            file.write(b"x")
    os.utime(path, ns=(1, time.time_ns() + 10**9))
    with pytest.raises(ModelSaveError, match="was modified while it was in use"):
        io.save(loaded, tmp_path / "out.onnx", external_data=external)
    assert os.listdir(tmp_path) == ["m.onnx"]


@pytest.mark.parametrize("refused", [(), ("copy_file_range",), ("copy_file_range", "sendfile")])
@pytest.mark.parametrize("late", [False, True])
def test_ways_to_copy(
    refused: tuple[str, ...], late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model(700_000).SerializeToString())
    monkeypatch.setattr(copying, "_CHUNK", 1 << 20)
    for name in refused:
        original = getattr(os, name)
        calls = [0]

        def refuse(
            *args: object, _o: object = original, _c: list[int] = calls, **kw: object
        ) -> int:
            _c[0] += 1
            if late and _c[0] == 1:  # the first part goes well
                return int(_o(*args, **kw))  # type: ignore[operator]
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, name, refuse)
    io.save(io.load(path), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()


def test_other_file_system(tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    path = tmp_path / "m.onnx"
    path.write_bytes(model(700_000).SerializeToString())
    target = shm / f"onnxslim-test-{os.getpid()}.onnx"
    try:
        io.save(io.load(path), target)
        assert target.read_bytes() == path.read_bytes()
    finally:
        target.unlink(missing_ok=True)


def test_arrays_in_memory(tmp_path: Path) -> None:
    loaded = io.load(model())
    strided = np.arange(10_000, dtype=np.float32)[::2]
    loaded.graph.initializers["w"].const_value = ir.Tensor(strided, name="other name")
    transposed = np.arange(5000, dtype=np.float32).reshape(50, 100).T
    loaded.graph.initializers["v"].const_value = ir.Tensor(transposed)
    io.save(loaded, tmp_path / "m.onnx")
    weights = {
        t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "m.onnx").graph.initializer
    }
    np.testing.assert_array_equal(weights["w"], strided)
    np.testing.assert_array_equal(weights["v"], transposed)
    assert loaded.graph.initializers["w"].const_value.name == "other name"


def test_one_tensor_for_two_names(tmp_path: Path) -> None:
    """As weight sharing leaves it: one object, one place in the data file."""
    loaded = io.load(model())
    loaded.graph.initializers["v"].const_value = loaded.graph.initializers["w"].const_value
    saved = io.save(loaded, tmp_path / "m.onnx", external_data=True)
    assert saved.bytes < 21_000
    expected = model()
    expected.graph.initializer[1].raw_data = expected.graph.initializer[0].raw_data
    assert same(tmp_path / "m.onnx", expected)


def test_devices_are_written_not_replaced() -> None:
    saved = io.save(io.load(model()), "/dev/null")
    assert saved.paths == ()
    assert saved.bytes == len(model().SerializeToString())
    with pytest.raises(ModelSaveError, match="space"):
        io.save(io.load(model()), "/dev/full")
    assert Path("/dev/full").is_char_device()


def test_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        io.save(io.load(model()), tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


KILLED = """
import sys
from onnxslim import io
old, new, target, external = sys.argv[1:]
models = [io.load(old), io.load(new)]
print("ready", flush=True)
while True:
    for model in models:
        io.save(model, target, external_data=external == "1")
"""


@pytest.mark.parametrize("external", [False, True])
def test_kill_at_any_moment(external: bool, tmp_path: Path) -> None:
    versions = [model(300_000), model(300_000, fill=7)]
    paths = [tmp_path / "old.onnx", tmp_path / "new.onnx"]
    for path, proto in zip(paths, versions, strict=True):
        path.write_bytes(proto.SerializeToString())
    folder = tmp_path / "out"
    folder.mkdir()
    target = folder / "m.onnx"
    io.save(io.load(paths[0]), target, external_data=external)
    rng = random.Random(1)
    command = [sys.executable, "-c", KILLED, *map(str, (*paths, target, int(external)))]
    for _ in range(10):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0, 0.06))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert any(same(target, proto) for proto in versions)


@pytest.mark.parametrize("at", [1, 2])
def test_stop_between_the_two_renames(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment that random kills hardly ever meet."""
    path = tmp_path / "m.onnx"
    io.save(io.load(model()), path, external_data=True)
    calls = 0
    replace = os.replace

    def stop(source: str, target: str) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        io.save(io.load(model(fill=9)), path, external_data=True)
    monkeypatch.undo()
    assert same(path, model())
    io.save(io.load(model(fill=9)), path, external_data=True)
    assert same(path, model(fill=9))
    assert len(os.listdir(tmp_path)) == 2


MEASURED = """
import resource, sys
from onnxslim import io
import numpy, ml_dtypes
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = io.load(sys.argv[1])
for value in model.graph.initializers.values():
    value.const_value.numpy().sum()
loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
io.save(model, sys.argv[2], external_data=sys.argv[3] == "1")
print(base, loaded, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("external", [False, True])
def test_memory(external: bool, tmp_path: Path) -> None:
    """100 MB of weights in tensors of 4 MB: reading all and saving takes one at a time."""
    proto = model(1_000_000)
    for number in range(24):
        weight = np.full(1_000_000, number, np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weight, f"w{number}"))
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    del proto
    arguments = [str(path), str(tmp_path / "out.onnx"), str(int(external))]
    # through a shell: a child's peak starts at that of the process it was forked from
    command = ["/bin/sh", "-c", '"$0" "$@"; exit $?', sys.executable, "-c", MEASURED, *arguments]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    base, loaded, saved = (int(word) * 1024 for word in done.stdout.split())
    assert loaded - base < 12e6
    assert saved - base < 14e6
