"""What a ``ModelProto`` holds, in the form that callers of the other project read."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxslim import io
from onnxslim.ir.cost import snapshot
from onnxslim.ir.schema import default_opset
from onnxslim.ir.traversal import nodes

if TYPE_CHECKING:
    import onnx

Shape = tuple[int | str, ...] | None

_UNITS = ("B", "KB", "MB", "GB")


class TensorInfo:
    """Name, numpy dtype and shape of a graph input or output (a ``ValueInfoProto``).

    Attributes:
        name: its name.
        dtype: numpy's dtype; ``"UNDEFINED"`` where numpy has none.
        shape: ints, names of symbols, ``"?"`` for unknown ones; None when the rank is unknown.
    """

    def __init__(self, tensor: Any) -> None:
        kind = tensor.type.tensor_type
        self.name: str = tensor.name
        self.dtype: Any = onnx_dtype_to_numpy(kind.elem_type)
        self.shape: Shape = None
        if kind.HasField("shape"):
            self.shape = tuple(_dim(size) for size in kind.shape.dim)

    def __repr__(self) -> str:
        return f"TensorInfo({self.name!r}, {self.dtype}, {self.shape})"


def _dim(size: Any) -> int | str:
    if size.HasField("dim_value"):
        return int(size.dim_value)
    return str(size.dim_param) if size.dim_param else "?"


class OperatorInfo:
    """Name and operator of a node (a ``NodeProto``), with what is known of its outputs."""

    def __init__(self, operator: Any, outputs: Sequence[TensorInfo] | None = None) -> None:
        self.name: str = operator.name
        self.op: str = operator.op_type
        self.outputs = list(outputs or ())


class ModelInfo:
    """A model summed up.

    Args:
        model: a path or a ``ModelProto``.
        tag: what to call it; the name of the file for a path.

    Attributes:
        tag: what it is called.
        op_set: version of the standard operators, as text.
        ir_version: as text.
        op_type_counts: nodes by operator, subgraphs included.
        op_info: nodes by name.
        model_size: bytes of the weights.
        input_info: the graph inputs.
        output_info: the graph outputs.
    """

    def __init__(self, model: str | os.PathLike[str] | onnx.ModelProto, tag: str = "") -> None:
        graph = io.load(model)
        named = isinstance(model, str | os.PathLike)
        self.tag = Path(os.fspath(model)).name if named else tag or "OnnxModel"
        self.op_set = str(default_opset(graph))
        self.ir_version = str(graph.ir_version)
        self.op_type_counts: dict[str, int] = {}
        self.op_info: dict[str, OperatorInfo] = {}
        for node in nodes(graph):
            self.op_type_counts[node.op_type] = self.op_type_counts.get(node.op_type, 0) + 1
            outputs = [info for value in node.outputs for info in _info_of(value)]
            self.op_info[node.name or ""] = OperatorInfo(node, outputs)
        self.model_size = snapshot(graph, 0).weight_bytes
        self.input_info = [info for value in graph.graph.inputs for info in _info_of(value)]
        self.output_info = [info for value in graph.graph.outputs for info in _info_of(value)]

    @property
    def input_maps(self) -> dict[str, TensorInfo]:
        """The inputs by name."""
        return {info.name: info for info in self.input_info}

    @property
    def output_maps(self) -> dict[str, TensorInfo]:
        """The outputs by name."""
        return {info.name: info for info in self.output_info}


def _info_of(value: ir.Value) -> Iterator[TensorInfo]:
    """Nothing for a value without a declared type."""
    if value.type is not None:
        yield TensorInfo(ir.to_proto(value))


def summarize_model(model: str | os.PathLike[str] | onnx.ModelProto, tag: str = "") -> ModelInfo:
    """The same as `ModelInfo`."""
    return ModelInfo(model, tag)


def print_model_info_as_table(
    model_info_list: ModelInfo | Sequence[ModelInfo], elapsed_time: float | None = None
) -> None:
    """Prints models side by side; the time in seconds, where given, comes last."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    infos = [model_info_list] if isinstance(model_info_list, ModelInfo) else list(model_info_list)
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("")
    for info in infos:
        table.add_column(escape(info.tag), justify="right")
    table.add_row("opset / IR", *(f"{info.op_set} / {info.ir_version}" for info in infos))
    for kind, maps in (("input", "input_maps"), ("output", "output_maps")):
        faces: list[Mapping[str, TensorInfo]] = [getattr(info, maps) for info in infos]
        for name in dict.fromkeys(name for face in faces for name in face):
            table.add_row(escape(f"{kind} {name}"), *(_face(face.get(name)) for face in faces))
    for name in sorted({name for info in infos for name in info.op_type_counts}):
        table.add_row(name, *(str(info.op_type_counts.get(name, 0)) for info in infos))
    table.add_row("weights", *(format_bytes(info.model_size) for info in infos))
    console = Console()
    console.print(table)
    if elapsed_time is not None:
        console.print(f"{elapsed_time:.2f} s", highlight=False)


def _face(info: TensorInfo | None) -> str:
    if info is None:
        return ""
    shape = "..." if info.shape is None else ", ".join(map(str, info.shape))
    return f"{np.dtype(info.dtype).name if info.dtype != 'UNDEFINED' else '?'} ({shape})"


def dump_model_info_to_disk(model_info: ModelInfo) -> str:
    """Writes ``TAG_model_info.csv`` to the working directory, a line per node; returns the path."""
    import csv

    path = f"{model_info.tag}_model_info.csv"
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["node", "operator", "output", "dtype", "shape"])
        for info in model_info.op_info.values():
            rows = [[output.name, output.dtype, output.shape] for output in info.outputs]
            for row in rows or [["", "", ""]]:
                writer.writerow([info.name, info.op, *map(str, row)])
    return path


def format_bytes(size: int | Sequence[int]) -> str:
    """``1.00 KB`` (powers of 1024); two sizes as ``1.00 KB (2.00 KB)``."""
    sizes = list(size) if isinstance(size, list | tuple) else [size]
    texts = []
    for number in sizes:
        value, unit = float(number), 0  # type: ignore[arg-type]
        while value >= 1024 and unit < len(_UNITS) - 1:
            value, unit = value / 1024, unit + 1
        texts.append(f"{value:.2f} {_UNITS[unit]}")
    return texts[0] if len(texts) == 1 else f"{texts[0]} ({texts[1]})"


def onnx_dtype_to_numpy(onnx_dtype: int) -> Any:
    """numpy's dtype of an ONNX element type; ``"UNDEFINED"`` where there is none."""
    try:
        return np.dtype(ir.DataType(onnx_dtype).numpy())
    except (ValueError, TypeError):
        return "UNDEFINED"


def get_opset(model: onnx.ModelProto) -> int | None:
    """The version of the standard operators; None where none is imported."""
    versions = [one.version for one in model.opset_import if one.domain in ("", "ai.onnx")]
    return max(versions, default=None)


def get_ir_version(model: onnx.ModelProto) -> int:
    """The IR version."""
    return int(model.ir_version)


def init_logging(verbose: bool = False) -> logging.Logger:
    """The logger of the package, at DEBUG or at ERROR; handlers are the caller's business."""
    logger = logging.getLogger("onnxslim")
    logger.setLevel(logging.DEBUG if verbose else logging.ERROR)
    return logger


def save(
    model: onnx.ModelProto,
    model_path: str | os.PathLike[str],
    model_check: bool = False,
    save_as_external_data: bool = False,
    model_info: ModelInfo | None = None,
) -> None:
    """Writes a model, as a whole or not at all; above 2 GB with its weights beside it.

    Args:
        model: the model.
        model_path: where to.
        model_check: verify the graph first.
        save_as_external_data: weights in ``model_path``.data at any size.
        model_info: not needed; callers pass it.

    Raises:
        VerificationError: ``model_check`` finds the graph invalid.
    """
    from onnxslim.ir.verify import verify

    graph = io.load(model)
    if model_check:
        verify(graph)
    io.save(graph, model_path, external_data=save_as_external_data)
