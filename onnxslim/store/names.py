"""Names and versions of stored models. They become file names, so little is allowed."""

from __future__ import annotations

import re

from onnxslim.errors import UsageError

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", re.ASCII)
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.ASCII | re.IGNORECASE)


def check_name(text: str, what: str = "name") -> str:
    """Return a name or a version if it can be used.

    Raises:
        UsageError: empty, too long, or with characters that are not safe in a file name.
    """
    if not _PLAIN.fullmatch(text) or text.endswith(".") or _DEVICE.fullmatch(text):
        raise UsageError(
            f"{what} {text[:120]!r} cannot be used; want up to 100 letters, digits, '.', '_', '+' "
            "or '-', a letter or digit first"
        )
    return text


def split_reference(text: str) -> tuple[str, str | None]:
    """Split ``NAME`` or ``NAME@VERSION``.

    Raises:
        UsageError: a part that cannot be used.
    """
    name, separator, version = text.partition("@")
    return check_name(name), check_name(version, "version") if separator else None


def default_name(path: str) -> str:
    """Return a usable name for a model file: its own, without the ending.

    Raises:
        UsageError: nothing of it is usable.
    """
    stem = re.split(r"[/\\]", path)[-1]
    for ending in (".onnxz", ".onnx"):
        stem = stem.removesuffix(ending)
    return check_name(re.sub(r"[^A-Za-z0-9._+-]+", "_", stem).lstrip("._+-").rstrip(".")[:100])


def version_key(version: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key in which version 10 comes after version 9."""
    parts = re.findall(r"[0-9]+|[^0-9]+", version)
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts)
