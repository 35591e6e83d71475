"""Damaged and hostile packed files: a typed error or the right bytes, never anything else."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import brotli
import numpy as np
import onnx
import pytest
import zstandard
from pack_models import (
    MAGIC,
    Frame,
    manifest_bytes,
    model_of,
    nested,
    normal,
    packed_by_hand,
    plain_pack,
    raw_tensor,
    varint,
    with_data_files,
    written,
)
from pcodec import ChunkConfig
from pcodec.standalone import simple_compress

from onnxslim.errors import ModelSaveError, PackError
from onnxslim.packing import list_tensors, pack, read_tensor, unpack
from onnxslim.packing.decode import NAMES, decode, inner

MODEL = model_of([raw_tensor("w", 1, [4], bytes(16))]).SerializeToString()
ZERO = bytes(32)


def refused(data: bytes, folder: Path, reason: str) -> None:
    """Both readers refuse the file, and nothing is left on disk."""
    (folder / "bad.onnxz").write_bytes(data)
    before = sorted(os.listdir(folder))
    with pytest.raises(PackError, match=reason):
        unpack(folder / "bad.onnxz", folder / "out.onnx")
    with pytest.raises(PackError, match=reason):
        unpack(io.BytesIO(data), io.BytesIO())
    assert sorted(os.listdir(folder)) == before


def both_refuse(data: bytes, folder: Path, reason: str) -> None:
    refused(data, folder, reason)
    with pytest.raises(PackError, match=reason):
        list_tensors(folder / "bad.onnxz")


def mixed_pack() -> tuple[bytes, bytes]:
    """A model that uses every codec, and its pack."""
    rng = np.random.default_rng(0)
    keep = rng.random(9000) < 0.2
    runs = np.repeat(rng.integers(0, 1 << 31, 9), 4000).astype("<i4")
    levels = rng.standard_normal(50).astype("<f4")
    tensors = [
        raw_tensor("dense", 1, [9000], normal(9000)),
        raw_tensor("sparse", 1, [9000], np.where(keep, rng.random(9000), 0).astype("f4").tobytes()),
        raw_tensor("levels", 1, [9000], levels[rng.integers(0, 50, 9000)].tobytes()),
        raw_tensor("fill", 7, [20_000], np.full(20_000, 7, "<i8").tobytes()),
        raw_tensor("runs", 6, [36_000], runs.tobytes()),
        raw_tensor("bytes", 3, [140_000], rng.normal(0, 9, 140_000).astype("i1").tobytes()),
        raw_tensor("random", 2, [140_000], rng.bytes(140_000)),
        raw_tensor("matrix", 1, [30, 100], normal(3000, seed=1)),
        raw_tensor("rows", 1, [10, 100], normal(3000, seed=1)[4000:8000]),
        raw_tensor("turned", 1, [100, 30], transposed(normal(3000, seed=1), 30)),
    ]
    data = model_of(tensors).SerializeToString()
    packed = io.BytesIO()
    pack(io.BytesIO(data), packed)
    return data, packed.getvalue()


def transposed(data: bytes, rows: int) -> bytes:
    return np.frombuffer(data, "<f4").reshape(rows, -1).T.tobytes()


def delta_pack(folder: Path) -> tuple[bytes, bytes, Path]:
    """A model, its pack against a base version, and that base."""
    old = np.frombuffer(normal(9000), "<f4")
    new = (old * np.float32(1.001)).astype("<f4")
    base = written(
        model_of(
            [
                raw_tensor("w", 1, [9000], old.tobytes()),
                raw_tensor("k", 1, [9000], old[::-1].tobytes()),
            ]
        ),
        folder / "base.onnx",
    )
    data = model_of(
        [raw_tensor("w", 1, [9000], new.tobytes()), raw_tensor("k", 1, [9000], old[::-1].tobytes())]
    ).SerializeToString()
    packed = io.BytesIO()
    pack(io.BytesIO(data), packed, base=base)
    return data, packed.getvalue(), base


@pytest.fixture(scope="module")
def mixed() -> tuple[bytes, bytes]:
    return mixed_pack()


def test_the_mixed_pack_uses_the_codecs(mixed: tuple[bytes, bytes], tmp_path: Path) -> None:
    (tmp_path / "p.onnxz").write_bytes(mixed[1])
    found = {item.codec for item in list_tensors(tmp_path / "p.onnxz")}
    assert found >= {"rot-planes", "bitmap+values", "codebook", "fill", "rle", "zstd", "raw"}
    assert found >= {"slice", "transposed"}


def test_a_pack_written_by_hand_opens(tmp_path: Path) -> None:
    """The specification is enough to write a file."""
    (tmp_path / "p.onnxz").write_bytes(plain_pack(MODEL, b"sub/side.bin"))
    paths = unpack(tmp_path / "p.onnxz", tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == MODEL
    assert Path(paths[1]).read_bytes() == b"side"
    assert read_tensor(tmp_path / "p.onnxz", "w").tolist() == [0, 0, 0, 0]


def test_truncation_everywhere(mixed: tuple[bytes, bytes], tmp_path: Path) -> None:
    _, packed = mixed
    end = len(packed)
    lengths = [*range(400), *range(400, end, end // 300), *range(end - 90, end)]
    for length in lengths:
        with pytest.raises(PackError):
            unpack(io.BytesIO(packed[:length]), tmp_path / "out.onnx", threads=1)
    both_refuse(packed[:-1], tmp_path, "cut short|damaged")
    refused(packed + b"x", tmp_path, "after its end")
    assert os.listdir(tmp_path) == ["bad.onnxz"]


def mutate(packed: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(packed)
    kind = rng.integers(0, 5)
    place = int(rng.integers(0, len(packed)))
    if rng.random() < 0.3:  # the tables, where damage could mislead most
        place = int(rng.choice([rng.integers(0, 600), len(packed) - 1 - rng.integers(0, 120)]))
        place %= len(packed)
    if kind <= 1:
        changed[place] ^= 1 << int(rng.integers(0, 8))
    elif kind == 2:
        changed[place] = int(rng.integers(0, 256))
    elif kind == 3:
        del changed[place : place + int(rng.integers(1, 40))]
    else:
        changed[place:place] = rng.bytes(int(rng.integers(1, 40)))
    return bytes(changed)


def fuzz(
    mixed: tuple[bytes, bytes], path: Path, count: int, seed: int, base: Path | None = None
) -> int:
    """Return how many mutations were refused; a wrong result fails."""
    data, packed = mixed
    rng = np.random.default_rng(seed)
    errors = 0
    for _ in range(count):
        changed = mutate(packed, rng)
        output = io.BytesIO()
        try:
            unpack(io.BytesIO(changed), output, base=base, threads=1)
        except PackError:
            errors += 1
            assert not output.getvalue()
        else:
            assert output.getvalue() == data
        if base is not None:
            continue
        path.write_bytes(changed)
        try:
            values = read_tensor(path, "dense")
        except PackError:
            continue
        assert values.tobytes() == normal(9000)
    return errors


def test_random_mutations(mixed: tuple[bytes, bytes], tmp_path: Path) -> None:
    assert fuzz(mixed, tmp_path / "p.onnxz", 600, 1) > 570


@pytest.mark.slow
def test_many_random_mutations(mixed: tuple[bytes, bytes], tmp_path: Path) -> None:
    assert fuzz(mixed, tmp_path / "p.onnxz", 10_000, 2) > 9500


def test_random_mutations_of_a_difference(tmp_path: Path) -> None:
    data, packed, base = delta_pack(tmp_path)
    assert fuzz((data, packed), tmp_path / "p.onnxz", 300, 3, base) > 280


@pytest.mark.slow
def test_many_random_mutations_of_other_packs(tmp_path: Path) -> None:
    data, packed, base = delta_pack(tmp_path)
    assert fuzz((data, packed), tmp_path / "p.onnxz", 5000, 4, base) > 4700
    small = io.BytesIO()
    tensors = [
        raw_tensor("dense", 1, [9000], normal(9000)),
        raw_tensor("bytes", 3, [9000], np.arange(9000).astype("i1").tobytes()),
    ]
    data = model_of(tensors).SerializeToString()
    pack(io.BytesIO(data), small, profile="max")
    assert fuzz((data, small.getvalue()), tmp_path / "p.onnxz", 5000, 5) > 4700


def test_hostile_models_inside_sound_packs(tmp_path: Path) -> None:
    """The pack is right, but the model in it is not: listing and reading survive."""
    model = nested().SerializeToString()
    rng = np.random.default_rng(9)
    listed = 0
    for _ in range(400):
        (tmp_path / "p.onnxz").write_bytes(plain_pack(mutate(model, rng)))
        try:
            names = [item.name for item in list_tensors(tmp_path / "p.onnxz")]
        except PackError:
            continue
        listed += 1
        for name in names[:3]:
            with contextlib.suppress(PackError):
                read_tensor(tmp_path / "p.onnxz", name)
    assert listed > 100


def test_deep_nesting_and_absurd_tensors() -> None:
    def field(number: int, body: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(body)) + body

    deep = b""
    for _ in range(3000):  # If in If in If ...
        deep = field(1, field(5, field(6, deep)))
    shape = varint(1 << 3) + varint((1 << 64) - 1) + varint(1 << 3) + varint(1 << 62)
    tensor = field(8, b"t") + shape + varint(2 << 3) + b"\1" + field(9, bytes(2000))
    data = field(7, deep + field(5, tensor) + field(5, field(1, b"\xff" * 20)))
    packed, restored = io.BytesIO(), io.BytesIO()
    report = pack(io.BytesIO(data), packed)
    assert [(item.name, item.shape) for item in report.tensors] == [("t", (-1, 1 << 62))]
    unpack(io.BytesIO(packed.getvalue()), restored)
    assert restored.getvalue() == data


@pytest.mark.parametrize("codec", sorted(NAMES))
def test_payloads_of_noise(codec: int) -> None:
    """The decoders alone, without the checksums before them."""
    rng = np.random.default_rng(codec)
    base = np.zeros(65_536, np.uint8)
    results = 0
    for _ in range(3000):
        payload = bytearray(rng.bytes(int(rng.integers(1, 60))))
        payload[0] = int(rng.choice([1, 2, 4, 8, payload[0]]))
        payload[1:2] = bytes([int(rng.choice([0, 1, 2, 255]))])
        length = int(rng.choice([1, 8, 24, 64, 100, 65_536]))
        try:
            data = decode(codec, bytes(payload), length, "test", base[:length])
        except PackError:
            continue
        results += 1
        assert data.nbytes == length
    assert results < 3000


def mutated_payloads(codec: int, payload: bytes, length: int) -> None:
    rng = np.random.default_rng(codec)
    base = np.zeros(length, np.uint8)
    for _ in range(2000):
        try:
            data = decode(codec, mutate(payload, rng), length, "test", base)
        except PackError:
            continue
        assert data.nbytes == length


def test_damaged_payloads_of_each_codec(mixed: tuple[bytes, bytes]) -> None:
    from onnxslim.packing import encode

    profile = encode.PROFILES["default"]
    dense = np.frombuffer(normal(4000), np.uint8)
    sparse = dense.copy().view("<u4")
    sparse[np.arange(4000) % 5 > 0] = 0
    sparse[::50] = 0x80000000
    few = (np.arange(4000) * 7 % 90).astype("<u4").view(np.uint8)
    runs = np.repeat(np.arange(40, dtype="<u4"), 100).view(np.uint8)
    for recipe, data in (
        (encode.turned_planes, dense),
        (encode.bitmap_planes, sparse.view(np.uint8)),
        (encode.codebook, few),
        (encode.rle, runs),
        (encode.matches, few),
        (encode.pco_floats, dense),
        (encode.pco_integers, few),
        (encode.brotli, few),
    ):
        encoded = recipe(data, 4, profile)
        assert encoded is not None
        assert decode(*encoded, data.size, "test").tobytes() == data.tobytes()
        mutated_payloads(encoded[0], encoded[1], data.size)
    planes = encode.turned_planes(dense, 4, profile)
    assert planes is not None
    mutated_payloads(10, inner(*planes), dense.size)
    mutated_payloads(11, b"\4\1" + inner(*planes), dense.size)


def one_tensor(codec: int, raw: int, payload: bytes, length: int, chunk: int = 1 << 22) -> bytes:
    """A pack of a file that is one tensor of ``length`` claimed bytes, in one frame."""
    files = [(b"", length, ZERO, [(0, 0)])]
    return packed_by_hand(
        manifest_bytes([(length, chunk, ZERO)], files), [(3, codec, 0, raw, payload, 0)]
    )


def pco_bomb() -> bytes:
    """A pcodec payload of 100 MB, of numbers that cost nothing."""
    return b"\2" + simple_compress(np.zeros(25 << 20, "<u4"), ChunkConfig())


def test_bombs_are_refused_without_memory(tmp_path: Path) -> None:
    huge = zstandard.ZstdCompressor().compress(bytes(300 << 20))
    deflated = zlib.compress(bytes(100 << 20), 9)
    bombs = [
        ("limit", one_tensor(1, 1 << 22, b"\0", 1 << 40)),  # a constant of 1 TiB
        ("states 314572800", one_tensor(5, 1 << 22, huge, 1 << 22)),
        ("zlib payload is damaged", one_tensor(3, 1 << 22, deflated, 1 << 22)),
        ("pcodec payload", one_tensor(8, 1 << 22, pco_bomb(), 1 << 22)),
        (
            "brotli payload",
            one_tensor(9, 1 << 22, brotli.compress(bytes(100 << 20), quality=1), 1 << 22),
        ),
        ("in chunks of 1", one_tensor(1, 1, b"\0", 1 << 35, chunk=1)),  # 2**35 frames
        ("in chunks of 1073741824", one_tensor(1, 1 << 30, b"\0", 1 << 30, chunk=1 << 30)),
    ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for reason, data in bombs:
        refused(data, tmp_path, reason)
    for name in ("dense", "w"):
        with pytest.raises(PackError):
            read_tensor(tmp_path / "bad.onnxz", name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # KiB


def test_frames_that_expand_too_far_are_refused(tmp_path: Path) -> None:
    """Each frame is within bounds, but 40 of them make 160 MiB from 16 kB."""
    block = bytes(1 << 22)
    payload = zstandard.ZstdCompressor().compress(block)
    frames: list[Frame] = [(3, 5, 0, 1 << 22, payload, zlib.crc32(block))] * 40
    blobs = [(40 << 22, 1 << 22, ZERO)]
    data = packed_by_hand(manifest_bytes(blobs, [(b"", 40 << 22, ZERO, [(0, 0)])]), frames)
    refused(data, tmp_path, "expands over 1000 times")


@pytest.mark.parametrize("profile", ["default", "stdlib"])
def test_own_files_are_never_taken_for_bombs(profile: str, tmp_path: Path) -> None:
    """Over 64 MiB of data that packs to almost nothing, and many equal tensors."""
    period = np.tile(np.arange(97, dtype=np.uint8), (72 << 20) // 97).tobytes()
    almost = bytearray(20 << 20)
    almost[:: 1 << 17] = b"x" * 160
    equal = normal(40_000)
    tensors = [raw_tensor(f"e{n}", 1, [40_000], equal) for n in range(40)]
    tensors += [raw_tensor("period", 2, [len(period)], period)]
    tensors += [raw_tensor("almost", 1, [5 << 20], bytes(almost))]
    tensors += [onnx.TensorProto(name="typed", data_type=1, int32_data=[0, 1] * (3 << 20))]
    model = written(model_of(tensors), tmp_path / "m.onnx")
    report = pack(model, tmp_path / "p.onnxz", profile=profile)
    assert report.ratio > 50
    unpack(tmp_path / "p.onnxz", tmp_path / "r.onnx")
    assert (tmp_path / "r.onnx").read_bytes() == model.read_bytes()
    assert read_tensor(tmp_path / "p.onnxz", "almost").tobytes() == bytes(almost)


def test_limit_is_settable(tmp_path: Path) -> None:
    (tmp_path / "p.onnxz").write_bytes(plain_pack(MODEL))
    with pytest.raises(PackError, match="over the limit of 10"):
        unpack(tmp_path / "p.onnxz", tmp_path / "m.onnx", limit=10)


def test_claims_longer_than_the_file_take_no_memory(tmp_path: Path) -> None:
    """A table that claims 256 MiB in a file of 100 bytes is not allocated."""

    def claim(length: int) -> bytes:
        head = struct.pack("<BBHIIII", 1, 0, 0, 0, length, length, 0)
        return MAGIC + head + zlib.crc32(head).to_bytes(4, "little") + bytes(100)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(claim(1 << 28), tmp_path, "cut short")
    refused(claim(1 << 29), tmp_path, "over the limit")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 << 10  # KiB


def file_frame(data: bytes) -> Frame:
    return (2, 0, 0, len(data), data, zlib.crc32(data))


def test_each_contradiction_has_its_message(tmp_path: Path) -> None:
    sha = hashlib.sha256(MODEL).digest()
    size = len(MODEL)
    plain = file_frame(MODEL)
    blob = (16, 1 << 20, ZERO)
    cases: list[tuple[str, bytes]] = [
        ("unknown codec 77", one_tensor(77, 16, b"x", 16)),
        ("pcodec payload is damaged", one_tensor(8, 16, b"x", 16)),
        ("brotli payload is damaged", one_tensor(9, 16, b"x", 16)),
        ("the tensor has none", one_tensor(10, 16, b"x", 16)),
        ("the tensor has none", one_tensor(11, 16, b"x", 16)),
        ("refers to tensor 3", packed_by_hand(
            manifest_bytes([blob], [(b"", size, sha, [(0, 3)])]), [plain])),
        ("no file contains", packed_by_hand(
            manifest_bytes([blob], [(b"", size, sha, [])]), [plain])),
        ("places 10016 bytes in a file", packed_by_hand(
            manifest_bytes([blob], [(b"", size, sha, [(10_000, 0)])]), [plain])),
        ("names no model file", packed_by_hand(manifest_bytes([], []), [])),
        ("after its last entry", packed_by_hand(
            manifest_bytes([], [(b"", size, sha, [])]) + b"\0", [plain])),
        ("another frame stands here", packed_by_hand(
            manifest_bytes([], [(b"", size, sha, [])]), [plain, plain])),
        ("another frame stands here|too short", packed_by_hand(
            manifest_bytes([], [(b"", size, sha, [])]), [])),
        ("checksum mismatch", packed_by_hand(
            manifest_bytes([], [(b"", size, sha, [])]), [(*plain[:5], 1)])),
        ("does not match its hash", packed_by_hand(
            manifest_bytes([], [(b"", size, ZERO, [])]), [plain])),
        ("payload of 400 bytes is not possible", one_tensor(0, 16, bytes(400), 16)),
        ("raw payload is damaged", one_tensor(0, 16, bytes(9), 16)),
    ]  # fmt: skip
    for reason, data in cases:
        refused(data, tmp_path, reason)


def test_tables_that_disagree_are_refused(mixed: tuple[bytes, bytes], tmp_path: Path) -> None:
    """Sound frames with the index of another file, and swapped frames."""
    sha = hashlib.sha256(MODEL).digest()
    manifest = manifest_bytes([], [(b"", len(MODEL), sha, [])])
    good = packed_by_hand(manifest, [file_frame(MODEL)])
    other = packed_by_hand(manifest, [file_frame(MODEL[:-1])])
    start = len(good) - 56 - 24 - 3
    both_refuse(good[:start] + other[-56 - 24 - 3 :], tmp_path, "damaged|differ|fit")


@pytest.mark.parametrize(
    "name",
    [
        b"../x", b"a/../../x", b"/abs", b"C:\\x", b"c:x", b"a\\b", b"a\0b", b"", b".", b"a//b",
        b"a/", b".git/hooks", b"nul", b"a/CON.txt", b"dot.", b"space ", b"\xff\xfe", b"x" * 2000,
    ],
)  # fmt: skip
def test_path_tricks_are_refused(name: bytes, tmp_path: Path) -> None:
    sha = hashlib.sha256(MODEL).digest()
    side = (name, 4, hashlib.sha256(b"side").digest(), [])
    manifest = manifest_bytes([], [(b"", len(MODEL), sha, []), side])
    frames: list[Frame] = [file_frame(MODEL), (2, 0, 1, 4, b"side", zlib.crc32(b"side"))]
    both_refuse(packed_by_hand(manifest, frames), tmp_path, "data file name|file name")


@pytest.mark.parametrize("names", [[b"a", b"a"], [b"a", b"A"], [b"a", b"a/b"]])
def test_colliding_names_are_refused(names: list[bytes], tmp_path: Path) -> None:
    sha = hashlib.sha256(MODEL).digest()
    sides = [(name, 4, hashlib.sha256(b"side").digest(), []) for name in names]
    manifest = manifest_bytes([], [(b"", len(MODEL), sha, []), *sides])
    both_refuse(packed_by_hand(manifest, []), tmp_path, "twice|lies in another")


def test_links_and_existing_files_are_respected(tmp_path: Path) -> None:
    (tmp_path / "p.onnxz").write_bytes(plain_pack(MODEL, b"sub/side.bin"))
    outside, folder = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    folder.mkdir()
    (folder / "sub").symlink_to(outside)
    with pytest.raises(PackError, match="link"):
        unpack(tmp_path / "p.onnxz", folder / "m.onnx")
    (folder / "sub").unlink()
    (folder / "sub").mkdir()
    (folder / "sub" / "side.bin").write_bytes(b"mine")
    with pytest.raises(PackError, match="exists and is not the data file"):
        unpack(tmp_path / "p.onnxz", folder / "m.onnx")
    assert (folder / "sub" / "side.bin").read_bytes() == b"mine"
    assert os.listdir(outside) == []
    assert os.listdir(folder) == ["sub"]
    (tmp_path / "q.onnxz").write_bytes(plain_pack(MODEL, b"m.onnx"))
    with pytest.raises(PackError, match="name of the model"):
        unpack(tmp_path / "q.onnxz", folder / "m.onnx")


def test_failure_leaves_no_folder_and_keeps_the_old_file(tmp_path: Path) -> None:
    model, _ = with_data_files(tmp_path / "in")
    pack(model, tmp_path / "p.onnxz")
    data = bytearray((tmp_path / "p.onnxz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "p.onnxz").write_bytes(data)
    out = tmp_path / "out"
    out.mkdir()
    (out / "m.onnx").write_bytes(b"old")
    with pytest.raises(PackError):
        unpack(tmp_path / "p.onnxz", out / "m.onnx")
    assert os.listdir(out) == ["m.onnx"]
    assert (out / "m.onnx").read_bytes() == b"old"


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "p.onnxz").write_bytes(plain_pack(MODEL))
    with pytest.raises(ModelSaveError, match="does not exist"):
        unpack(tmp_path / "p.onnxz", tmp_path / "none" / "m.onnx")
    with pytest.raises(ModelSaveError, match="directory"):
        unpack(tmp_path / "p.onnxz", tmp_path)
    with pytest.raises(PackError, match="cannot be opened"):
        unpack(tmp_path / "none.onnxz", tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"", b"ONNXZ\0v1", b"hello" * 99, bytes(500)])
def test_what_is_no_pack_is_refused(content: bytes, tmp_path: Path) -> None:
    both_refuse(content, tmp_path, "not a packed model|cut short")


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Peak memory of packing and unpacking 160 MB stays far below the model's size."""
    path = tmp_path / "big.onnx"
    block = np.frombuffer(normal(1 << 20), "<f4")
    tensors = [
        raw_tensor(f"w{n}", 1, [5 << 20], np.tile(block * (n + 1), 5).astype("<f4").tobytes())
        for n in range(8)
    ]
    written(model_of(tensors), path)
    code = (
        "import resource; from onnxslim.packing import pack, unpack\n"
        "base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "pack('big.onnx', 'p.onnxz', threads=2); unpack('p.onnxz', 'r.onnx', threads=2)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, check=True, text=True)
    assert int(done.stdout) < 64 << 10  # KiB
    assert (tmp_path / "r.onnx").read_bytes() == path.read_bytes()
