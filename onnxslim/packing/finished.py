"""Keeps account of which bytes of the restored files are final."""

from __future__ import annotations

from onnxslim.packing.layout import FILE_BYTES
from onnxslim.packing.manifest import Manifest


class Finished:
    """How much of each tensor, and of each file's rest, has been written."""

    def __init__(self, manifest: Manifest) -> None:
        """Nothing is written yet."""
        self._manifest = manifest
        self._blobs = [0] * len(manifest.blobs)
        self._rests = [0] * len(manifest.files)
        self._segment = [0] * len(manifest.files)

    def add(self, kind: int, number: int, length: int) -> None:
        """Note the next ``length`` bytes of a tensor or of a file's rest."""
        if kind == FILE_BYTES:
            self._rests[number] += length
        else:
            self._blobs[number] += length

    def prefix(self, file: int) -> int:
        """Return how many bytes from the start of a file are final."""
        segments = self._manifest.segments(file)
        while self._segment[file] < len(segments):
            segment = segments[self._segment[file]]
            if segment.blob is None:
                done = self._rests[file] - segment.rest_start
            else:
                done = self._blobs[segment.blob]
            if done < segment.length:
                return segment.start + max(0, done)
            self._segment[file] += 1
        return self._manifest.files[file].size
