"""Differences of elements against those of a base version of the same tensor.

Floats are compared as ordered integers: their bits, mapped so that neighbouring numbers are
neighbouring integers. The map is one to one, so NaN payloads and both zeros come back as they were.
"""

from __future__ import annotations

import numpy as np

from onnxslim.packing.planes import Bytes, Words


def xor(data: Bytes, base: Bytes) -> Bytes:
    """Return the bits that differ; also the way back."""
    return np.bitwise_xor(data, base)


def difference(data: Bytes, base: Bytes, width: int, is_float: bool) -> Bytes:
    """Return zigzag differences: 0, -1, 1, -2, ... become 0, 1, 2, 3, ...

    Args:
        data: Elements of ``width`` bytes, little endian.
        base: As many elements of the base.
        width: 1, 2, 4 or 8.
        is_float: Take the elements as floats and not as integers.
    """
    step = _ordered(data, width, is_float)
    np.subtract(step, _ordered(base, width, is_float), out=step)
    sign = (step.view(f"<i{width}") >> np.array(8 * width - 1, f"<i{width}")).view(step.dtype)
    np.left_shift(step, np.array(1, step.dtype), out=step)
    np.bitwise_xor(step, sign, out=step)
    found: Bytes = step.view(np.uint8)
    return found


def restored(steps: Bytes, base: Bytes, width: int, is_float: bool) -> Bytes:
    """Return the elements, given what :func:`difference` returned."""
    words: Words = steps.view(f"<u{width}")
    one = np.array(1, words.dtype)
    sign = np.negative(words & one)
    out: Words = words >> one
    np.bitwise_xor(out, sign, out=out)
    np.add(out, _ordered(base, width, is_float), out=out)
    if is_float:
        top = np.array(1 << (8 * width - 1), words.dtype)
        np.bitwise_xor(out, _flips(~out, width) | top, out=out)
    found: Bytes = out.view(np.uint8)
    return found


def _ordered(data: Bytes, width: int, is_float: bool) -> Words:
    words: Words = data.view(f"<u{width}")
    if not is_float:
        return words.copy()
    top = np.array(1 << (8 * width - 1), words.dtype)
    flips = _flips(words, width)
    np.bitwise_or(flips, top, out=flips)
    np.bitwise_xor(flips, words, out=flips)
    return flips


def _flips(words: Words, width: int) -> Words:
    """Return all ones where the highest bit is set, else 0."""
    signed = words.view(f"<i{width}") >> np.array(8 * width - 1, f"<i{width}")
    flips: Words = signed.view(words.dtype)
    return flips
