"""Moves bytes from sources to a file, in the kernel where it can do that."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from typing import BinaryIO, Protocol

import numpy as np
import onnx_ir as ir

from onnxslim.errors import ModelSaveError
from onnxslim.io.source import FileSource, MemorySource, SourceTensor

Step = Callable[[int], int]
Write = Callable[[memoryview], None]

_CHUNK = 64 << 20  # one request to the kernel
_BUFFER = 1 << 20  # what passes through us where the kernel cannot copy
_REFUSALS = (
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.ETXTBSY,
    errno.EBADF,
)


class Sink(Protocol):
    """Where a stream of bytes goes."""

    def write(self, data: bytes | memoryview) -> None:
        """Write all of ``data``."""
        ...

    def copy(self, source: FileSource, offset: int, length: int) -> None:
        """Write a range of a file."""
        ...


class FileSink:
    """A regular file, written from its current position through its descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._buffer = bytearray()
        self._written = 0
        self._started = 0  # up to here the kernel was told to write to the disk

    def write(self, data: bytes | memoryview) -> None:
        """Collect small pieces, write large ones at once."""
        if len(data) < _BUFFER // 16:
            self._buffer += data
            if len(self._buffer) < _BUFFER:
                return
            data, self._buffer = bytes(self._buffer), bytearray()
        else:
            self.flush()
        self._write_through(memoryview(data))

    def flush(self) -> None:
        """Write what was collected."""
        if self._buffer:
            data, self._buffer = bytes(self._buffer), bytearray()
            self._write_through(memoryview(data))

    def _write_through(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            count = os.write(self.fd, view[done : done + _CHUNK])
            done += count
            self._advance(count)

    def _advance(self, count: int) -> None:
        """Have the kernel start writing early, so that the final fsync has little left to do.

        Of dirty pages POSIX_FADV_DONTNEED drops none; it starts their way to the disk. This
        takes a quarter of a second off a gigabyte.
        """
        self._written += count
        if self._written - self._started >= _CHUNK and hasattr(os, "posix_fadvise"):
            length = self._written - self._started
            with contextlib.suppress(OSError):  # a hint; pipes and some file systems refuse it
                os.posix_fadvise(self.fd, self._started, length, os.POSIX_FADV_DONTNEED)
            self._started = self._written

    def copy(self, source: FileSource, offset: int, length: int) -> None:
        """Copy in the kernel: copy_file_range, else sendfile, else a reused buffer."""
        self.flush()
        for method in (self._copy_file_range, self._sendfile):
            copied = method(source, offset, length)
            offset += copied
            length -= copied
            if length == 0:
                return
        copy_through_buffer(source, offset, length, self._write_through)

    def _copy_file_range(self, source: FileSource, offset: int, length: int) -> int:
        if not hasattr(os, "copy_file_range"):
            return 0
        return self._repeat(
            lambda done: os.copy_file_range(
                source.fd, self.fd, min(_CHUNK, length - done), offset_src=offset + done
            ),
            length,
            source,
        )

    def _sendfile(self, source: FileSource, offset: int, length: int) -> int:
        if not sys.platform.startswith("linux"):
            return 0  # elsewhere it sends to sockets only
        return self._repeat(
            lambda done: os.sendfile(self.fd, source.fd, offset + done, min(_CHUNK, length - done)),
            length,
            source,
        )

    def _repeat(self, step: Step, length: int, source: FileSource) -> int:
        """Call ``step(done)`` until ``length`` bytes are copied; return where it was refused."""
        done = 0
        while done < length:
            try:
                count = step(done)
            except OSError as error:
                if error.errno in _REFUSALS:
                    return done
                raise
            if count == 0:
                raise ModelSaveError(f"{source.label} became shorter while it was copied")
            done += count
            self._advance(count)
        return done


class StreamSink:
    """Any binary stream, such as standard output."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, data: bytes | memoryview) -> None:
        """Write all of ``data``."""
        view = memoryview(data)
        done = 0
        while done < len(view):
            done += self._stream.write(view[done:]) or 0

    def copy(self, source: FileSource, offset: int, length: int) -> None:
        """Copy through a small buffer."""
        copy_through_buffer(source, offset, length, self.write)


def copy_through_buffer(source: FileSource, offset: int, length: int, write: Write) -> None:
    """Copy with pread into one buffer."""
    buffer = memoryview(bytearray(min(_BUFFER, length)))
    while length:
        part = buffer[: min(len(buffer), length)]
        source.read_into(offset, part)
        write(part)
        offset += len(part)
        length -= len(part)


def write_tensor(sink: Sink, tensor: ir.TensorProtocol, length: int) -> None:
    """Write the ``length`` bytes of a tensor's raw data.

    Raises:
        ModelSaveError: the tensor yields another number of bytes than its shape calls for.
    """
    if isinstance(tensor, SourceTensor):
        if isinstance(tensor.source, FileSource):
            sink.copy(tensor.source, tensor.offset, tensor.length)
            return
        if isinstance(tensor.source, MemorySource):
            sink.write(tensor.source.view[tensor.offset : tensor.offset + tensor.length])
            return
    data = _array_bytes(tensor)
    if len(data) != length:
        raise ModelSaveError(
            f"tensor '{tensor.name}' holds {len(data)} bytes, but its shape and type need {length}"
        )
    sink.write(data)


def _array_bytes(tensor: ir.TensorProtocol) -> bytes | memoryview:
    """Return the raw data, without a copy where the array in memory already has that form."""
    if isinstance(tensor, ir.Tensor) and tensor.dtype.bitwidth >= 8:
        array = tensor.numpy()
        little = sys.byteorder == "little" and array.dtype.byteorder != ">"
        if little and array.dtype.itemsize * 8 == tensor.dtype.bitwidth:
            return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return tensor.tobytes()
