"""Where text goes: tables to stdout (stderr when the model goes to stdout), errors to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from onnxslim.errors import ModelSaveError

if TYPE_CHECKING:
    from rich.console import Console

    from onnxslim.report.data import Report
    from onnxslim.validated_run import Progress


def fail(message: str, exit_code: int) -> NoReturn:
    """One line on stderr, then out."""
    line = " ".join(str(message).split())
    print(f"onnxslim: error: {line}", file=sys.stderr)
    sys.exit(exit_code)


def console_for(target: str | None, quiet: bool) -> Console:
    """The console for tables; a model on stdout sends them to stderr."""
    from rich.console import Console

    return Console(stderr=target == "-", quiet=quiet, soft_wrap=False)


def write_json(path: str | None, data: dict[str, Any]) -> None:
    """Writes the report as JSON; ``-`` is stdout."""
    if path is None:
        return
    text = json.dumps(data, indent=2, default=str) + "\n"
    if path == "-":
        sys.stdout.write(text)
        return
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ModelSaveError(f"{path}: cannot write the report: {error.strerror}") from error


def write_html(path: str | None, report: Report) -> None:
    """Writes the report as an HTML page."""
    if path is None:
        return
    from onnxslim.report.page import report_page

    try:
        Path(path).write_text(report_page(report), encoding="utf-8")
    except OSError as error:
        raise ModelSaveError(f"{path}: cannot write the report: {error.strerror}") from error


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Progress]:
    """A bar on stderr that appears on a terminal only and is gone at the end."""
    if quiet or not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def update(stage: str, done: int, total: int) -> None:
            known = total if total > 1 else None
            bar.update(task, description=stage, completed=done, total=known)

        yield update
