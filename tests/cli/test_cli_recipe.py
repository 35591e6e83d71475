"""Recipes: a line saved, read back, and run on another model."""

from __future__ import annotations

import io
import sys
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import onnx
import onnx.parser
import pytest

from onnxslim.cli import main

TEXT = """<ir_version: 9, opset_import: ["" : 17]>
g (float[1,4] x) => (float[1,4] y) { h = Identity (x)
 a = Relu (h)
 b = Relu (h)
 y = Add (a, b) }"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    onnx.save(onnx.parser.parse_model(TEXT), tmp_path / "in.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    line = patch.object(sys, "argv", ["onnxslim", *arguments])
    with line, redirect_stdout(out), redirect_stderr(err):
        code = main()
    return code, err.getvalue()


def test_what_was_typed_is_saved_and_does_the_same_again(folder: Path) -> None:
    options = ["--skip-pass", "eliminate-identity", "--skip-pass", "fuse-matmul-add", "-q"]
    name = 'odd "name" \\ of a node'
    line = ["in.onnx", "a.onnx", *options, "--exclude", name, "--atol", "0.5", "--json", "r.json"]
    assert call(*line, "--save-recipe", "r.toml") == (0, "")
    assert tomllib.loads((folder / "r.toml").read_text()) == {
        "command": "optimize",
        "options": {
            "atol": 0.5,
            "exclude": [name],
            "quiet": True,
            "skip-pass": ["eliminate-identity", "fuse-matmul-add"],
        },
    }
    assert call("run", "r.toml", "in.onnx", "b.onnx") == (0, "")
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()
    assert "Identity" in {node.op_type for node in onnx.load("b.onnx").graph.node}


def test_switches_with_two_names_and_options_on_top(folder: Path) -> None:
    line = ["prune", "in.onnx", "a.onnx", "--exact", "--no-update", "-q"]
    assert call(*line, "--save-recipe", "r.toml") == (0, "")
    saved = tomllib.loads((folder / "r.toml").read_text())
    assert saved == {
        "command": "prune",
        "options": dict.fromkeys(("exact", "no-update", "quiet"), True),
    }
    assert call("run", "r.toml", "in.onnx", "b.onnx", "--json", "r.json") == (0, "")
    assert (folder / "r.json").exists()


def test_a_plain_line_has_an_empty_recipe(folder: Path) -> None:
    assert call("in.onnx", "--save-recipe", "r.toml") == (0, "")
    assert tomllib.loads((folder / "r.toml").read_text()) == {"command": "optimize", "options": {}}


def test_a_line_that_fails_saves_nothing(folder: Path) -> None:
    assert call("missing.onnx", "a.onnx", "--save-recipe", "r.toml")[0] == 1
    assert not (folder / "r.toml").exists()
    code, err = call("in.onnx", "--save-recipe")
    assert code == 2
    assert "needs a file" in err


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("command = ", 2, "not a recipe"),
        ('command = "frobnicate"', 2, "no command is called 'frobnicate'"),
        ('command = "run"', 2, "no command is called 'run'"),
        ('title = "x"', 2, "not title"),
        ("[options]\nquiet = false", 2, "quiet = False"),
        ("[options]\nfrobnicate = 3", 2, "frobnicate"),
        ('[options]\npreset = "x"', 2, "no preset is called"),
    ],
)
def test_wrong_recipes(folder: Path, text: str, code: int, message: str) -> None:
    (folder / "r.toml").write_text(text)
    found, err = call("run", "r.toml", "in.onnx", "a.onnx")
    assert found == code
    assert message in err
    assert not (folder / "a.onnx").exists()


def test_a_missing_recipe(folder: Path) -> None:
    code, err = call("run", "r.toml", "in.onnx", "a.onnx")
    assert (code, "cannot read the recipe" in err) == (1, True)
