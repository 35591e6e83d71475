"""Flags of the package-index project of the same name, and its way of writing a command line.

There a flag may take several values (``--input-shapes a:1,3 b:2``), no word names the command, and
``--inspect`` makes a comparison of the job. `rewrite` turns that into commands of this product.
"""

from __future__ import annotations

from typing import Annotated

import typer

_PANEL = "Drop-in flags"

# Flags that take all words up to the next flag.
LIST_FLAGS = frozenset(
    {
        "--input-shapes",
        "--inputs",
        "--model-check-inputs",
        "--outputs",
        "--skip-fusion-patterns",
        "--skip-optimizations",
    }
)

SizeThreshold = Annotated[
    int | None,
    typer.Option(
        "--size-threshold",
        min=0,
        metavar="BYTES",
        help="Folded tensors of more bytes stay operators.",
        rich_help_panel=_PANEL,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="fp16|fp32",
        help="Convert every float tensor, inputs and outputs included. Lossy.",
        rich_help_panel=_PANEL,
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--inputs",
        metavar="NAME[:TYPE] ...",
        help="Values that become the inputs.",
        rich_help_panel=_PANEL,
    ),
]
Outputs = Annotated[
    list[str] | None,
    typer.Option(
        "--outputs",
        metavar="NAME[:TYPE] ...",
        help="Values that become the outputs.",
        rich_help_panel=_PANEL,
    ),
]
InputShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shapes",
        metavar="NAME:1,3 ...",
        help="Shapes of inputs; fixed dimensions change too.",
        rich_help_panel=_PANEL,
    ),
]
ModelCheck = Annotated[
    bool,
    typer.Option(
        "--model-check",
        help="The outputs must have been compared and agree (exit code 3).",
        rich_help_panel=_PANEL,
    ),
]
ModelCheckInputs = Annotated[
    list[str] | None,
    typer.Option(
        "--model-check-inputs",
        metavar="NAME:1,3|FILE.npy ...",
        help="Inputs for the comparison.",
        rich_help_panel=_PANEL,
    ),
]
NoShapeInfer = Annotated[
    bool,
    typer.Option("--no-shape-infer", help="No shape inference.", rich_help_panel=_PANEL),
]
SkipOptimizations = Annotated[
    list[str] | None,
    typer.Option(
        "--skip-optimizations",
        metavar="NAME ...",
        help="constant_folding, graph_fusion, dead_node_elimination, "
        "subexpression_elimination, weight_tying.",
        rich_help_panel=_PANEL,
    ),
]
SkipFusionPatterns = Annotated[
    list[str] | None,
    typer.Option(
        "--skip-fusion-patterns",
        metavar="NAME ...",
        help="Such as FusionConvBN; docs/compatibility.md lists them.",
        rich_help_panel=_PANEL,
    ),
]


def rewrite(arguments: list[str]) -> list[str]:
    """A command line of the other project as one of this product, without the command's name.

    ``--input-shapes a:1 b:2`` becomes ``--input-shapes a:1 --input-shapes b:2``; with
    ``--inspect``, the command ``inspect`` goes in front.
    """
    spread: list[str] = []
    flag: str | None = None
    waiting = False
    for word in arguments:
        if word in LIST_FLAGS:
            flag, waiting = word, True
            spread.append(word)
        elif word.startswith("-") and word != "-":
            flag = None
            spread.append(word)
        elif flag is None or waiting:
            waiting = False
            spread.append(word)
        else:
            spread += [flag, word]
    if "--inspect" in spread:
        spread = ["inspect", *(word for word in spread if word != "--inspect")]
    return spread
