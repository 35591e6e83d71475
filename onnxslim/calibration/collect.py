"""Runs a model and gathers statistics of its tensors, in memory that does not grow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim.calibration.checks import BadNumbersError, FeedChecker, Place, batch_of
from onnxslim.calibration.statistics import TensorStatistics
from onnxslim.errors import DataError, RuntimeRefusedError
from onnxslim.io import load
from onnxslim.ir.edit import Names
from onnxslim.runtime.session import Session, open_session
from onnxslim.runtime.specs import Array, Feed, input_specs

BUDGET = 256 * 1024 * 1024
"""Bytes of outputs that are asked for at one time; a group that needs more is split."""

# Elements that wait to be counted, over all tensors and for one: counting has a fixed cost.
_WAITING, _WAITING_EACH = 4 * 1024 * 1024, 16384

# Groups are kept for this many different sizes of inputs.
_KNOWN_SIZES = 8

_LARGEST = float(np.finfo(np.float32).max)

Groups = list[list[str]]


class Pending:
    """Statistics of one tensor, with small additions gathered before they are counted."""

    def __init__(self, room: int) -> None:
        self.statistics = TensorStatistics()
        self._room = room
        self._buffer: Array | None = None
        self._held = 0

    def add(self, values: Array, low: float, high: float) -> None:
        """Takes finite float32 values whose smallest and largest are known."""
        self.statistics.widen(low, high)
        if values.size * 2 > self._room:
            self.statistics.count_bins(values.reshape(-1))
            return
        if self._buffer is None:
            self._buffer = np.empty(self._room, np.float32)
        if self._held + values.size > self._room:
            self.flush()
        self._buffer[self._held : self._held + values.size] = values.reshape(-1)
        self._held += values.size

    def flush(self) -> TensorStatistics:
        """Counts what waits; the statistics so far."""
        if self._buffer is not None and self._held:
            self.statistics.count_bins(self._buffer[: self._held])
            self._held = 0
        return self.statistics


@dataclass(frozen=True)
class Finding:
    """Extremes of one array; ``bad`` elements are NaN or infinite."""

    low: float
    high: float
    bad: int


class Collector:
    """Gathers statistics feed by feed.

    The tensors become outputs, in groups that fit a memory budget, so shapes may change from feed
    to feed.

    Args:
        model: the model; it is not changed.
        names: floating-point values of its main graph.
        channels: tensors whose largest magnitude per channel is kept, with the axis.
        budget: bytes of outputs that may be held at one time.
        strict: NaN and infinity in inner tensors are errors; otherwise they are counted.
        atomic: a feed that fails is not counted in part either, so that one can go on without it.
        threads: threads for one operator; 0 lets the runtime choose.
    """

    def __init__(
        self,
        model: ir.Model,
        names: Sequence[str],
        *,
        channels: Mapping[str, int] | None = None,
        budget: int = BUDGET,
        strict: bool = True,
        atomic: bool = False,
        threads: int = 0,
    ) -> None:
        inputs = {value.name for value in model.graph.inputs}
        self.checker = FeedChecker(input_specs(model))
        self._inputs = [name for name in names if name in inputs]
        inner = [name for name in names if name not in inputs]
        self._session, self._shape_names = _open(model, inner, threads)
        self._groups = _Grouping(self._session, inner, self._shape_names, budget)
        self._channels = dict(channels or {})
        self._strict, self._atomic = strict, atomic
        room = max(min(_WAITING // max(len(names), 1), _WAITING_EACH), 1)
        self._pending = {name: Pending(room) for name in names}
        self.feeds = 0
        self.samples = 0

    def add(self, item: Any, where: Place | None = None) -> Feed:
        """Runs one feed and takes it in.

        Args:
            item: as `FeedChecker.feed` takes it.
            where: names the sample in messages.

        Returns:
            The feed as it was run.

        Raises:
            BadNumbersError: NaN or infinity in an input, or with ``strict`` in a tensor.
            DataError: the feed does not fit the model, or the model does not run on it.
        """
        where = where or Place(self.feeds)
        feed = self.checker.feed(item, where)
        self.checker.finite(feed, where)
        try:
            self._run_groups(feed, where)
        except RuntimeRefusedError as error:
            raise DataError(f"{where}: {error}") from error
        for name in self._inputs:
            if name in feed:
                array = np.asarray(feed[name])
                self._count(name, array, self._look(name, array, where))
        self.feeds += 1
        self.samples += batch_of(feed, self.checker.specs.values())
        return feed

    def statistics(self) -> dict[str, TensorStatistics]:
        """Statistics by name, of everything that was added."""
        return {name: pending.flush() for name, pending in self._pending.items()}

    def _run_groups(self, feed: Feed, where: Place) -> None:
        groups = self._groups.groups_for(feed)
        # What a later group holds decides whether the feed counts: with several, look first.
        if self._strict and self._atomic and len(groups) > 1:
            for group in groups:
                self._run(feed, group, where)
        for group in groups:
            for name, array, finding in self._run(feed, group, where):
                self._count(name, array, finding)

    def _run(self, feed: Feed, group: list[str], where: Place) -> list[tuple[str, Array, Finding]]:
        """One run. All outputs have been looked at when this returns."""
        arrays = self._session.run_views(feed, group)
        return [
            (name, array, self._look(name, array, where))
            for name, array in zip(group, arrays, strict=True)
        ]

    def _look(self, name: str, array: Array, where: Place) -> Finding:
        """Extremes of the array.

        Raises:
            BadNumbersError: with ``strict``, an element is NaN or infinite.
        """
        if not array.size:
            return Finding(0.0, 0.0, 0)
        low, high = float(array.min()), float(array.max())
        if math.isfinite(low) and math.isfinite(high) and max(-low, high) <= _LARGEST:
            return Finding(low, high, 0)
        bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        if bad and self._strict:
            raise BadNumbersError(
                f"{where}: tensor {name!r} holds {bad} NaN or infinite values, for which there is "
                "no int8 scale; leave the sample out or correct it"
            )
        return Finding(low, high, max(bad, 1))

    def _count(self, name: str, array: Array, finding: Finding) -> None:
        if not array.size:
            return
        pending = self._pending[name]
        if finding.bad:
            pending.statistics.add(array)
        else:
            if array.dtype != np.float32:
                array = array.astype(np.float32)
                finding = Finding(float(array.min()), float(array.max()), 0)
            pending.add(array, finding.low, finding.high)
        if name in self._channels:
            pending.statistics.add_channels(array, self._channels[name], name)


class _Grouping:
    """Which outputs to ask for together.

    Sizes are measured by a run of their own, once for the largest inputs: what fits there fits for
    inputs that are no longer along any axis.
    """

    def __init__(
        self, session: Session, names: list[str], shape_names: list[str], budget: int
    ) -> None:
        self._session, self._names, self._budget = session, names, budget
        self._shape_names = shape_names
        self._known: list[tuple[dict[str, tuple[int, ...]], Groups]] = []

    def groups_for(self, feed: Feed) -> Groups:
        if not self._names:
            return []
        shapes = {name: np.shape(value) for name, value in feed.items()}
        for known, groups in self._known:
            if _covers(known, shapes):
                return groups
        sizes = [
            4 * int(np.prod(shape, dtype=np.int64))
            for shape in self._session.run(feed, self._shape_names)
        ]
        groups = list(_grouped(self._names, sizes, self._budget))
        self._known = [(shapes, groups), *self._known[: _KNOWN_SIZES - 1]]
        return groups


def _covers(known: dict[str, tuple[int, ...]], shapes: dict[str, tuple[int, ...]]) -> bool:
    return known.keys() == shapes.keys() and all(
        len(known[name]) == len(shape)
        and all(one >= other for one, other in zip(known[name], shape, strict=True))
        for name, shape in shapes.items()
    )


def _grouped(names: Sequence[str], sizes: Sequence[int], budget: int) -> Iterator[list[str]]:
    group: list[str] = []
    held = 0
    for name, size in zip(names, sizes, strict=True):
        if group and held + size > budget:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


def _open(model: ir.Model, names: Sequence[str], threads: int) -> tuple[Session, list[str]]:
    """Opens a copy in which the named values, and their shapes, are outputs."""
    copy = load(model)
    graph = copy.graph
    fresh = Names(copy).fresh
    values = {value.name: value for node in graph for value in node.outputs}
    present = {value.name for value in graph.outputs}
    shape_names = []
    for name in names:
        value = values[name]
        shape = ir.node("Shape", [value])
        shape.outputs[0].name = fresh(f"{name}_shape")
        shape.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        shape_names.append(shape.outputs[0].name)
        graph.append(shape)
        graph.outputs.append(shape.outputs[0])
        if name not in present:
            graph.outputs.append(value)
    return open_session(copy, optimize=False, threads=threads), shape_names
