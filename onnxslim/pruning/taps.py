"""Runs a model on feeds with inner tensors as additional outputs, in bounded memory.

What is here:

- ``Taps(model, bundles, budget=...)``: opens a copy of the model once, with the named values of
  its main graph as outputs. A bundle is what is needed at the same time, such as the input and the
  output of one layer; graph inputs may be among the names.
- ``Taps.run(feed) -> Iterator[dict[str, Array]]``: the bundles of one feed in order. As many
  bundles come from one run as the byte budget allows; the feed is run again for the others, up to
  what they need, so only the group at hand is held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim.errors import DataError
from onnxslim.io import load
from onnxslim.ir.edit import Names
from onnxslim.runtime.session import Session, open_session
from onnxslim.runtime.specs import Array

BUDGET = 256 * 1024 * 1024
"""Bytes of tapped tensors that are held at one time."""

# The widest element that a tapped tensor can have.
_ELEMENT_BYTES = 8

Bundle = tuple[str, ...]


class Taps:
    """A model that is open with inner tensors as outputs.

    Attributes:
        runs: how many times the model was run.

    Args:
        model: never changed.
        bundles: names of values of the main graph that are needed together.
        budget: bytes of tapped tensors that may be held at one time; a single bundle above it is
            held alone.

    Raises:
        RuntimeRefusedError: onnxruntime cannot open the model.
        DataError: a name is no value of the main graph.
    """

    def __init__(
        self, model: ir.Model, bundles: Sequence[Sequence[str]], *, budget: int = BUDGET
    ) -> None:
        given = {value.name for value in model.graph.inputs}
        self._bundles = [tuple(dict.fromkeys(bundle)) for bundle in bundles]
        names = dict.fromkeys(name for bundle in self._bundles for name in bundle)
        self._inner = [name for name in names if name not in given]
        self._session, self._shape_names = _open(model, self._inner)
        self._budget = budget
        self._groups: dict[tuple[Any, ...], list[list[Bundle]]] = {}
        self.runs = 0

    def run(self, feed: Mapping[str, Any]) -> Iterator[dict[str, Array]]:
        """The bundles of one feed, each by name.

        Raises:
            RuntimeRefusedError: the model does not run on the feed.
        """
        inner = set(self._inner)
        for group in self._groups_for(feed):
            asked = [n for n in dict.fromkeys(n for bundle in group for n in bundle) if n in inner]
            found: dict[str, Array] = {}
            if asked:
                self.runs += 1
                found = dict(zip(asked, self._session.run(feed, asked), strict=True))
            for bundle in group:
                yield {n: found[n] if n in found else np.asarray(feed[n]) for n in bundle}

    def _groups_for(self, feed: Mapping[str, Any]) -> list[list[Bundle]]:
        """Bundles that come from one run; sizes are measured once per set of input shapes."""
        key = tuple((name, np.shape(feed[name])) for name in sorted(feed))
        if key not in self._groups:
            shapes = self._session.run(feed, self._shape_names) if self._inner else []
            sizes = [_ELEMENT_BYTES * int(np.prod(shape, dtype=np.int64)) for shape in shapes]
            by_name = dict(zip(self._inner, sizes, strict=True))
            self._groups = {key: list(_grouped(self._bundles, by_name, self._budget))}
        return self._groups[key]


def _grouped(
    bundles: Sequence[Bundle], sizes: Mapping[str, int], budget: int
) -> Iterator[list[Bundle]]:
    group: list[Bundle] = []
    held: set[str] = set()
    for bundle in bundles:
        together = held | {name for name in bundle if name in sizes}
        if group and sum(sizes[name] for name in together) > budget:
            yield group
            group, together = [], {name for name in bundle if name in sizes}
        group.append(bundle)
        held = together
    if group:
        yield group


def _open(model: ir.Model, names: Sequence[str]) -> tuple[Session, list[str]]:
    """Opens a copy in which the named values and their shapes are outputs."""
    copy = load(model)
    graph = copy.graph
    fresh = Names(copy).fresh
    values = {value.name: value for node in graph for value in node.outputs}
    present = {value.name for value in graph.outputs}
    shape_names = []
    for name in names:
        if name not in values:
            raise DataError(f"{name!r} is no value of the main graph, so it cannot be measured")
        shape = ir.node("Shape", [values[name]])
        shape_name = fresh(f"{name}_shape")
        shape.outputs[0].name = shape_name
        shape.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        shape_names.append(shape_name)
        graph.append(shape)
        graph.outputs.append(shape.outputs[0])
        if name not in present:
            graph.outputs.append(values[name])
    return open_session(copy, optimize=False), shape_names
