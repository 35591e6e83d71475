"""Weights that are listed as graph inputs.

Before IR version 4 the format demanded that every initializer is listed among the graph inputs, and
some exporters kept doing so. Such an input has a default value that a caller may override, so no
pass may take it for a constant, although it is meant as one. Where *every* initializer is listed,
the exporter listed them for the format's sake; where only some are, they are options of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import onnx_ir as ir

from onnxslim.errors import UsageError
from onnxslim.ir.schema import ONNX_DOMAINS

Policy = Literal["auto", "constants", "defaults"]

# From this IR version on initializers need not be listed, and those listed can be overridden.
_FREE_IR_VERSION = 4

# Operators whose second input is a trained weight: nobody overrides that from call to call.
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "GRU", "LSTM", "RNN", "BatchNormalization"}


@dataclass(frozen=True)
class Listed:
    """Weights that were taken off the inputs.

    Attributes:
        names: all graph inputs as they were, in order; the weights among them.
        weights: the names of the weights.
        relist: the format demands that they are listed again.
    """

    names: tuple[str, ...]
    weights: frozenset[str]
    relist: bool

    def restore(self, model: ir.Model) -> None:
        """Lists the initializers of a model again where its IR version demands it."""
        if not self.relist or model.ir_version >= _FREE_IR_VERSION:  # raised with the opset
            return
        graph = model.graph
        there = {value.name: value for value in graph.inputs} | dict(graph.initializers)
        ordered = [there[name] for name in self.names if name in there]
        added = [value for name, value in graph.initializers.items() if name not in self.names]
        for value in (*ordered, *added):
            if value.const_value is not None:
                value.dtype = value.const_value.dtype
                value.shape = ir.Shape(value.const_value.shape.numpy())
        del graph.inputs[:]
        graph.inputs.extend([*ordered, *added])

    def note(self) -> str:
        """For the report."""
        count = len(self.weights)
        what = "1 weight is" if count == 1 else f"{count} weights are"
        return f"{what} listed as graph inputs and taken as constants"


def take_listed(model: ir.Model, policy: str = "auto") -> Listed | None:
    """Takes listed weights off the graph inputs, so that they count as constants.

    Args:
        model: changed in place.
        policy: ``auto`` where every initializer is listed and weights of matrix operators are
            among them (or the IR version is older than 4, when runtimes do not let a caller
            override any), ``constants`` always, ``defaults`` never.

    Returns:
        What was taken, or None.

    Raises:
        UsageError: an unknown policy.
    """
    if policy not in get_args(Policy):
        raise UsageError(
            f"--listed-initializers {policy}: unknown; choose auto, constants or defaults"
        )
    graph = model.graph
    listed = [value for value in graph.inputs if value.is_initializer()]
    if not listed or policy == "defaults" or (policy == "auto" and not _is_habit(model, listed)):
        return None
    names = tuple(value.name or "" for value in graph.inputs)
    kept = [value for value in graph.inputs if not value.is_initializer()]
    del graph.inputs[:]
    graph.inputs.extend(kept)
    weights = frozenset(value.name or "" for value in listed)
    return Listed(names, weights, model.ir_version < _FREE_IR_VERSION)


def _is_habit(model: ir.Model, listed: list[ir.Value]) -> bool:
    if len(listed) != len(model.graph.initializers):
        return False
    return model.ir_version < _FREE_IR_VERSION or any(_weights(model.graph, set(listed)))


def _weights(graph: ir.Graph, listed: set[ir.Value]) -> Iterator[bool]:
    for node in graph:
        if node.op_type in _WEIGHTED and node.domain in ONNX_DOMAINS and len(node.inputs) > 1:
            yield node.inputs[1] in listed
