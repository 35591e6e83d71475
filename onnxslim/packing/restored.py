"""A file of a packed model as something to read from, without restoring it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxslim.packing.reader import PackedReader


class RestoredFile:
    """The bytes of one restored file, decoded where they are read.

    Attributes:
        size: bytes.
        label: names the file in messages.
        path: None; the file is on no disk.
    """

    path: str | None = None

    def __init__(self, reader: PackedReader, number: int) -> None:
        """``number`` 0 is the model, others are its data files."""
        self._reader = reader
        self._number = number
        file = reader.model.manifest.files[number]
        self.size = file.size
        self.label = f"data file '{file.name}' of {reader.model.label}" if number else ""
        self.label = self.label or reader.model.label

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes."""
        return self._reader.read_file(self._number, offset, length)

    def peek(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes, but none of another tensor."""
        manifest = self._reader.model.manifest
        segment = manifest.segments(self._number)[manifest.segment_at(self._number, offset)]
        return self.read(offset, min(length, segment.start + segment.length - offset))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``."""
        self._reader.read_file_into(self._number, offset, buffer)

    def place(self, offset: int, length: int) -> tuple[int, int, int]:
        """Return a range of it as (file, offset, length), as the reader counts."""
        return self._number, offset, length

    def check_unchanged(self) -> None:
        """Raise ModelLoadError if the packed file was modified since it was opened."""
        self._reader.check_unchanged()
