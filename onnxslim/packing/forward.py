"""Reads a packed file forward only, from a file or a pipe."""

from __future__ import annotations

import zlib
from typing import BinaryIO

from onnxslim.errors import PackError
from onnxslim.packing.checks import check_table
from onnxslim.packing.layout import (
    HEADER_SIZE,
    INDEX,
    FrameHeader,
)

_PIECE = 1 << 20


class Forward:
    """Reads a stream of unknown length; nothing is allocated before its bytes have come."""

    def __init__(self, stream: BinaryIO, label: str) -> None:
        self._stream = stream
        self.label = label
        self.position = 0

    def take(self, length: int) -> bytes:
        """Return exactly ``length`` bytes."""
        pieces: list[bytes] = []
        missing = length
        while missing:
            piece = self._stream.read(min(missing, _PIECE))
            if not piece:
                raise PackError(
                    f"{self.label} is cut short after byte {self.position}; get the file again"
                )
            pieces.append(piece)
            missing -= len(piece)
            self.position += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def table(self, kind: int) -> bytes:
        """Return the manifest or the index, whose frame comes next."""
        where = f"{self.label}: {'index' if kind == INDEX else 'manifest'}"
        header = FrameHeader.decode(self.take(HEADER_SIZE), where)
        check_table(header, kind, where)
        data = self.take(header.raw_length)
        if zlib.crc32(data) != header.crc:
            raise PackError(f"{where}: checksum mismatch; the file is damaged, get it again")
        return data

    def expect_end(self) -> None:
        """Check that nothing follows."""
        if self._stream.read(1):
            raise PackError(f"{self.label} has bytes after its end; the file is damaged")
