"""One function per public verb; each ties rooms together and holds no algorithm of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO

import onnx_ir as ir

from onnxslim import io
from onnxslim.errors import UsageError
from onnxslim.ir.cost import Snapshot
from onnxslim.ir.listed import take_listed
from onnxslim.model_files import (
    converted,
    fix_input_shapes,
    keep_source,
    load_checked,
    load_noting,
    measure,
    name_of,
    read_feeds,
    write,
)
from onnxslim.pipeline import Exactness
from onnxslim.report.data import Report, Step
from onnxslim.steps import (
    after_steps,
    compress_step,
    keep_what_pays,
    prune_step,
    pruning_data,
    quantization_data,
    quantize_step,
    record,
)
from onnxslim.validated_run import Check, Progress, ValidatedRun, no_progress

if TYPE_CHECKING:
    from onnxslim.compression import Compression
    from onnxslim.pruning.request import Pruning
    from onnxslim.quantization.request import Quantization
    from onnxslim.validation import ValidationResult


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
    original, notes = load_noting(source)
    if input_shapes:
        fix_input_shapes(original, input_shapes)
    listed = take_listed(original, listed_initializers)
    report = Report(source=name_of(source), before=measure(original))
    report.warnings.extend(notes if listed is None else [*notes, listed.note()])
    check = Check(validate, read_feeds(original, feeds), rtol, atol, seed)
    data = pruning_data(original, pruning)
    if quantization is not None:
        keep_source(source, target)
    quant_data = quantization_data(original, quantization)
    start = None if opset is None else converted(original, opset)
    run_of = ValidatedRun(original, pipeline, check, verify_each, fold_growth, progress, start)
    run = run_of.run()
    if measure_latency:
        run_of, run = keep_what_pays(run_of, run)
    record(report, run)
    model = run.model
    steps = [step for step in (pruning, quantization, compression) if step is not None]
    after = after_steps(original, report, [step.labels for step in steps], target)
    report.steps.append(Step("slim", measure(model)))
    after(model)
    if pruning is not None and data is not None:
        exact = run_of if pruning.removes else None
        model = prune_step(model, pruning, data, exact, report, progress)
        after(model)
    if quantization is not None and quant_data is not None:
        model = quantize_step(model, quantization, quant_data, report, progress)
        after(model)
    if compression is not None:
        model = compress_step(model, compression, report, progress)
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
    given = read_feeds(first, feeds)
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


def _type_text(value: ir.Value) -> str:
    shape = "" if value.shape is None else str(value.shape)
    return f"{value.type}{shape}" if value.dtype is None else f"{value.dtype.name.lower()}{shape}"
