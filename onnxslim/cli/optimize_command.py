"""``onnxslim IN OUT``: the main job."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from onnxslim.cli import dropin, options
from onnxslim.cli.output import console_for, progress_bar, write_html, write_json
from onnxslim.errors import UsageError


def optimize(
    source: Annotated[str, typer.Argument(metavar="IN", help="Model file; - is stdin.")],
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="OUT", help="Where to write; .onnxz packs; - is stdout. Left out: only report."
        ),
    ] = None,
    preset: Annotated[
        str, typer.Option("--preset", help="Pipeline: default, simplify or prune.")
    ] = "default",
    passes: Annotated[
        str | None,
        typer.Option("--passes", metavar="A,B", help="Run just these passes, in this order."),
    ] = None,
    skip_pass: Annotated[
        list[str] | None, typer.Option("--skip-pass", metavar="NAME", help="Leave a pass out.")
    ] = None,
    quantize: Annotated[
        bool, typer.Option("--quantize", help="Then static int8; needs --calibration.")
    ] = False,
    prune: Annotated[
        str | None,
        typer.Option(
            "--prune",
            metavar="SPEC",
            help="Then prune: 0.5 (half of all channels), macs=0.5, size=0.5, latency=0.6; or "
            "single weights: 2:4, l1=0.5, random=0.5. Lossy; use --calibration.",
        ),
    ] = None,
    compress: Annotated[
        str | None,
        typer.Option(
            "--compress",
            metavar="FORM",
            help="Then store weights in fewer bytes: int8, int4, fp16 ...; see compress --help.",
        ),
    ] = None,
    calibration: options.Calibration = None,
    labels: options.Labels = None,
    max_drop: options.MaxDrop = None,
    quant_preset: Annotated[
        str,
        typer.Option(
            "--quant-preset", help="auto, cpu-avx2, cpu-vnni, cpu-arm or portable. Default: auto."
        ),
    ] = "auto",
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="NODE", help="Leave a node in float when quantizing."),
    ] = None,
    no_validate: options.NoValidate = False,
    feeds: options.Feeds = None,
    rtol: options.Rtol = None,
    atol: options.Atol = None,
    seed: options.Seed = 0,
    input_shape: Annotated[
        list[str] | None,
        typer.Option("--input-shape", metavar="NAME:1,3,224,224", help="Fix an input's shape."),
    ] = None,
    listed_initializers: Annotated[
        str,
        typer.Option(
            "--listed-initializers",
            metavar="HOW",
            help="Weights listed as graph inputs: constants, defaults that a caller may "
            "override, or auto (constants where all are listed).",
        ),
    ] = "auto",
    opset: Annotated[
        int | None,
        typer.Option("--opset", metavar="N", min=1, help="First convert to this opset."),
    ] = None,
    runtime: Annotated[
        str,
        typer.Option(
            "--target",
            metavar="RUNTIME",
            help="Only rewrites that pay there: ort, openvino, portable, tensorrt or web.",
        ),
    ] = "ort",
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Take back passes without which the model runs faster."),
    ] = False,
    external_data: options.ExternalData = False,
    fold_growth: Annotated[
        int, typer.Option("--fold-growth", min=0, help="Bytes that folding may add to the file.")
    ] = 0,
    size_threshold: dropin.SizeThreshold = None,
    dtype: dropin.Dtype = None,
    inputs: dropin.Inputs = None,
    outputs: dropin.Outputs = None,
    input_shapes: dropin.InputShapes = None,
    model_check: dropin.ModelCheck = False,
    model_check_inputs: dropin.ModelCheckInputs = None,
    no_shape_infer: dropin.NoShapeInfer = False,
    skip_optimizations: dropin.SkipOptimizations = None,
    skip_fusion_patterns: dropin.SkipFusionPatterns = None,
    align: options.Align = "auto",
    compensate_norms: options.CompensateNorms = False,
    explain: options.Explain = False,
    verify_each: Annotated[
        bool, typer.Option("--verify-each", help="Verify the graph after every pass.")
    ] = False,
    json_file: options.Json = None,
    html: options.Html = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Make a model smaller and faster, and validate that it gives the same answers.

    Simplifies, removes zeroed channels, shares equal weights; then compares the outputs with the
    original's in onnxruntime. A result that differs is not written (exit code 3).

      onnxslim model.onnx slim.onnx
      onnxslim model.onnx int8.onnx --quantize --calibration data.npz --labels test.npz
      onnxslim model.onnx half.onnx --prune 0.5 --calibration data.npz
      onnxslim model.onnx small.onnx --compress int8
      onnxslim model.onnx slim.onnxz
      cat model.onnx | onnxslim - - --json report.json > slim.onnx
    """
    from onnxslim import compat
    from onnxslim.report.table import print_report

    changes = compat.Changes(
        model_check=model_check,
        model_check_inputs=model_check_inputs,
        input_shapes=input_shapes,
        inputs=inputs,
        outputs=outputs,
        no_shape_infer=no_shape_infer,
        skip_optimizations=skip_optimizations,
        skip_fusion_patterns=skip_fusion_patterns,
        dtype=dtype,
    )
    if calibration is not None and not quantize and prune is None and compress is None:
        raise UsageError("--calibration is for --quantize, --prune and --compress; add one of them")
    if max_drop is not None and prune is None and compress is None and not quantize:
        raise UsageError(
            "--max-drop is the limit of --quantize, --prune and --compress; add one of them"
        )
    if quantize and calibration is None:
        _explain_calibration(source)
    quantization = None
    if quantize:
        from onnxslim.quantization.request import Quantization

        quantization = Quantization(
            calibration, quant_preset, labels, tuple(exclude or ()), max_drop=max_drop
        )
    pruning = None
    if prune is not None:
        from onnxslim.pruning.request import parse_spec

        pruning = replace(
            parse_spec(prune),
            calibration=calibration,
            labels=labels,
            max_drop=max_drop,
            seed=seed,
        )
    compression = None
    if compress is not None:
        from onnxslim.compression import Compression

        compression = Compression(
            compress, calibration=calibration, labels=labels, max_drop=max_drop
        )
    console = console_for("-" if "-" in (target, json_file) else target, quiet)
    with progress_bar(quiet) as progress:
        optimized = compat.run(
            source,
            target,
            changes,
            preset=preset,
            passes=options.split_names(passes),
            skip_passes=skip_pass or (),
            validate=not no_validate,
            feeds=feeds,
            rtol=rtol,
            atol=atol,
            seed=seed,
            input_shapes=options.parse_shapes(input_shape or []),
            pruning=pruning,
            quantization=quantization,
            compression=compression,
            external_data=external_data,
            verify_each=verify_each,
            fold_growth=fold_growth,
            size_threshold=size_threshold,
            listed_initializers=listed_initializers,
            opset=opset,
            runtime=runtime,
            measure_latency=measure,
            align=align,
            compensate_norms=compensate_norms,
            explain=explain,
            progress=progress,
        )
    write_json(json_file, optimized.report.to_dict())
    write_html(html, optimized.report)
    print_report(optimized.report, console, verbose=verbose)


def _explain_calibration(source: str) -> None:
    """Says what file is needed, with names, dtypes and shapes of this model's inputs."""
    from onnxslim import io
    from onnxslim.calibration import readers

    wanted = "one array per input name" if source == "-" else ""
    if not wanted:
        wanted = readers.describe_inputs(readers.input_specs(io.load(source)))
    raise UsageError(f"--quantize needs --calibration FILE.npz with {wanted}")
