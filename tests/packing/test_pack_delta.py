"""New versions of a model, packed as differences to a base version."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pack_models import model_of, nested, normal, raw_tensor, with_data_files, written

from onnxslim.errors import PackError
from onnxslim.packing import list_tensors, pack, read_tensor, unpack
from onnxslim.packing.decode import DIFF, XOR, decode, inner
from onnxslim.packing.delta import difference, restored, xor

COUNT = 60_000


def weights(seed: int) -> np.ndarray:
    return np.frombuffer(normal(COUNT, seed=seed), "<f4").reshape(200, 300)


def tuned(values: np.ndarray, size: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(values.shape)
    return (values + values.std() * size * noise).astype("<f4")


def of(name: str, values: np.ndarray):
    return raw_tensor(name, 1, list(values.shape), values.astype("<f4").tobytes())


def pair(folder: Path) -> tuple[Path, Path]:
    """An old model and a new one: tensors kept, tuned, renamed, added, removed and reshaped."""
    old = [of(name, weights(n)) for n, name in enumerate(["kept", "tuned", "name", "gone", "flat"])]
    old.append(of("renamed", weights(7).reshape(100, 600)))
    new = [of("kept", weights(0)), of("tuned", tuned(weights(1), 1e-3, 1))]
    new += [of("other name", weights(2)), of("added", weights(9))]
    new += [of("flat", tuned(weights(4), 1e-3, 2).reshape(-1))]
    new += [of("new name", tuned(weights(7).reshape(100, 600), 1e-3, 3))]
    return written(model_of(old), folder / "old.onnx"), written(model_of(new), folder / "new.onnx")


def restored_bytes(packed: Path, base: Path) -> bytes:
    output = io.BytesIO()
    unpack(io.BytesIO(packed.read_bytes()), output, base=base)
    return output.getvalue()


@pytest.mark.parametrize("profile", ["default", "stdlib", "max"])
def test_every_kind_of_change(profile: str, tmp_path: Path) -> None:
    old, new = pair(tmp_path)
    report = pack(new, tmp_path / "d.onnxz", base=old, profile=profile)
    alone = pack(new, tmp_path / "n.onnxz", profile=profile)
    assert report.packed_bytes < 0.6 * alone.packed_bytes
    assert restored_bytes(tmp_path / "d.onnxz", old) == new.read_bytes()
    codecs = {item.name: item.codec for item in list_tensors(tmp_path / "d.onnxz")}
    assert codecs["kept"] == codecs["other name"] == "base"
    assert codecs["tuned"] == codecs["flat"] == codecs["new name"] == "int-diff"
    assert codecs["added"] in ("rot-planes", "pcodec")


def test_the_base_may_be_packed(tmp_path: Path) -> None:
    old, new = pair(tmp_path)
    pack(old, tmp_path / "old.onnxz")
    pack(new, tmp_path / "a.onnxz", base=old)
    pack(new, tmp_path / "b.onnxz", base=tmp_path / "old.onnxz")
    for packed in ("a.onnxz", "b.onnxz"):
        for base in ("old.onnx", "old.onnxz"):
            assert restored_bytes(tmp_path / packed, tmp_path / base) == new.read_bytes()


def test_the_base_may_have_data_files(tmp_path: Path) -> None:
    old, names = with_data_files(tmp_path / "in")
    pack(old, tmp_path / "same.onnxz", base=old)
    assert (tmp_path / "same.onnxz").stat().st_size < 5000
    unpack(tmp_path / "same.onnxz", tmp_path / "again.onnx", base=old)
    for name in names:
        assert (tmp_path / name).read_bytes() == (tmp_path / "in" / name).read_bytes()
    pack(old, tmp_path / "old.onnxz")
    unpack(tmp_path / "same.onnxz", tmp_path / "again.onnx", base=tmp_path / "old.onnxz")
    assert (tmp_path / "again.onnx").read_bytes() == old.read_bytes()


def test_a_missing_or_wrong_base_is_refused(tmp_path: Path) -> None:
    old, new = pair(tmp_path)
    pack(new, tmp_path / "d.onnxz", base=old)
    with pytest.raises(PackError, match="packed against a base version .*--base"):
        unpack(tmp_path / "d.onnxz", tmp_path / "r.onnx")
    with pytest.raises(PackError, match="base version"):
        read_tensor(tmp_path / "d.onnxz", "tuned")
    changed = bytearray(old.read_bytes())
    changed[len(changed) // 2] ^= 1
    (tmp_path / "wrong.onnx").write_bytes(changed)
    with pytest.raises(PackError, match=r"another base .* 1 of the 5 tensors"):
        unpack(tmp_path / "d.onnxz", tmp_path / "r.onnx", base=tmp_path / "wrong.onnx")
    with pytest.raises(PackError, match="itself packed against a base"):
        pack(new, tmp_path / "e.onnxz", base=tmp_path / "d.onnxz")
    with pytest.raises(PackError, match="does not exist"):
        pack(new, tmp_path / "e.onnxz", base=tmp_path / "none.onnx")
    assert not (tmp_path / "r.onnx").exists()
    assert not (tmp_path / "e.onnxz").exists()
    assert read_tensor(tmp_path / "d.onnxz", "added").tobytes() == weights(9).tobytes()


def test_an_unrelated_base_changes_nothing(tmp_path: Path) -> None:
    _, new = pair(tmp_path)
    other = written(nested(), tmp_path / "nested.onnx")
    pack(new, tmp_path / "n.onnxz")
    pack(new, tmp_path / "d.onnxz", base=other)
    assert (tmp_path / "d.onnxz").read_bytes() == (tmp_path / "n.onnxz").read_bytes()
    unpack(tmp_path / "d.onnxz", tmp_path / "r.onnx")  # and no base is needed


def test_same_bytes_with_any_number_of_threads(tmp_path: Path) -> None:
    old, new = pair(tmp_path)
    found = set()
    for threads in (1, 2, 5):
        pack(new, tmp_path / "d.onnxz", base=old, threads=threads)
        found.add((tmp_path / "d.onnxz").read_bytes())
        unpack(tmp_path / "d.onnxz", tmp_path / "r.onnx", base=old, threads=threads)
        assert (tmp_path / "r.onnx").read_bytes() == new.read_bytes()
    assert len(found) == 1


@pytest.mark.parametrize(
    ("dtype", "size", "least"),
    [("<f4", 1e-2, 1.45), ("<f4", 1e-4, 2.1), ("bf16", 1e-3, 6.0), ("bf16", 1e-4, 15.0)],
)
def test_small_updates_pack_far_better_than_alone(
    dtype: str, size: float, least: float, tmp_path: Path
) -> None:
    old = np.frombuffer(normal(400_000), "<f4")
    new = tuned(old, size, 1)
    number, data = 1, [old.tobytes(), new.tobytes()]
    if dtype == "bf16":
        number = 16
        data = [(values.view("<u4") >> 16).astype("<u2").tobytes() for values in (old, new)]
    for name, content in zip(("old", "new"), data, strict=True):
        written(model_of([raw_tensor("w", number, [400_000], content)]), tmp_path / name)
    report = pack(tmp_path / "new", tmp_path / "d.onnxz", base=tmp_path / "old")
    assert report.ratio > least
    assert restored_bytes(tmp_path / "d.onnxz", tmp_path / "old") == (tmp_path / "new").read_bytes()


@settings(max_examples=100, deadline=None)
@given(
    width=st.sampled_from([1, 2, 4, 8]),
    is_float=st.booleans(),
    words=st.lists(st.tuples(st.binary(min_size=8, max_size=8), st.binary(min_size=8, max_size=8))),
)
def test_differences_are_lossless_for_any_bits(
    width: int, is_float: bool, words: list[tuple[bytes, bytes]]
) -> None:
    new = np.frombuffer(b"".join(pair[0] for pair in words), np.uint8)
    base = np.frombuffer(b"".join(pair[1] for pair in words), np.uint8)
    steps = difference(new, base, width, is_float)
    assert restored(steps, base, width, is_float).tobytes() == new.tobytes()
    assert xor(xor(new, base), base).tobytes() == new.tobytes()


def test_neighbouring_floats_differ_by_one() -> None:
    one = np.array([1, -1, 0.0], "<f4")
    above = np.array([np.nextafter(np.float32(1), np.float32(2)), -1, -0.0], "<f4")
    steps = difference(above.view(np.uint8), one.view(np.uint8), 4, True)
    assert steps.view("<u4").tolist() == [2, 0, 1]  # +1, 0, -1 as zigzag


def test_payloads_written_by_hand() -> None:
    base = np.array([5, 250], np.uint8)
    assert decode(XOR, inner(0, b"\1\2"), 2, "test", base).tolist() == [4, 248]
    diff = b"\1\0" + inner(0, bytes([1, 12]))  # -1 and +6, around 256
    assert decode(DIFF, diff, 2, "test", base).tolist() == [4, 0]
    with pytest.raises(PackError, match="the tensor has none"):
        decode(XOR, inner(0, b"\1\2"), 2, "test")
    for payload in (b"", b"\3\0" + inner(0, b"ab"), b"\1\1" + inner(0, b"ab"), diff + b"x"):
        with pytest.raises(PackError, match="damaged"):
            decode(DIFF, payload, 2, "test", base)
    with pytest.raises(PackError, match="cannot stand here"):
        decode(XOR, inner(XOR, inner(0, b"ab")), 2, "test", base)
