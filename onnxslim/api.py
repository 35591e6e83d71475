"""One function per public verb; each ties rooms together and holds no algorithm of its own."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import onnx_ir as ir

from onnxslim import io
from onnxslim.errors import InvalidModelError, UsageError, VerificationError
from onnxslim.ir import shapes
from onnxslim.ir.cost import Snapshot, snapshot
from onnxslim.ir.listed import take_listed
from onnxslim.ir.order import verify_sorted
from onnxslim.pipeline import Exactness
from onnxslim.report.data import Report, Step, merged, summarize
from onnxslim.validated_run import Check, Progress, Run, ValidatedRun, no_progress

if TYPE_CHECKING:
    from onnxslim.compression import Compression
    from onnxslim.pruning.data import PruningData
    from onnxslim.pruning.request import Pruning
    from onnxslim.quantization.data import QuantData
    from onnxslim.quantization.request import Quantization
    from onnxslim.validation import ValidationResult

PACKED_SUFFIX = ".onnxz"

# Larger models are not packed just to know the size.
_PACK_LIMIT = 1_000_000_000


@dataclass
class Optimized:
    """What `optimize` returns: the model and the report of the run."""

    model: ir.Model
    report: Report


def optimize(
    source: Any,
    target: str | os.PathLike[str] | BinaryIO | None = None,
    *,
    preset: str = "default",
    passes: Sequence[str] = (),
    skip_passes: Sequence[str] = (),
    validate: bool = True,
    feeds: Any = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    pruning: Pruning | None = None,
    quantization: Quantization | None = None,
    compression: Compression | None = None,
    external_data: bool = False,
    verify_each: bool = False,
    fold_growth: int = 0,
    size_threshold: int | None = None,
    align: int | str = "auto",
    compensate_norms: bool = False,
    explain: bool = False,
    listed_initializers: str = "auto",
    opset: int | None = None,
    runtime: str = "ort",
    measure_latency: bool = False,
    progress: Progress = no_progress,
) -> Optimized:
    """Makes a model smaller and faster, and validates that it gives the same answers.

    Args:
        source: a path, ``"-"`` (stdin), bytes, a file object, a ``ModelProto`` or an ``ir.Model``;
            never changed.
        target: where to write: a path (``.onnxz`` packs), ``"-"`` (stdout), a file object, or None
            to write nothing.
        preset: the named pipeline: ``default``, ``simplify`` or ``prune``.
        passes: run these passes instead of a preset.
        skip_passes: leave these passes out.
        validate: compare outputs with the original before anything is written.
        feeds: inputs to validate with (npz path or a list of feeds); generated ones when None.
        rtol: relative tolerance instead of the one by dtype.
        atol: absolute tolerance instead of the one by dtype.
        seed: seed of generated inputs.
        input_shapes: fixed shapes by input name, written into the model.
        pruning: new sparsity or fewer channels, lossy, after the exact steps.
        quantization: static int8 after the steps before it.
        compression: weights in fewer bytes, as the last step.
        external_data: weights in a data file beside the model, at any size.
        verify_each: verify the graph after every pass.
        fold_growth: bytes by which constant folding may grow the model.
        size_threshold: operators whose folded result would take more bytes are left as they are.
        align: channel counts after the removal of zeroed channels: 1 (as small as possible), N
            (multiples of N), or ``auto`` (no layer slower than before).
        compensate_norms: also remove constant channels that enter a normalisation over channels,
            and correct its statistics.
        explain: say in the report, per group of tied channels, what went, what stayed, and why.
        listed_initializers: weights that are listed as graph inputs: ``auto`` (constants where all
            are listed), ``constants`` or ``defaults`` (a caller may override them).
        opset: convert the standard operators to this version first.
        runtime: where the model will run: ``ort``, ``openvino``, ``portable``, ``tensorrt`` or
            ``web``; rewrites that do not pay there are left out.
        measure_latency: time the result against one without each pass that fuses or moves nodes,
            and take back the passes without which it is faster.
        progress: called with (stage, done, total).

    Returns:
        The model, still mapped to its source where weights did not change, and the report.

    Raises:
        ModelLoadError: the source cannot be read.
        InvalidModelError: the model breaks the ONNX rules.
        DemandMissedError: the result disagrees with the original; nothing is written.
    """
    from onnxslim import presets

    started = time.perf_counter()
    settings = channel_settings(align, compensate_norms, explain)
    settings["fold-constants"] = {"max_output_bytes": size_threshold}
    if pruning is not None:  # whose analysis sees into the parts of an Attention only
        skip_passes = [*skip_passes, *presets.held(("fuse-attention",), preset, passes)]
    pipeline = presets.build(preset, passes, skip_passes, settings, runtime)
    if target is not None and not hasattr(target, "write"):
        io.check_target(target)
    progress("loading", 0, 1)
    original, notes = _load_noting(source)
    if input_shapes:
        fix_input_shapes(original, input_shapes)
    listed = take_listed(original, listed_initializers)
    report = Report(source=name_of(source), before=measure(original))
    report.warnings.extend(notes if listed is None else [*notes, listed.note()])
    check = Check(validate, _read_feeds(original, feeds), rtol, atol, seed)
    data = _pruning_data(original, pruning)
    if quantization is not None:
        _keep_source(source, target)
    quant_data = _quantization_data(original, quantization)
    start = None if opset is None else _converted(original, opset)
    run_of = ValidatedRun(original, pipeline, check, verify_each, fold_growth, progress, start)
    run = run_of.run()
    if measure_latency:
        run_of, run = _keep_what_pays(run_of, run)
    _record(report, run)
    model = run.model
    steps = [step for step in (pruning, quantization, compression) if step is not None]
    after = _after_steps(original, report, [step.labels for step in steps], target)
    report.steps.append(Step("slim", measure(model)))
    after(model)
    if pruning is not None and data is not None:
        exact = run_of if pruning.removes else None
        model = _prune_step(model, pruning, data, exact, report, progress)
        after(model)
    if quantization is not None and quant_data is not None:
        model = _quantize_step(model, quantization, quant_data, report, progress)
        after(model)
    if compression is not None:
        model = _compress_step(model, compression, report, progress)
        after(model)
    if listed is not None:
        listed.restore(model)
    if target is not None:
        progress("writing", 0, 1)
        report.files = write(model, target, external_data=external_data)
        report.target = "stdout" if target == "-" else name_of(target)
    report.seconds = time.perf_counter() - started
    return Optimized(model, report)


def channel_settings(align: int | str, compensate_norms: bool, explain: bool) -> dict[str, Any]:
    """The options of the removal of zeroed channels, for `presets.build`.

    Raises:
        UsageError: ``align`` is neither ``auto`` nor a whole number of 1 or more.
    """
    wanted = str(align).strip()
    if wanted != "auto" and not (wanted.isdecimal() and int(wanted) > 0):
        raise UsageError(f"align {align!r}: want auto, 1 (no alignment) or a multiple such as 8")
    options: dict[str, Any] = {"align": None if wanted == "auto" else int(wanted)}
    if compensate_norms:
        options["compensate_norms"] = True
    if explain:
        options["explain"] = True
    return {"eliminate-zeroed-channels": options}


def prune(
    source: Any,
    target: str | os.PathLike[str] | BinaryIO | None = None,
    *,
    exact: bool | None = None,
    pruning: Pruning | None = None,
    align: int | str = "auto",
    compensate_norms: bool = False,
    explain: bool = False,
    **options: Any,
) -> Optimized:
    """Removes channels that are zero, constant or unread; with ``pruning``, makes more of them.

    Args:
        source: as for `optimize`.
        target: as for `optimize`.
        exact: remove what changes no output. Without ``pruning`` that is all, and must not be
            False; with it, it also takes out channels that became zero in whole.
        pruning: new sparsity or fewer channels, which changes the outputs.
        align: as for `optimize`.
        compensate_norms: as for `optimize`.
        explain: as for `optimize`.
        options: other options of `optimize`: validation, progress, external data.

    Raises:
        UsageError: an option that cannot be met.
        DataError: calibration data or labels that do not fit.
        DemandMissedError: the result disagrees with the original, or is worse than the limits
            allow; nothing is written.
    """
    if pruning is None and exact is False:
        raise UsageError("prune: nothing to do; give exact=True, or pruning")
    preset = "prune"
    if pruning is not None:
        pruning = replace(pruning, removes=bool(exact) or pruning.cuts_channels)
        preset = "default" if pruning.removes else "simplify"
        if str(align).isdecimal():
            pruning = replace(pruning, align=int(align))
    return optimize(
        source,
        target,
        preset=preset,
        pruning=pruning,
        align=align,
        compensate_norms=compensate_norms,
        explain=explain,
        **options,
    )


def compress(
    source: Any,
    target: str | os.PathLike[str] | BinaryIO | None = None,
    *,
    weights: str = "int8",
    max_error: float | None = None,
    runtime: str = "portable",
    calibration: Any = None,
    labels: str | None = None,
    max_drop: float | None = None,
    share_transposed: bool = False,
    **options: Any,
) -> Optimized:
    """Stores weights in fewer bytes, in a file that runs as it is and as fast as before.

    Args:
        source: as for `optimize`.
        target: as for `optimize`.
        weights: ``int8``, ``int4``, ``fp16``, ``bf16``, ``palette16``, ``palette256``, ``auto`` or
            ``exact``; see `onnxslim.compression.Compression` for this and the next options.
        max_error: largest relative error of a weight.
        runtime: ``portable``, or ``ort`` for onnxruntime's own operators.
        calibration: inputs to compare outputs on.
        labels: npz with inputs by name and ``labels``, to measure accuracy.
        max_drop: points that may be lost.
        share_transposed: store a matrix that is another's transpose as a Transpose of that.
        options: other options of `optimize`.

    Raises:
        UsageError: a form, limit or combination that does not exist.
        DataError: calibration data or labels that do not fit.
        DemandMissedError: the result does not run, or loses more than allowed; nothing is written.
    """
    from onnxslim.compression import Compression

    compression = Compression(
        weights, max_error, runtime, calibration, labels, max_drop, share_transposed
    )
    return optimize(source, target, compression=compression, **options)


def quantize(
    source: Any,
    target: str | os.PathLike[str] | BinaryIO | None = None,
    *,
    calibration: Any = None,
    quantization: Quantization | None = None,
    progress: Progress = no_progress,
    optimizing: Mapping[str, Any] | None = None,
    **options: Any,
) -> Optimized:
    """Static int8 that is written only where it is good and fast enough.

    Args:
        source: as for `optimize`.
        target: as for `optimize`.
        calibration: data that ranges are measured on.
        quantization: all options at once, instead of ``calibration`` and ``options``.
        progress: called with (stage, done, total).
        optimizing: other options of `optimize`: validation, passes, external data.
        options: of `onnxslim.Quantization`: ``labels``, ``metric``, ``max_drop``, ``preset`` ...

    Raises:
        UsageError: an option that does not exist, or a name that no node fits.
        InvalidModelError: already quantized, or nothing to quantize.
        DataError: data that is missing or does not fit; nothing is written.
        DemandMissedError: ``strict``, and no form keeps the target; nothing is written.
    """
    from onnxslim.quantization.request import Quantization

    if quantization is not None and (options or calibration is not None):
        raise UsageError("quantize: give quantization, or calibration and options, not both")
    if quantization is None:
        unknown = sorted(set(options) - set(Quantization.__dataclass_fields__))
        if unknown:
            raise UsageError(f"quantize has no option {unknown[0]!r}; see onnxslim.Quantization")
        quantization = Quantization(calibration, **options)
    return optimize(
        source, target, quantization=quantization, progress=progress, **(optimizing or {})
    )


def validate(
    reference: Any,
    candidate: Any,
    *,
    feeds: Any = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
) -> ValidationResult:
    """Compares the outputs of two models in onnxruntime on the same inputs.

    Args:
        reference: the model that is right; `optimize` says what can be given.
        candidate: the model to judge.
        feeds: npz path or list of feeds; generated from the input types when None.
        rtol: relative tolerance instead of the one by dtype.
        atol: absolute tolerance instead of the one by dtype.
        seed: seed of generated inputs.
    """
    from onnxslim.validation import validate as compare

    first, second = load_checked(reference), load_checked(candidate)
    for model in (first, second):
        take_listed(model)
    given = _read_feeds(first, feeds)
    return compare(
        first, second, feeds=given, rtol=rtol, atol=atol, seed=seed, exactness=Exactness.ROUNDING
    )


def session(
    source: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    providers: Sequence[Any] = ("CPUExecutionProvider",),
    config: Mapping[str, str] | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
    **settings: Any,
) -> Any:
    """Opens a model in onnxruntime, a packed one without writing anything to disk.

    The weights of a packed model are decoded on all cores into memory, compared with their hashes
    and handed over. That takes, for a moment, the memory of the weights twice.

    Args:
        source: path of a packed model, or of any other.
        base: the base version that a packed difference needs.
        providers: execution providers, as ``onnxruntime.InferenceSession`` takes them.
        config: session configuration entries, such as ``{"session.disable_prepacking": "1"}``.
        threads: threads that decode; None means one for each core.
        progress: called with (stage, done, total).
        settings: attributes of ``onnxruntime.SessionOptions``, such as ``intra_op_num_threads=1``.

    Returns:
        An ``onnxruntime.InferenceSession``. That of a packed model cannot change its providers.

    Raises:
        PackError: the packed model is damaged, or its base is missing.
        RuntimeRefusedError: onnxruntime cannot open the model.
        UsageError: an option that onnxruntime does not have.
    """
    from concurrent.futures import ThreadPoolExecutor

    from onnxslim.packing import is_packed, open_packed
    from onnxslim.runtime.detached_session import open_detached, open_file

    if not is_packed(source):
        return open_file(source, settings, config or {}, providers)
    packed = open_packed(source, base=base, threads=threads)
    model = packed.decoded(progress)
    progress("opening", 0, 1)
    with ThreadPoolExecutor(1) as side:  # hashes need a core, onnxruntime mostly one other
        verified = side.submit(model.verify)
        try:
            return open_detached(
                model.data, model.weights, packed.label, settings, config or {}, providers
            )
        finally:
            verified.result()


@dataclass
class Inspection:
    """What `inspect` says of a model; ``inputs`` and ``outputs`` map names to types as text."""

    source: str
    snapshot: Snapshot
    inputs: dict[str, str]
    outputs: dict[str, str]
    opsets: dict[str, int]
    ir_version: int
    producer: str
    functions: list[str]
    metadata: dict[str, str]


def inspect(source: Any) -> Inspection:
    """Costs, interface and versions of a model; no weight is read."""
    model = load_checked(source)
    return Inspection(
        source=name_of(source),
        snapshot=measure(model),
        inputs={
            value.name or "": _type_text(value)
            for value in model.graph.inputs
            if not value.is_initializer()
        },
        outputs={value.name or "": _type_text(value) for value in model.graph.outputs},
        opsets=dict(model.graph.opset_imports),
        ir_version=int(model.ir_version),
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        functions=[f"{key[0]}.{key[1]}" for key in model.functions],
        metadata=dict(model.metadata_props),
    )


def load_checked(source: Any) -> ir.Model:
    """`io.load`, then `verify`; nodes out of order are put in order.

    Raises:
        InvalidModelError: the graph is not one that any runtime could run.
    """
    return _load_noting(source)[0]


def _load_noting(source: Any) -> tuple[ir.Model, list[str]]:
    """`load_checked`, and what had to be mended."""
    model = _load_packed(source) if _is_packed(source) else io.load(source)
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
    if _is_packed_name(target):
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


def _converted(model: ir.Model, opset: int) -> ir.Model:
    """A copy at another opset; the converter is imported for those who ask."""
    import onnx.defs

    from onnxslim.io.convert import convert_opset

    newest = onnx.defs.onnx_opset_version()
    if not 1 <= opset <= newest:
        raise UsageError(f"opset {opset}: want 1 to {newest}, which is the newest that onnx knows")
    return convert_opset(model, opset)


def _keep_what_pays(run_of: ValidatedRun, run: Run) -> tuple[ValidatedRun, Run]:
    """The run without the passes that make the model slower."""
    from onnxslim.measured_run import keep_what_pays

    return keep_what_pays(run_of, run)


def _record(report: Report, run: Run) -> None:
    report.passes = summarize(run.context.timings)
    report.rewrites = list(run.context.journal)
    report.refusals = list(run.context.refusals.values())
    report.explanations = list(run.context.explanations.values())
    report.validation = run.validation
    report.warnings.extend([*run.notes, *run.context.warnings])


def _pruning_data(model: ir.Model, pruning: Pruning | None) -> PruningData | None:
    if pruning is None:
        return None
    from onnxslim.pruning.request import read_pruning_data

    return read_pruning_data(model, pruning)


def _prune_step(
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
        _record_again(report, run)
        result = run.model
    progress("packing", 0, 1)
    packed = [_packed_bytes(one) for one in (model, result)]
    note = f"; packed {packed[0]:,} -> {packed[1]:,} bytes" if all(packed) else ""
    step = Step("prune", measure(result), pruned.summary + note)
    sizes = {"packed_bytes_before": packed[0], "packed_bytes": packed[1]}
    step.details = {"pruning": {**pruned.details, **sizes}}
    report.steps.append(step)
    return result


def _compress_step(
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


def _after_steps(
    original: ir.Model, report: Report, labels: Sequence[Any], target: Any
) -> Callable[[ir.Model], None]:
    """A function that notes, of the model after the last step, accuracy and packed size.

    Accuracy needs labels; the packed size is of interest where the target is packed.
    """
    given = next((item for item in labels if item is not None), None)
    packs = _is_packed_name(target) and bool(labels)

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
        step.packed_bytes = _packed_bytes(model) if packs else None

    return note


def _is_packed_name(target: Any) -> bool:
    return isinstance(target, str | os.PathLike) and str(target).endswith(PACKED_SUFFIX)


def _packed_bytes(model: ir.Model) -> int | None:
    """The size of the model as a packed file; None when it is too large to try."""
    from onnxslim.packing import pack

    if io.total_bytes(model) > _PACK_LIMIT:
        return None
    with tempfile.TemporaryDirectory(prefix="onnxslim-") as folder:
        plain, packed = Path(folder) / "model.onnx", Path(folder) / f"model{PACKED_SUFFIX}"
        io.save(model, plain)
        pack(plain, packed)
        return packed.stat().st_size


def _record_again(report: Report, run: Run) -> None:
    """Adds a second exact run to the report; the verdict stays that of the first."""
    report.passes = merged(report.passes, summarize(run.context.timings))
    report.rewrites.extend(run.context.journal)
    known = {(entry.pass_name, entry.site) for entry in report.refusals}
    report.refusals.extend(entry for key, entry in run.context.refusals.items() if key not in known)
    report.warnings.extend([*run.notes, *run.context.warnings])


def _keep_source(source: Any, target: Any) -> None:
    """Refuses to write int8 over the float model that it is made of."""
    paths = [one for one in (source, target) if isinstance(one, str | os.PathLike) and one != "-"]
    if len(paths) == 2 and len({os.path.realpath(one) for one in paths}) == 1:
        raise UsageError(f"{target} is also the input: int8 would replace it; give another name")


def _quantization_data(model: ir.Model, quantization: Quantization | None) -> QuantData | None:
    """Opens the data before anything is computed; refuses what is quantized already."""
    if quantization is None:
        return None
    from onnxslim.quantization.data import read_data
    from onnxslim.quantization.prepare import refuse_quantized

    if not quantization.requantize:
        refuse_quantized(model)
    return read_data(model, quantization)


def _quantize_step(
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


def _read_feeds(model: ir.Model, feeds: Any) -> list[Any] | None:
    if feeds is None:
        return None
    if isinstance(feeds, str | os.PathLike):
        from onnxslim.calibration import readers

        return list(readers.read_feeds(feeds, readers.input_specs(model)))
    return list(feeds)


def _is_packed(source: Any) -> bool:
    if not _is_packed_name(source):
        return False
    from onnxslim.packing import is_packed

    return Path(source).is_file() and is_packed(source)


def _type_text(value: ir.Value) -> str:
    shape = "" if value.shape is None else str(value.shape)
    return f"{value.type}{shape}" if value.dtype is None else f"{value.dtype.name.lower()}{shape}"


def name_of(thing: Any) -> str:
    """What a source or target is called in reports and messages."""
    if isinstance(thing, str | os.PathLike):
        return "stdin" if str(thing) == "-" else str(thing)
    return str(getattr(thing, "name", None) or f"<{type(thing).__name__}>")
