"""Stores weights in fewer bytes, and checks what became of it in the runtime."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxslim.calibration.feeds import FeedMaker
from onnxslim.calibration.readers import input_specs, read_feeds
from onnxslim.compression.request import Compression
from onnxslim.errors import (
    DataError,
    DemandMissedError,
    InvalidModelError,
    PassError,
    RuntimeRefusedError,
)
from onnxslim.io import load
from onnxslim.io.convert import convert_opset
from onnxslim.ir.schema import default_opset
from onnxslim.ir.traversal import nodes
from onnxslim.ir.verify import verify
from onnxslim.pipeline import Context, leaves
from onnxslim.rewrite.stored_weights.emit import META_KEY, Record
from onnxslim.rewrite.stored_weights.find import find_weights
from onnxslim.runtime.loaded import Loaded, loaded_graph
from onnxslim.runtime.session import open_session
from onnxslim.validated_run import Progress, no_progress
from onnxslim.validation.accuracy import AccuracyReport, compare_accuracy

# The first IR version that knows 4-bit integers, and the opset that came with it.
_NARROW_IR, _NARROW_OPSET = 10, 21
# A note is made where an output keeps less than this ratio of signal to deviation, in dB.
_LOW_SQNR = 15.0
_MADE_UP = 2


@dataclass
class Compressed:
    """The result of a compression.

    Attributes:
        model: with its weights in fewer bytes.
        context: journal and refusals of the run.
        records: one per weight that is stored in another form.
        accuracy: outputs (and labels) beside those of the model before; None where neither runs.
        loaded: what onnxruntime makes of the result when it opens it; None where it cannot.
        load_milliseconds: time to open the model before and after, where both were opened, with
            weights mapped: the difference is what giving them back takes.
        warnings: what the user should know, one line each.
    """

    model: ir.Model
    context: Context
    records: list[Record] = field(default_factory=list)
    accuracy: AccuracyReport | None = None
    loaded: Loaded | None = None
    load_milliseconds: tuple[float, float] | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def unfolded(self) -> list[str]:
        """Weights that onnxruntime would give back anew in every run."""
        if self.loaded is None:
            return []
        left = self.loaded.names
        return [record.name for record in self.records if not left.isdisjoint(record.nodes)]

    def summary(self) -> str:
        """One line: how many weights in which form, and what that costs."""
        forms: dict[str, int] = {}
        for record in self.records:
            forms[record.form] = forms.get(record.form, 0) + 1
        stored = ", ".join(f"{number} {form}" for form, number in sorted(forms.items()))
        parts = [f"weights: {stored or 'none stored in another form'}"]
        if self.records and self.loaded is not None:
            given_back = [record for record in self.records if record.nodes]
            folded = len(given_back) - len(self.unfolded)
            if given_back:
                parts.append(f"{folded} of {len(given_back)} folded when opened")
            fused = self.loaded.operators.get("com.microsoft.MatMulNBits", 0)
            if fused:
                parts.append(f"{fused} MatMulNBits")
        if self.load_milliseconds is not None and self.records:
            before, after = self.load_milliseconds
            parts.append(f"{max(after - before, 0):.0f} ms more to open")
        if self.accuracy is not None and self.records:
            parts.append(self.accuracy.summary())
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON report."""
        loaded = self.loaded
        return {
            "weights": [
                {**{k: v for k, v in vars(one).items() if k != "nodes"}, "shape": list(one.shape)}
                for one in self.records
            ],
            "weight_bytes_before": sum(one.bytes_before for one in self.records),
            "weight_bytes_after": sum(one.bytes_after for one in self.records),
            "unfolded": self.unfolded,
            "operators_when_opened": None if loaded is None else loaded.operators,
            "load_ms": None if self.load_milliseconds is None else list(self.load_milliseconds),
        }


def run_compression(
    model: ir.Model, compression: Compression, progress: Progress = no_progress
) -> Compressed:
    """Stores weights in fewer bytes.

    A weight whose way back onnxruntime does not compute when it opens the model is left as it was,
    since it would cost time in every run.

    Args:
        model: stays as it is.
        compression: what is asked for.
        progress: called with (stage, done, total).

    Raises:
        DataError: calibration data or labels that do not fit the model.
        DemandMissedError: the result does not run, or loses more than ``max_drop`` points.
    """
    progress("compressing weights", 0, 1)
    start, warnings = _raised(model, compression)
    disabled: set[tuple[str, str]] = set()
    result = _attempt(start, compression, disabled)
    progress("opening the result", 0, 1)
    before = _open(model, result)
    for name in result.unfolded:
        disabled.update((step.name, name) for step in leaves(compression.pipeline()))
        warnings.append(f"{name} stays as it was: onnxruntime does not fold its way back")
    if disabled:
        result = _attempt(start, compression, disabled)
        before = _open(model, result)
    if before is not None and result.loaded is not None:
        result.load_milliseconds = (before.milliseconds, result.loaded.milliseconds)
    progress("measuring accuracy", 0, 1)
    result.warnings = warnings
    _measure(model, result, compression)
    return result


def weight_only_int8(
    model: ir.Model, *, max_error: float | None = None
) -> tuple[ir.Model, list[str]]:
    """The model with int8 weights that onnxruntime turns back into floats when it opens it.

    Nothing is run or measured; `run_compression` does that too.

    Args:
        model: stays as it is.
        max_error: as in `Compression`.

    Returns:
        The new model, and one line per weight that was stored anew or left alone.
    """
    compression = Compression("int8", max_error=max_error)
    start, notes = _raised(model, compression)
    result = _attempt(start, compression, set())
    notes += [f"{entry.site}: {entry.detail}" for entry in result.context.journal]
    done = {record.name for record in result.records}
    left = [entry for entry in result.context.refusals.values() if entry.site not in done]
    return result.model, notes + [f"{entry.site} stays: {entry.reason}" for entry in left]


def _raised(model: ir.Model, compression: Compression) -> tuple[ir.Model, list[str]]:
    """A copy whose opset knows what the forms need, where there is something to store."""
    copy = load(model)
    if not _has_weights(copy, compression):
        return copy, []
    warnings = []
    before = default_opset(model)
    if before < compression.opset:
        try:
            copy = convert_opset(model, compression.opset)
            warnings.append(f"opset {before} was raised to {compression.opset}")
        except InvalidModelError as error:
            warnings.append(f"{error}; until then its weights take wider forms")
    if compression.opset >= _NARROW_OPSET <= default_opset(copy):
        copy.ir_version = max(copy.ir_version or 0, _NARROW_IR)
    return copy, warnings


def _has_weights(model: ir.Model, compression: Compression) -> bool:
    owner = next(iter(leaves(compression.pipeline())))
    types = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    context = Context(model)
    found = find_weights(owner, model, context, dtypes=types, min_bytes=compression.min_bytes)
    return bool(found)


def _attempt(
    start: ir.Model, compression: Compression, disabled: set[tuple[str, str]]
) -> Compressed:
    model = load(start)
    context = Context(model, disabled=disabled)
    pipeline = compression.pipeline()
    pipeline(model, context)
    try:
        verify(model)
    except Exception as error:
        raise PassError(
            f"storing weights broke the graph: {error}", pass_name=pipeline.name
        ) from error
    found = [
        node.outputs[0].meta[META_KEY]
        for node in nodes(model)
        if node.outputs and META_KEY in node.outputs[0].meta
    ]
    records = {record.name: record for record in found}
    return Compressed(model, context, list(records.values()))


def _open(model: ir.Model, result: Compressed) -> Loaded | None:
    """Opens both models as a deployment would; what became of the first, or None.

    Raises:
        DemandMissedError: onnxruntime opens the first, but not the result.
    """
    try:
        before = loaded_graph(model)
    except RuntimeRefusedError:
        return None
    try:
        result.loaded = loaded_graph(result.model)
    except RuntimeRefusedError as error:
        raise DemandMissedError(
            f"the model opens in onnxruntime, the compressed one does not: {error}; nothing was "
            "written, please report the model"
        ) from error
    return before


def _measure(model: ir.Model, result: Compressed, compression: Compression) -> None:
    """Fills in the accuracy, and holds it against the demand."""
    if result.loaded is None:
        if compression.max_drop is not None:
            raise DemandMissedError(
                "the drop cannot be measured, onnxruntime does not open the model"
            )
        result.warnings.append("not compared: onnxruntime does not open the model")
        return
    feeds = _feeds(model, compression)
    if not feeds and compression.labels is None:
        result.warnings.append("not compared: the model does not run on made-up inputs")
        return
    report = compare_accuracy(model, result.model, feeds=feeds, labels=compression.labels)
    result.accuracy = report
    drop = _drop(report)
    if compression.max_drop is not None and drop is None:
        raise DataError("the drop cannot be measured: there are no float outputs; give --labels")
    if compression.max_drop is not None and drop is not None and drop > compression.max_drop:
        raise DemandMissedError(
            f"with {compression.weights} weights {drop:.2f} points are lost, "
            f"{compression.max_drop:g} are allowed ({report.summary()}); take a wider form, a "
            "smaller --max-error, or allow more; nothing was written"
        )
    _note_low(report, result.warnings)


def _feeds(model: ir.Model, compression: Compression) -> Sequence[Any]:
    given = compression.calibration
    if given is not None:
        if isinstance(given, str | os.PathLike):
            return list(read_feeds(given, input_specs(model)))
        return list(given)
    return list(made_up_feeds(model))


def made_up_feeds(model: ir.Model) -> Iterable[Any]:
    """A few made-up feeds that the model runs on."""
    try:
        maker = FeedMaker(model, seed=0)
    except DataError:
        return
    session = open_session(model, optimize=True)
    for number in range(_MADE_UP):
        for plan in maker.plans(number):
            feed = maker.make(plan, number)
            try:
                session.run(feed, limit=10.0)
            except (RuntimeRefusedError, TimeoutError):
                continue
            yield feed
            break


def _drop(report: AccuracyReport) -> float | None:
    """Points that were lost: on labels; else of agreement; else the error of the outputs."""
    if report.before is not None and report.after is not None:
        before, after = report.before.value, report.after.value
        if report.before.metric == "top1":
            return 100 * (before - after)
        return 0.0 if before == after else before - after
    agreeing = [output.top1 for output in report.outputs if output.top1 is not None]
    if agreeing:
        return 100 * (1 - min(agreeing))
    ratios = [output.sqnr_db for output in report.outputs if output.sqnr_db is not None]
    return 100 * math.pow(10, -min(ratios) / 20) if ratios else None


def _note_low(report: AccuracyReport, warnings: list[str]) -> None:
    low = [
        f"{output.name} ({output.sqnr_db:.1f} dB)"
        for output in report.outputs
        if output.sqnr_db is not None and output.sqnr_db < _LOW_SQNR
    ]
    if low:
        warnings.append(
            f"the outputs changed much: {', '.join(low)}; measure on real data with --labels"
        )
