"""Hashes a file on a thread of its own while it is being written by others."""

from __future__ import annotations

import hashlib
import threading

import numpy as np

from onnxslim.errors import OnnxSlimError
from onnxslim.io.source import FileSource

_PIECE = 1 << 20


class HashFollower:
    """Reads a growing prefix of a file; what was just written is still in the cache."""

    def __init__(self, source: FileSource, size: int) -> None:
        """Start at the first of ``size`` bytes."""
        self._source = source
        self._size = size
        self._ready = 0
        self._stopped = False
        self._changed = threading.Condition()
        self._digest = hashlib.sha256()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def advance(self, ready: int) -> None:
        """Say that the first ``ready`` bytes are final."""
        with self._changed:
            if ready > self._ready:
                self._ready = ready
                self._changed.notify()

    def stop(self) -> None:
        """Give up; the file is not complete."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def result(self) -> bytes:
        """Wait for the last byte and return the SHA-256.

        Raises:
            OnnxSlimError: the file could not be read, or it is shorter than expected.
        """
        self.advance(self._size)
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._digest.digest()

    def _run(self) -> None:
        try:
            position = 0
            buffer = np.empty(min(_PIECE, max(1, self._size)), np.uint8)
            while position < self._size:
                end = self._wait(position)
                if end is None:
                    return
                while position < end:
                    piece = buffer[: min(_PIECE, end - position)]
                    self._source.read_into(position, piece.data)
                    self._digest.update(piece.data)
                    position += piece.size
        except (OnnxSlimError, OSError) as error:
            self._error = error

    def _wait(self, position: int) -> int | None:
        """Wait for a whole piece, or the last one; return up to where to read, None to stop."""
        enough = min(position + _PIECE, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._ready >= enough)
            return None if self._stopped else self._ready
