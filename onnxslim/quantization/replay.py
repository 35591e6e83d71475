"""The recipe of a quantization: what was decided, so that a run can be repeated byte for byte.

A search depends on figures, and latency on the hour; a recipe holds what came of both, with the
hashes of the model and the data that it is for.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxslim.errors import DataError, UsageError
from onnxslim.quantization.engine import QuantPlan
from onnxslim.quantization.presets import find_preset

_KIND = "onnxslim int8"
_VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """Decisions of a run.

    Attributes:
        model: sha256 of the float model.
        data: sha256 over the samples that ranges were measured on.
        status: of the result.
        preset: name of the settings.
        reduce_range: of the settings, which a run may have narrowed.
        constant_matmul_only: likewise.
        form: ``qdq`` or ``qoperator``.
        method: how ranges are chosen.
        dynamic: activations are rounded at run time.
        op_types: the only operators in int8; empty for all.
        float_nodes: nodes that stay float.
        only: the only nodes in int8; None for all.
        equalized: steps of equalization that were kept.
        corrected: biases were corrected.
        requantized: the model was taken back to float first.
        held_out: some of the calibration samples judged, and ranges are of the others.
    """

    model: str
    data: str
    status: str
    preset: str
    reduce_range: bool = False
    constant_matmul_only: bool = False
    form: str = "qdq"
    method: str = "auto"
    dynamic: bool = False
    op_types: tuple[str, ...] = ()
    float_nodes: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None
    equalized: tuple[str, ...] = ()
    corrected: bool = False
    requantized: bool = False
    held_out: bool = False

    def plan(self) -> QuantPlan:
        """The plan that was taken.

        Raises:
            UsageError: settings or a form that do not exist.
        """
        if self.form not in ("qdq", "qoperator"):
            raise UsageError(f"recipe: form {self.form!r} is neither qdq nor qoperator")
        preset = replace(
            find_preset(self.preset),
            reduce_range=self.reduce_range,
            constant_matmul_only=self.constant_matmul_only,
        )
        return QuantPlan(
            preset,
            "qoperator" if self.form == "qoperator" else "qdq",
            frozenset(self.float_nodes),
            self.op_types or None,
            method=self.method,
            dynamic=self.dynamic,
            only=None if self.only is None else frozenset(self.only),
        )

    def to_toml(self) -> str:
        """As a file; the same recipe gives the same text."""
        lines = [f"kind = {_toml(_KIND)}", f"version = {_VERSION}", "", "[recipe]"]
        values = {name: value for name, value in vars(self).items() if value is not None}
        lines += [f"{name} = {_toml(value)}" for name, value in sorted(values.items())]
        return "\n".join(lines) + "\n"


def recipe_of(plan: QuantPlan, **known: Any) -> Recipe:
    """The recipe of a plan; ``known`` holds what is not in it."""
    return Recipe(
        preset=plan.preset.name,
        reduce_range=plan.preset.reduce_range,
        constant_matmul_only=plan.preset.constant_matmul_only,
        form=plan.form,
        method=plan.method,
        dynamic=plan.dynamic,
        op_types=tuple(sorted(plan.op_types or ())),
        float_nodes=tuple(sorted(plan.float_nodes)),
        only=None if plan.only is None else tuple(sorted(plan.only)),
        **known,
    )


def read_recipe(path: str) -> Recipe:
    """Reads a recipe.

    Raises:
        DataError: the file cannot be read.
        UsageError: it is no recipe of this kind.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot read the recipe: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a recipe in TOML: {error}") from error
    if data.get("kind") != _KIND or data.get("version") != _VERSION:
        raise UsageError(
            f"{path}: no recipe of a quantization; --recipe wants what --write-recipe wrote"
        )
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in data.get("recipe", {}).items()
    }
    try:
        made = Recipe(**values)
        made.plan()
    except TypeError as error:
        raise UsageError(f"{path}: damaged recipe: {error}") from error
    return made


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in text) + '"'
