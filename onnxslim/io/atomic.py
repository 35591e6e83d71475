"""Files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from types import TracebackType

from onnxslim.errors import ModelSaveError


def check_target(target: str | os.PathLike[str]) -> str:
    """Return the real path of a file that can be written, symbolic links resolved.

    Meant to be called before any work, so that a long run does not end in a refusal.

    Raises:
        ModelSaveError: a directory, a missing folder, or no permission.
    """
    shown = os.fspath(target)
    path = os.path.realpath(shown)
    folder = os.path.dirname(path)
    if not shown or os.path.isdir(path):
        raise ModelSaveError(f"'{shown}' is a directory; give the name of a file to write")
    if not os.path.isdir(folder):
        raise ModelSaveError(f"folder '{folder}' does not exist; create it to write '{shown}'")
    if is_device(path):
        return path
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        raise ModelSaveError(f"'{shown}' is not a regular file; it is not replaced")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ModelSaveError(f"no permission to write in folder '{folder}'")
    return path


def is_device(path: str) -> bool:
    """Whether ``path`` is a character device (``/dev/null``): written to, never replaced."""
    return os.path.exists(path) and stat.S_ISCHR(os.stat(path).st_mode)


class AtomicFile:
    """A temporary file beside ``path`` that takes its place on :meth:`commit`.

    A context manager: what was not committed is removed, on any exception.
    """

    def __init__(self, path: str) -> None:
        """Create the temporary file with the mode of ``path``, or that of any new file."""
        self.path = path
        folder, name = os.path.split(path)
        self._temporary = os.path.join(folder, f".{name[:100]}.{secrets.token_hex(6)}.tmp")
        try:
            self.fd = os.open(
                self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666
            )
        except OSError as error:
            raise ModelSaveError(f"'{path}' cannot be written: {error.strerror}") from error
        self._open = True
        with contextlib.suppress(OSError):  # no such file yet, or a file system without modes
            os.fchmod(self.fd, stat.S_IMODE(os.stat(path).st_mode))

    def __enter__(self) -> AtomicFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._open:
            self._open = False
            os.close(self.fd)
        if self._temporary:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary)
            self._temporary = ""

    def flush(self) -> None:
        """Bring the bytes to the disk and close the file."""
        os.fsync(self.fd)
        self._open = False
        os.close(self.fd)

    def commit(self) -> None:
        """Take the place of the old file; the folder is brought to the disk too."""
        if self._open:
            self.flush()
        os.replace(self._temporary, self.path)
        self._temporary = ""
        folder = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):  # some file systems refuse it
                os.fsync(folder)
        finally:
            os.close(folder)
