"""The report as one HTML page: no script, no font, nothing that is fetched from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from pathlib import PurePath
from typing import Any

from onnxslim import __version__
from onnxslim.ir.cost import Snapshot
from onnxslim.report.data import Report
from onnxslim.report.numbers import change, count, size
from onnxslim.report.page_style import STYLE
from onnxslim.report.quantized import figures, quantization_of, ranking_plot

# Longer lists are cut; the JSON report has all of it.
_MAX_ROWS = 200
_COSTS = (
    ("File", size, "file_bytes"),
    ("Weights", size, "weight_bytes"),
    ("Parameters", count, "parameters"),
    ("MACs", count, "macs"),
    ("Nodes", count, "nodes"),
)


def report_page(report: Report) -> str:
    """The page as text; the same report gives the same page."""
    parts = [
        _header(report),
        _cards(report.before, report.after),
        _warnings(report),
        _steps(report),
        _quantized(report),
        _validation(report.validation),
        _operators(report.before, report.after),
        _passes(report),
        _explanations(report),
        _by_pass("Left alone", [(e.pass_name, e.site, e.reason) for e in report.refusals]),
        _by_pass("Rewrites", [(e.pass_name, e.site, e.detail) for e in report.rewrites]),
    ]
    title = escape(f"onnxslim: {report.source}")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + f"\n<footer>onnxslim {__version__}</footer>\n</main>\n</body>\n</html>\n"
    )


def _header(report: Report) -> str:
    status = str(report.validation.get("status") or "not validated")
    colour = {"passed": "good", "failed": "bad"}.get(status, "warn")
    files = ", ".join(f"{path} ({size(length)})" for path, length in report.files.items())
    written = f"wrote {files}" if files else "nothing was written"
    return (
        f"<h1>{escape(PurePath(report.source).name or report.source)}"
        f'<span class="badge {colour}">{_judged(report)} {escape(status)}</span></h1>\n'
        f"<p>{escape(report.source)}: {escape(written)} in {report.seconds:.1f} s</p>"
    )


def _judged(report: Report) -> str:
    """What the verdict is about: lossy steps come after it, and speak for themselves."""
    return "outputs" if len(report.steps) < 2 else "outputs before lossy steps:"


def _cards(before: Snapshot, after: Snapshot) -> str:
    cards = []
    for label, form, attribute in _COSTS:
        old, new = getattr(before, attribute), getattr(after, attribute)
        width = 100.0 if not old or new is None else min(100.0, 100 * new / old)
        difference = change(old, new) or "unchanged"
        colour = "good" if old and new is not None and new < old else ""
        if old and new is not None and new > old:
            colour = "bad"
        cards.append(
            f'<div class="card"><span>{label}</span><strong>{_form(form, new)}</strong>'
            f'<em>from {_form(form, old)}, <b class="{colour}">{difference}</b></em>'
            f'<div class="bar"><i style="width:{width:.1f}%"></i></div></div>'
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _form(form: Any, number: int | None) -> str:
    return "–" if number is None else str(form(number))


def _warnings(report: Report) -> str:
    if not report.warnings:
        return ""
    return _section("Notes", _list(report.warnings))


def _steps(report: Report) -> str:
    if len(report.steps) < 2 and not any(step.details for step in report.steps):
        return ""
    largest = max([report.before.file_bytes, *(s.snapshot.file_bytes for s in report.steps)]) or 1
    rows = [_step_row("original", report.before, "", largest)]
    rows += [_step_row(step.name, step.snapshot, step.note, largest) for step in report.steps]
    body = _table(("step", "#file", "#nodes", "", "note"), rows)
    for step in report.steps:
        if step.details:
            text = json.dumps(step.details, indent=2, default=str)
            body += _details(f"{step.name}: details", f"<pre>{escape(text)}</pre>")
    return _section("Steps", body)


def _quantized(report: Report) -> str:
    found = quantization_of(report)
    if found is None or "status" not in found:
        return ""
    rows = [[escape(cell) for cell in row] for row in figures(found)]
    body = _table(("int8", "#before", "#after", "remark"), rows)
    body += f"<p>Judged by {escape(found['judged_by'])}.</p>"
    plot = ranking_plot(found["sensitivity"])
    if plot:
        body += f"<p>Signal to noise at the outputs with int8 in one place alone:</p>{plot}"
    body += _details("Recipe", f"<pre>{escape(found['recipe'])}</pre>")
    return _section("Static int8", body)


def _step_row(name: str, snapshot: Snapshot, note: str, largest: int) -> list[str]:
    share = 100 * snapshot.file_bytes / largest
    meter = f'<i style="width:{share:.1f}%"></i>'
    return [escape(name), size(snapshot.file_bytes), str(snapshot.nodes), meter, escape(note)]


def _validation(validation: dict[str, Any]) -> str:
    if not validation.get("status"):
        return ""
    reason = str(validation.get("reason") or "")
    body = f"<p>{escape(reason)}</p>" if reason else ""
    outputs = validation.get("outputs") or []
    rows = [
        [
            escape(str(entry.get("name"))),
            escape(str(entry.get("dtype", ""))),
            _number(entry.get("max_abs_error"), ".2g"),
            _number(entry.get("max_rel_error"), ".2g"),
            _number(entry.get("cosine"), ".6f"),
            "same bits" if entry.get("exact") else "random" if entry.get("random") else "",
        ]
        for entry in outputs[:_MAX_ROWS]
    ]
    titles = ("output", "type", "#max abs error", "#max rel error", "#cosine", "")
    body += _table(titles, rows) + _cut(len(outputs)) if rows else ""
    notes = [str(note) for note in validation.get("notes") or []]
    body += _list(notes) if notes else ""
    return _section(f"Outputs beside the original: {validation['status']}", body)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _operators(before: Snapshot, after: Snapshot) -> str:
    names = sorted({*before.operators, *after.operators})
    counts = [(n, before.operators.get(n, 0), after.operators.get(n, 0)) for n in names]
    counts.sort(key=lambda row: (row[1] == row[2], -max(row[1:]), row[0]))
    largest = max((max(row[1:]) for row in counts), default=1)
    rows = []
    for name, old, new in counts[:_MAX_ROWS]:
        meter = (
            f'<i class="old" style="width:{100 * old / largest:.1f}%"></i>'
            f'<i style="width:{100 * new / largest:.1f}%"></i>'
        )
        rows.append([escape(name), str(old), str(new), meter])
    return _section("Operators", _table(("operator", "#before", "#after", ""), rows))


def _passes(report: Report) -> str:
    if not report.passes:
        return ""
    titles = ("pass", "#changes", "#ms", "outputs")
    ordered = sorted(report.passes, key=lambda entry: -entry.changes)
    rows = [
        [escape(e.name), str(e.changes), f"{e.milliseconds:.1f}", escape(e.exactness)]
        for e in ordered
    ]
    active = [row for row, entry in zip(rows, ordered, strict=True) if entry.changes]
    idle = rows[len(active) :]
    body = _table(titles, active) if active else "<p>No pass found anything to do.</p>"
    if idle:
        body += _details(f"{len(idle)} passes without a change", _table(titles, idle))
    return _section("Passes", body)


def _explanations(report: Report) -> str:
    if not report.explanations:
        return ""
    rows = []
    for entry in report.explanations[:_MAX_ROWS]:
        tied = f" and {len(entry.tied)} tied" if entry.tied else ""
        gone = ", ".join(f"{number} {reason}" for reason, number in entry.removed.items())
        shown = [kept for kept in entry.kept if kept.idle] or entry.kept[:1]
        stays = "; ".join(f"{kept.channels}: {kept.reason}" for kept in shown)
        cells = (f"{entry.site}{tied}", str(entry.before), str(entry.after), gone, stays)
        rows.append([escape(cell) for cell in cells])
    titles = ("weight", "#channels", "#after", "removed", "stays because")
    return _section("Channels", _table(titles, rows) + _cut(len(report.explanations)))


def _by_pass(title: str, entries: Sequence[tuple[str, str, str]]) -> str:
    """Places with a text each, folded up by pass."""
    if not entries:
        return ""
    body = ""
    ordered = sorted(entries, key=lambda entry: entry[0])
    for name, found in groupby(ordered, key=lambda entry: entry[0]):
        places = list(found)
        lines = [f"{site}: {text}" if text else site for _, site, text in places[:_MAX_ROWS]]
        body += _details(f"{name} ({len(places)})", _list(lines) + _cut(len(places)))
    return _section(f"{title}: {len(entries)} {'place' if len(entries) == 1 else 'places'}", body)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{body}</section>"


def _details(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _cut(length: int) -> str:
    return (
        f"<p>The first {_MAX_ROWS} of {length}; --json has all.</p>" if length > _MAX_ROWS else ""
    )


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already. ``#`` before a title aligns to the right, no title makes a meter."""
    kinds = ["n" if title.startswith("#") else "" if title else "meter" for title in titles]
    head = "".join(
        f'<th class="{kind}">{escape(title.lstrip("#"))}</th>'
        for kind, title in zip(kinds, titles, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{k}">{cell}</td>' for k, cell in zip(kinds, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
