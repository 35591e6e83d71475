"""The numbers behind 8 bits: steps and zero points, laid out as onnxruntime expects them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxslim.calibration.ranges import Range
from onnxslim.runtime.specs import Array

_INT32 = 2**31 - 1

_CHUNK = 1 << 22  # numbers that are encoded at a time

# Room for the rounding of the scale of a bias.
_MARGIN = 1.0001


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the numbers of a tensor may lie: ``scale * (code - zero)``.

    Attributes:
        scale: float32, a scalar or one per channel; positive.
        zero: integers of ``dtype``, shaped as ``scale``.
        dtype: of the codes.
        axis: of the channels; None for one scale.
    """

    scale: Array
    zero: Array
    dtype: ir.DataType
    axis: int | None = None

    @property
    def limits(self) -> Range:
        """Lowest and highest number on the grid; for one scale only."""
        lowest, highest = full_codes(self.dtype)
        zero = int(self.zero)
        return float((lowest - zero) * self.scale), float((highest - zero) * self.scale)


def full_codes(dtype: ir.DataType) -> tuple[int, int]:
    """Lowest and highest integer of a type."""
    info = np.iinfo(dtype.numpy())
    return int(info.min), int(info.max)


def weight_codes(dtype: ir.DataType, *, symmetric: bool, reduced: bool) -> tuple[int, int]:
    """The integers that weights may use.

    Args:
        dtype: of the codes.
        symmetric: as many below zero as above.
        reduced: one bit less than there is room for.
    """
    low, high = full_codes(dtype)
    if reduced:
        return (low // 2, (high + 1) // 2) if low else (0, high // 2)
    return (low + 1, high) if symmetric and low else (low, high)


def activation_grid(
    limits: Range, dtype: ir.DataType, *, symmetric: bool = False, smallest: float = 0.0
) -> Grid:
    """The grid that spans a range and zero.

    Args:
        limits: lowest and highest value.
        dtype: of the codes.
        symmetric: zero in the middle.
        smallest: the least width of the range.
    """
    codes = full_codes(dtype)
    if symmetric:
        codes = weight_codes(dtype, symmetric=True, reduced=False)
    return _grid(limits, codes, dtype, symmetric=symmetric, smallest=smallest)


def tensor_grid(
    values: Array, dtype: ir.DataType, codes: tuple[int, int], *, symmetric: bool
) -> Grid:
    """One scale for a constant of any shape."""
    limits = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    return _grid(limits, codes, dtype, symmetric=symmetric)


def channel_grid(values: Array, axis: int, dtype: ir.DataType, codes: tuple[int, int]) -> Grid:
    """A scale per channel, zero in the middle; channels of zeros get scale 1."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    # two looks instead of one at magnitudes, which would be a copy of a large tensor
    top, bottom = values.max(axis=others, initial=0.0), values.min(axis=others, initial=0.0)
    largest = np.maximum(top, -bottom).astype(np.float64)
    scale = 2 * largest / (codes[1] - codes[0])
    scale[scale < np.finfo(np.float32).tiny] = 1.0
    zero = np.full(len(scale), round((codes[0] + codes[1]) / 2), dtype.numpy())
    return Grid(scale.astype(np.float32), zero, dtype, axis)


def _grid(
    limits: Range,
    codes: tuple[int, int],
    dtype: ir.DataType,
    *,
    symmetric: bool,
    smallest: float = 0.0,
) -> Grid:
    low, high = min(float(np.float32(limits[0])), 0.0), max(float(np.float32(limits[1])), 0.0)
    high = max(high, low + smallest) if smallest else high
    if symmetric:
        high = max(-low, high)
        low = -high
    scale = (high - low) / (codes[1] - codes[0])
    middle = round((codes[0] + codes[1]) / 2)
    if scale < np.finfo(np.float32).tiny:
        scale, zero = 1.0, middle if symmetric else 0
    else:
        zero = middle if symmetric else round(codes[0] - low / scale)
    return Grid(np.array(scale, np.float32), np.array(zero, dtype.numpy()), dtype)


def encode(values: Array, grid: Grid) -> Array:
    """The codes of numbers, rounded to the nearest, ties to even; in little memory beside them."""
    result = np.empty(values.shape, grid.dtype.numpy())
    if not values.ndim:
        result[...] = _encode(values, grid.scale, grid.zero)
        return result
    scale, zero = along(grid.scale, grid, values.ndim), along(grid.zero, grid, values.ndim)
    rows = max(_CHUNK // max(values[:1].size, 1), 1)
    for start in range(0, len(values), rows):
        part = slice(start, start + rows)
        own = part if grid.axis == 0 else slice(None)
        by_row = grid.axis is not None
        result[part] = _encode(
            values[part], scale[own] if by_row else scale, zero[own] if by_row else zero
        )
    return result


def _encode(values: Array, scale: Array, zero: Array) -> Array:
    low, high = full_codes(ir.DataType.from_numpy(zero.dtype))
    codes = np.rint(values / scale)
    codes += zero.astype(np.float32)
    np.clip(codes, low, high, out=codes)
    return codes.astype(zero.dtype)


def decode(codes: Array, grid: Grid) -> Array:
    """The numbers of codes, float32, as DequantizeLinear gives them."""
    scale, zero = along(grid.scale, grid, codes.ndim), along(grid.zero, grid, codes.ndim)
    shifted = codes.astype(np.int32) - zero.astype(np.int32)
    return (shifted.astype(np.float32) * scale).astype(np.float32)


def along(numbers: Array, grid: Grid, rank: int) -> Array:
    """Per-channel numbers in a shape that broadcasts over a tensor of that rank."""
    if grid.axis is None:
        return numbers
    shape = [1] * rank
    shape[grid.axis] = -1
    return numbers.reshape(shape)


def room_for_bias(weights: Grid, inputs: Grid, bias: Array) -> Grid:
    """The grid of weights, coarser where a bias in steps of both scales would not fit 32 bits."""
    needed = _MARGIN * np.abs(bias.astype(np.float64)) / _INT32 / float(inputs.scale)
    if weights.axis is None:
        needed = np.array(needed.max(initial=0.0))
    scale = np.maximum(weights.scale.astype(np.float64), needed.reshape(weights.scale.shape))
    if np.array_equal(scale, weights.scale):
        return weights
    return Grid(
        np.nextafter(scale.astype(np.float32), np.float32(np.inf), dtype=np.float32),
        weights.zero, weights.dtype, weights.axis,
    )  # fmt: skip


def bias_grid(weights: Grid, inputs: Grid) -> Grid:
    """The grid of a bias: int32 in steps of the product of both scales."""
    scale = (inputs.scale * weights.scale).astype(np.float32)
    scale = np.where(scale == 0, np.float32(1), scale)
    axis = None if weights.axis is None else 0
    return Grid(scale, np.zeros(scale.shape, np.int32), ir.DataType.INT32, axis)


def encode_bias(bias: Array, grid: Grid) -> Array:
    """The codes of a bias: int32."""
    codes = np.rint(bias.astype(np.float64) / grid.scale.astype(np.float64))
    return np.clip(codes, -_INT32, _INT32).astype(np.int32)
