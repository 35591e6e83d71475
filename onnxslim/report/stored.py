"""The table of weights that are stored in another form."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnxslim.report.data import Report

_SHOWN = 12


def print_stored(report: Report, console: Console, *, verbose: bool) -> None:
    """Form and error of each weight, largest errors first; the tail only with ``verbose``."""
    weights = [
        entry
        for step in report.steps
        for entry in step.details.get("compression", {}).get("weights", ())
    ]
    if not weights:
        return
    weights.sort(key=lambda entry: (-entry["error"], entry["name"]))
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("weight", overflow="fold")
    for title in ("shape", "stored as", "bytes before", "bytes", "relative error"):
        table.add_column(title, justify="right", no_wrap=True)
    for entry in weights if verbose else weights[:_SHOWN]:
        shape = "x".join(map(str, entry["shape"]))
        sizes = (f"{entry['bytes_before']:,}", f"{entry['bytes_after']:,}")
        error = f"{entry['error']:.2g}"
        table.add_row(escape(entry["name"]), shape, entry["form"], *sizes, error)
    console.print(table, highlight=False)
    if not verbose and len(weights) > _SHOWN:
        more = len(weights) - _SHOWN
        console.print(f"  … {more} more, with smaller errors, with --verbose or --json")
