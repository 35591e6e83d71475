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
nothing but the sample is read. Of equal weights in branches that do not see each other, one moves
to the main graph, which all of them see.

Holds only if:

1. element type, shape and all bytes are equal: NaN by its payload, -0.0 is not 0.0, strings by
   their bytes;
2. none of them is a graph input (a caller may override it) or a graph output, and the one that goes
   is not named by a quantization annotation or by training information;
3. the one that stays belongs to the same graph or to one around it, where its name is not hidden by
   another value of that name;
4. one moves to the main graph only if it has 1 KiB or more, and under a name that the model does
   not use; none does before IR version 4, where initializers of the main graph are its inputs;
5. weights that are computed on saving are not computed for the comparison, unless they are small.

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
from onnxslim.rewrite.scopes import ANNOTATION, Scopes
from onnxslim.rewrite.tensor_bytes import equal, sample

_LATE_BYTES = 64 * 1024
# Smaller twins in branches stay where they are.
_MOVED_BYTES = 1024
_IR_VERSION = 4

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
        self.top: Kept = ChainMap()
        self.inner: dict[Hashable, list[ir.Value]] = {}

    def run(self) -> int:
        before = len(self.context.journal)
        self.visit(self.model.graph, ChainMap(), top=True)
        replace_values(self.replaced)
        for value in self.replaced:
            if isinstance(value.graph, ir.Graph) and value.name:
                del value.graph.initializers[value.name]
        return len(self.context.journal) - before

    def visit(self, graph: ir.Graph, around: Kept, *, top: bool = False) -> None:
        """Shares the initializers of one graph, then of the graphs inside it."""
        kept: Kept = around.new_child()
        if top:
            self.top = kept
        for name, value in graph.initializers.items():
            if not _is_candidate(value) or self.counts[_kind(value)] < 2:
                continue
            key = (_kind(value), _sample(value))
            twin = self._twin(value, kept.get(key, []))
            if twin is None:
                if top or not self._moved(value, key):
                    kept[key] = [*kept.get(key, []), value]
            elif self.context.allow(self.owner, name, f"same bytes as {twin.name}"):
                self.replaced[value] = twin
        for node in graph:
            for inner in subgraphs_of(node):
                self.visit(inner, kept)

    def _moved(self, value: ir.Value, key: Hashable) -> bool:
        """Moves a weight of a branch to the main graph, where an unseen branch has a twin (4)."""
        tensor = _tensor(value)
        if tensor.nbytes < _MOVED_BYTES or (self.model.ir_version or 0) < _IR_VERSION:
            return False
        others = self.inner.setdefault(key, [])
        twin = next((other for other in others if _same_bytes(value, other)), None)
        others.append(value)
        if twin is None or not (self._is_free(value) and self._is_free(twin)):
            return False
        name = value.name or ""
        detail = f"same bytes as {twin.name}, in another branch"
        if not self.context.allow(self.owner, name, detail):
            return False
        moved = ir.Value(
            name=self.context.fresh_name(f"{twin.name}_shared"),
            type=twin.type,
            shape=twin.shape,
            const_value=_tensor(twin),
        )
        self.model.graph.register_initializer(moved)
        self.top[key] = [*self.top.get(key, []), moved]
        self.replaced[value] = self.replaced[twin] = moved
        return True

    def _is_free(self, value: ir.Value) -> bool:
        """Nothing but its readers knows the value by its name."""
        known = value.meta.get(ANNOTATION) or value.name in self.scopes.outside
        return not known and value not in self.replaced

    def _twin(self, value: ir.Value, others: list[ir.Value]) -> ir.Value | None:
        for other in (self.replaced.get(other, other) for other in others):
            if self.scopes.can_replace(value, other) and _same_bytes(value, other):
                return other
        return None


def _is_candidate(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or value.is_graph_input() or value.is_graph_output():  # (2)
        return False
    return not isinstance(tensor, ir.LazyTensor) or tensor.nbytes <= _LATE_BYTES  # (5)


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
