"""The list of passes as a page, made of their docstrings; docs/passes.md is this text."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterator

from onnxslim import passes, presets
from onnxslim.pipeline import Pass, leaves

_HEAD = """# Passes

This page is made by `onnxslim passes --markdown` from the docstrings of the passes; a test keeps it
current. `--passes A,B` runs some of them alone, `--skip-pass NAME` leaves one out.

*exact*: the same bits for finite inputs. *rounding*: the same real-number function, floats
reassociated. *lossy*: another function, only when asked for.
"""


def passes_page() -> str:
    """The whole page as Markdown: a table of all passes, then a section for each.

    Only the product's own passes are listed, whatever else is installed.
    """
    held = _held()
    names = sorted(passes.REGISTRY)
    lines = [_HEAD, "| pass | exactness | presets | what it does |", "|---|---|---|---|"]
    for name in names:
        found = passes.load(name)
        summary = _paragraphs(found)[0].replace("|", "\\|")
        cells = (f"[{name}](#{name})", found.exactness.value, _presets(held, name), summary)
        lines.append(f"| {' | '.join(cells)} |")
    for name in names:
        lines += ["", *_section(name, passes.load(name), held)]
    return "\n".join(lines) + "\n"


def _held() -> dict[str, set[str]]:
    """The names of the passes of each preset."""
    return {name: {step.name for step in leaves(presets.build(name))} for name in presets.PRESETS}


def _presets(held: dict[str, set[str]], name: str) -> str:
    return ", ".join(preset for preset in sorted(held) if name in held[preset]) or "–"


def _section(name: str, found: type[Pass], held: dict[str, set[str]]) -> Iterator[str]:
    yield f"## {name}"
    yield ""
    yield f"*{found.exactness.value}*; presets: {_presets(held, name)}"
    options = [_option(field) for field in dataclasses.fields(found)]  # type: ignore[arg-type]
    if options:
        yield f"; options: {', '.join(options)}"
    for paragraph in _paragraphs(found):
        yield ""
        yield paragraph


def _option(field: dataclasses.Field[object]) -> str:
    default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
    return f"`{field.name}{default}`"


def _paragraphs(found: type[Pass]) -> list[str]:
    """The docstring of the module as Markdown, a paragraph or code block an item.

    A line that ends in ``::`` opens an indented block of code, as in reStructuredText.
    """
    text = inspect.cleandoc(sys.modules[found.__module__].__doc__ or found.__doc__ or found.name)
    result: list[str] = []
    code: list[str] = []
    for paragraph in text.split("\n\n"):
        if code and paragraph.startswith("    "):
            code.append(paragraph)
            continue
        _close(code, result)
        if paragraph.endswith("::"):
            code.append("")
            paragraph = paragraph.removesuffix(":")
        result.append(paragraph.replace("``", "`"))
    _close(code, result)
    return [_marked(paragraph) for paragraph in result]


def _close(code: list[str], result: list[str]) -> None:
    if code:
        result.append(f"```\n{inspect.cleandoc(chr(10).join(code))}\n```")
        code.clear()


def _marked(paragraph: str) -> str:
    """The fixed words at the start of a paragraph in bold."""
    for word in ("Before", "After", "Holds only if", "Exactness", "Source", "Formula"):
        if paragraph.startswith(word) and ":" in paragraph:
            head, colon, rest = paragraph.partition(":")
            return f"**{head}{colon}**{rest}"
    return paragraph
