"""Palettes: a short table of values and, per element, the number of its entry."""

from __future__ import annotations

import numpy as np

from onnxslim.rewrite.stored_weights.find import Array

# The table is fitted to so many elements, evenly spread; all are coded with it.
_FITTED = 1 << 20
_ROUNDS = 40


def exact_palette(array: Array, levels: int) -> tuple[Array, Array] | None:
    """Codes (uint8) and table where the weight has at most ``levels`` distinct bit patterns.

    -0.0 and 0.0 are two entries. None where there are more.
    """
    bits = np.ascontiguousarray(array).view(np.uint32).reshape(-1)
    if np.unique(bits[:: max(bits.size // 4096, 1)]).size > levels:
        return None
    table, codes = np.unique(bits, return_inverse=True)
    if table.size > levels:
        return None
    return codes.astype(np.uint8).reshape(array.shape), table.view(np.float32)


def fitted_palette(array: Array, levels: int) -> tuple[Array, Array]:
    """Codes (uint8) and a sorted table of the least squared error (Lloyd's algorithm).

    Zeros of the weight stay exact zeros: the entry nearest to zero is zero where there are any.

    Args:
        array: the weight, float32, finite.
        levels: entries of the table, 2 to 256.

    Source: Lloyd, "Least squares quantization in PCM", 1982.
    """
    flat = array.reshape(-1)
    step = -(-flat.size // _FITTED)
    values = np.sort(flat[::step].astype(np.float64))
    sums = np.concatenate(([0.0], np.cumsum(values)))
    table = _starting_table(values, levels)
    for _ in range(_ROUNDS):
        edges = np.searchsorted(values, (table[1:] + table[:-1]) / 2)
        bounds = np.concatenate(([0], edges, [values.size]))
        counts = np.diff(bounds)
        means = np.diff(sums[bounds]) / np.maximum(counts, 1)
        moved = np.sort(np.where(counts > 0, means, table))
        if np.array_equal(moved, table):
            break
        table = moved
    if np.any(flat == 0):
        table[np.abs(table).argmin()] = 0.0
    table32 = np.sort(table).astype(np.float32)
    codes = np.searchsorted((table32[1:] + table32[:-1]) / 2, flat)
    return codes.astype(np.uint8).reshape(array.shape), table32


def _starting_table(values: Array, levels: int) -> Array:
    """Between equal shares of the elements and equal steps of the range: tails get entries too."""
    shares = np.quantile(values, (np.arange(levels) + 0.5) / levels)
    steps = np.linspace(values[0], values[-1], levels)
    return np.asarray(np.sort(0.6 * shares + 0.4 * steps))
