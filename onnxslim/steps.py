"""The steps of a run as the report tells them: exact passes, pruning, int8, smaller weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxslim.model_files import is_packed_name, measure, packed_bytes
from onnxslim.report.data import Report, Step, merged, summarize
from onnxslim.validated_run import Progress, Run, ValidatedRun

if TYPE_CHECKING:
    from onnxslim.compression import Compression
    from onnxslim.pruning.data import PruningData
    from onnxslim.pruning.request import Pruning
    from onnxslim.quantization.data import QuantData
    from onnxslim.quantization.request import Quantization


def record(report: Report, run: Run) -> None:
    report.passes = summarize(run.context.timings)
    report.rewrites = list(run.context.journal)
    report.refusals = list(run.context.refusals.values())
    report.explanations = list(run.context.explanations.values())
    report.validation = run.validation
    report.warnings.extend([*run.notes, *run.context.warnings])


def record_again(report: Report, run: Run) -> None:
    """Adds a second exact run to the report; the verdict stays that of the first."""
    report.passes = merged(report.passes, summarize(run.context.timings))
    report.rewrites.extend(run.context.journal)
    known = {(entry.pass_name, entry.site) for entry in report.refusals}
    report.refusals.extend(entry for key, entry in run.context.refusals.items() if key not in known)
    report.warnings.extend([*run.notes, *run.context.warnings])


def keep_what_pays(run_of: ValidatedRun, run: Run) -> tuple[ValidatedRun, Run]:
    """The run without the passes that make the model slower."""
    from onnxslim import measured_run

    return measured_run.keep_what_pays(run_of, run)


def pruning_data(model: ir.Model, pruning: Pruning | None) -> PruningData | None:
    if pruning is None:
        return None
    from onnxslim.pruning.request import read_pruning_data

    return read_pruning_data(model, pruning)


def prune_step(
    model: ir.Model,
    pruning: Pruning,
    data: PruningData,
    exact: ValidatedRun | None,
    report: Report,
    progress: Progress,
) -> ir.Model:
    """Prunes, then removes exactly what that uncovered, where ``exact`` says how."""
    from onnxslim.pruning.request import run_pruning

    pruned = run_pruning(model, pruning, data, progress)
    report.warnings.extend(pruned.warnings)
    result = pruned.model
    if exact is not None:
        run = replace(exact, original=result).run()
        record_again(report, run)
        result = run.model
    progress("packing", 0, 1)
    packed = [packed_bytes(one) for one in (model, result)]
    note = f"; packed {packed[0]:,} -> {packed[1]:,} bytes" if all(packed) else ""
    step = Step("prune", measure(result), pruned.summary + note)
    sizes = {"packed_bytes_before": packed[0], "packed_bytes": packed[1]}
    step.details = {"pruning": {**pruned.details, **sizes}}
    report.steps.append(step)
    return result


def quantization_data(model: ir.Model, quantization: Quantization | None) -> QuantData | None:
    """Opens the data before anything is computed; refuses what is quantized already."""
    if quantization is None:
        return None
    from onnxslim.quantization.data import read_data
    from onnxslim.quantization.prepare import refuse_quantized

    if not quantization.requantize:
        refuse_quantized(model)
    return read_data(model, quantization)


def quantize_step(
    model: ir.Model,
    quantization: Quantization,
    data: QuantData,
    report: Report,
    progress: Progress,
) -> ir.Model:
    from onnxslim.quantization.run import run_quantization

    result = run_quantization(model, quantization, data, progress)
    step = Step("quantize", measure(result.model), result.summary())
    step.details = {"quantization": result.to_dict()}
    report.steps.append(step)
    report.warnings.extend(result.warnings)
    return result.model


def compress_step(
    model: ir.Model, compression: Compression, report: Report, progress: Progress
) -> ir.Model:
    from onnxslim.compression import run_compression

    result = run_compression(model, compression, progress)
    step = Step("compress", measure(result.model), result.summary())
    step.details = {"compression": result.to_dict()}
    if result.accuracy is not None:
        step.details["accuracy"] = result.accuracy.to_dict()
    report.steps.append(step)
    report.passes = merged(report.passes, summarize(result.context.timings))
    report.rewrites.extend(result.context.journal)
    stored = {record.name for record in result.records}
    left = (one for one in result.context.refusals.values() if one.site not in stored)
    report.refusals.extend(left)
    report.warnings.extend([*result.warnings, *result.context.warnings])
    return result.model


def after_steps(
    original: ir.Model, report: Report, labels: Sequence[Any], target: Any
) -> Callable[[ir.Model], None]:
    """A function that notes, of the model after the last step, accuracy and packed size.

    Accuracy needs labels; the packed size is of interest where the target is packed.
    """
    given = next((item for item in labels if item is not None), None)
    packs = is_packed_name(target) and bool(labels)

    def accuracy_of(model: ir.Model) -> dict[str, Any] | None:
        if given is None:
            return None
        from onnxslim.calibration.readers import input_specs
        from onnxslim.runtime.session import open_session
        from onnxslim.validation.accuracy import accuracy

        measured = accuracy(open_session(model, optimize=True), given, specs=input_specs(original))
        return vars(measured)

    report.accuracy_before = accuracy_of(original)

    def note(model: ir.Model) -> None:
        step = report.steps[-1]
        step.accuracy = accuracy_of(model)
        step.packed_bytes = packed_bytes(model) if packs else None

    return note
