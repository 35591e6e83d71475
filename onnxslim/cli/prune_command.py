"""``onnxslim prune IN OUT``: channels that can go."""

from __future__ import annotations

from typing import Annotated

import typer

from onnxslim.cli import options
from onnxslim.cli.output import console_for, progress_bar, write_html, write_json
from onnxslim.errors import UsageError


def prune(
    source: Annotated[str, typer.Argument(metavar="IN", help="Model file; - is stdin.")],
    target: Annotated[
        str, typer.Argument(metavar="OUT", help="Where to write; .onnxz packs; - is stdout.")
    ],
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Remove channels that are zero, constant or unread: no loss."),
    ] = False,
    amount: Annotated[
        float | None,
        typer.Option(
            "--amount",
            metavar="SHARE",
            help="Zero this share of the single weights; of the channels with --structured.",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", help="Single weights: l1 (the smallest) or random.")
    ] = "l1",
    scope: Annotated[
        str, typer.Option("--scope", help="The amount holds per tensor, or global: for all.")
    ] = "tensor",
    pattern: Annotated[
        str | None,
        typer.Option("--pattern", metavar="N:M", help="At most N of M weights nonzero: 2:4."),
    ] = None,
    structured: Annotated[
        bool, typer.Option("--structured", help="Cut whole channels: smaller and faster.")
    ] = False,
    goal: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="NAME=SHARE",
            help="Cut channels until macs=0.5, size=0.5 or latency=0.6 of what it was.",
        ),
    ] = None,
    criterion: Annotated[
        str | None,
        typer.Option(
            "--criterion",
            metavar="NAME",
            help="Which channels go: l1, l2, bn, fpgm, wanda, flap, obs or random. Default: "
            "obs with calibration data, l2 without.",
        ),
    ] = None,
    repair: Annotated[
        str | None,
        typer.Option(
            "--repair",
            metavar="NAME",
            help="What makes up for cut channels: none, bias, affine, least-squares, residual, "
            "second-sweep or descent. Default: what is judged best.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="WEIGHT", help="Channels of these weights stay."),
    ] = None,
    update: Annotated[
        bool | None,
        typer.Option(
            "--update/--no-update",
            help="Refit the weights that stay. Default: where there is calibration data.",
        ),
    ] = None,
    calibration: options.Calibration = None,
    labels: options.Labels = None,
    max_drop: options.MaxDrop = None,
    align: options.Align = "auto",
    compensate_norms: options.CompensateNorms = False,
    explain: options.Explain = False,
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
    """Remove channels that change nothing, or make a model sparser and keep its accuracy.

    --exact takes out what changes no output: filters that are zero, channels
    that are constant (folded into the next bias), channels that nobody reads.
    Outputs are validated as always.

    The other modes change the outputs, and the report says by how much.
    --structured --amount and --target cut channels, which makes the model
    smaller and faster; --max-drop alone cuts as many as it allows. --amount
    and --pattern zero single weights: the file packs better (OUT.onnxz), its
    speed stays. With --calibration the weights that stay make up for those
    that went.

      onnxslim prune pruned.onnx small.onnx --exact
      onnxslim prune pruned.onnx small.onnx --exact --align 1 --explain
      onnxslim prune model.onnx half.onnx --structured --amount 0.5 --calibration data.npz
      onnxslim prune model.onnx fast.onnx --target macs=0.5 --calibration data.npz --max-drop 0.5
      onnxslim prune model.onnx small.onnx --max-drop 0.5 --calibration data.npz
      onnxslim prune model.onnx sparse.onnxz --amount 0.8 --calibration data.npz
      onnxslim prune model.onnx nm.onnx --pattern 2:4 --calibration data.npz --labels test.npz
    """
    from onnxslim import api
    from onnxslim.report.table import print_report

    asked = structured or any(item is not None for item in (amount, pattern, goal))
    # A limit alone asks for as much as it allows.
    lossy = asked or (max_drop is not None and not exact)
    if not exact and not lossy:
        raise UsageError(
            "prune needs a mode: give --exact, --amount, --pattern, --target, or --max-drop alone"
        )
    pruning = None
    if lossy:
        from onnxslim.pruning import request

        pruning = request.Pruning(
            amount=amount,
            structured=structured,
            target=request.parse_target(goal) if goal is not None else None,
            pattern=pattern,
            method=method,
            scope=scope,
            criterion=criterion,
            repair=repair,
            exclude=tuple(exclude or ()),
            update=update,
            calibration=calibration,
            labels=labels,
            max_drop=max_drop,
            seed=seed,
        )
    elif calibration or labels or max_drop is not None:
        raise UsageError("--exact needs no data: leave --calibration, --labels, --max-drop out")
    console = console_for("-" if "-" in (target, json_file) else target, quiet)
    with progress_bar(quiet) as progress:
        pruned = api.prune(
            source,
            target,
            exact=exact or None,
            pruning=pruning,
            align=align,
            compensate_norms=compensate_norms,
            explain=explain,
            validate=not no_validate,
            feeds=feeds,
            rtol=rtol,
            atol=atol,
            seed=seed,
            external_data=external_data,
            progress=progress,
        )
    write_json(json_file, pruned.report.to_dict())
    write_html(html, pruned.report)
    print_report(pruned.report, console, verbose=verbose)
