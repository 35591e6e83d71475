"""``onnxslim run RECIPE IN OUT``."""

from __future__ import annotations

from typing import Annotated

import typer


def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE.toml", help="What to do.")],
    words: Annotated[
        list[str], typer.Argument(metavar="IN [OUT]", help="What to do it to; see the command.")
    ],
) -> None:
    """Run the command and the options of a recipe.

    Any line becomes a recipe with --save-recipe FILE; it is written when the line has succeeded.
    Options after OUT come on top of the recipe's.

      onnxslim model.onnx half.onnx --prune 0.5 --calibration data.npz --save-recipe half.toml
      onnxslim run half.toml other.onnx other_half.onnx
    """
    from onnxslim.cli.app import COMMANDS, call
    from onnxslim.cli.recipe import read_recipe

    call(read_recipe(recipe, words, list(COMMANDS)))
