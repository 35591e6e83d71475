"""Float16 for a whole model, and what it does to the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim.errors import DemandMissedError, RuntimeRefusedError
from onnxslim.rewrite.float_types import convert_floats

NAMES: Mapping[ir.DataType, str] = {ir.DataType.FLOAT16: "fp16", ir.DataType.FLOAT: "fp32"}

# Largest error of an output, in parts of its largest magnitude, that a demanded check lets pass.
_TOLERANCE = 0.05
_SHOWN = 3


def convert(
    before: ir.Model,
    model: ir.Model,
    dtype: ir.DataType,
    *,
    feeds: Iterable[Mapping[str, Any]] | None = None,
    seed: int = 0,
    check: bool = True,
    strict: bool = False,
) -> tuple[str, list[str]]:
    """Changes every float tensor of a model, inputs and outputs included.

    Args:
        before: the model as it was, to compare with.
        model: changed in place.
        dtype: FLOAT16 or FLOAT.
        feeds: inputs to compare with; made up when None.
        seed: of made-up inputs.
        check: run both and compare.
        strict: an output may be off by 5 % of its largest magnitude at most, and both must run.

    Returns:
        A line about the errors, and warnings.

    Raises:
        UsageError: a value of unknown type.
        DemandMissedError: an output is not finite any more where it was, or ``strict`` is missed.
    """
    change = convert_floats(model, dtype)
    warnings = []
    if change.clamped:
        listed = _listed(change.clamped)
        warnings.append(f"numbers beyond the range of {NAMES[dtype]} were cut to it in {listed}")
    if change.kept:
        warnings.append(f"in the former type stay {_listed(change.kept)}")
    note = f"{change.converted} constants converted"
    if not check:
        return note, warnings
    try:
        worst = _largest_error(before, model, feeds, seed)
    except RuntimeRefusedError as error:
        if strict:
            raise DemandMissedError(f"model check: {error}; nothing was written") from error
        warnings.append(f"the {NAMES[dtype]} model was not compared: {error}")
        return note, warnings
    if worst > _TOLERANCE and strict:
        raise DemandMissedError(
            f"model check: {NAMES[dtype]} changes an output by {worst:.1%} of its largest "
            "magnitude; nothing was written"
        )
    return f"{note}; largest error {worst:.2g} of an output's magnitude", warnings


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def _largest_error(
    before: ir.Model, after: ir.Model, feeds: Iterable[Mapping[str, Any]] | None, seed: int
) -> float:
    """Over all feeds and float outputs, the error in parts of the output's largest magnitude."""
    from onnxslim.calibration.feeds import generate_feeds
    from onnxslim.runtime.session import open_session

    first, second = (open_session(model, optimize=False) for model in (before, after))
    types = {spec.name: spec.numpy_dtype for spec in second.inputs}
    worst = 0.0
    for feed in feeds if feeds is not None else generate_feeds(before, seed=seed):
        cast = {name: _as_type(value, types.get(name)) for name, value in feed.items()}
        pairs = zip(first.run(feed), second.run(cast), first.output_names, strict=True)
        worst = max([worst, *(_error(old, new, name) for old, new, name in pairs)])
    return worst


def _as_type(value: Any, dtype: np.dtype[Any] | None) -> Any:
    is_float = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return value.astype(dtype) if is_float and dtype is not None else value


def _error(old: Any, new: Any, name: str) -> float:
    if not isinstance(old, np.ndarray) or old.dtype.kind != "f" or old.size == 0:
        return 0.0
    one, other = old.astype(np.float64), np.asarray(new).astype(np.float64)
    finite = np.isfinite(one)
    if not np.isfinite(other[finite]).all():
        raise DemandMissedError(
            f"output {name!r} leaves the range of the new type (infinity or NaN); nothing was "
            "written; keep this model in float32"
        )
    scale = float(np.abs(one[finite]).max(initial=0.0))
    return float(np.abs(one - other)[finite].max(initial=0.0)) / scale if scale else 0.0
