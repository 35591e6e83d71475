"""Arrays in files, read a few rows at a time: npy, and the members of an npz."""

from __future__ import annotations

import os
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from onnxslim.errors import DataError
from onnxslim.runtime.specs import Array

_BLOCK = 1 << 20  # bytes

# What numpy, zipfile and zlib raise on damaged files.
_DAMAGE = (ValueError, EOFError, OSError, KeyError, zlib.error, zipfile.BadZipFile,
           NotImplementedError, RuntimeError)  # fmt: skip


class _Descriptor:
    """A descriptor of an open file, closed when the last array that reads from it is gone."""

    def __init__(self, file: IO[bytes]) -> None:
        self.fd, self.name = os.dup(file.fileno()), str(file.name)
        weakref.finalize(self, os.close, self.fd)


class FileArray:
    """A C-ordered array in a file that stays there: slices are views, `numpy.asarray` reads.

    Attributes:
        shape: as of an array.
        dtype: as of an array.
        ndim: as of an array.
    """

    def __init__(
        self, file: _Descriptor, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self._file, self._offset = file, offset
        self.shape, self.dtype, self.ndim = shape, dtype, len(shape)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a scalar")
        return self.shape[0]

    def __getitem__(self, key: int | slice) -> FileArray:
        """A row, or neighbouring rows, along the first axis; nothing is read."""
        row = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                raise IndexError("rows are taken one after another only")
            shape = (max(stop - start, 0), *self.shape[1:])
            return FileArray(self._file, self._offset + start * row, shape, self.dtype)
        if not -len(self) <= key < len(self):
            raise IndexError(key)
        start = key % len(self)
        return FileArray(self._file, self._offset + start * row, self.shape[1:], self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        content = np.empty(self.shape, self.dtype)
        view = memoryview(content.reshape(-1).view(np.uint8).data)
        done = 0
        while done < len(view):
            read = os.preadv(self._file.fd, [view[done:]], self._offset + done)
            if not read:
                raise DataError(f"{self._file.name} ends early; it was cut off while being read")
            done += read
        return content if dtype is None else content.astype(dtype, copy=False)


Rows = Array | FileArray
"""An array, here or in a file."""


def open_arrays(path: str | os.PathLike[str]) -> Mapping[str, Rows]:
    """The arrays of an npz by name; a npy is one array with the name ``""``.

    Large members are not read. What is compressed is unpacked into a temporary file first.

    Raises:
        DataError: missing, damaged, neither npz nor npy, or holding pickled objects.
    """
    source = Path(path)
    try:
        stream = source.open("rb")
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from error
    with stream:
        try:
            if source.suffix == ".npy" or not zipfile.is_zipfile(stream):
                stream.seek(0)
                return {"": _array(stream, 0, source.stat().st_size)}
            with zipfile.ZipFile(stream) as archive:
                return {
                    item.filename.removesuffix(".npy"): _member(archive, item, source)
                    for item in archive.infolist()
                }
        except _DAMAGE as error:
            raise DataError(load_problem(source, error)) from error


def load_problem(source: Path, error: Exception) -> str:
    """What a failed read of an npz or npy means, in one line."""
    text = " ".join(str(error).split())
    if "Object arrays" in text:
        return (
            f"{source} holds an array of Python objects, which is not read because it could run "
            "code; save plain arrays"
        )
    is_cut = isinstance(error, zipfile.BadZipFile | EOFError)
    if is_cut or any(word in text.lower() for word in ("pickle", "magic")):
        return f"{source} is not a complete .npz file; write it with numpy.savez"
    return f"{source} cannot be read as a .npz file: {text}"


def _member(archive: zipfile.ZipFile, item: zipfile.ZipInfo, source: Path) -> Rows:
    if item.compress_type == zipfile.ZIP_STORED:
        with archive.open(item) as member:  # reading to the end compares the checksum
            while member.read(_BLOCK):
                pass
        with source.open("rb") as file:
            return _array(file, _data_offset(file, item), item.file_size)
    with tempfile.TemporaryFile(prefix="onnxslim-") as unpacked:
        with archive.open(item) as member:
            while block := member.read(_BLOCK):
                unpacked.write(block)
        unpacked.flush()
        return _array(cast("IO[bytes]", unpacked), 0, item.file_size)


def _data_offset(file: IO[bytes], item: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored member begin: after its local header, name and extra field."""
    header = os.pread(file.fileno(), 30, item.header_offset)
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return item.header_offset + 30 + name + extra


def _array(file: IO[bytes], start: int, length: int) -> Rows:
    """The array whose npy form begins at ``start``. ``file`` may be closed afterwards."""
    file.seek(start)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else _read_header_2
    shape, fortran, dtype = read(file)
    offset = file.tell()
    size = dtype.itemsize * int(np.prod(shape, dtype=object))
    if offset + size > start + length:
        raise EOFError("the array ends early")
    if dtype.hasobject or fortran or dtype.byteorder == ">" or not size:
        file.seek(start)
        content: Array = np.lib.format.read_array(file, allow_pickle=False)
        return np.ascontiguousarray(content.astype(dtype.newbyteorder("=")))
    return FileArray(_Descriptor(file), offset, shape, dtype)


_read_header_2 = np.lib.format.read_array_header_2_0
