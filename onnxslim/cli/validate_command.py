"""``onnxslim validate A B``."""

from __future__ import annotations

from typing import Annotated

import typer

from onnxslim.cli import options
from onnxslim.cli.output import console_for, progress_bar, write_json
from onnxslim.errors import DemandMissedError


def validate(
    reference: Annotated[str, typer.Argument(metavar="A", help="The model that is right.")],
    candidate: Annotated[str, typer.Argument(metavar="B", help="The model to judge.")],
    feeds: options.Feeds = None,
    rtol: options.Rtol = None,
    atol: options.Atol = None,
    seed: options.Seed = 0,
    json_file: options.Json = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Compare the outputs of two models in onnxruntime on the same inputs.

    Exit code 0: they agree. 3: they differ, or neither could be run.

      onnxslim validate model.onnx slim.onnx
      onnxslim validate model.onnx int8.onnx --feeds test.npz --rtol 0.1
    """
    from onnxslim import api
    from onnxslim.report.table import print_validation

    with progress_bar(quiet) as progress:
        progress("validating", 0, 1)
        result = api.validate(
            reference, candidate, feeds=feeds, rtol=rtol, atol=atol, seed=seed
        ).to_dict()
    write_json(json_file, result)
    print_validation(result, console_for("-" if json_file == "-" else None, quiet))
    if result["status"] != "passed":
        raise DemandMissedError(f"{candidate}: {result.get('reason') or 'outputs differ'}")
