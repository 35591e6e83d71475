"""Every byte of a model comes back, whatever it is made of."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from pack_models import (
    all_dtypes,
    model_of,
    nested,
    normal,
    raw_tensor,
    with_data_files,
    written,
)

from onnxslim.errors import ModelLoadError, PackError, UsageError
from onnxslim.packing import is_packed, list_tensors, pack, unpack

PROFILES = ("default", "stdlib", "max")
REAL_MODELS = sorted((Path(__file__).parents[2] / "models").glob("*.onnx"))


def round_trip(model: Path, folder: Path, profile: str = "default") -> float:
    packed, restored = folder / "packed.onnxz", folder / "restored.onnx"
    report = pack(model, packed, profile=profile)
    assert report.packed_bytes == packed.stat().st_size
    assert report.packed_bytes <= report.raw_bytes * 1.001 + 4096
    assert is_packed(packed)
    assert not is_packed(model)
    assert unpack(packed, restored) == [str(restored)]
    assert restored.read_bytes() == model.read_bytes()
    assert sorted(os.listdir(folder)) == sorted({model.name, packed.name, restored.name})
    return report.ratio


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("make", [all_dtypes, nested], ids=["all-dtypes", "nested"])
def test_models_made_here(make, profile: str, tmp_path: Path) -> None:
    round_trip(written(make(), tmp_path / "m.onnx"), tmp_path, profile)


@pytest.mark.parametrize("model", REAL_MODELS, ids=[path.name for path in REAL_MODELS])
def test_real_models(model: Path, tmp_path: Path) -> None:
    packed, restored = tmp_path / "p.onnxz", tmp_path / "r.onnx"
    report = pack(model, packed)
    assert report.packed_bytes <= report.raw_bytes * 1.001 + 4096
    unpack(packed, restored)
    assert restored.read_bytes() == model.read_bytes()


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("dtype", ["FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "COMPLEX64"])
def test_dense_floats_shrink(dtype: str, profile: str, tmp_path: Path) -> None:
    number = onnx.TensorProto.DataType.Value(dtype)
    model = model_of([raw_tensor("w", number, [70_001], normal(70_001, dtype))])
    ratio = round_trip(written(model, tmp_path / "m.onnx"), tmp_path, profile)
    assert ratio > {"FLOAT": 1.19, "FLOAT16": 1.15, "BFLOAT16": 1.47}.get(dtype, 1.08)


def test_nan_payloads_and_odd_floats(tmp_path: Path) -> None:
    words = np.random.default_rng(3).integers(0, 1 << 32, 40_000, dtype=np.uint32)
    words[::3] |= np.uint32(0x7F800001)  # NaNs with payloads, quiet and signalling
    words[::5] = 0x80000000
    words[::7] = 0xFF800000
    words[::11] &= np.uint32(0x807FFFFF)
    model = model_of([raw_tensor("w", 1, [40_000], words.astype("<u4").tobytes())])
    round_trip(written(model, tmp_path / "m.onnx"), tmp_path)


@pytest.mark.parametrize("profile", PROFILES)
def test_sparse_constant_and_runs(profile: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    keep = rng.random(200_000) < 0.2
    dense = np.frombuffer(normal(200_000), "<f4")
    sparse = np.where(keep, dense, 0)
    sparse8 = (rng.integers(-90, 90, 200_000) * (rng.random(200_000) < 0.2)).astype("i1")
    runs = np.repeat(rng.standard_normal(100).astype("<f4"), 2000 * 2)
    tensors = [
        raw_tensor("sparse", 1, [200_000], sparse.astype("<f4").tobytes()),
        raw_tensor("signed", 1, [200_000], (dense * keep).astype("<f4").tobytes()),
        raw_tensor("sparse8", 3, [200_000], sparse8.tobytes()),
        raw_tensor("fill", 1, [200_000], np.full(200_000, 1.5, "<f4").tobytes()),
        raw_tensor("runs", 1, [400_000], runs.tobytes()),
    ]
    round_trip(written(model_of(tensors), tmp_path / "m.onnx"), tmp_path, profile)
    listed = {item.name: item for item in list_tensors(tmp_path / "packed.onnxz")}
    assert listed["fill"].codec == "fill"
    assert listed["fill"].packed_bytes < 40
    assert listed["sparse"].codec == "bitmap+values"
    assert listed["sparse"].raw_bytes / listed["sparse"].packed_bytes > 5
    assert listed["signed"].codec == "bitmap+values"  # half of its zeros are -0.0
    assert listed["signed"].raw_bytes / listed["signed"].packed_bytes > 4.5
    assert listed["sparse8"].raw_bytes / listed["sparse8"].packed_bytes > 3
    assert listed["runs"].codec == ("codebook" if profile == "max" else "rle")
    assert listed["runs"].raw_bytes / listed["runs"].packed_bytes > 500


@pytest.mark.parametrize("profile", PROFILES)
def test_float_levels_pack_fourfold(profile: str, tmp_path: Path) -> None:
    count = 150_000 if profile == "max" else 600_000
    weights = np.frombuffer(normal(count), "<f4")
    low, high = weights.min(), weights.max()
    levels = np.linspace(low, high, 256, dtype="<f4")
    indices = np.round((weights - low) / (high - low) * 255).astype(int)
    model = model_of([raw_tensor("w", 1, [count], levels[indices].tobytes())])
    assert round_trip(written(model, tmp_path / "m.onnx"), tmp_path, profile) >= 4
    assert list_tensors(tmp_path / "packed.onnxz")[0].codec == "codebook"


def test_random_bytes_do_not_grow(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    sizes = [3, 700, 1500, 5000, 130_000, 131_072, 140_001] * 6
    tensors = [
        raw_tensor(f"w{number}", 2, [size], rng.bytes(size)) for number, size in enumerate(sizes)
    ]
    round_trip(written(model_of(tensors), tmp_path / "m.onnx"), tmp_path)


def test_equal_tensors_are_stored_once(tmp_path: Path) -> None:
    data = normal(60_000)
    tensors = [raw_tensor(f"w{number}", 1, [60_000], data) for number in range(5)]
    changed = bytearray(data)
    changed[1000] ^= 1
    tensors.append(raw_tensor("near", 1, [60_000], bytes(changed)))
    model = written(model_of(tensors), tmp_path / "m.onnx")
    round_trip(model, tmp_path)
    packed = tmp_path / "packed.onnxz"
    assert packed.stat().st_size < 2 * len(data)
    assert len({item.sha256 for item in list_tensors(packed)}) == 2


def test_int8_max_is_not_worse_than_zstd_19_of_the_file(tmp_path: Path) -> None:
    import zstandard

    rng = np.random.default_rng(6)
    rows = rng.integers(-60, 60, (64, 512), dtype=np.int8)
    repeated = np.concatenate([rows[rng.integers(0, 64, 900)], rng.normal(0, 20, (900, 512))])
    tensors = [raw_tensor("w", 3, [1800, 512], repeated.astype("i1").tobytes())]
    tensors += [
        raw_tensor(f"b{number}", 6, [64], rng.integers(0, 99, 64, dtype="<i4").tobytes())
        for number in range(300)
    ]
    model = written(model_of(tensors), tmp_path / "m.onnx")
    opponent = len(zstandard.ZstdCompressor(level=19).compress(model.read_bytes()))
    assert pack(model, tmp_path / "p.onnxz", profile="max").packed_bytes <= opponent * 1.002


def test_data_files_come_back_under_their_names(tmp_path: Path) -> None:
    model, names = with_data_files(tmp_path / "in")
    packed = tmp_path / "m.onnxz"
    report = pack(model, packed)
    assert report.raw_bytes == sum(os.path.getsize(tmp_path / "in" / n) for n in names) + (
        model.stat().st_size
    )
    (tmp_path / "out").mkdir()
    paths = unpack(packed, tmp_path / "out" / "again.onnx")
    assert (tmp_path / "out" / "again.onnx").read_bytes() == model.read_bytes()
    assert sorted(os.path.relpath(path, tmp_path / "out") for path in paths[1:]) == names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()
    listed = list_tensors(packed)
    assert len(listed) == 12
    assert {item.codec for item in listed} == {"rot-planes"}
    assert unpack(packed, tmp_path / "out" / "again.onnx") == paths  # the same files: no conflict


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("../w.bin", "'..'"),
        ("/etc/hostname", "absolute"),
        ("a\\b", "backslash"),
        ("C:x", "colon"),
        ("", "empty"),
        ("link.bin", "link"),
        ("missing.bin", "missing"),
        ("./.hidden", "hidden"),
    ],
)
def test_unsafe_data_files_are_not_read(location: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(4000))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1000], data_location=1)
    tensor.external_data.add(key="location", value=location)
    model = written(model_of([tensor]), folder / "m.onnx")
    with pytest.raises(PackError, match=reason):
        pack(model, tmp_path / "p.onnxz")
    assert not (tmp_path / "p.onnxz").exists()


def test_unknown_fields_and_trailing_messages(tmp_path: Path) -> None:
    data = nested().SerializeToString()
    unknown = b"\xfa\x7f\x05hello" + b"\xf8\x7f\x96\x01"  # field 2047, bytes and number
    second = helper.make_graph([], "g2", [], [], initializer=[raw_tensor("z", 1, [9], b"\0" * 36)])
    merged = model_of([]).SerializeToString() + b"\x3a"
    body = second.SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data + unknown + merged + bytes([len(body)]) + body + unknown)
    round_trip(path, tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello, this is text\n" * 99, os.urandom(5000)])
def test_what_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(PackError, match=r"is not an ONNX model|is empty"):
        pack(tmp_path / "m.onnx", tmp_path / "p.onnxz")
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_missing_file_directory_and_profile(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="does not exist"):
        pack(tmp_path / "none.onnx", tmp_path / "p.onnxz")
    with pytest.raises(ModelLoadError, match="directory"):
        pack(tmp_path, tmp_path / "p.onnxz")
    with pytest.raises(UsageError, match="unknown profile 'best'"):
        pack(tmp_path / "none.onnx", tmp_path / "p.onnxz", profile="best")


@pytest.mark.parametrize("profile", PROFILES)
def test_same_bytes_with_any_number_of_threads(profile: str, tmp_path: Path) -> None:
    count = 270_000 if profile == "max" else 900_000
    tensors = [raw_tensor("a", 1, [count], normal(count)), *nested().graph.initializer]
    tensors += all_dtypes().graph.initializer[::3]
    model = written(model_of(tensors), tmp_path / "m.onnx")
    results = set()
    for threads in (1, 2, 5):
        pack(model, tmp_path / "p.onnxz", profile=profile, threads=threads)
        results.add((tmp_path / "p.onnxz").read_bytes())
        unpack(tmp_path / "p.onnxz", tmp_path / "r.onnx", threads=threads)
        assert (tmp_path / "r.onnx").read_bytes() == model.read_bytes()
    assert len(results) == 1


class OneWay(io.RawIOBase):
    """A pipe: gives little at a time, and cannot seek."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, 1000) if size >= 0 else 1000)

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise AssertionError("a pipe cannot seek")


def test_streams_both_ways(tmp_path: Path) -> None:
    data = nested().SerializeToString()
    packed, restored = io.BytesIO(), io.BytesIO()
    pack(OneWay(data), packed)
    written(nested(), tmp_path / "m.onnx")
    pack(tmp_path / "m.onnx", tmp_path / "p.onnxz")
    assert (tmp_path / "p.onnxz").read_bytes() == packed.getvalue()
    assert unpack(OneWay(packed.getvalue()), restored) == []
    assert restored.getvalue() == data
    unpack(OneWay(packed.getvalue()), tmp_path / "r.onnx")
    assert (tmp_path / "r.onnx").read_bytes() == data


def test_real_pipes(tmp_path: Path) -> None:
    data = nested().SerializeToString()
    code = (
        "import sys; from onnxslim.packing import pack, unpack; "
        "(pack if sys.argv[1] == 'pack' else unpack)(sys.stdin.buffer, sys.stdout.buffer)"
    )
    for direction in ("pack", "unpack"):
        run = [sys.executable, "-c", code, direction]
        done = subprocess.run(run, input=data, capture_output=True, check=True)
        assert done.stderr == b""
        data = done.stdout
    assert data == nested().SerializeToString()


def test_data_files_need_paths(tmp_path: Path) -> None:
    model, _ = with_data_files(tmp_path / "in")
    with pytest.raises(PackError, match="not a stream"):
        pack(io.BytesIO(model.read_bytes()), io.BytesIO())
    pack(model, tmp_path / "m.onnxz")
    with pytest.raises(PackError, match="not a stream"):
        unpack(tmp_path / "m.onnxz", io.BytesIO())


def test_stdlib_profile_needs_no_zstandard(tmp_path: Path) -> None:
    """Nothing of zstandard is imported, to write or to read."""
    model = written(nested(), tmp_path / "m.onnx")
    code = (
        "import sys; sys.modules['zstandard'] = None\n"
        "from onnxslim.packing import pack, unpack\n"
        "from onnxslim.errors import PackError\n"
        "pack('m.onnx', 's.onnxz', profile='stdlib'); unpack('s.onnxz', 'r.onnx')\n"
        "try: unpack('d.onnxz', 'd.onnx')\n"
        "except PackError as error: print(error)\n"
    )
    pack(model, tmp_path / "d.onnxz")
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, check=True, text=True)
    assert "install it" in done.stdout
    assert (tmp_path / "r.onnx").read_bytes() == model.read_bytes()
    assert not (tmp_path / "d.onnx").exists()
