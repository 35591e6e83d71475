"""``onnxslim quantize IN OUT``: static int8 that is good and fast enough, or the float model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxslim.cli import options
from onnxslim.cli.output import console_for, progress_bar, write_html, write_json
from onnxslim.errors import ModelSaveError

if TYPE_CHECKING:
    from onnxslim.report.data import Report


def quantize(
    source: Annotated[str, typer.Argument(metavar="IN", help="Model file; - is stdin.")],
    target: Annotated[
        str, typer.Argument(metavar="OUT", help="Where to write; .onnxz packs; - is stdout.")
    ],
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            metavar="DATA",
            help="npz with one array per input name (first axis: samples), npy, a folder of npz, "
            "of test_data_set_* or of images, or module:function.",
        ),
    ] = None,
    labels: options.Labels = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="MODULE:FUNCTION",
            help="Your own figure, higher is better: function(outputs, labels).",
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop", metavar="POINTS", help="Points (or dB) that may be lost. Default: 1."
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            "--target",
            metavar="NAME",
            help="auto (this processor), cpu-avx2, cpu-avx512, cpu-vnni, cpu-arm, portable, "
            "openvino, tensorrt, qnn, qnn-a16, nnapi, web, xnnpack.",
        ),
    ] = "auto",
    form: Annotated[str, typer.Option("--format", help="qdq (portable) or qoperator.")] = "qdq",
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="PATTERN", help="Leave these nodes in float."),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="PATTERN", help="Only these nodes may get int8."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Full int8 even where it is slower or worse.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="A missed --max-drop is an error (exit code 3).")
    ] = False,
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Take a quantized model back to float first.")
    ] = False,
    random_data: Annotated[
        bool,
        typer.Option("--random-data", help="Made-up data: shows size and speed, no accuracy."),
    ] = False,
    max_evaluations: Annotated[
        int, typer.Option("--max-evaluations", min=1, help="Candidates that may be measured.")
    ] = 24,
    method: Annotated[
        str,
        typer.Option("--method", help="Ranges: auto, minmax, percentile, entropy or mse."),
    ] = "auto",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out samples with NaN or infinity, up to 5%.")
    ] = False,
    equalize: Annotated[
        bool,
        typer.Option("--equalize/--no-equalize", help="Equalize layers where int8 loses much."),
    ] = True,
    image: Annotated[
        list[str] | None,
        typer.Option("--image", metavar="KEY=VALUE", help="For images; see calibrate --help."),
    ] = None,
    threads: Annotated[
        int, typer.Option("--threads", min=0, help="For latency; 0: as onnxruntime likes.")
    ] = 1,
    latency_batch: Annotated[
        int,
        typer.Option("--latency-batch", min=0, help="Samples per run, for latency; 0: 1 and 32."),
    ] = 0,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="FILE", help="Repeat that run byte for byte."),
    ] = None,
    write_recipe: Annotated[
        str | None,
        typer.Option("--write-recipe", metavar="FILE", help="Write what --recipe repeats."),
    ] = None,
    no_validate: options.NoValidate = False,
    feeds: options.Feeds = None,
    seed: options.Seed = 0,
    external_data: options.ExternalData = False,
    json_file: options.Json = None,
    html: options.Html = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Store weights and activations in 8 bits, where the model stays as good and gets faster.

    First simplifies, without loss and validated, as always. Then measures ranges on the
    calibration data, quantizes, and judges the result in onnxruntime with the kernels of this
    processor: by --labels (classes: top-1; outputs: PSNR), by --metric, or without either by
    agreement with the original on held-out samples. What loses more than --max-drop is equalized,
    and then goes back to float operator by operator, as few as are enough. What is not faster here
    is not written: cheaper forms are tried, then int8 weights with float arithmetic, then the float
    model stays.

      onnxslim quantize model.onnx int8.onnx --calibration data.npz
      onnxslim quantize model.onnx int8.onnx --calibration data.npz --labels test.npz --max-drop 0.5
      onnxslim quantize model.onnx int8.onnx --calibration data.npz --target cpu-arm
      onnxslim quantize model.onnx int8.onnx --calibration data.npz --write-recipe int8.toml
      onnxslim quantize model.onnx same.onnx --calibration data.npz --recipe int8.toml
    """
    from onnxslim import api
    from onnxslim.quantization.request import Quantization
    from onnxslim.report.table import print_report

    quantization = Quantization(
        calibration=calibration,
        preset=preset,
        labels=labels,
        exclude=tuple(exclude or ()),
        include=tuple(include or ()),
        metric=metric,
        max_drop=max_drop,
        form=form,
        force=force,
        strict=strict,
        requantize=requantize,
        random_data=random_data,
        max_evaluations=max_evaluations,
        method=method,
        skip_bad=skip_bad,
        equalize=equalize,
        threads=threads,
        latency_batch=latency_batch,
        recipe=recipe,
        images=tuple(image or ()),
        seed=seed,
    )
    console = console_for("-" if "-" in (target, json_file) else target, quiet)
    with progress_bar(quiet) as progress:
        result = api.quantize(
            source,
            target,
            quantization=quantization,
            progress=progress,
            optimizing={
                "validate": not no_validate,
                "feeds": feeds,
                "seed": seed,
                "external_data": external_data,
            },
        )
    _write_recipe(write_recipe, result.report)
    write_json(json_file, result.report.to_dict())
    write_html(html, result.report)
    print_report(result.report, console, verbose=verbose)


def _write_recipe(path: str | None, report: Report) -> None:
    if path is None:
        return
    text = next(
        step.details["quantization"]["recipe"]
        for step in report.steps
        if "quantization" in step.details
    )
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ModelSaveError(f"{path}: cannot write the recipe: {error.strerror}") from error
