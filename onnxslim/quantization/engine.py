"""Static int8 in two steps that a search can repeat: prepare once, quantize as often as wanted.

`prepare_float` makes a model fit, `quantize_once` stores it in 8 bits with ranges that a
`Calibration` holds; it needs no data and does not run the model. `quantize_model` does all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import onnx_ir as ir

from onnxslim.calibration.checks import FeedChecker, Place
from onnxslim.calibration.ranges import Range, check_method
from onnxslim.calibration.run import calibrate
from onnxslim.calibration.store import Calibration
from onnxslim.calibration.streams import FeedStream, open_feeds
from onnxslim.errors import UsageError
from onnxslim.io import load
from onnxslim.ir.traversal import subgraphs_of
from onnxslim.quantization.checks import check_conversion, check_result
from onnxslim.quantization.dynamic import write_dynamic
from onnxslim.quantization.gap import fake_real_gap
from onnxslim.quantization.names import restore
from onnxslim.quantization.operators import to_operators
from onnxslim.quantization.plain import write_plain
from onnxslim.quantization.plan import (
    Form,
    Prepared,
    QuantPlan,
    candidates,
    prepare_float,
    select_nodes,
    tensors_to_calibrate,
)
from onnxslim.quantization.prepare import check_weights, wanted_tensors
from onnxslim.quantization.presets import QuantizePreset, find_preset, unverifiable
from onnxslim.quantization.ranges import PlannedRanges
from onnxslim.quantization.report import QuantizeReport
from onnxslim.quantization.selection import Selection, find_nodes
from onnxslim.quantization.tails import keep_tails_float
from onnxslim.quantization.writer import write_qdq
from onnxslim.runtime.specs import Feed, input_specs

__all__ = [
    "Form",
    "Prepared",
    "QuantPlan",
    "QuantizeReport",
    "candidates",
    "prepare_float",
    "quantize_model",
    "quantize_once",
    "tensors_to_calibrate",
]


def quantize_once(
    prepared: Prepared, calibration: Calibration, plan: QuantPlan
) -> tuple[ir.Model, QuantizeReport]:
    """Quantizes with the ranges at hand; nothing is run, and ``prepared`` stays as it is.

    Args:
        prepared: from `prepare_float`.
        calibration: statistics of `tensors_to_calibrate`, gathered on ``prepared.model``;
            None for dynamic plans.
        plan: what to do.

    Raises:
        UsageError: a name that no node has.
        InvalidModelError: nothing to quantize, or weights that are NaN or infinite.
        DataError: the calibration does not know a tensor that is needed.
    """
    work = load(prepared.model)
    report = QuantizeReport(plan.preset.name, warnings=list(prepared.notes))
    warning = unverifiable(plan.preset)
    if warning is not None:
        report.warnings.append(warning)
    selection = select_nodes(work, plan)
    check_weights(selection.chosen)
    if plan.dynamic:
        active = write_dynamic(work, selection, plan.preset, plan.weight_scales)
        return _finished(prepared, work, selection, active, report)
    if calibration is None:
        raise UsageError("a plan that is not dynamic needs a calibration")
    report.feeds = calibration.feeds
    ranges = PlannedRanges(prepared.ranges_of(calibration, plan.method), plan.ranges)
    keep_tails_float(selection, ranges)
    if plan.engine == "onnxruntime":
        needed = {name: ranges[name] for name in wanted_tensors(selection.chosen)}
        report.ranges, report.warnings = len(ranges.used), [*report.warnings, *ranges.warnings]
        return _plain(prepared, work, plan, selection, needed, report)
    written = write_qdq(work, selection, plan.preset, ranges, plan.weight_scales)
    report.ranges, report.warnings = len(ranges.used), [*report.warnings, *ranges.warnings]
    if plan.form == "qoperator":
        to_operators(work)
    return _finished(prepared, work, selection, written.active, report)


def _finished(
    prepared: Prepared,
    work: ir.Model,
    selection: Selection,
    active: set[int],
    report: QuantizeReport,
) -> tuple[ir.Model, QuantizeReport]:
    _count(selection, active, report)
    restore(work, prepared.original, prepared.given_names)
    return work, report


def _plain(
    prepared: Prepared,
    work: ir.Model,
    plan: QuantPlan,
    selection: Selection,
    ranges: Mapping[str, Range],
    report: QuantizeReport,
) -> tuple[ir.Model, QuantizeReport]:
    operators = plan.form == "qoperator"
    result, active, warnings = write_plain(
        work, prepared.original, selection, plan.preset, ranges, operators=operators
    )
    _count(selection, active, report)
    report.warnings.extend(warnings)
    restore(result, prepared.original, prepared.given_names)
    return result, report


def _count(selection: Selection, active: set[int], report: QuantizeReport) -> None:
    for node in selection.chosen:
        if id(node) in active:
            report.quantized[node.op_type] += 1
        else:
            report.keep(node.op_type, "its tensors are not in int8")
    for node, reason in selection.refused:
        if node.op_type != "Constant":
            report.keep(node.op_type, reason)
        if any(True for _ in subgraphs_of(node)):
            report.warnings.append(f"the subgraphs of a {node.op_type} stay in float")
    report.warnings[:] = list(dict.fromkeys(report.warnings))


def quantize_model(
    model: ir.Model,
    feeds: Any,
    *,
    preset: str | QuantizePreset = "auto",
    exclude: Sequence[str] = (),
    method: str = "auto",
    form: Form = "qdq",
    requantize: bool = False,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ir.Model, QuantizeReport]:
    """Stores weights and activations in 8 bits, with ranges measured on ``feeds``.

    Args:
        model: a float model; it stays as it is. BatchNormalization should be folded before.
        feeds: calibration data: what `onnxslim.calibration.streams.open_feeds` takes; one feed is
            in memory at a time.
        preset: ``auto`` for this processor, a name from `onnxslim.quantization.presets`, or
            settings.
        exclude: nodes to leave in float: their names, the names of their outputs, or patterns.
        method: how ranges are chosen: ``minmax``, ``percentile``, ``entropy``, ``mse``, or ``auto``
            for the one of least expected error per tensor.
        form: ``qdq`` or ``qoperator``.
        requantize: take a quantized model back to float first.
        skip_bad: leave out samples with NaN or infinity, up to 5 percent.
        progress: called with feeds done and feeds in all (as far as known) after each.

    Returns:
        The quantized model and what was done.

    Raises:
        UsageError: an unknown preset, method or excluded name.
        InvalidModelError: already quantized, nothing to quantize, an opset that cannot be raised,
            or a result that onnxruntime does not open.
        DataError: no feeds, feeds that do not fit, or NaN or infinity on the way.
        RuntimeRefusedError: onnxruntime cannot open the model as it is.
    """
    check_method(method)
    settings = find_preset(preset) if isinstance(preset, str) else preset
    prepared = prepare_float(model, preset=settings, requantize=requantize)
    float_nodes = frozenset(find_nodes(prepared.model.graph, exclude))
    plan = QuantPlan(settings, form, float_nodes, method=method)
    selection = select_nodes(prepared.model, plan)
    check_weights(selection.chosen)
    specs = input_specs(prepared.model)
    watched = _FirstSeen(open_feeds(feeds, specs))
    calibration = calibrate(
        prepared.model, watched.stream, tensors=wanted_tensors(selection.chosen), strict=True,
        skip_bad=skip_bad, progress=progress,
    )  # fmt: skip
    first = FeedChecker(specs).feed(watched.item, Place(0))
    if prepared.notes:
        is_half = any("float16" in note for note in prepared.notes)
        check_conversion(prepared.original, prepared.model, first, is_half=is_half)
    result, report = quantize_once(prepared, calibration, plan)
    if form == "qdq":
        result, report = _without_overflow(prepared, calibration, plan, first, (result, report))
    report.warnings.extend(note for note in calibration.notes if note not in report.warnings)
    check_result(result, first)
    return result, report


def _without_overflow(
    prepared: Prepared,
    calibration: Calibration,
    plan: QuantPlan,
    feed: Feed,
    found: tuple[ir.Model, QuantizeReport],
) -> tuple[ir.Model, QuantizeReport]:
    """``found``, or the same with weights of 7 bits when kernels here overflow with 8.

    Raises:
        InvalidModelError: a result that onnxruntime does not open.
    """
    if plan.preset.reduce_range or unverifiable(plan.preset) is not None:
        return found
    check_result(found[0], feed)
    gap = fake_real_gap(prepared.original, found[0], [feed])
    if not gap.is_overflow:
        return found
    narrow = replace(plan, preset=replace(plan.preset, reduce_range=True))
    result, report = quantize_once(prepared, calibration, narrow)
    report.warnings.append(
        f"int8 kernels of this processor overflow with weights of 8 bits ({gap.real:.1f} dB "
        f"instead of {gap.fake:.1f} dB at output {gap.output!r}): weights have 7 bits"
    )
    return result, report


class _FirstSeen:
    """Keeps the first item of a stream, which may be read only once."""

    def __init__(self, stream: FeedStream) -> None:
        self.item: Any = None
        self.stream = replace(stream, loaders=lambda: self._watched(stream))

    def _watched(self, stream: FeedStream) -> Iterator[tuple[Place, Callable[[], Any]]]:
        for number, (place, load_item) in enumerate(stream.loaders()):
            yield place, partial(self._kept, load_item) if number == 0 else load_item

    def _kept(self, load_item: Callable[[], Any]) -> Any:
        self.item = load_item()
        return self.item
