"""Models side by side, one a column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from onnxslim.report.numbers import count, size

if TYPE_CHECKING:
    from onnxslim.api import Inspection


def comparison_table(models: Sequence[Inspection]) -> Table:
    """Interface, operators, parameters and sizes of each model."""
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("")
    for model in models:
        table.add_column(escape(model.source), justify="right")
    opsets = [", ".join(f"{name or 'ai.onnx'} {n}" for name, n in m.opsets.items()) for m in models]
    table.add_row("opset", *opsets)
    for kind in ("inputs", "outputs"):
        faces = [getattr(model, kind) for model in models]
        for name in dict.fromkeys(name for face in faces for name in face):
            table.add_row(
                escape(f"{kind[:-1]} {name}"), *(escape(face.get(name, "")) for face in faces)
            )
    snapshots = [model.snapshot for model in models]
    for name in sorted({name for one in snapshots for name in one.operators}):
        table.add_row(name, *(str(one.operators.get(name, 0)) for one in snapshots))
    table.add_row("nodes", *(str(one.nodes) for one in snapshots))
    table.add_row("parameters", *(count(one.parameters) for one in snapshots))
    table.add_row("MACs", *(count(one.macs) for one in snapshots))
    table.add_row("file", *(size(one.file_bytes) for one in snapshots))
    return table
