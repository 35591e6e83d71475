"""Every encoder against its decoder, over widths, distributions and odd lengths."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim.errors import PackError
from onnxslim.packing import encode
from onnxslim.packing.decode import PLANES, decode
from onnxslim.packing.planes import Bytes, rotate_back, rotated

Rng = np.random.Generator
DATA: dict[str, Callable[[Rng, int], Bytes]] = {
    "random": lambda rng, size: rng.integers(0, 256, size, dtype=np.uint8),
    "zeros": lambda rng, size: np.zeros(size, np.uint8),
    "sparse": lambda rng, size: np.where(rng.random(size) < 0.1, 7, 0).astype(np.uint8),
    "few": lambda rng, size: rng.choice(np.array([0, 128], np.uint8), size),
    "sorted": lambda rng, size: np.sort(rng.integers(0, 256, size, dtype=np.uint8)),
}
RECIPES = (
    encode.rle,
    encode.entropy,
    encode.matches,
    encode.turned_planes,
    encode.plain_planes,
    encode.bitmap_entropy,
    encode.bitmap_planes,
    encode.codebook,
)


@pytest.mark.parametrize("profile", ["default", "stdlib", "max"])
@pytest.mark.parametrize("kind", sorted(DATA))
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_each_recipe_is_lossless(recipe: encode.Recipe, kind: str, profile: str) -> None:
    rng = np.random.default_rng(len(kind))
    for width in (1, 2, 4, 8):
        for count in (1, 2, 3, 17, 1000, 4099):
            data = DATA[kind](rng, count * width)
            result = recipe(data, width, encode.PROFILES[profile])
            if result is not None:
                assert decode(*result, data.size, "test").tobytes() == data.tobytes()


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(sorted(DATA)),
    size=st.integers(1, 3000),
    width=st.sampled_from([1, 2, 4, 8]),
    is_float=st.booleans(),
    guarded=st.booleans(),
    profile=st.sampled_from(["default", "stdlib", "max"]),
)
def test_the_choice_is_lossless_and_never_longer(
    kind: str, size: int, width: int, is_float: bool, guarded: bool, profile: str
) -> None:
    data = DATA[kind](np.random.default_rng(size), size)
    chosen = encode.PROFILES[profile]
    sample_width = width if size % width == 0 else 1
    recipes = encode.choose(data, sample_width, is_float and sample_width > 1, chosen)
    codec, payload = encode.encode(data, width, recipes, chosen, guarded=guarded)
    assert len(payload) <= size
    assert decode(codec, payload, size, "test").tobytes() == data.tobytes()


@pytest.mark.parametrize("width", [2, 4, 8])
def test_rotation_puts_the_sign_last(width: int) -> None:
    data = np.random.default_rng(0).integers(0, 256, 1000 * width, dtype=np.uint8)
    turned = rotated(data, width)
    assert np.array_equal(turned.view(f"<u{width}") & 1, data[width - 1 :: width] >> 7)
    words = turned.view(f"<u{width}").copy()
    rotate_back(words)
    assert words.tobytes() == data.tobytes()


def test_known_bytes() -> None:
    """A payload written by hand from the specification."""
    planes = bytes([2, 1, 1, 0, 2, 0, 0, 0, 0x01, 0x00, 1, 1, 1, 0, 0, 0, 0x7F])
    expected = np.array([0xBF80, 0x3F80], "<u2").tobytes()  # -1 and 1 in bfloat16
    assert decode(PLANES, planes, 4, "test").tobytes() == expected
    assert decode(1, b"ab", 6, "test").tobytes() == b"ababab"
    runs = b"\1" + (2).to_bytes(4, "little") + b"\3\0\0\0\2\0\0\0xy"
    assert decode(2, runs, 5, "test").tobytes() == b"xxxyy"
    bitmap = b"\1\0" + (2).to_bytes(4, "little") + b"\0\1\0\0\0\x50" + b"\0\2\0\0\0ab"
    assert decode(7, bitmap, 5, "test").tobytes() == b"\0a\0b\0"
    signed = b"\2\1" + (1).to_bytes(4, "little") + b"\0\1\0\0\0\x40"
    signed += b"\0\1\0\0\0\x40" + b"\0\2\0\0\0\x80\x3f"
    assert decode(7, signed, 6, "test").tobytes() == b"\0\0\x80\x3f\0\x80"
    book = b"\2\1" + b"aabb" + b"\0\3\0\0\0\0\1\0"
    assert decode(12, book, 6, "test").tobytes() == b"aabbaa"
    with pytest.raises(PackError, match="codebook payload is damaged"):
        decode(12, book[:-1] + b"\2", 6, "test")
