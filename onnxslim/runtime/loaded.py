"""What onnxruntime makes of a model when it opens it: the graph that it will run."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxslim.ir.traversal import nodes
from onnxslim.runtime.session import open_session, optimized_copy

# Opening is repeated until this many ms are spent, at most so many times.
_ENOUGH_MS, _MOST_TIMES = 300.0, 3


@dataclass(frozen=True)
class Loaded:
    """A model as it stands after opening.

    Attributes:
        names: of the nodes that are left, in all graphs.
        operators: how many nodes there are of each, as ``domain.Op`` outside the standard domain.
        milliseconds: how long opening took on one thread, without prepacking; the best of a few
            times where it is short.
    """

    names: frozenset[str]
    operators: dict[str, int]
    milliseconds: float


def loaded_graph(model: ir.Model | str | os.PathLike[str]) -> Loaded:
    """Opens the model with a deployment's optimizations and looks at the graph after them.

    Raises:
        RuntimeRefusedError: onnxruntime cannot open the model.
    """
    import onnxruntime  # noqa: F401  # its import is no part of opening

    from onnxslim.io import load

    spent = _opening_time(model)
    with tempfile.TemporaryDirectory(prefix="onnxslim-") as folder:
        target = Path(folder) / "loaded.onnx"
        optimized_copy(model, target)
        names, operators = set(), dict[str, int]()
        for node in nodes(load(target)):
            names.add(node.name or "")
            key = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            operators[key] = operators.get(key, 0) + 1
    return Loaded(frozenset(names), dict(sorted(operators.items())), spent)


def _opening_time(model: ir.Model | str | os.PathLike[str]) -> float:
    """In ms; the first session of a process takes longer than the others."""
    best, total = 0.0, 0.0
    while total < _ENOUGH_MS:
        started = time.perf_counter()
        open_session(model, optimize=True, threads=1)
        spent = (time.perf_counter() - started) * 1000
        best = min(best, spent) if total else spent
        total += max(spent, _ENOUGH_MS / _MOST_TIMES)
    return best
