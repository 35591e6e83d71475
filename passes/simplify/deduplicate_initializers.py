"""Keeps one of several initializers that hold the same bytes.

Before::

    <float[2] v = {1, 2}, float[2] w = {1, 2}>
    a = Mul (x, v)
    y = Add (a, w)

After::

    <float[2] v = {1, 2}>
    a = Mul (x, v)
    y = Add (a, v)

Candidates have the same element type and shape; those that also agree in a few sampled pieces are
compared byte by byte, whatever their size. No hash decides, and of a weight that has no twin
nothing but the sample is read.

Holds only if:

1. element type, shape and all bytes are equal: NaN by its payload, -0.0 is not 0.0, strings by
   their bytes;
2. none of them is a graph input (a caller may override it) or a graph output, and the one that goes
   is not named by a quantization annotation or by training information;
3. the one that stays belongs to the same graph or to one around it, where its name is not hidden by
   another value of that name;
4. weights that are computed on saving are not computed for the comparison, unless they are small.

Function bodies have no initializers.

Exactness: exact.

Source: initializers of ONNX are immutable.
"""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxslim.ir.traversal import graphs, subgraphs_of
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.replace_values import replace_values
from onnxslim.rewrite.scopes import Scopes
from onnxslim.rewrite.tensor_bytes import equal, sample

_LATE_BYTES = 64 * 1024

Kept = ChainMap[Hashable, list[ir.Value]]


@dataclass(frozen=True)
class DeduplicateInitializers(Pass):
    """Shares equal initializers in the main graph and with its subgraphs."""

    name: ClassVar[str] = "deduplicate-initializers"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def run(self, model: ir.Model, context: Context) -> PassResult:
        return PassResult(_Shared(self, model, context).run())


class _Shared:
    """One run over one model."""

    def __init__(self, owner: DeduplicateInitializers, model: ir.Model, context: Context) -> None:
        self.owner = owner
        self.model = model
        self.context = context
        self.scopes = Scopes(model)
        self.counts = Counter(
            _kind(value)
            for graph in graphs(model)
            for value in graph.initializers.values()
            if _is_candidate(value)
        )
        self.replaced: dict[ir.Value, ir.Value] = {}

    def run(self) -> int:
        self.visit(self.model.graph, ChainMap())
        replace_values(self.replaced)
        for value in self.replaced:
            if isinstance(value.graph, ir.Graph) and value.name:
                del value.graph.initializers[value.name]
        return len(self.replaced)

    def visit(self, graph: ir.Graph, around: Kept) -> None:
        """Shares the initializers of one graph, then of the graphs inside it."""
        kept: Kept = around.new_child()
        for name, value in graph.initializers.items():
            if not _is_candidate(value) or self.counts[_kind(value)] < 2:
                continue
            key = (_kind(value), _sample(value))
            twin = self._twin(value, kept.get(key, []))
            if twin is None:
                kept[key] = [*kept.get(key, []), value]
            elif self.context.allow(self.owner, name, f"same bytes as {twin.name}"):
                self.replaced[value] = twin
        for node in graph:
            for inner in subgraphs_of(node):
                self.visit(inner, kept)

    def _twin(self, value: ir.Value, others: list[ir.Value]) -> ir.Value | None:
        for other in others:
            if self.scopes.can_replace(value, other) and _same_bytes(value, other):
                return other
        return None


def _is_candidate(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or value.is_graph_input() or value.is_graph_output():  # (2)
        return False
    return not isinstance(tensor, ir.LazyTensor) or tensor.nbytes <= _LATE_BYTES  # (4)


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    tensor = value.const_value
    if tensor is None:
        raise ValueError(f"initializer {value.name!r} has no contents")
    return tensor


def _kind(value: ir.Value) -> Hashable:
    tensor = _tensor(value)
    return (tensor.dtype, tuple(tensor.shape.numpy()))


def _sample(value: ir.Value) -> Hashable:
    tensor = _tensor(value)
    if tensor.dtype == ir.DataType.STRING:
        return tuple(bytes(text) for text in tensor.numpy().reshape(-1))
    return sample(tensor)


def _same_bytes(value: ir.Value, other: ir.Value) -> bool:
    first, second = _tensor(value), _tensor(other)
    return first.dtype == ir.DataType.STRING or equal(first, second)
