"""What onnxruntime makes of a model when it opens it: the graph that it will run."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxslim.ir.traversal import nodes
from onnxslim.runtime.session import optimized_copy


@dataclass(frozen=True)
class Loaded:
    """A model as it stands after opening.

    Attributes:
        names: of the nodes that are left, in all graphs.
        operators: how many nodes there are of each, as ``domain.Op`` outside the standard domain.
        milliseconds: how long opening took, without the time to write the graph out where that
            was measured apart, else with it.
    """

    names: frozenset[str]
    operators: dict[str, int]
    milliseconds: float


def loaded_graph(model: ir.Model | str | os.PathLike[str]) -> Loaded:
    """Opens the model with a deployment's optimizations and looks at the graph after them.

    Raises:
        RuntimeRefusedError: onnxruntime cannot open the model.
    """
    from onnxslim.io import load

    with tempfile.TemporaryDirectory(prefix="onnxslim-") as folder:
        target = Path(folder) / "loaded.onnx"
        started = time.perf_counter()
        optimized_copy(model, target)
        spent = (time.perf_counter() - started) * 1000
        names, operators = set(), dict[str, int]()
        for node in nodes(load(target)):
            names.add(node.name or "")
            key = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            operators[key] = operators.get(key, 0) + 1
    return Loaded(frozenset(names), dict(sorted(operators.items())), spent)
