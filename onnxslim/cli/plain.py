"""The plain command line, ``IN OUT`` with hardly a flag, read without the parser.

The parser checks every option of a command against a schema, for which it loads a library of its
own: 0.1 s, a fifth of a run on a small model. Whatever is not understood here goes to the parser,
which also has the last word on errors and help.
"""

from __future__ import annotations

from typing import Any

_SWITCHES = {
    "--debug": "debug",
    "--no-validate": "no_validate",
    "--quiet": "quiet",
    "--verbose": "verbose",
    "-q": "quiet",
    "-v": "verbose",
}
_VALUES = {"--html": "html", "--json": "json_file"}


def read_plain(arguments: list[str]) -> dict[str, Any] | None:
    """The keywords of the command ``optimize``, or None where the parser has to read them.

    Args:
        arguments: the command line, ``optimize`` first.
    """
    if not arguments or arguments[0] != "optimize":
        return None
    found: dict[str, Any] = {}
    files: list[str] = []
    words = iter(arguments[1:])
    for word in words:
        if word in _SWITCHES:
            found[_SWITCHES[word]] = True
        elif word in _VALUES:
            value = next(words, "")
            if not value or (value.startswith("-") and value != "-"):
                return None
            found[_VALUES[word]] = value
        elif word.startswith("-") and word != "-":
            return None
        else:
            files.append(word)
    if len(files) not in (1, 2):
        return None
    return {**found, **dict(zip(("source", "target"), files, strict=False))}
