"""Compares the stored bytes of tensors piece by piece, without reading more than it takes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable

import numpy as np
import onnx_ir as ir

# Up to this many bytes a tensor is its own sample.
_SMALL = 4096
_PIECE = 64
_PIECES = 8
_CHUNK = 1 << 20

Read = Callable[[int, int], bytes]


def sample(tensor: ir.TensorProtocol) -> Hashable:
    """Pieces from the whole length of a tensor; equal tensors have equal samples.

    Up to 4 KiB the sample is all bytes. Beyond, it is 8 pieces of 64 bytes, the first and the last
    among them, and tensors of equal samples still have to be compared.
    """
    size = tensor.nbytes
    read = reader(tensor)
    if size <= _SMALL:
        return read(0, size)
    starts = [(size - _PIECE) * piece // (_PIECES - 1) for piece in range(_PIECES)]
    return tuple(read(start, start + _PIECE) for start in starts)


def equal(first: ir.TensorProtocol, second: ir.TensorProtocol) -> bool:
    """True when both have the same bytes: NaN equals the same NaN, 0.0 is not -0.0.

    Reads 1 MiB of each at a time and stops at the first difference.
    """
    size = first.nbytes
    if size != second.nbytes:
        return False
    read_first, read_second = reader(first), reader(second)
    starts = range(0, size, _CHUNK)
    pieces = [(start, min(start + _CHUNK, size)) for start in starts]
    return all(read_first(*piece) == read_second(*piece) for piece in pieces)


def reader(tensor: ir.TensorProtocol) -> Read:
    """A function that gives bytes ``start`` to ``stop`` of the tensor as it is stored.

    Tensors that can read a range of themselves do; arrays in memory are sliced without a copy.
    What is packed or stands in another byte order is converted once, as a whole.
    """
    read_range = getattr(tensor, "read_range", None)
    if read_range is not None:
        found: Read = read_range
        return found
    if tensor.dtype.bitwidth >= 8 and sys.byteorder == "little":
        array = np.asarray(tensor.numpy())
        if array.dtype.isnative and array.nbytes == tensor.nbytes:
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            return lambda start, stop: flat[start:stop].tobytes()
    data = tensor.tobytes()
    return lambda start, stop: data[start:stop]
