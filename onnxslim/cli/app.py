"""The command line: the app, the word that may be left out, and errors as one line."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from typing import Annotated, Any

import typer

from onnxslim import __version__
from onnxslim.cli import dropin
from onnxslim.cli.output import fail
from onnxslim.cli.plain import read_plain
from onnxslim.cli.recipe import save_recipe, take_save_flag
from onnxslim.errors import OnnxSlimError
from onnxslim.startup import import_graph_library, without_collection

# Where each command lies. Only the one that is called is imported: start-up is part of the job.
COMMANDS: dict[str, str] = {
    "optimize": "optimize_command:optimize",
    "prune": "prune_command:prune",
    "compress": "compress_command:compress",
    "quantize": "quantize_command:quantize",
    "validate": "validate_command:validate",
    "calibrate": "calibrate_command:calibrate",
    "inspect": "inspect_command:inspect",
    "pack": "pack_command:pack",
    "unpack": "pack_command:unpack",
    "ls": "pack_command:ls",
    "cat": "pack_command:cat",
    "store": "store_command:store",
    "passes": "inspect_command:passes",
    "run": "run_command:run",
}

_ROOT_OPTIONS = frozenset({"-h", "--help", "--version"})


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"onnxslim {__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Makes ONNX models smaller and faster, and proves that they still give the same answers.

    [bold]onnxslim IN OUT[/] does the main job (short for [bold]onnxslim optimize IN OUT[/]):
    simplify, remove zeroed channels, share equal weights, validate the outputs.

      onnxslim model.onnx slim.onnx
      onnxslim model.onnx int8.onnx --quantize --calibration data.npz
      onnxslim model.onnx slim.onnxz
      onnxslim prune model.onnx pruned.onnx --exact
      onnxslim compress model.onnx small.onnx
      onnxslim validate model.onnx slim.onnx
    """


def build(*names: str) -> typer.Typer:
    """The command line with these commands; with all of them when none is named."""
    app = typer.Typer(
        name="onnxslim",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(root)
    for name in names or COMMANDS:
        module, _, function = COMMANDS[name].partition(":")
        settings = {"ignore_unknown_options": True} if name == "run" else None
        command = getattr(import_module(f"onnxslim.cli.{module}"), function)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name, context_settings=settings)(command)
    return app


def expand(arguments: list[str]) -> list[str]:
    """Puts ``optimize`` in front where no command is named: ``IN OUT`` is the main job.

    A file that is called like a command is given as ``./validate``.
    """
    if arguments == ["-v"]:
        return ["--version"]
    if not arguments or arguments[0] in COMMANDS or arguments[0] in _ROOT_OPTIONS:
        return arguments
    arguments = dropin.rewrite(arguments)
    return arguments if arguments[0] in COMMANDS else ["optimize", *arguments]


def call(arguments: list[str]) -> None:
    """Runs one command, a plain one without the parser, and saves the recipe that is asked for."""
    arguments, recipe = take_save_flag(arguments)
    called = [name for name in arguments[:1] if name in COMMANDS]
    plain = read_plain(arguments)
    if called and not {"-h", "--help"} & set(arguments):
        with without_collection():
            import_graph_library()
            if plain is not None:
                import_module("onnxslim.compat")
    try:
        if plain is None:
            build(*called)(args=arguments, prog_name="onnxslim")
        else:
            from onnxslim.cli.optimize_command import optimize

            optimize(**plain)
            sys.exit(0)
    except SystemExit as stop:
        if recipe is not None and called and not stop.code:
            group: Any = typer.main.get_command(build(*called))
            save_recipe(recipe, group.commands[called[0]], arguments)
        raise


def main() -> None:
    """Entry point: exits with 0, 1 (model or data), 2 (usage) or 3 (a demand was missed)."""
    arguments = expand(sys.argv[1:])
    debug = "--debug" in arguments
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.ERROR, format="%(name)s: %(message)s"
    )
    try:
        call(arguments)
    except OnnxSlimError as error:
        if debug:
            raise
        fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        fail("interrupted; nothing was written", 130)
    except Exception as error:  # the boundary: whatever it is, the user gets one line
        if debug:
            raise
        fail(f"{type(error).__name__}: {error}; --debug shows where, please report it", 1)
