"""``onnxslim calibrate MODEL DATA --out calib.npz``, and ``--merge``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxslim.cli import options
from onnxslim.cli.output import console_for, progress_bar, write_json
from onnxslim.errors import UsageError

if TYPE_CHECKING:
    from onnxslim.calibration.store import Calibration


def calibrate(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL DATA | PART...",
            help="Model and data; with --merge the calibration files.",
        ),
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FILE.npz", help="Where to write the statistics.")
    ],
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge calibration files of one model into one.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Run part I of N of the data, I from 1."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Samples at a time, where that is open.")
    ] = 8,
    memory: Annotated[
        int, typer.Option("--memory", min=1, metavar="MB", help="For tensors held at one time.")
    ] = 256,
    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            metavar="KEY=VALUE",
            help="For images: size=224x224, resize=256, fit=crop|stretch|pad, scale=1, "
            "mean=0.5,0.5,0.5, std=1, layout=NCHW|NHWC, order=RGB|BGR.",
        ),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out samples with NaN or infinity, up to 5%.")
    ] = False,
    json_file: options.Json = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Gather statistics of a model's tensors for static int8, whole or shard by shard.

    DATA is an npz with one array per input name (first axis: samples), a npy, a folder of npz, of
    test_data_set_* or of images, or module:function. Merging gives the same bytes for any split.

      onnxslim calibrate model.onnx data.npz --out calib.npz
      onnxslim calibrate model.onnx data.npz --shard 1/4 --out part1.npz
      onnxslim calibrate --merge part1.npz part2.npz part3.npz part4.npz --out calib.npz
    """
    from onnxslim.io import check_target

    check_target(out)
    if merge:
        if shard is not None:
            raise UsageError("--shard is for MODEL DATA, not for --merge")
        found = _merge(paths, out)
    else:
        if len(paths) != 2:
            raise UsageError(f"calibrate wants MODEL and DATA, {len(paths)} given")
        from onnxslim.calibration.image_options import parse_options

        settings = {
            "shard": _shard(shard),
            "batch_size": batch_size,
            "images": parse_options(image or []),
            "budget": memory * 1024 * 1024,
            "skip_bad": skip_bad,
        }
        found = _run(paths[0], paths[1], out, settings, quiet)
    summary = _summary(found, out)
    write_json(json_file, summary)
    console = console_for("-" if json_file == "-" else None, quiet)
    console.print(
        f"{out}: {summary['tensors']} tensors, {found.samples} samples in {found.feeds} feeds",
        highlight=False,
    )
    for note in found.notes:
        console.print(f"note: {note}", highlight=False, markup=False)


def _run(
    model: str,
    data: str,
    out: str,
    settings: dict[str, Any],
    quiet: bool,
) -> Calibration:
    from onnxslim import model_files
    from onnxslim.calibration.run import calibrate as run

    _distinct(out, [model, data])
    with progress_bar(quiet) as progress:
        found = run(
            model_files.load_checked(model),
            data,
            **settings,
            progress=lambda done, total: progress("calibrating", done, total),
        )
    found.save(out)
    return found


def _merge(paths: list[str], out: str) -> Calibration:
    from onnxslim.calibration.store import Calibration, merge_all

    _distinct(out, paths)
    found = merge_all(Calibration.load(path) for path in paths)
    found.save(out)
    return found


def _distinct(out: str, inputs: list[str]) -> None:
    import os

    for path in inputs:
        if os.path.realpath(path) == os.path.realpath(out):
            raise UsageError(f"--out {out} is also an input; give another name")


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    number, _, total = text.partition("/")
    if not (number.isdigit() and total.isdigit() and 1 <= int(number) <= int(total)):
        raise UsageError(f"--shard {text!r}: want I/N with I from 1 to N")
    return int(number), int(total)


def _summary(found: Calibration, out: str) -> dict[str, Any]:
    return {
        "file": out,
        "key": found.key,
        "tensors": len(found.tensors),
        "feeds": found.feeds,
        "samples": found.samples,
        "skipped": found.skipped,
        "notes": found.notes,
    }
