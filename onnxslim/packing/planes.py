"""Byte planes of fixed-width elements: the k-th byte of every element side by side.

Floats are rotated left by one bit first, so that the sign moves to the lowest bit and the
exponent of float32 and bfloat16 fills the highest byte. That byte is the one that compresses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[Any]

WIDTHS = (2, 4, 8)


_PIECE = 1 << 13  # elements: small enough for the nearest cache, and for memory at hand


def rotated(data: Bytes, width: int) -> Bytes:
    """Return elements of ``width`` bytes (little endian), each rotated left by one bit."""
    words: Words = data.view(f"<u{width}")
    out: Words = words << np.array(1, words.dtype)
    np.bitwise_or(out, words >> np.array(8 * width - 1, words.dtype), out=out)
    turned: Bytes = out.view(np.uint8)
    return turned


def rotate_back(words: Words) -> None:
    """Rotate elements right by one bit, in place."""
    one, rest = np.array(1, words.dtype), np.array(8 * words.itemsize - 1, words.dtype)
    for start in range(0, words.size, _PIECE):
        part = words[start : start + _PIECE]
        top = part << rest
        np.right_shift(part, one, out=part)
        np.bitwise_or(part, top, out=part)


def split(data: Bytes, width: int, first: int, count: int) -> Bytes:
    """Return planes ``first`` to ``first + count`` interleaved, as bytes.

    ``count`` is 1 or 2; a pair starts at an even plane.
    """
    words = data.view(f"<u{width}")
    if count == 1 and width == 2:  # plain casts are several times faster than strided copies
        high = words >> np.array(8, words.dtype) if first else words
        return high.astype(np.uint8)
    part = data.view("<u2" if count == 2 else np.uint8)[first // count :: width // count]
    return np.ascontiguousarray(part).view(np.uint8)


def join(
    groups: list[tuple[int, int, Bytes]], width: int, length: int, target: Bytes | None = None
) -> Words:
    """Put planes together.

    Args:
        groups: (first plane, 1 or 2 planes, their bytes), covering every plane once.
        width: Bytes of an element.
        length: Bytes of the result.
        target: Where to put them, if not into new memory.

    Returns:
        The elements as little-endian unsigned integers.
    """
    memory = np.empty(length, np.uint8) if target is None else target
    out: Words = memory.view(f"<u{width}")
    if width == 2 and len(groups) == 2:
        np.copyto(out, groups[1][2])
        np.left_shift(out, np.array(8, out.dtype), out=out)
        np.bitwise_or(out, groups[0][2], out=out)
        return out
    for first, count, data in groups:
        unit = "<u2" if count == 2 else "u1"
        out.view(unit)[first // count :: width // count] = data.view(unit)
    return out
