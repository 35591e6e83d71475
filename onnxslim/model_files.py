"""Models as the public verbs take and give them: by name, checked, measured, written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxslim import io
from onnxslim.errors import InvalidModelError, UsageError, VerificationError
from onnxslim.ir import shapes
from onnxslim.ir.cost import Snapshot, snapshot
from onnxslim.ir.order import verify_sorted

PACKED_SUFFIX = ".onnxz"

# Larger models are not packed just to know the size.
_PACK_LIMIT = 1_000_000_000


def load_checked(source: Any) -> ir.Model:
    """`io.load`, then `verify`; nodes out of order are put in order.

    Raises:
        InvalidModelError: the graph is not one that any runtime could run.
    """
    return load_noting(source)[0]


def load_noting(source: Any) -> tuple[ir.Model, list[str]]:
    """`load_checked`, and what had to be mended."""
    model = _load_packed(source) if is_packed(source) else io.load(source)
    try:
        moved = verify_sorted(model)
    except VerificationError as error:
        raise InvalidModelError(f"{name_of(source)}: invalid graph: {error}") from error
    return model, ["the nodes were out of order and were sorted"] if moved else []


def _load_packed(source: str | os.PathLike[str]) -> ir.Model:
    """A packed model as a graph whose weights are decoded where they are read."""
    from onnxslim.packing import open_packed

    return open_packed(source).graph()


def measure(model: ir.Model) -> Snapshot:
    """The cost of the model; its declared shapes stay as they are."""
    shapes.set_aside_declared(model)
    shapes.infer(model)
    taken = snapshot(model, 0)
    shapes.restore_declared(model)
    return Snapshot(**{**taken.to_dict(), "file_bytes": io.total_bytes(model)})


def write(model: ir.Model, target: Any, *, external_data: bool = False) -> dict[str, int]:
    """Writes the model as ``.onnx`` or, by the name of the target, packed.

    Returns:
        The files written, with their bytes.
    """
    if is_packed_name(target):
        return _write_packed(model, Path(target))
    saved = io.save(model, target, external_data=external_data)
    return {str(path): Path(path).stat().st_size for path in saved.paths} or {"-": saved.bytes}


def _write_packed(model: ir.Model, target: Path) -> dict[str, int]:
    from onnxslim.packing import pack

    with tempfile.TemporaryDirectory(prefix=".onnxslim-", dir=target.parent or ".") as folder:
        plain = Path(folder) / f"{target.stem}.onnx"
        io.save(model, plain)
        pack(plain, target)
    return {str(target): target.stat().st_size}


def fix_input_shapes(model: ir.Model, input_shapes: Mapping[str, Sequence[int]]) -> None:
    """Writes fixed dimensions into the declared inputs, because the user asked for it."""
    from onnxslim.passes import nearest

    inputs = {value.name or "": value for value in model.graph.inputs}
    for name, dims in input_shapes.items():
        if name not in inputs:
            raise UsageError(f"no input is called {name!r}{nearest(name, sorted(inputs))}")
        declared = inputs[name].shape
        if declared is not None and len(declared) != len(dims):
            raise UsageError(f"input {name!r} has {len(declared)} dimensions, {len(dims)} given")
        for old, new in zip(declared or (), dims, strict=False):
            if isinstance(old, int) and old != new:
                raise UsageError(f"input {name!r} is declared {declared}, which {dims} contradicts")
        inputs[name].shape = ir.Shape(list(dims))


def converted(model: ir.Model, opset: int) -> ir.Model:
    """A copy at another opset; the converter is imported for those who ask."""
    from onnxslim.io.convert import convert_opset
    from onnxslim.ir.schema import newest_opset

    newest = newest_opset()
    if not 1 <= opset <= newest:
        raise UsageError(f"opset {opset}: want 1 to {newest}, which is the newest that onnx knows")
    return convert_opset(model, opset)


def is_packed_name(target: Any) -> bool:
    return isinstance(target, str | os.PathLike) and str(target).endswith(PACKED_SUFFIX)


def packed_bytes(model: ir.Model) -> int | None:
    """The size of the model as a packed file; None when it is too large to try."""
    from onnxslim.packing import pack

    if io.total_bytes(model) > _PACK_LIMIT:
        return None
    with tempfile.TemporaryDirectory(prefix="onnxslim-") as folder:
        plain, packed = Path(folder) / "model.onnx", Path(folder) / f"model{PACKED_SUFFIX}"
        io.save(model, plain)
        pack(plain, packed)
        return packed.stat().st_size


def keep_source(source: Any, target: Any) -> None:
    """Refuses to write int8 over the float model that it is made of."""
    paths = [one for one in (source, target) if isinstance(one, str | os.PathLike) and one != "-"]
    if len(paths) == 2 and len({os.path.realpath(one) for one in paths}) == 1:
        raise UsageError(f"{target} is also the input: int8 would replace it; give another name")


def read_feeds(model: ir.Model, feeds: Any) -> list[Any] | None:
    if feeds is None:
        return None
    if isinstance(feeds, str | os.PathLike):
        from onnxslim.calibration import readers

        return list(readers.read_feeds(feeds, readers.input_specs(model)))
    return list(feeds)


def is_packed(source: Any) -> bool:
    if not is_packed_name(source):
        return False
    from onnxslim import packing

    return Path(source).is_file() and packing.is_packed(source)


def name_of(thing: Any) -> str:
    """What a source or target is called in reports and messages."""
    if isinstance(thing, str | os.PathLike):
        return "stdin" if str(thing) == "-" else str(thing)
    return str(getattr(thing, "name", None) or f"<{type(thing).__name__}>")
