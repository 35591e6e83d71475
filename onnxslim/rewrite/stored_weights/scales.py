"""Integer codes of a weight, with one scale per channel or per block."""

from __future__ import annotations

import math

import numpy as np

from onnxslim.rewrite.stored_weights.find import Array

# A scale for fewer elements than this costs more than it is worth.
_FEWEST = 8
# Shares of the largest magnitude that a block's codes may end at; beyond it, values are clipped.
_CLIPS = (1.0, 0.93, 0.86, 0.79)
_TINY = float(np.finfo(np.float32).tiny)


def channel_codes(array: Array, kept: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """8-bit codes with one scale for all elements that share their place along the kept axes.

    Args:
        array: the weight, float32.
        kept: axes that each have their own scales.

    Returns:
        Codes of the weight's shape (int8, -127 to 127), scales of a shape that broadcasts to it
        (float32, positive), and codes times scales.
    """
    axes = _summed(array.shape, kept)
    limit = np.abs(array).max(axis=axes, keepdims=True)
    scale = compact(np.maximum(limit / np.float32(127), np.float32(_TINY)))
    codes = np.rint(array / scale.astype(np.float32))
    np.clip(codes, -127, 127, out=codes)
    return codes.astype(np.int8), scale, codes * scale.astype(np.float32)


def _summed(shape: tuple[int, ...], kept: tuple[int, ...]) -> tuple[int, ...]:
    """The axes that share a scale; falls back to fewer scales where each would serve too few."""
    rank = len(shape)
    choices = (kept, (rank - 1,), (0,), ())
    for choice in choices:
        axes = tuple(axis for axis in range(rank) if axis not in choice)
        if math.prod(shape[axis] for axis in axes) >= _FEWEST:
            return axes
    return tuple(range(rank))


def compact(scale: Array) -> Array:
    """Scales in float16 where that keeps 10 bits of every one of them, else as they are.

    Codes are computed from the scales as stored, so that rounding those costs no accuracy.
    """
    magnitude = np.abs(scale)
    smallest, largest = float(magnitude.min(initial=1.0)), float(magnitude.max(initial=0.0))
    if smallest < float(np.finfo(np.float16).tiny) or largest > float(np.finfo(np.float16).max):
        return scale
    return scale.astype(np.float16)


def block_layout(shape: tuple[int, ...], kept: tuple[int, ...]) -> tuple[int, int, int] | None:
    """How the weight is cut into blocks: ``(outer, block, inner)``, in C order.

    Blocks of 16 to 64 elements, 32 if it can be, run along the axis that a layer sums over: the
    first axis of a matrix whose channels are the last, the flat rest of a row else.

    Returns:
        None when no block length divides the weight.
    """
    size = math.prod(shape)
    if len(shape) >= 2 and kept and kept[-1] == len(shape) - 1:
        block = _block_length(shape[-2])
        if block is not None:
            return size // (block * shape[-1]), block, shape[-1]
    leading = [axis for place, axis in enumerate(kept) if axis == place]
    rows = math.prod(shape[axis] for axis in leading)
    block = _block_length(size // rows) or _block_length(size)
    return None if block is None else (size // block, block, 1)


def _block_length(length: int) -> int | None:
    """The length nearest to 32 that divides ``length``, of 16 to 64."""
    fitting = [block for block in range(16, 65) if length % block == 0]
    return min(fitting, key=lambda block: (abs(block - 32), block), default=None)


def block_codes(blocks: Array) -> tuple[Array, Array, Array]:
    """4-bit codes with one scale per block; the scale of the least squared error of a few.

    Args:
        blocks: float32 of shape ``(outer, block, inner)``.

    Returns:
        Codes (int8 values -8 to 7), scales ``(outer, 1, inner)`` of either sign (the element of
        largest magnitude gets code -8, which has no positive twin), and codes times scales.
    """
    place = np.abs(blocks).argmax(axis=1, keepdims=True)
    peak = np.take_along_axis(blocks, place, axis=1)
    best = np.full(peak.shape, np.inf, dtype=np.float32)
    scale = np.ones_like(peak)
    for clip in _CLIPS:
        tried = _signed_floor(peak * np.float32(clip / -8))
        codes = np.clip(np.rint(blocks / tried), -8, 7)
        error = np.square(codes * tried - blocks).sum(axis=1, keepdims=True)
        better = error < best
        best, scale = np.where(better, error, best), np.where(better, tried, scale)
    stored = compact(scale)
    wide = stored.astype(np.float32)
    codes = np.clip(np.rint(blocks / wide), -8, 7)
    return codes.astype(np.int8), stored, codes * wide


def _signed_floor(scale: Array) -> Array:
    """No scale is zero: an all-zero block gets a tiny one, and codes of zero."""
    return np.where(np.abs(scale) < _TINY, np.float32(1), scale)
