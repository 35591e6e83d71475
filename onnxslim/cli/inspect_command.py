"""``onnxslim inspect MODEL`` and ``onnxslim passes``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from onnxslim.cli import options
from onnxslim.cli.output import console_for, write_json


def inspect(
    sources: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Model files; - is stdin.")
    ],
    dump_to_disk: Annotated[
        bool,
        typer.Option(
            "--dump-to-disk", help="Also write MODEL_model_info.csv here, a line per node."
        ),
    ] = False,
    json_file: options.Json = None,
    debug: options.Debug = False,
) -> None:
    """Show what a model holds: interface, operators, size, parameters, MACs. Weights stay unread.

    Several models are shown side by side.

      onnxslim inspect model.onnx
      onnxslim inspect model.onnx slim.onnx
    """
    from onnxslim import api, compat
    from onnxslim.report.comparison import comparison_table
    from onnxslim.report.table import print_inspection

    found = [api.inspect(source) for source in sources]
    if dump_to_disk:
        for source in sources:
            compat.dump_nodes(source)
    data = [asdict(inspection) for inspection in found]
    write_json(json_file, data[0] if len(data) == 1 else {"models": data})
    if json_file == "-":
        return
    console = console_for(None, quiet=False)
    if len(found) == 1:
        print_inspection(found[0], console)
    else:
        console.print(comparison_table(found))


def passes(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Everything about each of them, as a page.")
    ] = False,
) -> None:
    """List the passes, with what each promises about the outputs."""
    if markdown:
        from onnxslim.report.passes_page import passes_page

        typer.echo(passes_page(), nl=False)
        return
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
