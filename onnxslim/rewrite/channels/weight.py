"""A weight as a matrix of output by input channels, read as little and as late as possible."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_CHUNK_BYTES = 1 << 18
_SAMPLE = 8


@dataclass(frozen=True)
class Quantization:
    """How stored integers become numbers: ``(q - zero_point) * scale``.

    Attributes:
        scale: one number, or one per coordinate of ``axis``.
        zero_point: likewise; one number where all are equal.
        axis: the axis of the weight that scales and zero points count.
    """

    scale: Array
    zero_point: Array
    axis: int

    @classmethod
    def of(cls, scale: Array, zero_point: Array, axis: int) -> Quantization:
        """Vectors of one number become that number; equal zero points become one."""
        scale = scale.reshape(()) if scale.size == 1 else scale
        if zero_point.size and (zero_point == zero_point.reshape(-1)[0]).all():
            zero_point = zero_point.reshape(-1)[0:1].reshape(())
        return cls(scale, zero_point, axis)

    def part(self, axis: int, places: slice | npt.NDArray[np.int64]) -> Quantization:
        """What holds for some coordinates of an axis of the weight."""
        if axis != self.axis:
            return self
        parts = [item[places] if item.ndim else item for item in (self.scale, self.zero_point)]
        return Quantization(parts[0], parts[1], axis)

    def differs(self, content: Array) -> Mask:
        """Where the stored integers are not their zero points."""
        return np.asarray(content != self._along(self.zero_point, content.ndim), dtype=np.bool_)

    def numbers(self, content: Array) -> Array:
        """The numbers that stored integers stand for, in the type of the scale."""
        zero = self._along(self.zero_point, content.ndim).astype(np.float64)
        scale = self._along(self.scale, content.ndim).astype(np.float64)
        return np.asarray((content.astype(np.float64) - zero) * scale).astype(self.scale.dtype)

    def _along(self, item: Array, count: int) -> Array:
        """A vector in the shape that broadcasts along the axis."""
        return item.reshape([-1] + [1] * (count - 1 - self.axis)) if item.ndim else item


class Weight:
    """The nonzero pattern of a weight of shape ``(A, B, ...)``.

    One scan tells which rows (axis 0) and columns (axis 1) hold anything but zeros; the whole
    pattern is only worked out when some channels are dead or constant.

    Args:
        tensor: the stored weight, rank 2 or more; the axes after the second are kernel positions.
        out_axis: 0 when axis 0 counts the output channels (Conv), 1 when axis 1 does (MatMul).
        scheme: how the stored integers become numbers; None when the numbers are stored.
    """

    def __init__(
        self, tensor: ir.TensorProtocol, out_axis: int, scheme: Quantization | None = None
    ) -> None:
        self.tensor = tensor
        self.scheme = scheme
        self.out_axis = out_axis
        self.shape: tuple[int, ...] = tuple(tensor.shape.numpy())
        self._any: tuple[Mask, Mask] | None = None
        self._heads: list[Array] = []
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
        axis = 1 - self.out_axis
        content = np.take(self.tensor.numpy(), inputs, axis=axis)
        if self.scheme is not None:
            content = self.scheme.part(axis, inputs).numbers(content)
        totals: npt.NDArray[np.float64] = _kernels(content).astype(np.float64).sum(axis=2)
        return totals if self.out_axis == 0 else totals.T

    def heads(self) -> Array:
        """``(outputs, few)``: the first stored numbers of each output channel, from the scan."""
        self._scanned()
        return np.concatenate(self._heads) if self._heads else np.zeros((self.outputs, 0))

    def _keep_heads(self, stored: Array) -> None:
        if self.out_axis == 0:
            self._heads.append(stored.reshape(stored.shape[0], -1)[:, :_SAMPLE].copy())
        elif not self._heads:
            rows = np.moveaxis(_kernels(stored[:_SAMPLE]), 1, 0)
            self._heads.append(rows.reshape(rows.shape[0], -1)[:, :_SAMPLE].copy())

    def _scanned(self) -> tuple[Mask, Mask]:
        if self._any is None:
            rows = [np.zeros(0, dtype=np.bool_)]
            columns = np.zeros(self.shape[1], dtype=np.bool_)
            for chunk in self._chunks(self._keep_heads):
                rows.append(_rows_any(chunk.reshape(chunk.shape[0], -1)))
                _mark_columns(_kernels(chunk), columns)
            self._any = np.concatenate(rows), columns
        return self._any

    def _chunks(self, look: Callable[[Array], None] | None = None) -> Iterator[Array]:
        """The weight in pieces of some rows, zero exactly where the numbers are.

        Args:
            look: sees each piece as it is stored.
        """
        start = 0
        for chunk in self._stored_chunks():
            if look is not None:
                look(chunk)
            stop = start + len(chunk)
            if self.scheme is None:
                yield chunk
            else:
                yield self.scheme.part(0, slice(start, stop)).differs(chunk)
            start = stop

    def _stored_chunks(self) -> Iterator[Array]:
        """The weight in pieces of some rows; a stored tensor is never held as a whole."""
        tensor = self.tensor
        # asking a runtime-checkable protocol takes 40 times as long, once for every weight
        read = getattr(tensor, "read_range", None)
        if read is None or tensor.dtype.bitwidth < 8:
            if math.prod(self.shape):
                yield tensor.numpy()
            return
        dtype = np.dtype(tensor.dtype.numpy())
        row = math.prod(self.shape[1:]) * dtype.itemsize
        step = max(1, _CHUNK_BYTES // max(row, 1))
        for start in range(0, self.shape[0] if row else 0, step):
            stop = min(start + step, self.shape[0])
            data = read(start * row, stop * row)
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
