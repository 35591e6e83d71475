"""``onnxslim inspect MODEL`` and ``onnxslim passes``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from onnxslim.cli import options
from onnxslim.cli.output import console_for, write_json


def inspect(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="Model file; - is stdin.")],
    json_file: options.Json = None,
    debug: options.Debug = False,
) -> None:
    """Show what a model holds: interface, operators, size, parameters, MACs. Weights stay unread.

    onnxslim inspect model.onnx
    """
    from onnxslim import api
    from onnxslim.report.table import print_inspection

    inspection = api.inspect(source)
    write_json(json_file, asdict(inspection))
    if json_file != "-":
        print_inspection(inspection, console_for(None, quiet=False))


def passes() -> None:
    """List the passes, with what each promises about the outputs."""
    from rich.table import Table

    from onnxslim import passes as registry

    table = Table(box=None, pad_edge=False, show_edge=False)
    for title in ("pass", "exactness", "what it does"):
        table.add_column(title)
    for name in registry.names():
        found = registry.load(name)
        module = __import__(found.__module__, fromlist=["_"])
        summary = (module.__doc__ or found.__doc__ or "").strip().splitlines()[0]
        table.add_row(name, found.exactness.value, summary)
    console_for(None, quiet=False).print(table)
