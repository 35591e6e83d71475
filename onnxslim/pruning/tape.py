"""Values and gradients of one stretch of a model, with its weights as inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.io import load
from onnxslim.ir.constants import constant_tensor, is_constant
from onnxslim.ir.schema import is_op
from onnxslim.ir.traversal import subgraphs_of
from onnxslim.pruning.derivatives import Gradients, is_known, pull_back, pull_back_split
from onnxslim.pruning.stretches import Stretch
from onnxslim.runtime.session import Session, open_session

Array = npt.NDArray[Any]

# Inputs that hold a weight which a refit may move.
_WEIGHTS = {"MatMul": (1,), "Gemm": (1, 2), "LayerNormalization": (1, 2)}


class Tape:
    """A stretch as a model of its own.

    Attributes:
        weights: what may be moved, by name, float32.
        sources: the values that flow into the stretch, by name.
    """

    def __init__(self, model: ir.Model, stretch: Stretch, weights: Mapping[str, Array]) -> None:
        self.weights = dict(weights)
        self.sources = _sources(stretch)
        self._goals = [value.name or "" for value in stretch.goals]
        self._nodes = _moved(stretch, self.weights)
        self._constants = _constants(self._nodes, self.weights)
        self._moving = {*self.weights, *(v.name for node in self._nodes for v in node.outputs)}
        wanted = {v.name or "" for node in self._nodes for v in (*node.inputs, *node.outputs) if v}
        made = {v.name or "" for node in stretch.nodes for v in node.outputs}
        self._wanted = sorted((wanted & made) | set(self._goals))
        self._session = self._opened(model, stretch)

    @classmethod
    def of(cls, model: ir.Model, stretch: Stretch) -> Tape | None:
        """None where there is nothing to move, or a derivative is not known."""
        weights = _weights(stretch)
        moved = _moved(stretch, weights)
        goals = set(stretch.goals)
        reached = any(value in goals for node in moved for value in node.outputs)
        if not weights or not reached or not all(map(is_known, moved)):
            return None
        return cls(model, stretch, weights)

    def values(self, given: Mapping[str, Array], weights: Mapping[str, Array]) -> dict[str, Array]:
        """What flows through the stretch, by name.

        Args:
            given: of all `sources`.
            weights: of all `weights`.

        Raises:
            RuntimeRefusedError: onnxruntime does not take them.
        """
        feeds = {name: given[name] for name in self.sources} | dict(weights)
        found = dict(zip(self._wanted, self._session.run(feeds, self._wanted), strict=True))
        return {**self._constants, **feeds, **found}

    def gradients(
        self, values: Mapping[str, Array], slopes: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The gradients of the weights.

        Args:
            values: of `values`.
            slopes: the gradient at each goal, by name.
        """
        open_ones: dict[str, Array] = dict(slopes)
        for node in reversed(self._nodes):
            found = self._back(node, values, open_ones)
            for index, gradient in found.items():
                value = node.inputs[index]
                name = (value.name if value is not None else None) or ""
                if name in self._moving:
                    known = open_ones.get(name)
                    open_ones[name] = gradient if known is None else known + gradient
        return {name: open_ones[name] for name in self.weights if name in open_ones}

    def _back(
        self, node: ir.Node, values: Mapping[str, Array], open_ones: dict[str, Array]
    ) -> Gradients:
        names = [value.name or "" for value in node.outputs]
        parts = [open_ones.pop(name, None) for name in names]
        if all(part is None for part in parts):
            return {}
        if is_op(node, "Split"):
            whole = [
                np.zeros_like(values[name]) if part is None else part
                for name, part in zip(names, parts, strict=True)
            ]
            return pull_back_split(node, whole)
        if parts[0] is None:
            return {}
        inputs = [values[v.name or ""] if v is not None else None for v in node.inputs]
        return pull_back(node, inputs, [values[names[0]]], parts[0])

    def _opened(self, model: ir.Model, stretch: Stretch) -> Session:
        """The stretch alone, in onnxruntime."""
        made = {v.name for node in stretch.nodes for v in node.outputs}
        copy = load(model)
        graph = copy.graph
        known = {v.name: v for node in graph for v in node.outputs}
        known.update({v.name: v for v in graph.inputs})
        graph.outputs.clear()
        graph.outputs.extend(known[name] for name in self._wanted)
        fresh = []
        for name in self.sources:
            old = known[name]
            new = ir.Value(name=name, type=old.type, shape=None)
            old.name = f"{name}__outside"
            ir.convenience.replace_all_uses_with(old, new)
            fresh.append(new)
        graph.remove([n for n in graph if not any(v.name in made for v in n.outputs)])
        for name in self.weights:
            value = graph.initializers.pop(name)
            value.const_value = None
            fresh.append(value)
        graph.inputs.clear()
        graph.inputs.extend(fresh)
        for value in [value for value in graph.initializers.values() if not value.uses()]:
            graph.initializers.pop(value.name or "")
        return open_session(copy, optimize=False)


def _sources(stretch: Stretch) -> list[str]:
    """What the stretch reads and does not make itself, constants aside."""
    made = {value for node in stretch.nodes for value in node.outputs}
    found: dict[str, None] = {}
    for node in stretch.nodes:
        inner = (v for graph in subgraphs_of(node) for one in graph for v in one.inputs)
        for value in (*node.inputs, *inner):
            if value is not None and value not in made and not is_constant(value) and value.name:
                found[value.name] = None
    return list(found)


def _weights(stretch: Stretch) -> dict[str, Array]:
    """Matrices, biases and scales in float32 that only this stretch reads."""
    inside = set(stretch.nodes)
    found: dict[str, Array] = {}
    for node in stretch.nodes:
        for value in _candidates(node) if node not in stretch.fixed else ():
            tensor = constant_tensor(value)
            alone = all(use.node in inside for use in value.uses())
            plain = value.is_initializer() and not value.is_graph_output()
            if tensor is not None and tensor.dtype == ir.DataType.FLOAT and alone and plain:
                found[value.name or ""] = np.array(tensor.numpy())
    return found


def _candidates(node: ir.Node) -> list[ir.Value]:
    if is_op(node, *_WEIGHTS):
        indices: Iterable[int] = _WEIGHTS[node.op_type]
    elif is_op(node, "Add"):
        # A bias; wider constants may be positions or masks, which stay.
        indices = [index for index in (0, 1) if _is_vector(node.inputs[index])]
    else:
        return []
    values = [node.inputs[index] for index in indices if index < len(node.inputs)]
    return [value for value in values if value is not None]


def _is_vector(value: ir.Value | None) -> bool:
    tensor = constant_tensor(value)
    return tensor is not None and len(tensor.shape.numpy()) == 1 and tensor.size > 1


def _moved(stretch: Stretch, weights: Mapping[str, Array]) -> list[ir.Node]:
    """The nodes between a weight and a goal, in order."""
    forward: set[ir.Value] = set()
    found = []
    for node in stretch.nodes:
        read = [value for value in node.inputs if value is not None]
        if any(value in forward or value.name in weights for value in read):
            # What is not a number with a slope ends here.
            forward.update(
                v for v in node.outputs if v.dtype is None or v.dtype.is_floating_point()
            )
            found.append(node)
    needed = set(stretch.goals)
    result = []
    for node in reversed(found):
        if any(value in needed for value in node.outputs):
            needed.update(value for value in node.inputs if value is not None)
            result.append(node)
    return result[::-1]


def _constants(nodes: Iterable[ir.Node], weights: Mapping[str, Array]) -> dict[str, Array]:
    found = {}
    for node in nodes:
        for value in node.inputs:
            tensor = constant_tensor(value)
            if value is not None and tensor is not None and value.name not in weights:
                found[value.name or ""] = tensor.numpy()
    return found
