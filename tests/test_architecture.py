"""The layout as data: imports point one way, the registry is whole, every pass has a test."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

import onnxslim
from onnxslim import passes
from onnxslim.pipeline import Exactness

ROOT = Path(__file__).resolve().parent.parent

# Which rooms a room may import, besides itself and errors.
ALLOWED = {
    "errors": set(),
    "ir": {"errors"},
    "io": {"ir", "errors"},
    "rewrite": {"ir", "pipeline"},
    "runtime": {"ir", "io", "pipeline", "calibration"},
    "calibration": {"ir", "io", "runtime"},
    "pipeline": {"ir"},
    "validation": {"ir", "io", "runtime", "calibration", "pipeline"},
    "pruning": {
        "calibration",
        "io",
        "ir",
        "passes",
        "pipeline",
        "presets",
        "rewrite",
        "runtime",
        "validated_run",
        "validation",
    },
    "quantization": {
        "calibration",
        "compression",
        "io",
        "ir",
        "passes",
        "pipeline",
        "presets",
        "rewrite",
        "runtime",
        "validated_run",
        "validation",
    },
    "compression": {
        "calibration",
        "io",
        "ir",
        "passes",
        "pipeline",
        "rewrite",
        "runtime",
        "validated_run",
        "validation",
    },
    "packing": {"io"},
    "store": {"io", "packing"},
    "report": {"ir", "passes", "pipeline", "presets", "api"},
    "passes": {"pipeline", "rewrite", "ir", "runtime", "calibration"},
    "presets": {"passes", "pipeline"},
    "validated_run": {"io", "ir", "pipeline", "validation"},
    "measured_run": {"calibration", "pipeline", "quantization", "runtime", "validated_run"},
    "model_files": {"calibration", "io", "ir", "packing", "passes"},
    "steps": {
        "calibration",
        "compression",
        "ir",
        "measured_run",
        "model_files",
        "pruning",
        "quantization",
        "report",
        "runtime",
        "validated_run",
        "validation",
    },
    "api": {
        "model_files",
        "steps",
        "calibration",
        "compression",
        "io",
        "ir",
        "packing",
        "passes",
        "pipeline",
        "presets",
        "pruning",
        "quantization",
        "report",
        "runtime",
        "validated_run",
        "validation",
    },
    "compat": {
        "api",
        "model_files",
        "calibration",
        "io",
        "ir",
        "passes",
        "pipeline",
        "presets",
        "report",
        "rewrite",
        "runtime",
    },
    "utils": {"compat"},
    "startup": set(),
    "cli": {
        "compat",
        "startup",
        "api",
        "model_files",
        "calibration",
        "compression",
        "io",
        "packing",
        "passes",
        "pruning",
        "quantization",
        "report",
        "store",
        "validated_run",
    },
}


def sources() -> list[Path]:
    found = [*(ROOT / "onnxslim").rglob("*.py"), *(ROOT / "passes").rglob("*.py")]
    return sorted(path for path in found if path.name != "__init__.py" or path.stat().st_size)


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    if parts[0] == "passes":
        return "passes"
    return parts[1].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "onnxslim":
                found.update(f"onnxslim.{alias.name}" for alias in node.names)
            else:
                found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    for name in imported(path):
        if name.startswith("onnxslim."):
            other = name.split(".")[1]
            assert other == room or other in ALLOWED[room] | {"errors", "__version__"}, name
        if room == "passes" and name.startswith("onnxslim.passes."):
            family = ".".join(("onnxslim", *path.relative_to(ROOT).parts[:2]))
            assert family == name, f"a pass imports a pass: {name}"
        if name.split(".")[0] == "onnxruntime":
            assert room == "runtime", "only the runtime room opens onnxruntime"
        if name.split(".")[0] == "onnx" and room not in ("io", "ir"):
            # type names of the public interface, and the reference evaluator
            assert room in ("api", "compat", "validation", "runtime"), name


def test_every_pass_is_registered_and_tested() -> None:
    modules = {
        str(path.relative_to(ROOT / "passes").with_suffix("")).replace("/", ".")
        for path in (ROOT / "passes").rglob("*.py")
        if path.name != "__init__.py"
    }
    registered = {module for module, _ in passes.REGISTRY.values()}
    assert registered == modules
    tested = {path.stem for path in (ROOT / "tests" / "passes").glob("test_*.py")}
    for module, _ in passes.REGISTRY.values():
        assert f"test_{module.split('.')[-1]}" in tested, module


@pytest.mark.parametrize("name", sorted(passes.REGISTRY))
def test_pass_names_and_docstrings(name: str) -> None:
    found = passes.load(name)
    assert found.name == name
    assert isinstance(found.exactness, Exactness)
    module = __import__(found.__module__, fromlist=["_"])
    for word in ("Before", "After", "Holds only if", "Exactness", "Source"):
        assert word in module.__doc__, word


def test_registry_is_alphabetic() -> None:
    assert list(passes.REGISTRY) == sorted(passes.REGISTRY)


def test_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == onnxslim.__version__


def test_public_names_exist() -> None:
    for name in onnxslim.__all__:
        assert getattr(onnxslim, name) is not None
