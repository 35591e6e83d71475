"""Runs models on calibration feeds and keeps a bounded sample of what flows through them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.pruning.layers import Ids, Layer, Rows
from onnxslim.runtime.session import Session, open_session

Array = npt.NDArray[Any]
Feeds = Sequence[Mapping[str, Any]]

# Rows that a fit sees at least, where the data has them, and per unknown.
_MIN_ROWS = 8192
_ROWS_PER_UNKNOWN = 6
# Noise that is added to inputs, relative to their standard deviation, and how many copies get it.
_NOISE = 0.25
_MOST_COPIES = 7
_ENOUGH_SAMPLES = 2048
# The rows of one fit, in float32.
_ROW_BYTES = 256 << 20
# What the original answered is kept up to so many bytes, and computed again beyond.
_CACHE_BYTES = 256 << 20


@contextlib.contextmanager
def _with_outputs(model: ir.Model, names: Sequence[str]) -> Iterator[None]:
    """Makes inner values graph outputs while the block runs."""
    values = {
        value.name: value for node in model.graph for value in node.outputs if value.name in names
    }
    added = [value for value in values.values() if not value.is_graph_output()]
    model.graph.outputs.extend(added)
    try:
        yield
    finally:
        for value in added:
            model.graph.outputs.remove(value)


def open_tapped(model: ir.Model, names: Sequence[str]) -> Session:
    """Opens a model so that the named inner values can be asked for as outputs."""
    with _with_outputs(model, names):
        return open_session(model, optimize=False)


def run_tapped(
    model: ir.Model, names: Sequence[str], feeds: Feeds
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Runs a model and gives the named values, feed by feed; names of inputs give the input.

    Raises:
        RuntimeRefusedError: the model does not run on the feeds.
    """
    inputs = {value.name for value in model.graph.inputs}
    asked = [name for name in dict.fromkeys(names) if name not in inputs]
    session = open_tapped(model, asked) if asked else None
    for feed in feeds:
        answers = session.run(feed, asked) if session is not None else []
        found = dict(zip(asked, answers, strict=True))
        for name in names:
            if name in inputs:
                found[name] = np.asarray(feed[name])
        yield found


def row_count(layer: Layer) -> int:
    """How many rows a fit of this layer wants, within the memory that it may take."""
    most = _ROW_BYTES // (4 * layer.groups * layer.unknowns)
    return max(1, min(most, max(_MIN_ROWS, _ROWS_PER_UNKNOWN * layer.unknowns)))


def positions(layer: Layer, output: Array, number: int, feeds: int, seed: int) -> Ids:
    """Places of an output that are sampled in one feed: the same for the same arguments.

    Args:
        layer: whose output it is.
        output: its output, or another value of the same shape but for the channels.
        number: the number of the feed.
        feeds: how many feeds there are.
        seed: of the whole run.
    """
    places = layer.places(output)
    rows = -(-row_count(layer) // feeds)
    wanted = -(-rows // layer.rows_per_place(output))
    open_places = np.arange(places, dtype=np.int64)
    if layer.tokens is not None:
        open_places = open_places[np.isin(open_places % output.shape[-2], list(layer.tokens))]
    if wanted >= len(open_places):
        return open_places
    rng = np.random.default_rng([seed, number, places])
    return np.sort(rng.choice(open_places, size=wanted, replace=False)).astype(np.int64)


def with_noise(feeds: Feeds, seed: int) -> list[Mapping[str, Any]]:
    """The feeds, and copies of them with noise on float inputs, where there are few samples.

    The original answers noisy inputs as well as clean ones, so they are as good for a fit; they
    keep it from learning the few samples by heart. Inputs of other types are copied as they are.

    Args:
        feeds: the calibration feeds.
        seed: of the noise.
    """
    samples = sum(samples_of(feed) for feed in feeds)
    spread = spread_of(feeds)
    copies = min(_MOST_COPIES, _ENOUGH_SAMPLES // max(samples, 1) - 1)
    result = list(feeds)
    if not spread or samples < 2:
        return result
    for copy in range(max(copies, 0)):
        for number, feed in enumerate(feeds):
            rng = np.random.default_rng([seed, copy, number])
            noisy = dict(feed)
            for name, size in spread.items():
                content = np.asarray(feed[name])
                noise = rng.standard_normal(content.shape) * (size * _NOISE)
                noisy[name] = (content + noise).astype(content.dtype)
            result.append(noisy)
    return result


def first_samples(feeds: Feeds, samples: int) -> list[Mapping[str, Any]]:
    """The first feeds that hold so many samples together, or all of them."""
    found: list[Mapping[str, Any]] = []
    for feed in feeds:
        if samples <= 0:
            break
        found.append(feed)
        samples -= samples_of(feed)
    return found


def samples_of(feed: Mapping[str, Any]) -> int:
    """The first dimension of the first array that has one."""
    shapes = [np.shape(content) for content in feed.values()]
    return next((shape[0] for shape in shapes if shape), 1)


def spread_of(feeds: Feeds) -> dict[str, float]:
    """The standard deviation of each float input, over all feeds."""
    found: dict[str, float] = {}
    for name, first in feeds[0].items() if feeds else ():
        if np.asarray(first).dtype.kind == "f":
            parts = [np.asarray(feed[name], dtype=np.float64) for feed in feeds if name in feed]
            mean = float(np.mean([part.mean() for part in parts]))
            size = float(np.sqrt(np.mean([np.square(part - mean).mean() for part in parts])))
            if size > 0 and np.isfinite(size):
                found[name] = size
    return found


class Teacher:
    """The original model, for the values that a cut model should reproduce.

    Args:
        model: the original.
        feeds: the calibration feeds.
        seed: of the sampled positions.
    """

    def __init__(self, model: ir.Model, feeds: Feeds, seed: int) -> None:
        self.model = model
        self.feeds = feeds
        self.seed = seed
        self._cache: dict[tuple[str, int], list[npt.NDArray[np.float32]]] = {}
        self._bytes = 0

    def targets(self, layer: Layer, name: str) -> Iterator[Rows]:
        """Rows of a value of the original at the positions that are sampled for a layer."""
        key = (name, row_count(layer))
        cached = self._cache.get(key)
        if cached is not None:
            yield from (rows.astype(np.float64) for rows in cached)
            return
        kept: list[npt.NDArray[np.float32]] = []
        for number, values in enumerate(run_tapped(self.model, [name], self.feeds)):
            output = values[name]
            places = positions(layer, output, number, len(self.feeds), self.seed)
            rows = layer.targets(output, places)
            kept.append(rows.astype(np.float32))
            yield rows
        size = sum(rows.nbytes for rows in kept)
        if self._bytes + size <= _CACHE_BYTES:
            self._cache[key] = kept
            self._bytes += size
