"""Ranges of inner tensors over many feeds, in memory that does not grow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any

import onnx_ir as ir

from onnxslim.calibration.checks import FeedChecker, Place
from onnxslim.calibration.collect import BUDGET, Collector
from onnxslim.calibration.ranges import Choice, Range, check_method, choose_ranges
from onnxslim.errors import DataError
from onnxslim.runtime.specs import Feed, InputSpec

__all__ = ["Range", "RangeMeter", "check_feed", "measure_ranges"]

# Operators whose result depends on which element of the first input is the largest.
_RANKING = frozenset({
    "ArgMax", "Flatten", "Identity", "LogSoftmax", "Reshape", "Sigmoid", "Softmax", "Squeeze",
    "TopK", "Transpose",
})  # fmt: skip

Progress = Callable[[int, int], None]


class RangeMeter:
    """Runs a model on feeds and finds the ranges of some of its tensors.

    NaN and infinity are errors: no scale is right for them.

    Args:
        model: the model; it is not changed.
        names: float32 values of its main graph, by name.
        budget: bytes of outputs that may be held at one time.
        method: how ranges are chosen, see `onnxslim.calibration.ranges`.
    """

    def __init__(
        self,
        model: ir.Model,
        names: Sequence[str],
        budget: int = BUDGET,
        method: str = "minmax",
    ) -> None:
        check_method(method)
        self._method = method
        self._ranked = ranked_tensors(model)
        self._collector = Collector(model, names, budget=budget)

    @property
    def feeds(self) -> int:
        """Feeds so far."""
        return self._collector.feeds

    @property
    def notes(self) -> list[str]:
        """Conversions of inputs, one line each."""
        return list(self._collector.checker.notes)

    def add(self, feed: Mapping[str, Any]) -> None:
        """Takes in one feed.

        Raises:
            DataError: the feed does not fit the model, or a tensor gets NaN or infinity.
        """
        self._collector.add(feed)

    def choices(self) -> dict[str, Choice]:
        """The range by name with the method it is from; without tensors that held no element."""
        found = self._collector.statistics()
        seen = {name: one for name, one in found.items() if one.count}
        whole = {name: one for name, one in seen.items() if name in self._ranked}
        rest = {name: one for name, one in seen.items() if name not in self._ranked}
        chosen = choose_ranges(rest, self._method) | choose_ranges(whole, "minmax")
        return {name: chosen[name] for name in seen}

    def ranges(self) -> dict[str, Range]:
        """Lowest and highest value by name; tensors that held no element are not in it."""
        if self._method == "minmax":  # as measured: the range need not include zero
            found = self._collector.statistics()
            return {name: (one.low, one.high) for name, one in found.items() if one.count}
        return {name: choice.range for name, choice in self.choices().items()}


def ranked_tensors(model: ir.Model) -> set[str]:
    """Outputs, and scores that are only ranked or squashed on their way to one.

    The largest elements decide there; a range that cuts them off would make them equal.
    """
    found: set[str] = set()
    stack: list[ir.Value | None] = list(model.graph.outputs)
    while stack:
        value = stack.pop()
        if value is None or value.name in found:
            continue
        found.add(value.name or "")
        node = value.producer()
        if node is not None and node.op_type in _RANKING and node.inputs:
            stack.append(node.inputs[0])
    return found


def measure_ranges(
    model: ir.Model,
    names: Sequence[str],
    feeds: Iterable[Mapping[str, Any]],
    progress: Progress | None = None,
    method: str = "minmax",
) -> RangeMeter:
    """A `RangeMeter` that has seen all feeds.

    Raises:
        DataError: there are no feeds, one does not fit, or a tensor gets NaN or infinity.
        UsageError: no such method.
        RuntimeRefusedError: onnxruntime cannot open the model.
    """
    meter = RangeMeter(model, names, method=method)
    total = len(feeds) if isinstance(feeds, Sized) else 0
    for feed in feeds:
        meter.add(feed)
        if progress is not None:
            progress(meter.feeds, max(total, meter.feeds))
    if meter.feeds == 0:
        raise DataError("there are no calibration samples; static int8 needs some to find ranges")
    return meter


def check_feed(feed: Mapping[str, Any], specs: Sequence[InputSpec], number: int) -> Feed:
    """The feed with everything in its place.

    Args:
        feed: by input name.
        specs: the inputs of the model.
        number: of the feed, for messages.

    Raises:
        DataError: a missing or unknown name, or another dtype or shape than declared.
    """
    return FeedChecker(specs).feed(feed, Place(number))
