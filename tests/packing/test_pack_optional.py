"""Packages that may be missing: each profile says what it needs, to write and to read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pack_models import model_of, raw_tensor, written

from onnxslim.errors import PackError
from onnxslim.packing import encode, list_tensors, pack, unpack
from onnxslim.packing.decode import BROTLI, PCO, decode


def model_for_max(folder: Path) -> Path:
    """Wide integers, which pcodec packs best, and rows of other scales, which brotli does."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(0, 1000, 20_000).astype("<i4")
    scales = rng.permutation(np.geomspace(2, 60, 64))
    rows = np.clip(rng.normal(0, 1, (64, 2100)) * scales[:, None], -127, 127).astype("i1")
    tensors = [
        raw_tensor("numbers", 6, [20_000], numbers.tobytes()),
        raw_tensor("rows", 3, [64, 2100], rows.tobytes()),
    ]
    return written(model_of(tensors), folder / "m.onnx")


def run_without(packages: list[str], code: str, folder: Path) -> str:
    """Run code in which importing some packages fails; return what it prints."""
    blocked = "import sys\n" + "".join(f"sys.modules['{name}'] = None\n" for name in packages)
    lines = (
        "from onnxslim.packing import pack, unpack\nfrom onnxslim.errors import OnnxSlimError\n"
        f"try:\n    {code}\nexcept OnnxSlimError as error: print(type(error).__name__, error)\n"
    )
    run = [sys.executable, "-c", blocked + lines]
    return subprocess.run(run, cwd=folder, capture_output=True, check=True, text=True).stdout


def test_max_uses_pcodec_and_brotli(tmp_path: Path) -> None:
    model = model_for_max(tmp_path)
    report = pack(model, tmp_path / "p.onnxz", profile="max")
    assert report.packed_bytes < pack(model, tmp_path / "d.onnxz").packed_bytes
    codecs = {item.name: item.codec for item in list_tensors(tmp_path / "p.onnxz")}
    assert codecs == {"numbers": "pcodec", "rows": "brotli"}
    unpack(tmp_path / "p.onnxz", tmp_path / "r.onnx")
    assert (tmp_path / "r.onnx").read_bytes() == model.read_bytes()


@pytest.mark.parametrize(("missing", "other"), [("pcodec", "brotli"), ("brotli", "pcodec")])
def test_a_missing_package_is_named(missing: str, other: str, tmp_path: Path) -> None:
    model = model_for_max(tmp_path)
    pack(model, tmp_path / "p.onnxz", profile="max")
    for code in ("unpack('p.onnxz', 'r.onnx')", "pack('m.onnx', 'q.onnxz', profile='max')"):
        said = run_without([missing], code, tmp_path)
        assert said.startswith("PackError")
        assert f"'{missing}'" in said
        assert "pip install 'onnxslim[pack]'" in said
        assert f"'{other}'" not in said
    assert not (tmp_path / "r.onnx").exists()
    assert not (tmp_path / "q.onnxz").exists()


def test_default_needs_no_extra_and_stdlib_nothing(tmp_path: Path) -> None:
    model = model_for_max(tmp_path)
    extras = ["pcodec", "brotli"]
    for profile, blocked in (("default", extras), ("stdlib", [*extras, "zstandard"])):
        code = f"pack('m.onnx', 'p.onnxz', profile='{profile}'); unpack('p.onnxz', 'r.onnx')"
        assert run_without(blocked, code, tmp_path) == ""
        assert (tmp_path / "r.onnx").read_bytes() == model.read_bytes()
        (tmp_path / "r.onnx").unlink()
    code = f"pack('m.onnx', 'd.onnxz', base='m.onnx', profile='{profile}'); "
    code += "unpack('d.onnxz', 'r.onnx', base='m.onnx')"
    assert run_without(blocked, code, tmp_path) == ""


def test_payloads_of_the_packages_keep_every_bit() -> None:
    words = np.random.default_rng(3).integers(0, 1 << 32, 20_000, dtype=np.uint32)
    words[::3] |= np.uint32(0x7F800001)  # NaNs with payloads
    words[::5] = 0x80000000
    data = words.astype("<u4").view(np.uint8)
    profile = encode.PROFILES["max"]
    for recipe, codec in (
        (encode.pco_floats, PCO),
        (encode.pco_integers, PCO),
        (encode.brotli, BROTLI),
    ):
        for width in (2, 4, 8):
            result = recipe(data, width, profile)
            assert result is not None
            assert result[0] == codec
            assert decode(*result, data.size, "test").tobytes() == data.tobytes()
            with pytest.raises(PackError, match="damaged"):
                decode(*result, data.size - 8, "test")
            with pytest.raises(PackError, match="damaged"):
                decode(*result, data.size + 8, "test")
