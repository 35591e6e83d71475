"""The report as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnxslim.ir.cost import Snapshot
from onnxslim.pipeline import Explanation
from onnxslim.report.data import Report, Step
from onnxslim.report.numbers import change as change
from onnxslim.report.numbers import count as count
from onnxslim.report.numbers import size as size
from onnxslim.report.quantized import print_quantized
from onnxslim.report.stored import print_stored

if TYPE_CHECKING:
    from onnxslim.api import Inspection

_MAX_OPERATORS = 24
_MAX_REFUSALS = 8


def print_report(report: Report, console: Console, *, verbose: bool = False) -> None:
    """Before and after, passes, validation, and what was written."""
    console.print(cost_table(report.before, report.after))
    console.print(operator_table(report.before, report.after))
    _print_steps(report, console)
    _print_sparsity(report, console, verbose)
    print_stored(report, console, verbose=verbose)
    print_quantized(report, console, verbose=verbose)
    _print_passes(report, console, verbose)
    print_validation(report.validation, console)
    for warning in report.warnings:
        console.print(f"[yellow]note[/] {warning}", highlight=False)
    _print_refusals(report, console, verbose)
    _print_explanations(report, console)
    files = ", ".join(f"{path} ({size(length)})" for path, length in report.files.items())
    if files:
        console.print(f"[bold]wrote[/] {files} in {report.seconds:.1f} s", highlight=False)


def cost_table(before: Snapshot, after: Snapshot | None = None) -> Table:
    """File size, weights, parameters, MACs and nodes, one a row."""
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("")
    table.add_column("before" if after else "", justify="right")
    if after:
        table.add_column("after", justify="right")
        table.add_column("change", justify="right", style="green")
    rows = [
        ("file", size, "file_bytes"),
        ("weights", size, "weight_bytes"),
        ("parameters", count, "parameters"),
        ("MACs", count, "macs"),
        ("nodes", count, "nodes"),
        ("initializers", count, "initializers"),
    ]
    for label, form, attribute in rows:
        old = getattr(before, attribute)
        cells = [label, _form(form, old)]
        if after:
            new = getattr(after, attribute)
            cells += [_form(form, new), change(old, new)]
        table.add_row(*cells)
    return table


def _form(form: Any, number: int | None) -> str:
    return "–" if number is None else str(form(number))


def operator_table(before: Snapshot, after: Snapshot | None = None) -> Table:
    """Nodes by operator; what changed comes first, and the tail is summed up."""
    table = Table(box=None, pad_edge=False, show_edge=False, title_justify="left")
    table.add_column("operator")
    table.add_column("before" if after else "nodes", justify="right")
    if after:
        table.add_column("after", justify="right")
    new = after.operators if after else {}
    names = sorted({*before.operators, *new})
    names.sort(key=lambda name: (before.operators.get(name, 0) == new.get(name, 0), name))
    for name in names[:_MAX_OPERATORS]:
        cells = [name, str(before.operators.get(name, 0))]
        if after:
            same = before.operators.get(name, 0) == new.get(name, 0)
            number = str(new.get(name, 0))
            cells.append(number if same else f"[green]{number}[/]")
        table.add_row(*cells)
    if len(names) > _MAX_OPERATORS:
        table.add_row(f"… {len(names) - _MAX_OPERATORS} more", "")
    return table


def _print_steps(report: Report, console: Console) -> None:
    if len(report.steps) < 2:
        return
    packs = any(step.packed_bytes for step in report.steps)
    judged = report.accuracy_before is not None
    first = Step("original", report.before, accuracy=report.accuracy_before)
    table = Table(box=None, pad_edge=False, show_edge=False)
    shown = {"step": True, "file": True, "packed": packs, "nodes": True, "accuracy": judged}
    for title in (title for title, wanted in shown.items() if wanted):
        table.add_column(title, justify="left" if title == "step" else "right", no_wrap=True)
    table.add_column("note", overflow="fold")
    for step in (first, *report.steps):
        cells = {
            "step": step.name,
            "file": size(step.snapshot.file_bytes),
            "packed": size(step.packed_bytes) if step.packed_bytes else "",
            "nodes": count(step.snapshot.nodes),
            "accuracy": _accuracy(step.accuracy),
        }
        texts = [text for title, text in cells.items() if shown[title]]
        table.add_row(*texts, escape(step.note))
    console.print(table)


def _accuracy(measured: dict[str, Any] | None) -> str:
    """``96.94 %`` or ``31.20 dB``; empty without labels."""
    if measured is None:
        return ""
    value = float(measured["value"])
    return f"{value:.2%}".replace("%", " %") if measured["metric"] == "top1" else f"{value:.2f} dB"


def _print_sparsity(report: Report, console: Console, verbose: bool) -> None:
    """Zeros of each weight after pruning; the tail only with ``verbose``."""
    tensors = [
        entry
        for step in report.steps
        for entry in step.details.get("pruning", {}).get("tensors", ())
    ]
    if not tensors:
        return
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("weight", overflow="fold")
    for title in ("shape", "zeros before", "zeros", "share"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    for entry in tensors if verbose else tensors[:_MAX_OPERATORS]:
        shape = "x".join(map(str, entry["shape"]))
        share = f"{entry['sparsity']:.2%}"
        zeros = (str(entry["zeros_before"]), str(entry["zeros"]))
        table.add_row(escape(entry["name"]), shape, *zeros, share, escape(entry["note"]))
    console.print(table, highlight=False)
    if not verbose and len(tensors) > _MAX_OPERATORS:
        console.print(f"  … {len(tensors) - _MAX_OPERATORS} more with --verbose or --json")


def _print_passes(report: Report, console: Console, verbose: bool) -> None:
    shown = [entry for entry in report.passes if verbose or entry.changes]
    if not shown:
        return
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("pass")
    table.add_column("changes", justify="right")
    table.add_column("ms", justify="right")
    table.add_column("exactness")
    for entry in shown:
        milliseconds = f"{entry.milliseconds:.1f}"
        table.add_row(entry.name, str(entry.changes), milliseconds, entry.exactness)
    console.print(table)


def print_validation(validation: dict[str, Any], console: Console) -> None:
    """The verdict, and the errors of each output."""
    status = validation.get("status")
    if not status:
        return
    style = {"passed": "green", "failed": "red"}.get(status, "yellow")
    reason = f": {validation['reason']}" if validation.get("reason") else ""
    console.print(f"[bold]outputs[/] [{style}]{status}[/]{reason}", highlight=False)
    outputs = validation.get("outputs") or []
    if not outputs:
        return
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("output")
    for title in ("max abs error", "max rel error", "cosine"):
        table.add_column(title, justify="right")
    for entry in outputs[:_MAX_OPERATORS]:
        table.add_row(
            str(entry.get("name")),
            _number(entry.get("max_abs_error"), ".2g"),
            _number(entry.get("max_rel_error"), ".2g"),
            _number(entry.get("cosine"), ".6f"),
        )
    console.print(table)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _print_refusals(report: Report, console: Console, verbose: bool) -> None:
    if not report.refusals:
        return
    shown = report.refusals if verbose else report.refusals[:_MAX_REFUSALS]
    places = "1 place" if len(report.refusals) == 1 else f"{len(report.refusals)} places"
    console.print(f"[bold]left alone[/] {places}", highlight=False)
    for entry in shown:
        line = f"  {entry.pass_name} at {entry.site}: {entry.reason}"
        console.print(line, highlight=False, markup=False)
    if len(shown) < len(report.refusals):
        console.print("  … all of them with --verbose or --json", highlight=False)


def _print_explanations(report: Report, console: Console) -> None:
    """Groups of tied channels, one a row: what went, what stayed, and why."""
    if not report.explanations:
        return
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("weight", overflow="fold")
    table.add_column("channels", justify="right", no_wrap=True)
    table.add_column("removed", style="green")
    table.add_column("stays because")
    for entry in report.explanations:
        tied = f" +{len(entry.tied)} tied" if entry.tied else ""
        same = entry.before == entry.after
        counts = str(entry.before) if same else f"{entry.before} → {entry.after}"
        gone = ", ".join(f"{number} {reason}" for reason, number in entry.removed.items())
        shown = [kept for kept in entry.kept if kept.idle] or entry.kept[:1]
        stays = "; ".join(f"{kept.channels}: {kept.reason}" for kept in shown)
        cells = (f"{entry.site}{tied}{_shape_line(entry)}", counts, gone, stays)
        table.add_row(*map(escape, cells))
    console.print(table, highlight=False)


def _shape_line(entry: Explanation) -> str:
    """The weight's shape before and after, on a line of its own."""
    if entry.site not in entry.shapes:
        return ""
    before, after = entry.shapes[entry.site]
    return f"\n  {before} → {after}" if before != after else f"\n  {before}"


def print_inspection(inspection: Inspection, console: Console) -> None:
    """What a model holds, for ``onnxslim inspect``."""
    opsets = ", ".join(
        f"{name or 'ai.onnx'} {number}" for name, number in inspection.opsets.items()
    )
    table = Table(box=None, pad_edge=False, show_edge=False, show_header=False)
    table.add_row("model", inspection.source)
    table.add_row("opset", f"{opsets}; IR version {inspection.ir_version}")
    table.add_row("producer", inspection.producer or "–")
    for kind, values in (("input", inspection.inputs), ("output", inspection.outputs)):
        for name, text in values.items():
            table.add_row(kind, f"{name}: {text}")
    for name in inspection.functions:
        table.add_row("function", name)
    for key, text in inspection.metadata.items():
        table.add_row("metadata", f"{key} = {text}")
    console.print(table, markup=False)
    console.print(cost_table(inspection.snapshot))
    console.print(operator_table(inspection.snapshot))
