"""Byte sources (an open file, a buffer) and the tensor class that points into them.

A file is opened once and held for the whole run: a path could be replaced under us, an open
descriptor cannot. Everything is read with pread; a map would charge whole page-cache folios to
our peak memory, and would kill the process when the file is truncated under it.
"""

from __future__ import annotations

import math
import os
import stat
import weakref
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnxslim.errors import ModelLoadError

Array = npt.NDArray[Any]

_ONE_READ = 1 << 30  # bytes that every system reads at once


class Source(Protocol):
    """Something that holds ``size`` bytes and gives any range of them."""

    @property
    def size(self) -> int:
        """Number of bytes."""
        ...

    @property
    def label(self) -> str:
        """Name for messages."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``offset`` or raise ModelLoadError."""
        ...

    def peek(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes, at least one: those that cost little to read."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` (bytes) from ``offset`` or raise ModelLoadError."""
        ...

    def check_unchanged(self) -> None:
        """Raise ModelLoadError if the bytes may differ from those at opening."""
        ...


class MemorySource:
    """A buffer that is held by us and never changes."""

    def __init__(self, data: bytes | memoryview, label: str) -> None:
        self.view = memoryview(data).cast("B")
        self.size = len(self.view)
        self.label = label

    def read(self, offset: int, length: int) -> bytes:
        """Return a copy of the range."""
        return bytes(self.view[offset : offset + length])

    peek = read

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Copy the range into ``buffer``."""
        buffer[:] = self.view[offset : offset + len(buffer)]

    def check_unchanged(self) -> None:
        """A held buffer cannot change."""


class FileSource:
    """A regular file behind one descriptor that stays open as long as the object lives."""

    def __init__(self, fd: int, path: str | None, label: str) -> None:
        """Take over ``fd``; ``path`` is the real path (symbolic links resolved) if there is one."""
        self.fd = fd
        self.path = path
        self.label = label
        self._close = weakref.finalize(self, os.close, fd)
        status = os.fstat(fd)
        self.size = status.st_size
        self.identity = (status.st_dev, status.st_ino)
        self._stamp = (status.st_size, status.st_mtime_ns)

    @classmethod
    def open(cls, path: str, label: str) -> FileSource:
        """Open ``path``.

        Raises:
            ModelLoadError: missing, a directory, not readable, or not a regular file.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise ModelLoadError(f"{label} does not exist") from None
        except OSError as error:
            raise ModelLoadError(f"{label} cannot be opened: {error.strerror}") from error
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            os.close(fd)
            kind = "is a directory" if stat.S_ISDIR(mode) else "is not a regular file"
            raise ModelLoadError(f"{label} {kind}; give the path of an ONNX file")
        return cls(fd, path, label)

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes."""
        if length <= _ONE_READ:
            data = os.pread(self.fd, length, offset)
            if len(data) == length:
                return data
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    peek = read

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``; a short file is an error, never a short result."""
        done = 0
        while done < len(buffer):
            count = os.preadv(self.fd, [buffer[done : done + (1 << 30)]], offset + done)
            if count == 0:
                raise ModelLoadError(f"{self.label} became shorter while it was read")
            done += count

    def check_unchanged(self) -> None:
        """Compare size and modification time with those at opening."""
        status = os.fstat(self.fd)
        if (status.st_size, status.st_mtime_ns) != self._stamp:
            raise ModelLoadError(
                f"{self.label} was modified while it was in use; run again when it is complete"
            )

    def still_at_path(self) -> bool:
        """Whether the path still leads to the file that is open here."""
        if self.path is None:
            return False
        try:
            status = os.stat(self.path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self.identity


class SourceTensor(ir.TensorProtocol):
    """A tensor whose bytes lie in a :class:`Source` (little endian, as ONNX raw data).

    Nothing is read before values are asked for. ``numpy()`` keeps no strong reference to what it
    returns, so that a walk over all weights needs the memory of one.
    """

    def __init__(
        self,
        source: Source,
        offset: int,
        length: int,
        *,
        dtype: ir.DataType,
        shape: ir.Shape,
        name: str | None,
        doc_string: str | None = None,
        metadata_props: dict[str, str] | None = None,
        extra: bytes = b"",
    ) -> None:
        """Point at ``length`` bytes from ``offset`` of ``source``.

        ``extra`` holds protobuf fields of the tensor that the IR has no place for.
        """
        self.name = name
        self.doc_string = doc_string
        self.metadata_props: dict[str, str] = metadata_props or {}
        self.meta: dict[str, Any] = {}
        self.source = source
        self.offset = offset
        self.length = length
        self.extra = extra
        self._dtype = dtype
        self._shape = shape
        self._array: weakref.ref[Array] | None = None

    @property
    def dtype(self) -> ir.DataType:  # type: ignore[override]
        """Element type."""
        return self._dtype

    @property
    def shape(self) -> ir.Shape:  # type: ignore[override]
        """Shape; reading it costs nothing."""
        return self._shape

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self._shape.numpy())

    @property
    def nbytes(self) -> int:
        """Number of bytes as stored."""
        return self.length

    @property
    def raw(self) -> Source:
        """The source behind the tensor."""
        return self.source

    def __repr__(self) -> str:
        kind = f"SourceTensor<{self.dtype},{self.shape}>"
        return f"{kind}(name={self.name!r}, source={self.source.label!r})"

    def read_range(self, start: int, stop: int) -> bytes:
        """Return bytes ``start`` to ``stop`` of the tensor's data without reading the rest."""
        start, stop, _ = slice(start, stop).indices(self.length)
        return self.source.read(self.offset + start, max(0, stop - start))

    def tobytes(self) -> bytes:
        """Return all bytes, as they are stored."""
        return self.source.read(self.offset, self.length)

    def numpy(self) -> Array:
        """Return the values, read-only; types under 8 bits come unpacked, one per element."""
        array = self._array() if self._array is not None else None
        if array is None:
            array = self._read()
            self._array = weakref.ref(array)
        return array

    def _read(self) -> Array:
        shape = self._shape.numpy()
        if self._dtype.bitwidth < 8:
            return _unpacked(self.tobytes(), self._dtype, shape)
        dtype = np.dtype(self._dtype.numpy()).newbyteorder("<")
        if isinstance(self.source, MemorySource):
            view = self.source.view[self.offset : self.offset + self.length]
            array: Array = np.frombuffer(view, dtype=dtype).reshape(shape)
        else:
            data = np.empty(self.length, dtype=np.uint8)
            self.source.read_into(self.offset, data.data.cast("B"))
            array = data.view(dtype).reshape(shape)
        array.flags.writeable = False
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Support ``np.asarray``."""
        array = self.numpy()
        if dtype is not None and array.dtype != dtype:
            return array.astype(dtype)
        return array.copy() if copy else array

    def __dlpack__(self, *, stream: Any = None) -> Any:
        """Hand over a writable copy (DLPack has no read-only arrays)."""
        return self.numpy().copy().__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Always the CPU."""
        kind, index = np.empty(0).__dlpack_device__()
        return int(kind), int(index)


def _unpacked(data: bytes, dtype: ir.DataType, shape: tuple[int, ...]) -> Array:
    """Unpack 2-, 4- and 6-bit data with the IR's own code, so that the layouts agree."""
    proto = onnx.TensorProto(data_type=int(dtype), dims=shape, raw_data=data)
    array: Array = ir.TensorProtoTensor(proto).numpy()
    return array
