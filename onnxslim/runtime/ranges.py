"""Smallest and largest value of inner tensors over many feeds, in memory that does not grow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim.errors import DataError, RuntimeRefusedError
from onnxslim.io import load
from onnxslim.ir.edit import Names
from onnxslim.runtime.session import Session, open_session
from onnxslim.runtime.specs import Array, Feed, InputSpec, dtype_name, input_specs, shape_text

Progress = Callable[[int, int], None]
Range = tuple[float, float]

# Tensors held at one time, in bytes; a group of outputs that needs more is split.
_BUDGET = 256 * 1024 * 1024


class RangeMeter:
    """Runs a model on feeds and keeps the range of some of its tensors.

    The tensors become outputs, in groups that fit a memory budget, so shapes may change from feed
    to feed. NaN and infinity are errors: no scale is right for them.

    Args:
        model: the model; it is not changed.
        names: float32 values of its main graph, by name.
        budget: bytes of outputs that may be held at one time.
    """

    def __init__(self, model: ir.Model, names: Sequence[str], budget: int = _BUDGET) -> None:
        inputs = {value.name for value in model.graph.inputs}
        self._specs = input_specs(model)
        self._inputs = [name for name in names if name in inputs]
        self._inner = [name for name in names if name not in inputs]
        self._budget = budget
        self._session, self._shape_names = _open(model, self._inner)
        self._groups: dict[tuple[Any, ...], list[list[str]]] = {}
        self._ranges: dict[str, Range] = {}
        self.feeds = 0

    def add(self, feed: Mapping[str, Any]) -> None:
        """Widens the ranges by one feed.

        Raises:
            DataError: the feed does not fit the model, or a tensor gets NaN or infinity.
        """
        checked = check_feed(feed, self._specs, self.feeds)
        for name in self._inputs:
            self._widen(name, checked[name])
        try:
            for group in self._groups_for(checked):
                for name, content in zip(group, self._session.run(checked, group), strict=True):
                    self._widen(name, content)
        except RuntimeRefusedError as error:
            raise DataError(f"calibration sample {self.feeds}: {error}") from error
        self.feeds += 1

    def ranges(self) -> dict[str, Range]:
        """Lowest and highest value by name; tensors that held no element are not in it."""
        return dict(self._ranges)

    def _widen(self, name: str, content: Array) -> None:
        if not content.size:
            return
        low, high = float(content.min()), float(content.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            bad = content.size - int(np.isfinite(content).sum())
            raise DataError(
                f"calibration sample {self.feeds}: tensor {name!r} holds {bad} NaN or infinite "
                "values, for which there is no int8 scale; leave the sample out or correct it"
            )
        known = self._ranges.get(name, (low, high))
        self._ranges[name] = (min(known[0], low), max(known[1], high))

    def _groups_for(self, feed: Feed) -> list[list[str]]:
        """Outputs to ask for together; the sizes are measured once for each set of input shapes."""
        key = tuple((name, np.shape(feed[name])) for name in sorted(feed))
        if key not in self._groups:
            shapes = self._session.run(feed, self._shape_names) if self._inner else []
            sizes = [4 * int(np.prod(shape, dtype=np.int64)) for shape in shapes]
            self._groups = {key: list(_grouped(self._inner, sizes, self._budget))}
        return self._groups[key]


def measure_ranges(
    model: ir.Model,
    names: Sequence[str],
    feeds: Iterable[Mapping[str, Any]],
    progress: Progress | None = None,
) -> RangeMeter:
    """A `RangeMeter` that has seen all feeds.

    Raises:
        DataError: there are no feeds, one does not fit, or a tensor gets NaN or infinity.
        RuntimeRefusedError: onnxruntime cannot open the model.
    """
    meter = RangeMeter(model, names)
    total = len(feeds) if isinstance(feeds, Sized) else 0
    for feed in feeds:
        meter.add(feed)
        if progress is not None:
            progress(meter.feeds, max(total, meter.feeds))
    if meter.feeds == 0:
        raise DataError("there are no calibration samples; static int8 needs some to find ranges")
    return meter


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


def _open(model: ir.Model, names: Sequence[str]) -> tuple[Session, list[str]]:
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
    return open_session(copy, optimize=False), shape_names


def check_feed(feed: Mapping[str, Any], specs: Sequence[InputSpec], number: int) -> Feed:
    """The feed with everything in its place.

    Args:
        feed: by input name.
        specs: the inputs of the model.
        number: of the feed, for messages.

    Raises:
        DataError: a missing or unknown name, or another dtype or shape than declared.
    """
    known = {spec.name: spec for spec in specs}
    where = f"calibration sample {number}"
    for name in feed:
        if name not in known:
            raise DataError(f"{where}: {name!r} is no input; inputs: {', '.join(known)}")
    checked: Feed = {}
    for name, spec in known.items():
        if name in feed:
            checked[name] = _checked(feed[name], spec, where)
        elif spec.required:
            raise DataError(f"{where}: no value for input {spec}")
    return checked


def _checked(content: Any, spec: InputSpec, where: str) -> Any:
    if spec.kind != "tensor" or spec.dtype is None:
        return content
    if not isinstance(content, np.ndarray | np.generic):
        raise DataError(f"{where}: input {spec.name} is {type(content).__name__}, not an array")
    array = np.asarray(content)
    if array.dtype != spec.numpy_dtype and spec.dtype != ir.DataType.STRING:
        raise DataError(
            f"{where}: input {spec.name} is {array.dtype} but the model wants "
            f"{dtype_name(spec.dtype)}; convert it"
        )
    dims = spec.shape
    if dims is not None and (
        len(dims) != array.ndim
        or any(isinstance(d, int) and d != n for d, n in zip(dims, array.shape, strict=True))
    ):
        raise DataError(
            f"{where}: input {spec.name} has shape {list(array.shape)} but the model wants "
            f"{shape_text(dims)}"
        )
    return array
