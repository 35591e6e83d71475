"""A weight as a matrix of output by input channels, read as little and as late as possible."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_CHUNK_BYTES = 1 << 18
_SAMPLE = 8


@runtime_checkable
class _Ranged(Protocol):
    """A tensor that gives part of its bytes without reading the rest."""

    def read_range(self, start: int, stop: int) -> bytes: ...


class Weight:
    """The nonzero pattern of a weight of shape ``(A, B, ...)``.

    One scan tells which rows (axis 0) and columns (axis 1) hold anything but zeros; the whole
    pattern is only worked out when some channels are dead or constant.

    Args:
        tensor: the stored weight, rank 2 or more; the axes after the second are kernel positions.
        out_axis: 0 when axis 0 counts the output channels (Conv), 1 when axis 1 does (MatMul).
    """

    def __init__(self, tensor: ir.TensorProtocol, out_axis: int) -> None:
        self.tensor = tensor
        self.out_axis = out_axis
        self.shape: tuple[int, ...] = tuple(tensor.shape.numpy())
        self._any: tuple[Mask, Mask] | None = None
        self._matrix: Mask | None = None

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        return self.shape[self.out_axis]

    @property
    def inputs(self) -> int:
        """Number of input channels."""
        return self.shape[1 - self.out_axis]

    def out_any(self) -> Mask:
        """Per output channel: is any of its weights not zero?"""
        return self._scanned()[self.out_axis]

    def in_any(self) -> Mask:
        """Per input channel: does any output channel read it?"""
        return self._scanned()[1 - self.out_axis]

    def matrix(self) -> Mask:
        """``(outputs, inputs)``: is any kernel position of the pair not zero?"""
        if self._matrix is None:
            parts = [(_kernels(chunk) != 0).any(axis=2) for chunk in self._chunks()]
            whole = np.concatenate(parts) if parts else np.zeros(self.shape[:2], dtype=np.bool_)
            self._matrix = whole if self.out_axis == 0 else whole.T
        return self._matrix

    def sums(self, inputs: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """``(outputs, len(inputs))``: sums over the kernel for these inputs, in float64."""
        content = np.take(self.tensor.numpy(), inputs, axis=1 - self.out_axis)
        totals: npt.NDArray[np.float64] = _kernels(content).astype(np.float64).sum(axis=2)
        return totals if self.out_axis == 0 else totals.T

    def _scanned(self) -> tuple[Mask, Mask]:
        if self._any is None:
            rows = [np.zeros(0, dtype=np.bool_)]
            columns = np.zeros(self.shape[1], dtype=np.bool_)
            for chunk in self._chunks():
                rows.append(_rows_any(chunk.reshape(chunk.shape[0], -1)))
                _mark_columns(_kernels(chunk), columns)
            self._any = np.concatenate(rows), columns
        return self._any

    def _chunks(self) -> Iterator[Array]:
        """The weight in pieces of some rows; a stored tensor is never held as a whole."""
        tensor = self.tensor
        if not isinstance(tensor, _Ranged) or tensor.dtype.bitwidth < 8:
            if math.prod(self.shape):
                yield tensor.numpy()
            return
        dtype = np.dtype(tensor.dtype.numpy())
        row = math.prod(self.shape[1:]) * dtype.itemsize
        step = max(1, _CHUNK_BYTES // max(row, 1))
        for start in range(0, self.shape[0] if row else 0, step):
            stop = min(start + step, self.shape[0])
            data = tensor.read_range(start * row, stop * row)
            yield np.frombuffer(data, dtype=dtype).reshape(stop - start, *self.shape[1:])


def _kernels(content: Array) -> Array:
    return content.reshape(*content.shape[:2], math.prod(content.shape[2:]))


def _rows_any(rows: Array) -> Mask:
    """Per row: anything but zeros? Most rows answer with their first elements."""
    found: Mask = (rows[:, :_SAMPLE] != 0).any(axis=1)
    open_rows = np.flatnonzero(~found)
    if open_rows.size:
        found[open_rows] = (rows[open_rows] != 0).any(axis=1)
    return found


def _mark_columns(kernels: Array, columns: Mask) -> None:
    """Marks the columns with anything but zeros; only those still unmarked are looked at."""
    for piece in (kernels[:1], kernels[1:]):
        open_columns = np.flatnonzero(~columns)
        if open_columns.size and len(piece):
            columns[open_columns] = (piece[:, open_columns] != 0).any(axis=(0, 2))
