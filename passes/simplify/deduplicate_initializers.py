"""Keeps one of several initializers that hold the same bytes.

Before::

    <float[2] v = {1, 2}, float[2] w = {1, 2}>
    a = Add (x, v)
    y = Mul (a, w)

After::

    <float[2] v = {1, 2}>
    a = Add (x, v)
    y = Mul (a, v)

Holds only if:

1. element type, shape and every byte are the same (NaN payloads and signs of zeros included): few
   bytes pick the candidates, all bytes decide, so no hash is ever trusted and a tensor that has no
   twin by size is never read;
2. neither is a graph input (a caller may override it) nor a graph output;
3. both are in the same graph, or the one that stays is in the main graph and its name means nothing
   else in any subgraph;
4. the element type is not string.

Exactness: exact.

Source: ONNX specification, initializers are constants unless they are graph inputs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxslim.ir.edit import replace_value
from onnxslim.ir.traversal import graphs
from onnxslim.pipeline import Context, Exactness, Pass, PassResult

_SAMPLE = 64
_CHUNK = 1 << 20

Member = tuple[ir.Graph, ir.Value]


@dataclass(frozen=True)
class DeduplicateInitializers(Pass):
    """Candidates by type and shape, then by a sample, then byte for byte."""

    name: ClassVar[str] = "deduplicate-initializers"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def run(self, model: ir.Model, context: Context) -> PassResult:
        groups: dict[object, list[Member]] = defaultdict(list)
        for graph in graphs(model):
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.dtype == ir.DataType.STRING:  # (4)
                    continue
                if value.is_graph_input() or value.is_graph_output():  # (2)
                    continue
                groups[tensor.dtype, tuple(tensor.shape)].append((graph, value))
        taken = _names_in_subgraphs(model)
        changes = 0
        for members in groups.values():
            for twins in _by_sample(members) if len(members) > 1 else ():
                changes += self._merge(twins, model.graph, taken, context)
        return PassResult(changes)

    def _merge(
        self, members: list[Member], main: ir.Graph, taken: set[str], context: Context
    ) -> int:
        kept: list[Member] = []
        changes = 0
        for graph, value in members:
            twin = next(
                (
                    other
                    for home, other in kept
                    if (home is graph or (home is main and other.name not in taken))  # (3)
                    and _same_bytes(other, value)  # (1)
                ),
                None,
            )
            name = value.name or ""
            if twin is None or not context.allow(self, name, f"same bytes as {twin.name}"):
                kept.append((graph, value))
                continue
            replace_value(value, twin)
            del graph.initializers[name]
            changes += 1
        return changes


def _names_in_subgraphs(model: ir.Model) -> set[str]:
    """Names that mean something of their own in a subgraph, and so hide outer ones there."""
    names: set[str] = set()
    for graph in model.graph.subgraphs():
        names.update(value.name or "" for value in graph.inputs)
        names.update(graph.initializers)
        names.update(value.name or "" for node in graph for value in node.outputs)
    return names


def _by_sample(members: list[Member]) -> Iterable[list[Member]]:
    """Splits a group by the first, middle and last bytes; groups of one are left out."""
    groups: dict[bytes, list[Member]] = defaultdict(list)
    for graph, value in members:
        tensor = value.const_value
        if tensor is not None:
            groups[_sample(tensor)].append((graph, value))
    return [group for group in groups.values() if len(group) > 1]


def _sample(tensor: ir.TensorProtocol) -> bytes:
    middle = tensor.nbytes // 2
    starts = (0, middle, max(0, tensor.nbytes - _SAMPLE))
    return b"".join(_piece(tensor, start, start + _SAMPLE) for start in starts)


def _same_bytes(first: ir.Value, second: ir.Value) -> bool:
    one, other = first.const_value, second.const_value
    if one is None or other is None or one.nbytes != other.nbytes:
        return False
    return all(
        _piece(one, start, start + _CHUNK) == _piece(other, start, start + _CHUNK)
        for start in range(0, one.nbytes, _CHUNK)
    )


def _piece(tensor: ir.TensorProtocol, start: int, stop: int) -> bytes:
    """Some bytes of a tensor; a tensor in a file is not read beyond them."""
    read_range = getattr(tensor, "read_range", None)
    if read_range is not None:
        return bytes(read_range(start, stop))
    if isinstance(tensor, ir.Tensor) and tensor.dtype.bitwidth >= 8:
        array = np.ascontiguousarray(tensor.numpy())
        return array.reshape(-1).view(np.uint8)[start:stop].tobytes()
    return tensor.tobytes()[start:stop]
