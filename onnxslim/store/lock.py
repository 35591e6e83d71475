"""Locks of a store, held by a process and gone with it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from onnxslim.errors import StoreError


@contextmanager
def locked(path: str, *, alone: bool) -> Iterator[None]:
    """Hold the lock on a file; wait for it as long as it takes.

    Args:
        path: the file; it is made if missing, and never removed.
        alone: nobody else may hold it; otherwise only nobody who wants to be alone.

    Raises:
        StoreError: the file cannot be opened or locked.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise StoreError(f"'{path}' cannot be opened: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        except OSError as error:
            raise StoreError(
                f"'{path}' cannot be locked ({error.strerror}); the file system must offer locks"
            ) from error
        yield
    finally:
        os.close(descriptor)
