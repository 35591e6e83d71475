"""What static int8 did, as a table for a terminal and as a plot for the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape as html_escape
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnxslim.report.data import Report

_SHOWN = 12
_BAR, _ROW, _LABEL = 320, 18, 260  # pixels of the plot
_BEST_DB = 100.0  # the right end of a bar


def quantization_of(report: Report) -> dict[str, Any] | None:
    """The figures of the quantization, or None where there was none."""
    for step in report.steps:
        found: dict[str, Any] | None = step.details.get("quantization")
        if found is not None:
            return found
    return None


def print_quantized(report: Report, console: Console, *, verbose: bool) -> None:
    """Figures before and after, then the operators that int8 hurts most."""
    found = quantization_of(report)
    if found is None or "status" not in found:
        return
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("int8")
    for title in ("before", "after", ""):
        table.add_column(title, justify="right" if title else "left")
    for row in figures(found):
        table.add_row(*map(escape, row))
    console.print(table, highlight=False)
    console.print(f"  judged by {escape(found['judged_by'])}", highlight=False)
    _print_ranking(found["sensitivity"], console, verbose)
    if verbose:
        for line in found["steps"]:
            console.print(f"  {line}", highlight=False, markup=False)


def figures(found: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows of name, before, after and remark."""
    rows = [("status", "", found["status"], found["form"])]
    before, after = found["before"], found["after"]
    if before is not None and after is not None:
        interval = after["drop_interval_95"]
        remark = f"drop {_number(after['drop'], '.2f')}"
        if interval is not None:
            remark += f", 95 % within [{interval[0]:.2f}, {interval[1]:.2f}]"
        old, new = (_number(one["value"], ".2f") for one in (before, after))
        rows.append((after["metric"], old, new, f"{remark}; {after['samples']} samples"))
        if after["top1_flips"] is not None:
            rows.append(("top-1 flips", "", str(after["top1_flips"]), "other answers than before"))
        for output in after["outputs"]:
            if output["sqnr_db"] is not None:
                rows.append((f"SQNR {output['name']}", "", f"{output['sqnr_db']:.1f} dB", ""))
    for pair in found["latency"]:
        old, new = (
            f"{pair[key]['p50_ms']:.3g} / {pair[key]['p90_ms']:.3g} ms"
            for key in ("before", "after")
        )
        rows.append((f"p50 / p90, batch {pair['batch']}", old, new, f"{pair['speedup']:.2f}x"))
    gap = found["fake_real_gap"]
    if gap is not None:
        remark = f"{gap['described_db']:.1f} dB as described, {gap['real_db']:.1f} dB here"
        rows.append(("kernel gap", "", f"{gap['gap_db']:.1f} dB", remark))
    if found["int8_kernel_share"] is not None:
        left = found["conversions_left"]
        share = f"{found['int8_kernel_share']:.0%}"
        rows.append(("products in int8", "", share, f"{left} conversions stay"))
    return rows


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _print_ranking(ranking: Sequence[dict[str, Any]], console: Console, verbose: bool) -> None:
    if not ranking:
        return
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("int8 here alone", overflow="fold")
    table.add_column("SQNR", justify="right", no_wrap=True)
    for entry in ranking if verbose else ranking[:_SHOWN]:
        table.add_row(escape(_label(entry)), f"{entry['sqnr_db']:.1f} dB")
    console.print(table, highlight=False)
    if not verbose and len(ranking) > _SHOWN:
        console.print(f"  … {len(ranking) - _SHOWN} more with --verbose or --json")


def _label(entry: dict[str, Any]) -> str:
    names = entry["nodes"]
    more = f" +{len(names) - 1}" if len(names) > 1 else ""
    return f"{names[0]}{more}"


def ranking_plot(ranking: Sequence[dict[str, Any]]) -> str:
    """A bar per region as SVG: the shorter, the more int8 hurts there; empty without regions."""
    if not ranking:
        return ""
    width, height = _LABEL + _BAR + 80, _ROW * len(ranking)
    parts = []
    for number, entry in enumerate(ranking):
        top, level = number * _ROW, max(0.0, min(entry["sqnr_db"], _BEST_DB))
        label = _label(entry)
        label = label if len(label) <= 40 else f"…{label[-39:]}"
        parts.append(
            f'<text x="{_LABEL - 6}" y="{top + 13}" text-anchor="end" font-size="11" '
            f'fill="currentColor">{html_escape(label)}</text>'
            f'<rect x="{_LABEL}" y="{top + 3}" width="{_BAR * level / _BEST_DB:.1f}" '
            f'height="{_ROW - 6}" fill="#4c78a8"/>'
            f'<text x="{_LABEL + _BAR * level / _BEST_DB + 6:.1f}" y="{top + 13}" font-size="11" '
            f'fill="currentColor">{entry["sqnr_db"]:.1f} dB</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}"><title>Signal to noise with int8 in one region alone'
        f"</title>{''.join(parts)}</svg>"
    )
