"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from onnxslim.errors import UsageError

Json = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write the report as JSON (- = stdout)."),
]
Html = Annotated[
    str | None,
    typer.Option("--html", metavar="FILE", help="Write the report as one HTML page."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No tables, no progress bar.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Every pass and every refusal.")]
Debug = Annotated[bool, typer.Option("--debug", help="Log everything; show tracebacks.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of generated inputs.")]
Feeds = Annotated[
    str | None,
    typer.Option(
        "--feeds", metavar="FILE.npz", help="Inputs to validate with, by name. Default: generated."
    ),
]
Rtol = Annotated[
    float | None, typer.Option("--rtol", min=0, help="Relative tolerance. Default: by dtype.")
]
Atol = Annotated[
    float | None, typer.Option("--atol", min=0, help="Absolute tolerance. Default: by dtype.")
]

NoValidate = Annotated[
    bool, typer.Option("--no-validate", help="Do not compare the outputs of the exact steps.")
]
ExternalData = Annotated[
    bool,
    typer.Option(
        "--external-data",
        "--save-as-external-data",
        help="Weights in OUT.data beside the model.",
    ),
]

Align = Annotated[
    str,
    typer.Option(
        "--align",
        metavar="1|N|auto",
        help="Channel counts that remain: 1 = the fewest, N = multiples of N, "
        "auto = no layer slower than before.",
    ),
]
CompensateNorms = Annotated[
    bool,
    typer.Option(
        "--compensate-norms",
        help="Also remove zeroed channels that enter LayerNorm or RMSNorm, with corrected sums.",
    ),
]
Explain = Annotated[
    bool,
    typer.Option("--explain", help="Per group of tied channels: what went, what stayed, and why."),
]

Calibration = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="DATA",
        help="npz with one array per input name (first axis: samples), or a folder of them.",
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="FILE.npz",
        help="Inputs by name and 'labels': accuracy before and after.",
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        metavar="POINTS",
        help="Percent of accuracy (--labels), or of agreement with the original, that pruning "
        "may cost; worse is not written (exit code 3).",
    ),
]


def parse_shapes(texts: list[str]) -> dict[str, list[int]]:
    """``NAME:1,3,224,224`` to name and dimensions.

    Raises:
        UsageError: not of that form.
    """
    shapes = {}
    for text in texts:
        name, colon, dims = text.rpartition(":")
        try:
            shapes[name] = [int(size) for size in dims.split(",")]
        except ValueError:
            colon = ""
        if not colon or not name or any(size < 0 for size in shapes[name]):
            raise UsageError(f"--input-shape {text!r}: want NAME:1,3,224,224")
    return shapes


def split_names(text: str | None) -> list[str]:
    """``a,b,c`` to a list; spaces and empty parts are dropped."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]
