"""``onnxslim compress IN OUT``: weights in fewer bytes, in a file that runs."""

from __future__ import annotations

from typing import Annotated

import typer

from onnxslim.cli import options
from onnxslim.cli.output import console_for, progress_bar, write_html, write_json


def compress(
    source: Annotated[str, typer.Argument(metavar="IN", help="Model file; - is stdin.")],
    target: Annotated[
        str, typer.Argument(metavar="OUT", help="Where to write; .onnxz packs; - is stdout.")
    ],
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            metavar="FORM",
            help="int8, int4, fp16, bf16, palette16, palette256, auto (per weight the smallest "
            "within --max-error) or exact (only what loses nothing).",
        ),
    ] = "int8",
    max_error: Annotated[
        float | None,
        typer.Option(
            "--max-error",
            metavar="REL",
            help="Largest relative error of a weight; above it, the weight takes a wider form. "
            "Default: by form.",
        ),
    ] = None,
    runtime: Annotated[
        str,
        typer.Option(
            "--target",
            help="portable, or ort: onnxruntime's own product with narrow weights, smaller in "
            "memory too (int8, int4, auto).",
        ),
    ] = "portable",
    share_transposed: Annotated[
        bool,
        typer.Option(
            "--share-transposed",
            help="Store a matrix that is another's transpose once. Memory does not shrink.",
        ),
    ] = False,
    calibration: options.Calibration = None,
    labels: options.Labels = None,
    max_drop: options.MaxDrop = None,
    no_validate: options.NoValidate = False,
    feeds: options.Feeds = None,
    rtol: options.Rtol = None,
    atol: options.Atol = None,
    seed: options.Seed = 0,
    external_data: options.ExternalData = False,
    json_file: options.Json = None,
    html: options.Html = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Store the weights in fewer bytes; the file runs as it is, as fast as before.

    First simplifies and removes zeroed channels, without loss and validated, as always. Then the
    weights of layers become int8 (a quarter), int4 (a seventh), half precision or palettes.
    Standard operators give them back, which onnxruntime computes once when it opens the model; the
    report counts that, lists the error of each weight, and says how the outputs (with --labels: the
    accuracy) changed.

      onnxslim compress model.onnx small.onnx
      onnxslim compress model.onnx small.onnx --weights int4 --labels test.npz --max-drop 0.5
      onnxslim compress model.onnx small.onnx --weights auto --max-error 0.02
      onnxslim compress model.onnx same.onnx --weights exact
      onnxslim compress llm.onnx small.onnx --weights int4 --target ort
    """
    from onnxslim import api
    from onnxslim.report.table import print_report

    console = console_for("-" if "-" in (target, json_file) else target, quiet)
    with progress_bar(quiet) as progress:
        compressed = api.compress(
            source,
            target,
            weights=weights,
            max_error=max_error,
            runtime=runtime,
            share_transposed=share_transposed,
            calibration=calibration,
            labels=labels,
            max_drop=max_drop,
            validate=not no_validate,
            feeds=feeds,
            rtol=rtol,
            atol=atol,
            seed=seed,
            external_data=external_data,
            progress=progress,
        )
    write_json(json_file, compressed.report.to_dict())
    write_html(html, compressed.report)
    print_report(compressed.report, console, verbose=verbose)
