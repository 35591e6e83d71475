"""Names of data files beside a model: which are safe to read from and to restore."""

from __future__ import annotations

import os
from collections.abc import Sequence

from onnxslim.errors import PackError

_FORBIDDEN = frozenset('\\:*?"<>|')
_DEVICES = frozenset(
    ["con", "prn", "aux", "nul"] + [f"{kind}{n}" for kind in ("com", "lpt") for n in range(10)]
)
_MAX_LENGTH = 1024


def _fault(name: str) -> str | None:
    """Return what is wrong with a relative file name, for any system, or None."""
    if not name or len(name) > _MAX_LENGTH:
        return "is empty or too long"
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        return "has control characters"
    if name.startswith("/"):
        return "is absolute"
    if not _FORBIDDEN.isdisjoint(name):
        return "has a backslash, a colon or another character that is not portable"
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return "has an empty, '.' or '..' part"
        if part.startswith("."):
            return "has a hidden part"
        if part[-1] in " ." or part.split(".")[0].lower() in _DEVICES:
            return "has a part that some systems treat specially"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "is not valid text"
    return None


def check_side_names(names: Sequence[str], where: str) -> None:
    """Check the names of all data files of one model.

    Raises:
        PackError: a name that is unsafe, given twice (in any case), or also used as a folder.
    """
    seen: set[str] = set()
    for name in names:
        fault = _fault(name)
        if fault:
            raise PackError(f"{where}: data file name {name[:80]!r} {fault}; it is refused")
        if name.casefold() in seen:
            raise PackError(f"{where}: data file name {name!r} is given twice; it is refused")
        seen.add(name.casefold())
    for name in seen:
        parts = name.split("/")
        if any("/".join(parts[:end]) in seen for end in range(1, len(parts))):
            raise PackError(f"{where}: data file name {name!r} lies in another data file")


def side_name(location: str, where: str) -> str:
    """Return the plain form of an external location, as a pack stores it.

    Raises:
        PackError: the location is unsafe.
    """
    plain = os.path.normpath(location) if location and "\0" not in location else location
    plain = plain.replace(os.sep, "/")
    check_side_names([plain], where)
    return plain


def safe_path(folder: str, name: str, where: str) -> str:
    """Return the path of a checked name in a folder, given as its real path.

    Raises:
        PackError: a symbolic link stands in the way.
    """
    path = folder
    for part in name.split("/"):
        path = os.path.join(path, part)
        if os.path.islink(path):
            raise PackError(f"{where}: data file '{name}' leads through the link '{path}'; refused")
    return path
