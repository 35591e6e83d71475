"""Several models side by side, and the list of a model's nodes as a file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxslim import api, model_files
from onnxslim.errors import ModelSaveError, UsageError
from onnxslim.ir import shapes
from onnxslim.ir.traversal import nodes


def compare(sources: Sequence[Any], *, dump_to_disk: bool = False, console: Any = None) -> None:
    """Prints a column per model; with ``dump_to_disk``, writes the nodes of each to a file.

    Args:
        sources: as for `api.optimize`.
        dump_to_disk: write ``NAME_model_info.csv`` into the working directory, per model.
        console: where to print; a new one on stdout when None.
    """
    from rich.console import Console

    from onnxslim.report.comparison import comparison_table

    if not sources:
        raise UsageError("nothing to compare: the list of models is empty")
    found = [api.inspect(source) for source in sources]
    for source, inspection in zip(sources, found, strict=True):
        if dump_to_disk:
            dump_nodes(source, inspection.source)
    (console or Console()).print(comparison_table(found))


def dump_nodes(source: Any, name: str | None = None) -> None:
    """Writes ``NAME_model_info.csv`` to the working directory, a line per output of every node.

    Args:
        source: as for `api.optimize`.
        name: what the model is called; the name of its file when None.
    """
    path = f"{Path(name or model_files.name_of(source)).name or 'model'}_model_info.csv"
    model = model_files.load_checked(source)
    shapes.infer(model)
    try:
        with Path(path).open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["node", "operator", "output", "dtype", "shape"])
            for node in nodes(model):
                for value in node.outputs:
                    dtype = "" if value.dtype is None else value.dtype.name.lower()
                    shape = "" if value.shape is None else str(value.shape)
                    writer.writerow([node.name, node.op_type, value.name, dtype, shape])
    except OSError as error:
        raise ModelSaveError(f"{path}: cannot be written: {error.strerror}") from error
