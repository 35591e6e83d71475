"""What callers write for shapes, types and check inputs, turned into data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim.errors import DataError, UsageError

DTYPES: Mapping[str, ir.DataType] = {
    "bool": ir.DataType.BOOL,
    "fp16": ir.DataType.FLOAT16,
    "fp32": ir.DataType.FLOAT,
    "int32": ir.DataType.INT32,
    "int64": ir.DataType.INT64,
}
_FLOATS = {
    "fp16": ir.DataType.FLOAT16,
    "float16": ir.DataType.FLOAT16,
    "fp32": ir.DataType.FLOAT,
    "float32": ir.DataType.FLOAT,
}

Shapes = Mapping[str, Sequence[int]] | Iterable[str] | str


def read_shapes(given: Shapes | None) -> dict[str, list[int]]:
    """``{"x": [1, 3]}``, ``["x:1,3", "y:2"]`` or ``"x:1,3"`` as dimensions by input name.

    The name ends at the last colon, since names of inputs may hold colons.

    Raises:
        UsageError: not of that form, or a negative dimension.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {str(name): _dims(f"{name}", dims) for name, dims in given.items()}
    shapes = {}
    for text in [given] if isinstance(given, str) else given:
        name, colon, dims = str(text).rpartition(":")
        if not colon or not name:
            raise UsageError(f"input_shapes: {text!r}: want NAME:1,3,224,224")
        shapes[name] = _dims(text, dims.split(",") if dims.strip() else ())
    return shapes


def _dims(what: str, given: Any) -> list[int]:
    try:
        dims = [int(size) for size in given]
    except (TypeError, ValueError):
        dims = [-1]
    if any(size < 0 for size in dims):
        raise UsageError(f"input_shapes: {what!r}: want whole numbers, as in NAME:1,3,224,224")
    return dims


def read_values(given: Iterable[str] | str | None, keyword: str) -> dict[str, ir.DataType | None]:
    """``["a", "b:fp16"]`` as types by value name; None keeps the type.

    What follows the last colon counts as a type only when it is one, since names may hold colons.
    """
    found: dict[str, ir.DataType | None] = {}
    for text in [given] if isinstance(given, str) else given or ():
        if not isinstance(text, str):
            raise UsageError(f"{keyword}: {text!r}: want NAME or NAME:fp16")
        name, colon, dtype = text.rpartition(":")
        if colon and name and dtype in DTYPES:
            found[name] = DTYPES[dtype]
        else:
            found[text] = None
    return found


def read_float(dtype: str | None) -> ir.DataType | None:
    """``fp16`` or ``fp32`` (``float16``, ``float32``).

    Raises:
        UsageError: anything else.
    """
    if dtype is None or dtype in _FLOATS:
        return None if dtype is None else _FLOATS[dtype]
    raise UsageError(
        f"dtype {dtype!r}: want fp16 or fp32; integers need calibration data: use quantization"
    )


def read_check_inputs(
    given: Mapping[str, Any] | Iterable[str] | None,
) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """``["x:1,3,224,224", "y:data.npy"]``, or a dict of shapes, arrays or paths.

    Returns:
        Shapes by input name, and arrays by input name.

    Raises:
        UsageError: not of that form.
        DataError: a file that cannot be read.
    """
    shapes: dict[str, list[int]] = {}
    arrays: dict[str, Any] = {}
    for name, value in _pairs(given):
        if isinstance(value, np.ndarray):
            arrays[name] = value
        elif isinstance(value, str | os.PathLike) and str(value).endswith(".npy"):
            arrays[name] = _read_array(value)
        else:
            shapes[name] = _dims(name, value.split(",") if isinstance(value, str) else value)
    return shapes, arrays


def _pairs(given: Mapping[str, Any] | Iterable[str] | None) -> list[tuple[str, Any]]:
    if isinstance(given, Mapping):
        return list(given.items())
    pairs = []
    for text in [given] if isinstance(given, str) else given or ():
        name, colon, value = str(text).rpartition(":")
        if not colon or not name:
            raise UsageError(
                f"model_check_inputs: {text!r}: want NAME:1,3,224,224 or NAME:file.npy"
            )
        pairs.append((name, value))
    return pairs


def _read_array(path: str | os.PathLike[str]) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read as a npy file: {reason}") from error
