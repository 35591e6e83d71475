"""Recipes: the options of a command line in a TOML file, to be run again on other models.

    command = "optimize"

    [options]
    prune = "macs=0.5"
    calibration = "data.npz"
    skip-pass = ["fuse-matmul-add"]

Keys are the long names of the options. Values go through the same parser as a typed line, so what
is wrong there is wrong here, with the same message. Files in it are relative to where it is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxslim.errors import DataError, ModelSaveError, UsageError

SAVE_FLAG = "--save-recipe"

# Reports and recipes belong to one run, not to the next.
_PER_RUN = ("--json", "--html", "--debug")


def take_save_flag(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """The line without ``--save-recipe FILE``, and FILE.

    Raises:
        UsageError: the flag comes without a file.
    """
    words = list(arguments)
    if SAVE_FLAG not in words:
        return words, None
    index = words.index(SAVE_FLAG)
    path = words[index + 1] if index + 1 < len(words) else ""
    if not path or path.startswith("-"):
        raise UsageError(f"{SAVE_FLAG} needs a file: {SAVE_FLAG} recipe.toml")
    return words[:index] + words[index + 2 :], path


def save_recipe(path: str, command: Any, arguments: Sequence[str]) -> None:
    """Writes the options that were typed.

    Args:
        path: the file.
        command: the command as the parser knows it.
        arguments: the line, the name of the command first.
    """
    context = command.make_context(arguments[0], list(arguments[1:]))
    found: dict[str, Any] = {}
    for parameter in command.params:
        source = context.get_parameter_source(parameter.name)
        typed = source is not None and source.name == "COMMANDLINE"
        if typed and parameter.param_type_name == "option":
            name = _long_name(parameter, context.params[parameter.name])
            if name not in _PER_RUN:
                found[name.removeprefix("--")] = context.params[parameter.name]
    lines = [f"command = {_toml(arguments[0])}", "", "[options]"]
    lines += [f"{name} = {_toml(value)}" for name, value in sorted(found.items())]
    try:
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise ModelSaveError(f"{path}: cannot write the recipe: {error.strerror}") from error


def _long_name(parameter: Any, value: Any) -> str:
    """Of ``--update/--no-update`` the second where the value is False."""
    names = parameter.secondary_opts if value is False else parameter.opts
    return str(next(name for name in names if name.startswith("--")))


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true"  # a switch that was typed, whichever of its two names it was
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " else f"\\u{ord(c):04x}" for c in text) + '"'


def read_recipe(path: str, words: Sequence[str], commands: Sequence[str]) -> list[str]:
    """The line that a recipe stands for, with files and further options.

    Args:
        path: the recipe.
        words: what was typed after it: the model, where to write, options that come on top.
        commands: the names of commands that there are.

    Raises:
        DataError: the file cannot be read.
        UsageError: what it says is no recipe.
    """
    import tomllib

    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot read the recipe: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a recipe in TOML: {error}") from error
    command, options = data.get("command", "optimize"), data.get("options", {})
    unknown = sorted(set(data) - {"command", "options"})
    if unknown or not isinstance(options, Mapping):
        raise UsageError(f"{path}: want command and [options], not {', '.join(unknown)}")
    if command not in commands or command == "run":
        raise UsageError(f"{path}: no command is called {command!r}")
    flags = [word for name, value in options.items() for word in _flag(path, name, value)]
    return [str(command), *words, *flags]


def _flag(path: str, name: str, value: Any) -> list[str]:
    if value is True:
        return [f"--{name}"]
    if isinstance(value, list):
        return [word for item in value for word in _flag(path, name, item)]
    if isinstance(value, str | int | float) and value is not False:
        return [f"--{name}={value}"]
    raise UsageError(f"{path}: {name} = {value!r}: want true, a text, a number or a list of them")
