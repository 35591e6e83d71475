"""Tensors that are slices of others, or transposed: stored once, restored exactly."""

from __future__ import annotations

import hashlib
import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pack_models import (
    Frame,
    model_of,
    normal,
    packed_by_hand,
    raw_tensor,
    varint,
    with_data_files,
    written,
)

from onnxslim.errors import PackError
from onnxslim.packing import list_tensors, pack, read_tensor, transpose, unpack


def of(values: np.ndarray, name: str):
    return raw_tensor(name, 1, list(values.shape), np.ascontiguousarray(values, "<f4").tobytes())


def codecs_after_round_trip(tensors: list, folder: Path) -> dict[str, str]:
    model = written(model_of(tensors), folder / "m.onnx")
    pack(model, folder / "p.onnxz")
    unpack(folder / "p.onnxz", folder / "r.onnx")
    assert (folder / "r.onnx").read_bytes() == model.read_bytes()
    output = io.BytesIO()
    unpack(io.BytesIO((folder / "p.onnxz").read_bytes()), output)
    assert output.getvalue() == model.read_bytes()
    for tensor in tensors:
        assert read_tensor(folder / "p.onnxz", tensor.name).tobytes() == tensor.raw_data
    return {item.name: item.codec for item in list_tensors(folder / "p.onnxz")}


def test_transposed_tensors_of_any_order(tmp_path: Path) -> None:
    weight = np.frombuffer(normal(12 * 30 * 40), "<f4").reshape(12, 30, 40)
    square = np.frombuffer(normal(150 * 150, seed=1), "<f4").reshape(150, 150)
    near = square.T.copy()
    near[70, 80] += 1
    tensors = [of(weight, "w"), of(square, "s"), of(square.T, "s_t"), of(near, "near")]
    orders = [(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    tensors += [of(weight.transpose(order), f"t{order}") for order in orders]
    codecs = codecs_after_round_trip(tensors, tmp_path)
    assert codecs["w"] == codecs["near"] == "rot-planes"
    assert {codecs[f"t{order}"] for order in orders} == {"transposed"}
    assert codecs["s_t"] == "transposed"
    size = (tmp_path / "p.onnxz").stat().st_size
    assert size < weight.nbytes + 2 * square.nbytes


def test_slices_of_rows(tmp_path: Path) -> None:
    table = np.frombuffer(normal(500 * 300), "<f4").reshape(500, 300)
    near = table[10:90].copy()
    near[-1, -1] += 1
    tensors = [of(table, "table"), of(table[100:200], "part"), of(table[499:], "last")]
    tensors += [of(near, "near"), of(table[150:160], "part_of_part")]
    codecs = codecs_after_round_trip(tensors, tmp_path)
    assert {codecs[name] for name in ("part", "last", "part_of_part")} == {"slice"}
    assert codecs["near"] == codecs["table"] == "rot-planes"


def test_constant_tensors_need_no_reference(tmp_path: Path) -> None:
    zeros = np.zeros((2000, 300), "<f4")
    codecs = codecs_after_round_trip([of(zeros, "z"), of(zeros[:1000], "y")], tmp_path)
    assert codecs == {"z": "fill", "y": "fill"}


def test_data_files_and_slices_together(tmp_path: Path) -> None:
    model, names = with_data_files(tmp_path / "in")
    pack(model, tmp_path / "p.onnxz")
    unpack(tmp_path / "p.onnxz", tmp_path / "r.onnx")
    for name in names:
        assert (tmp_path / name).read_bytes() == (tmp_path / "in" / name).read_bytes()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=5).map(tuple),
    width=st.sampled_from([1, 2, 3, 4, 8, 16]),
    slab=st.integers(1, 3000),
    data=st.data(),
)
def test_pieces_make_the_transposed_tensor(
    shape: tuple[int, ...], width: int, slab: int, data: st.DataObject
) -> None:
    perm = tuple(data.draw(st.permutations(range(len(shape)))))
    count = int(np.prod(shape))
    source = np.random.default_rng(count).integers(0, 256, count * width, dtype=np.uint8)
    before = transpose.SLAB
    transpose.SLAB = slab
    try:
        pieces = list(
            transpose.transposed(lambda at, size: source[at : at + size], width, shape, perm)
        )
    finally:
        transpose.SLAB = before
    expected = source.reshape(*shape, width).transpose(*perm, len(shape))
    assert np.concatenate(pieces).tobytes() == np.ascontiguousarray(expected).tobytes()


def derived_pack(form: bytes, length: int = 6, content: bytes = b"abcdef") -> bytes:
    """A pack by hand: a stored tensor of 6 bytes, and one derived from it."""
    data = content + b"gap" + content
    first = varint(6) + varint(6) + hashlib.sha256(content).digest() + b"\0"
    second = varint(length) + varint(0) + hashlib.sha256(content).digest() + form
    file = varint(0) + varint(len(data)) + hashlib.sha256(data).digest()
    file += varint(2) + varint(0) + varint(0) + varint(3) + varint(1)
    manifest = varint(0) + varint(2) + first + second + varint(1) + file
    frames: list[Frame] = [
        (2, 0, 0, 3, b"gap", zlib.crc32(b"gap")),
        (3, 0, 0, 6, content, zlib.crc32(content)),
    ]
    return packed_by_hand(manifest, frames)


def test_forms_written_by_hand() -> None:
    for form in (b"\3\0\0", b"\4\0\2\1\3\0"):  # the slice from 0; shape (3), order (0), width 2
        output = io.BytesIO()
        unpack(io.BytesIO(derived_pack(form)), output)
        assert output.getvalue() == b"abcdefgapabcdef"


@pytest.mark.parametrize(
    ("form", "length", "reason"),
    [
        (b"\3\1\0", 6, "which is not stored"),  # of itself
        (b"\3\7\0", 6, "which is not stored"),
        (b"\3\0\1", 6, "derives 6 bytes"),  # beyond the end
        (b"\4\0\2\1\2\0", 6, "shape .2,. that does not fit"),
        (b"\4\0\2\2\3\1\0\0", 6, "does not fit"),  # an axis twice
        (b"\4\0\2\0", 6, "rank 0"),
        (b"\4\0\0\1\3\0", 6, "width 0"),
        (b"\4\0\2\1\1\0", 2, "derives 2 bytes"),  # of another length
        (b"\2\0", 6, "tensor 0 of the base"),
        (b"\0", 6, "form 0"),
        (b"\5", 6, "form 5"),
    ],
)
def test_forms_that_cannot_be(form: bytes, length: int, reason: str) -> None:
    with pytest.raises(PackError, match=reason):
        unpack(io.BytesIO(derived_pack(form, length)), io.BytesIO())


def test_a_wrong_source_is_noticed() -> None:
    data = derived_pack(b"\4\0\1\2\2\3\1\0")  # really transposed: other bytes than promised
    with pytest.raises(PackError, match="does not match its hash"):
        unpack(io.BytesIO(data), io.BytesIO())
