"""Calls ``onnxruntime.quantization``: the only place that opens that package.

It works on files, logs on the root logger and raises anything; here it gets a model in a temporary
folder, and what it says becomes lines for a report or one error.
"""

from __future__ import annotations

import inspect
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim.errors import InvalidModelError, OnnxSlimError
from onnxslim.io import load, save, total_bytes
from onnxslim.runtime.session import one_line

# Files above this many bytes keep their weights beside them: protobuf ends at 2 GiB.
INLINE_BYTES = 1_500_000_000


@dataclass(frozen=True)
class StaticCall:
    """What ``quantize_static`` is asked for.

    Attributes:
        op_types: operators to quantize.
        excluded: names of nodes to leave in float.
        ranges: lowest and highest value by tensor name.
        feed: one sample, for versions of onnxruntime that insist on measuring.
        whole: weights with one scale for all of the tensor.
        operators: operators that take integers instead of pairs of conversions.
        signed_activations: int8 activations, else uint8.
        symmetric_activations: zero in the middle of the grid.
        per_channel: one scale per output channel of a weight.
        reduce_range: weights keep 7 bits.
    """

    op_types: Sequence[str]
    excluded: Sequence[str]
    ranges: Mapping[str, tuple[float, float]]
    feed: Mapping[str, Any]
    whole: Sequence[str] = ()
    operators: bool = False
    signed_activations: bool = False
    symmetric_activations: bool = False
    per_channel: bool = True
    reduce_range: bool = False


def run_static(work: ir.Model, call: StaticCall) -> tuple[ir.Model, list[str]]:
    """Writes the model, lets the engine read and write files, and loads what it wrote.

    Args:
        work: names in it must not collide with names that the engine makes of names.
        call: what to do.

    Returns:
        The quantized model, and what the engine warned of.

    Raises:
        InvalidModelError: the engine fails.
    """
    work.metadata_props["onnx.quant.pre_process"] = "onnxruntime.quant"  # silences its advice
    warnings: list[str] = []
    with tempfile.TemporaryDirectory(prefix="onnxslim-") as folder:
        source, target = os.path.join(folder, "float.onnx"), os.path.join(folder, "int8.onnx")
        is_large = total_bytes(work) > INLINE_BYTES
        save(work, source, external_data=is_large)
        if not call.feed:
            call = replace(call, feed=_zeros(work))
        with _engine_messages(warnings), _engine_errors():
            _call_engine(source, target, call, is_large=is_large)
        return load(target), warnings


def _zeros(model: ir.Model) -> dict[str, Any]:
    """A sample of zeros, open dimensions 1: what it measures is overruled."""
    found: dict[str, Any] = {}
    for value in model.graph.inputs:
        if not value.is_initializer() and value.dtype is not None and value.shape is not None:
            sizes = [size if isinstance(size, int) and size > 0 else 1 for size in value.shape]
            found[value.name or ""] = np.zeros(sizes, value.dtype.numpy())
    return found


def _call_engine(source: str, target: str, call: StaticCall, *, is_large: bool) -> None:
    """Calls ``quantize_static`` with ranges instead of data."""
    from onnxruntime import quantization

    types, formats = quantization.QuantType, quantization.QuantFormat
    overrides: dict[str, list[dict[str, Any]]] = {
        name: [{"symmetric": True}] for name in call.whole
    }
    ranges = _range_options(source, call, overrides)
    extra: dict[str, Any] = {
        "WeightSymmetric": True,
        "ActivationSymmetric": call.symmetric_activations,
    }
    if not call.operators:
        extra["TensorQuantOverrides"] = overrides
    quantization.quantize_static(
        source,
        target,
        quant_format=formats.QOperator if call.operators else formats.QDQ,
        activation_type=types.QInt8 if call.signed_activations else types.QUInt8,
        weight_type=types.QInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
        op_types_to_quantize=list(call.op_types),
        nodes_to_exclude=list(call.excluded),
        per_channel=call.per_channel,
        reduce_range=call.reduce_range,
        use_external_data_format=is_large,
        extra_options=extra,
        **ranges,
    )


def _range_options(
    source: str, call: StaticCall, overrides: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """What tells the engine the ranges: a file of them beside the model.

    Versions that read no such file measure one feed themselves and are overruled by ``overrides``.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization import calibrate

    pairs = {
        name: (np.array(low, np.float32), np.array(high, np.float32))
        for name, (low, high) in call.ranges.items()
    }
    if "calibration_cache_path" in inspect.signature(quantization.quantize_static).parameters:
        cache = Path(source).with_name("ranges.json")
        data = calibrate.TensorsData(quantization.CalibrationMethod.MinMax, pairs)
        calibrate.save_tensors_data(data, cache)
        return {"calibration_data_reader": None, "calibration_cache_path": cache}
    for name, (low, high) in pairs.items():
        overrides[name] = [{"rmin": low, "rmax": high}]
    return {"calibration_data_reader": _OneFeed(call.feed)}


class _OneFeed:
    """A calibration data reader of one sample."""

    def __init__(self, feed: Mapping[str, Any]) -> None:
        self._feeds = iter([dict(feed)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


@contextmanager
def _engine_errors() -> Iterator[None]:
    """The engine raises any exception, assertions included; it becomes one line."""
    try:
        yield
    except OnnxSlimError:
        raise
    except Exception as error:
        raise InvalidModelError(
            f"onnxruntime.quantization cannot quantize the model: {one_line(error)}; exclude the "
            "node if the message names one"
        ) from error


@contextmanager
def _engine_messages(warnings: list[str]) -> Iterator[None]:
    """Collects what the engine logs on the root logger, which would end up on the terminal."""
    root = logging.getLogger()
    seen: set[str] = set()

    def collect(record: logging.LogRecord) -> bool:
        if "quantization" not in Path(record.pathname).parts:
            return True
        text = " ".join(record.getMessage().split())
        if record.levelno >= logging.WARNING and text not in seen:
            seen.add(text)
            warnings.append(f"onnxruntime.quantization: {text}")
        return False

    quiet = logging.NullHandler()  # without a handler the first message would install one
    root.addHandler(quiet)
    root.addFilter(collect)
    try:
        yield
    finally:
        root.removeFilter(collect)
        root.removeHandler(quiet)
