"""``onnxslim pack``, ``unpack``, ``ls`` and ``cat``."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from onnxslim.cli import options
from onnxslim.cli.output import console_for, progress_bar, write_json


def _reader(path: str) -> Any:
    return sys.stdin.buffer if path == "-" else path


def _writer(path: str) -> Any:
    return sys.stdout.buffer if path == "-" else path


Base = Annotated[
    str | None,
    typer.Option(
        "--base", metavar="OLD", help="Earlier version (model or .onnxz) to store differences to."
    ),
]


def pack(
    source: Annotated[str, typer.Argument(metavar="IN", help="Model file; - is stdin.")],
    target: Annotated[str, typer.Argument(metavar="OUT.onnxz", help="Packed file; - is stdout.")],
    profile: Annotated[
        str, typer.Option("--profile", help="default, max (smallest) or stdlib (zlib only).")
    ] = "default",
    base: Base = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Pack a model file without loss; unpack gives the file back byte for byte.

    onnxslim pack model.onnx model.onnxz

    onnxslim pack new.onnx update.onnxz --base old.onnx
    """
    from onnxslim.packing import pack as pack_file
    from onnxslim.report.table import change, size

    with progress_bar(quiet) as progress:
        report = pack_file(
            _reader(source), _writer(target), profile=profile, base=base, progress=progress
        )
    console = console_for(target, quiet)
    before, after = report.raw_bytes, report.packed_bytes
    console.print(f"{size(before)} -> {size(after)} ({change(before, after)})", highlight=False)


def unpack(
    source: Annotated[str, typer.Argument(metavar="IN.onnxz", help="Packed file; - is stdin.")],
    target: Annotated[str, typer.Argument(metavar="OUT", help="Model file; - is stdout.")],
    base: Base = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Give the packed file back, byte for byte, with its data files beside it.

    onnxslim unpack model.onnxz model.onnx

    onnxslim unpack update.onnxz new.onnx --base old.onnx
    """
    from onnxslim.packing import unpack as unpack_file

    with progress_bar(quiet) as progress:
        paths = unpack_file(_reader(source), _writer(target), base=base, progress=progress)
    console = console_for(target, quiet)
    for path in paths:
        console.print(f"wrote {path}", highlight=False)


def ls(
    source: Annotated[str, typer.Argument(metavar="FILE.onnxz", help="Packed file.")],
    json_file: options.Json = None,
    debug: options.Debug = False,
) -> None:
    """List the tensors of a packed file: dtype, shape, bytes before and after, codec.

    onnxslim ls model.onnxz
    """
    from rich.table import Table

    from onnxslim.packing import list_tensors
    from onnxslim.report.table import size

    tensors = list_tensors(source)
    write_json(json_file, {"tensors": [vars(tensor) for tensor in tensors]})
    if json_file == "-":
        return
    table = Table(box=None, pad_edge=False, show_edge=False)
    for title in ("tensor", "dtype", "shape", "raw", "packed", "codec"):
        table.add_column(title, justify="right" if title in ("raw", "packed") else "left")
    for tensor in tensors:
        shape = "×".join(map(str, tensor.shape)) or "scalar"
        raw, packed = size(tensor.raw_bytes), size(tensor.packed_bytes)
        table.add_row(tensor.name, str(tensor.dtype), shape, raw, packed, str(tensor.codec))
    console_for(None, quiet=False).print(table)


def cat(
    source: Annotated[str, typer.Argument(metavar="FILE.onnxz", help="Packed file.")],
    tensor: Annotated[str, typer.Argument(metavar="TENSOR", help="Name, as ls shows it.")],
    npy: Annotated[
        str | None,
        typer.Option("--npy", metavar="OUT", help="Write the values as .npy; - is stdout."),
    ] = None,
    base: Base = None,
    debug: options.Debug = False,
) -> None:
    """Show one tensor of a packed file, or write it out; nothing else is decoded.

    Types that numpy lacks (bfloat16, float8, 4 bits) are written as their bits.

    onnxslim cat model.onnxz layer1.weight --npy weight.npy
    """
    import numpy as np

    from onnxslim.packing import open_packed

    opened = open_packed(source, base=base, threads=1)
    found = opened.read(tensor)
    values = np.frombuffer(found, np.uint8) if isinstance(found, bytes) else found
    if npy is not None:
        foreign = values.dtype.isbuiltin == 2  # a type that a package brought
        _write_npy(values.view(f"u{values.itemsize}") if foreign else values, npy)
        return
    console = console_for(None, quiet=False)
    shape = "×".join(map(str, opened.shape(tensor))) or "scalar"
    console.print(f"{tensor}: {opened.dtype(tensor)} {shape}", highlight=False, markup=False)
    console.print(np.array2string(values, threshold=200), highlight=False, markup=False)


def _write_npy(values: Any, target: str) -> None:
    import numpy as np

    from onnxslim.io.atomic import AtomicFile, check_target

    if target == "-":
        np.save(sys.stdout.buffer, values)
        return
    with AtomicFile(check_target(target)) as file:
        with os.fdopen(os.dup(file.fd), "wb") as stream:
            np.save(stream, values)
        file.commit()
