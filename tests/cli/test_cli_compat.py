"""Command lines of the package-index project of the same name."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxslim.cli import dropin, main
from onnxslim.cli.app import expand
from onnxslim.cli.plain import read_plain

TEXT = """<ir_version: 9, opset_import: ["" : 17]>
g (float[1,4] x, float[1,4] z) => (float[1,4] y) {
  h = Identity (x)
  a = Relu (h)
  b = Mul (a, z)
  y = Neg (b)
}"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    onnx.save(onnx.parser.parse_model(TEXT), tmp_path / "in.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; terminal tables are as wide as they need."""
    out, err = io.StringIO(), io.StringIO()
    line = patch.object(sys, "argv", ["onnxslim", *arguments])
    with line, redirect_stdout(out), redirect_stderr(err):
        code = main()
    return code, out.getvalue(), err.getvalue()


def inputs_of(path: Path) -> dict[str, list[int]]:
    graph = onnx.load(path).graph
    return {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input}


def test_in_alone_reports_and_writes_nothing(folder: Path) -> None:
    code, out, _ = call("in.onnx")
    assert code == 0
    assert "passed" in out
    assert [path.name for path in folder.iterdir()] == ["in.onnx"]


def test_version_by_v_alone() -> None:
    import onnxslim

    assert call("-v") == (0, f"onnxslim {onnxslim.__version__}\n", "")


def test_several_values_after_one_flag(folder: Path) -> None:
    shapes = ["--input-shapes", "x:2,4", "z:2,4"]
    code, _, err = call("in.onnx", "out.onnx", *shapes, "--no-shape-infer")
    assert (code, err) == (0, "")
    assert inputs_of(folder / "out.onnx") == {"x": [2, 4], "z": [2, 4]}


def test_the_flags_that_change_the_model(folder: Path) -> None:
    code, out, err = call(
        *("in.onnx", "out.onnx", "--inputs", "a:fp32", "z", "--outputs", "b", "--dtype", "fp16"),
        *("--skip-optimizations", "constant_folding", "weight_tying", "--model-check"),
        *("--skip-fusion-patterns", "FusionConvBN", "FusionGemm", "--size-threshold", "1000"),
    )
    assert (code, err) == (0, "")
    assert "fp16" in out
    graph = onnx.load(folder / "out.onnx").graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["a", "z", "b"]
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


def test_model_check_inputs_and_external_data(folder: Path) -> None:
    np.save("x.npy", np.ones((1, 4), np.float32))
    code, out, err = call(
        *("in.onnx", "out.onnx", "--model-check", "--save-as-external-data"),
        *("--model-check-inputs", "x:x.npy", "z:1,4"),
    )
    assert (code, err) == (0, "")
    assert "passed" in out
    assert (folder / "out.onnx").exists()


def test_inspect_as_a_flag(folder: Path) -> None:
    onnx.save(onnx.load("in.onnx"), "other.onnx")
    code, out, _ = call("in.onnx", "other.onnx", "--inspect", "--dump-to-disk")
    assert code == 0
    assert "other.onnx" in out
    assert "Identity" in out
    assert (folder / "in.onnx_model_info.csv").exists()
    assert (folder / "other.onnx_model_info.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "int8"], "want fp16 or fp32"),
        (["--skip-optimizations", "constant"], "'constant' is unknown"),
        (["--skip-fusion-patterns", "FusionConvBn"], "did you mean FusionConvBN"),
        (["--input-shapes", "x"], "NAME:1,3,224,224"),
        (["--outputs", "q"], "is called 'q'"),
    ],
)
def test_wrong_values_are_usage_errors(folder: Path, arguments: list[str], message: str) -> None:
    code, _, err = call("in.onnx", "out.onnx", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (folder / "out.onnx").exists()


def test_a_failed_model_check_has_its_exit_code(folder: Path) -> None:
    text = '<ir_version: 9, opset_import: ["" : 17, "o.x" : 1]>\n'
    text += "g (float[2] x) => (float[2] y) { y = o.x.Unknown (x) }"
    onnx.save(onnx.parser.parse_model(text), "unknown.onnx")
    assert call("unknown.onnx", "out.onnx")[0] == 0
    (folder / "out.onnx").unlink()
    code, _, err = call("unknown.onnx", "out.onnx", "--model-check")
    assert code == 3
    assert "model check" in err
    assert not (folder / "out.onnx").exists()


def test_how_lines_are_rewritten() -> None:
    line = ["a.onnx", "--inputs", "p", "q:fp16", "--dtype", "fp16", "-"]
    assert dropin.rewrite(line) == [
        *("a.onnx", "--inputs", "p", "--inputs", "q:fp16", "--dtype", "fp16", "-")
    ]
    assert expand(["a.onnx", "--inspect", "--json", "r"]) == ["inspect", "a.onnx", "--json", "r"]
    assert expand(["prune", "a", "b", "--exclude", "w"]) == ["prune", "a", "b", "--exclude", "w"]


def test_plain_lines_are_read_as_the_parser_reads_them(folder: Path) -> None:
    expected = {"source": "a", "target": "b", "quiet": True, "json_file": "-"}
    assert read_plain(["optimize", "a", "b", "-q", "--json", "-"]) == expected
    for line in (["a", "b", "c"], ["a", "b", "--json"], ["a", "--seed", "3"], ["--json", "-q"], []):
        assert read_plain(["optimize", *line]) is None
    call("in.onnx", "plain.onnx", "-q")
    call("in.onnx", "parsed.onnx", "-q", "--seed", "0")
    assert Path("plain.onnx").read_bytes() == Path("parsed.onnx").read_bytes()


def test_a_plain_line_loads_no_parser_schema_and_no_algebra(folder: Path) -> None:
    code = (
        "import sys\n"
        "from onnxslim.cli import main\n"
        "sys.argv = ['onnxslim', 'in.onnx', 'out.onnx', '-q']\n"
        "assert main() == 0\n"
        "assert not {'pydantic', 'sympy', 'onnxoptimizer'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
