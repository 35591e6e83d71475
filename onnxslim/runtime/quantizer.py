"""Static int8 through ``onnxruntime.quantization``: the only place that opens that package.

The engine works on files and on names, so it gets a copy of the model in a temporary folder in
which every name is unique and plain; names, types and notes of the original come back afterwards.
Ranges are measured here (`onnxslim.runtime.ranges`) and handed over.
"""

from __future__ import annotations

import inspect
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim.errors import DataError, InvalidModelError, OnnxSlimError, RuntimeRefusedError
from onnxslim.io import load, save, total_bytes
from onnxslim.ir.traversal import subgraphs_of
from onnxslim.runtime.quantize_cleanup import spare_float_readers
from onnxslim.runtime.quantize_names import Naming
from onnxslim.runtime.quantize_prepare import (
    check_weights,
    prepare,
    wanted_tensors,
    whole_tensor_weights,
)
from onnxslim.runtime.quantize_presets import QuantizePreset, find_preset
from onnxslim.runtime.quantize_report import QuantizeReport
from onnxslim.runtime.quantize_select import Selection, select
from onnxslim.runtime.ranges import Range, check_feed, measure_ranges
from onnxslim.runtime.session import one_line, open_session
from onnxslim.runtime.specs import Feed, input_specs

_OPEN = """
import sys, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""

__all__ = ["QuantizeReport", "quantize_model"]

# Files above this many bytes keep their weights beside them: protobuf ends at 2 GiB.
_INLINE_BYTES = 1_500_000_000
_FEW_SAMPLES = 8

# Relative, in the Euclidean norm: another form of the same sums.
_CONVERSION_ERROR = 1e-4


def quantize_model(
    model: ir.Model,
    feeds: Iterable[Mapping[str, np.ndarray[Any, Any]]],
    *,
    preset: str = "auto",
    exclude: Sequence[str] = (),
    method: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ir.Model, QuantizeReport]:
    """Stores weights and activations in 8 bits, with ranges measured on ``feeds``.

    Args:
        model: a float32 model; it stays as it is. BatchNormalization should be folded before.
        feeds: calibration samples, arrays by input name; read once, one at a time.
        preset: ``auto`` for this processor, or a name from `onnxslim.runtime.quantize_presets`.
        exclude: nodes to leave in float, by their name or the name of an output.
        method: how ranges are chosen: ``minmax``, ``percentile``, ``entropy``, ``mse``, or ``auto``
            for the one of least expected error per tensor.
        progress: called with feeds done and feeds in all (as far as known) after each.

    Returns:
        The quantized model (QuantizeLinear and DequantizeLinear pairs) and what was done.

    Raises:
        UsageError: an unknown preset, method or excluded name.
        InvalidModelError: already quantized, nothing to quantize, an opset that cannot be raised,
            or a result that onnxruntime does not open.
        DataError: no feeds, feeds that do not fit, or NaN or infinity on the way.
        RuntimeRefusedError: onnxruntime cannot open the model as it is.
    """
    settings = find_preset(preset)
    work, notes = prepare(model)
    selection = select(work, settings, exclude)
    check_weights(selection.chosen)
    item, all_feeds = _peek(feeds)
    first = check_feed(item, input_specs(work), 0)
    if notes:
        _check_conversion(model, work, first)
    meter = measure_ranges(work, wanted_tensors(selection.chosen), all_feeds, progress, method)
    measured = meter.ranges()
    notes.extend(meter.notes)
    report = QuantizeReport(settings.name, meter.feeds, len(measured), warnings=notes)
    if meter.feeds == 1 and _batch(first) < _FEW_SAMPLES:
        report.warnings.append("one calibration feed of few samples: ranges may be too narrow")
    naming = Naming(work)
    ranges = _complete(measured, wanted_tensors(selection.chosen), report)
    naming.apply()
    engine_ranges = {naming.new_name(name): found for name, found in ranges.items()}
    engine_feed = {naming.new_name(name): item for name, item in first.items()}
    result = _run_engine(work, selection, settings, engine_ranges, engine_feed, report)
    _count(result, selection, report)
    spare_float_readers(result, selection)
    naming.restore(result, model)
    _check_result(result, first)
    return result, report


def _peek(
    feeds: Iterable[Mapping[str, Any]],
) -> tuple[Mapping[str, Any], Iterable[Mapping[str, Any]]]:
    """The first feed, and all of them."""
    if isinstance(feeds, Sequence):
        if feeds:
            return feeds[0], feeds
    else:
        iterator = iter(feeds)
        for first in iterator:
            return first, chain([first], iterator)
    raise DataError(
        "there are no calibration samples; static int8 needs some to find the ranges of activations"
    )


def _check_conversion(model: ir.Model, work: ir.Model, feed: Feed) -> None:
    """Raises InvalidModelError when raising the opset changed what the model computes."""
    before, after = (open_session(item, optimize=False).run(feed) for item in (model, work))
    for value, one, other in zip(model.graph.outputs, before, after, strict=True):
        same = np.shape(one) == np.shape(other)
        if same and isinstance(one, np.ndarray) and one.dtype.kind == "f":
            error = np.linalg.norm((one - other).astype(np.float64))
            same = bool(error <= _CONVERSION_ERROR * np.linalg.norm(one.astype(np.float64)))
        elif same and isinstance(one, np.ndarray):
            same = bool(np.array_equal(one, other))
        if not same:
            raise InvalidModelError(
                f"raising the opset, which int8 needs, changes output {value.name!r}; export the "
                "model with opset 17"
            )


def _batch(feed: Mapping[str, Any]) -> int:
    return max((np.shape(item)[0] for item in feed.values() if np.ndim(item)), default=1)


def _complete(
    ranges: Mapping[str, Range], wanted: Sequence[str], report: QuantizeReport
) -> dict[str, Range]:
    """Ranges for all wanted tensors: the engine fails where one is missing."""
    complete: dict[str, Range] = {}
    for name in wanted:
        if name not in ranges:
            report.warnings.append(f"tensor {name!r} was empty in all feeds; its scale is a guess")
        complete[name] = ranges.get(name, (0.0, 1.0))
    return complete


def _run_engine(
    work: ir.Model,
    selection: Selection,
    preset: QuantizePreset,
    ranges: Mapping[str, Range],
    feed: Mapping[str, Any],
    report: QuantizeReport,
) -> ir.Model:
    """Writes the model, lets the engine read and write files, and loads what it wrote."""
    work.metadata_props["onnx.quant.pre_process"] = "onnxruntime.quant"  # silences its advice
    with tempfile.TemporaryDirectory(prefix="onnxslim-") as folder:
        source, target = os.path.join(folder, "float.onnx"), os.path.join(folder, "int8.onnx")
        is_large = total_bytes(work) > _INLINE_BYTES
        save(work, source, external_data=is_large)
        options: dict[str, Any] = {
            "op_types_to_quantize": sorted({node.op_type for node in selection.chosen}),
            "nodes_to_exclude": [node.name for node, _ in selection.refused],
            "per_channel": True,
            "reduce_range": preset.reduce_range,
            "use_external_data_format": is_large,
        }
        whole = whole_tensor_weights(selection.chosen)
        overrides: dict[str, list[dict[str, Any]]] = {name: [{"symmetric": True}] for name in whole}
        with _engine_messages(report), _engine_errors():
            _call_engine(source, target, options, preset, ranges, feed, overrides)
        return load(target)


def _call_engine(
    source: str,
    target: str,
    options: dict[str, Any],
    preset: QuantizePreset,
    ranges: Mapping[str, Range],
    feed: Mapping[str, Any],
    overrides: dict[str, list[dict[str, Any]]],
) -> None:
    """Calls ``quantize_static`` with ranges instead of data.

    Versions without a cache of ranges measure one feed themselves and are then overruled.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization import calibrate

    method = quantization.CalibrationMethod.MinMax
    activations = (
        quantization.QuantType.QInt8 if preset.signed_activations else quantization.QuantType.QUInt8
    )
    extra: dict[str, Any] = {
        "WeightSymmetric": True,
        "ActivationSymmetric": False,
        "TensorQuantOverrides": overrides,
    }
    reader = None
    pairs = {
        name: (np.array(low, np.float32), np.array(high, np.float32))
        for name, (low, high) in ranges.items()
    }
    if "calibration_cache_path" in inspect.signature(quantization.quantize_static).parameters:
        cache = Path(source).with_name("ranges.json")
        calibrate.save_tensors_data(calibrate.TensorsData(method, pairs), cache)
        options["calibration_cache_path"] = cache
    else:
        reader = _OneFeed(feed)
        for name, (low, high) in pairs.items():
            overrides[name] = [{"rmin": low, "rmax": high}]
    quantization.quantize_static(
        source,
        target,
        reader,
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=activations,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=method,
        extra_options=extra,
        **options,
    )


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
def _engine_messages(report: QuantizeReport) -> Iterator[None]:
    """Collects what the engine logs on the root logger, which would end up on the terminal."""
    root = logging.getLogger()
    seen: set[str] = set()

    def collect(record: logging.LogRecord) -> bool:
        if "quantization" not in Path(record.pathname).parts:
            return True
        text = " ".join(record.getMessage().split())
        if record.levelno >= logging.WARNING and text not in seen:
            seen.add(text)
            report.warnings.append(f"onnxruntime.quantization: {text}")
        return False

    quiet = logging.NullHandler()  # without a handler the first message would install one
    root.addHandler(quiet)
    root.addFilter(collect)
    try:
        yield
    finally:
        root.removeFilter(collect)
        root.removeHandler(quiet)


def _count(result: ir.Model, selection: Selection, report: QuantizeReport) -> None:
    """Counts nodes by what the engine made of them; ``result`` still has the engine's names."""
    after = {node.name: node for node in result.graph}
    for node in selection.chosen:
        found = after.get(node.name)
        if found is None or _reads_int8(found):  # an activation that is gone was absorbed
            report.quantized[node.op_type] += 1
        else:
            report.keep(node.op_type, "its tensors are not in int8")
    for node, reason in selection.refused:
        if node.op_type != "Constant":
            report.keep(node.op_type, reason)
        if any(True for _ in subgraphs_of(node)):
            report.warnings.append(f"the subgraphs of a {node.op_type} stay in float")
    report.warnings[:] = list(dict.fromkeys(report.warnings))


def _reads_int8(node: ir.Node) -> bool:
    producers = [value.producer() for value in node.inputs if value is not None]
    return any(item is not None and item.op_type == "DequantizeLinear" for item in producers)


def _check_result(model: ir.Model, feed: Mapping[str, Any]) -> None:
    """Opens the model the way it will be deployed and runs it once.

    Raises:
        InvalidModelError: onnxruntime does not take it.
    """
    try:
        if any(True for node in model.graph for _ in subgraphs_of(node)):
            _open_elsewhere(model)
        open_session(model, optimize=True).run(feed)
    except RuntimeRefusedError as error:
        raise InvalidModelError(
            f"the quantized model does not run: {error}; exclude the node if the message names one"
        ) from error


def _open_elsewhere(model: ir.Model) -> None:
    """Opens the model in a process of its own.

    Some versions of onnxruntime end the whole process on int8 beside subgraphs.

    Raises:
        RuntimeRefusedError: that process does not end well.
    """
    with tempfile.TemporaryDirectory(prefix="onnxslim-") as folder:
        path = os.path.join(folder, "int8.onnx")
        save(model, path, external_data=total_bytes(model) > _INLINE_BYTES)
        call = [sys.executable, "-c", _OPEN, path]
        done = subprocess.run(call, capture_output=True, check=False, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeRefusedError(f"onnxruntime cannot open it: {last[-200:]}")
