"""Data of one quantization: what ranges are measured on, and what the result is judged by.

The two are kept apart. With labels (or a metric and labels) the judge has that file; without them
every fourth feed of the calibration data is held out for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim.calibration.checks import BadNumbersError, FeedChecker, Place, batch_of
from onnxslim.calibration.feeds import FeedMaker
from onnxslim.calibration.image_options import parse_options
from onnxslim.calibration.streams import FeedStream, describe_inputs, open_feeds
from onnxslim.errors import DataError
from onnxslim.quantization.custom_metric import find_metric
from onnxslim.quantization.metric import JudgeData
from onnxslim.quantization.replay import read_recipe
from onnxslim.quantization.request import Quantization
from onnxslim.runtime.specs import Array, Feed, InputSpec, input_specs
from onnxslim.validation.accuracy import read_labelled

_BATCH = 32  # samples that are run at a time
_FEEDS = 16  # feeds there should be at least, so that some can be held out
_HELD_OUT = 4  # every so many-th feed
_SAMPLE_BYTES = 128 << 20  # of feeds in memory, for each of the steps that need some
_SAMPLES = 512
_RANDOM_FEEDS = 16


@dataclass
class QuantData:
    """Data of one run.

    Attributes:
        stream: feeds for ranges, one in memory at a time.
        judging: what results are judged by; None for made-up data.
        specs: the inputs of the model.
        notes: what was left out or assumed, one line each.
        held_out: some of the calibration samples judge, and are not in ``stream``.
        known: hashes of the samples that ranges were measured on, filled while they are read.
    """

    stream: FeedStream
    judging: JudgeData | None
    specs: list[InputSpec]
    notes: list[str] = field(default_factory=list)
    held_out: bool = False
    known: dict[bytes, None] = field(default_factory=dict)

    def hashed(self) -> FeedStream:
        """The stream, which notes the hash of every sample on its way."""
        return replace(self.stream, loaders=lambda: self._noting())

    def _noting(self) -> Iterator[tuple[Place, Callable[[], Any]]]:
        self.known.clear()
        checker = FeedChecker(self.specs)
        for place, load in self.stream.loaders():
            yield place, partial(self._noted, load, checker, place)

    def _noted(self, load: Callable[[], Any], checker: FeedChecker, place: Place) -> Any:
        item = load()
        self.known.update(dict.fromkeys(_hashes(checker.feed(item, place), self.specs)))
        return item

    @property
    def digest(self) -> str:
        """sha256 in hex over the samples that were read, in order."""
        return hashlib.sha256(b"".join(self.known)).hexdigest()

    def sample(self) -> list[Feed]:
        """Feeds in memory: all of them where they are few."""
        return _within_memory(self.stream, self.specs, skip_bad=True)

    def shared(self) -> str | None:
        """A warning when samples that judge were used for ranges as well."""
        if self.judging is None or self.judging.targets is None:
            return None
        judged = [one for feed in self.judging.feeds for one in _hashes(feed, self.specs)]
        both = sum(one in self.known for one in judged)
        if not both:
            return None
        return (
            f"{both} of {len(judged)} labelled samples are in the calibration data too: the "
            "accuracy may look better than it is; keep the two apart"
        )


def read_data(model: ir.Model, request: Quantization) -> QuantData:
    """Opens the data and checks it as far as that is possible without reading it all.

    Raises:
        DataError: none, or data that does not fit the model.
        UsageError: a function that cannot be imported.
    """
    specs = input_specs(model)
    if request.random_data:
        return _made_up(model, specs, request.seed)
    if request.calibration is None:
        raise DataError(
            "static int8 needs calibration data: give --calibration FILE.npz with "
            f"{describe_inputs(specs)}; --random-data shows size and speed without any"
        )
    stream = _opened(request, specs)
    data = QuantData(stream, None, specs, list(stream.notes))
    holds_out = request.labels is None
    if request.recipe is not None:
        holds_out = read_recipe(request.recipe).held_out
    if holds_out:
        _hold_out(data, request.skip_bad)
    metric = find_metric(request.metric)
    if request.labels is not None:
        labelled = read_labelled(model, request.labels, batch_size=_BATCH)
        data.judging = JudgeData(labelled.feeds, labelled.targets, labelled.source, metric)
    elif data.judging is not None:
        data.judging = replace(data.judging, metric=metric)
    else:
        _judge_on_all(data, request.skip_bad)
    return data


def _opened(request: Quantization, specs: list[InputSpec]) -> FeedStream:
    source = request.calibration
    if isinstance(source, Iterator):  # it can be read only once
        source = list(source)
    images = parse_options(list(request.images))
    stream = open_feeds(source, specs, batch_size=_BATCH, images=images)
    if stream.count is not None and 0 < stream.count < _FEEDS:
        size = max(1, stream.count * _BATCH // _FEEDS)
        stream = open_feeds(source, specs, batch_size=size, images=images)
    return stream


def _hold_out(data: QuantData, skip_bad: bool) -> None:
    """Takes every fourth feed away for the judge."""
    stream = data.stream
    judged = _within_memory(_taken(stream, _is_held_out), data.specs, skip_bad=skip_bad)
    if not judged:
        _judge_on_all(data, skip_bad)
        return
    data.stream = _taken(stream, lambda number: not _is_held_out(number))
    data.held_out = True
    data.judging = JudgeData(judged, None, f"held-out samples of {stream.source}")


def _judge_on_all(data: QuantData, skip_bad: bool) -> None:
    """Judges on what ranges were measured on, and says so."""
    judged = _within_memory(data.stream, data.specs, skip_bad=skip_bad)
    if not judged:
        raise DataError(
            f"{data.stream.source}: there are no calibration samples; static int8 needs some to "
            "find ranges"
        )
    data.notes.append(
        "no calibration samples were held out: the result was judged on samples that ranges were "
        "measured on"
    )
    data.judging = JudgeData(judged, None, f"samples of {data.stream.source}")


def _is_held_out(number: int) -> bool:
    return number % _HELD_OUT == _HELD_OUT - 1


def _taken(stream: FeedStream, wanted: Callable[[int], bool]) -> FeedStream:
    """Some of the feeds, by their number."""

    def loaders() -> Iterable[tuple[Place, Callable[[], Any]]]:
        return (item for number, item in enumerate(stream.loaders()) if wanted(number))

    count = stream.count
    if count is not None:
        count = sum(map(wanted, range(count)))
    return replace(stream, loaders=loaders, count=count)


def _within_memory(stream: FeedStream, specs: list[InputSpec], *, skip_bad: bool) -> list[Feed]:
    """The first feeds, as many as fit; those with NaN or infinity are left out or refused."""
    found: list[Feed] = []
    size = samples = 0
    checker = FeedChecker(specs)
    for place, item in stream.raw():
        feed = checker.feed(item, place)
        try:
            checker.finite(feed, place)
        except BadNumbersError:
            if not skip_bad:
                raise
            continue
        found.append(feed)
        size += sum(getattr(value, "nbytes", 0) for value in feed.values())
        samples += batch_of(feed, specs)
        if size > _SAMPLE_BYTES or samples >= _SAMPLES:
            break
    return found


def _hashes(feed: Mapping[str, Any], specs: list[InputSpec]) -> list[bytes]:
    """One hash per sample: over its rows of the inputs, in the order of the model."""
    arrays = [np.asarray(feed[spec.name]) for spec in specs if feed.get(spec.name) is not None]
    count = batch_of(feed, specs)
    return [_hash(array[row : row + 1] if len_of(array) == count else array for array in arrays)
            for row in range(count)]  # fmt: skip


def len_of(array: Array) -> int:
    """Length of the first axis; 0 for a scalar."""
    return len(array) if array.ndim else 0


def _hash(parts: Iterable[Array]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part.dtype}{part.shape}".encode())
        digest.update(str(part.tolist()).encode() if part.dtype == object else part.tobytes())
    return digest.digest()


def _made_up(model: ir.Model, specs: list[InputSpec], seed: int) -> QuantData:
    maker = FeedMaker(model, seed=seed)
    feeds = [maker.make(next(maker.plans(number)), number) for number in range(_RANDOM_FEEDS)]
    note = (
        "RANDOM DATA: ranges are not representative and nothing is known of the accuracy; the "
        "result shows size and speed only, do not deploy it"
    )
    return QuantData(open_feeds(feeds, specs), None, specs, [note])


def single(feed: Mapping[str, Any], specs: list[InputSpec], batch: int) -> Feed:
    """A feed with so many samples, where the model leaves that open."""
    count = batch_of(feed, specs)
    result: Feed = {}
    for spec in specs:
        value = feed.get(spec.name)
        if value is None:
            continue
        is_open = spec.shape is None or (spec.shape and not isinstance(spec.shape[0], int))
        if isinstance(value, np.ndarray) and len_of(value) == count and is_open:
            times = -(-batch // count)
            value = np.concatenate([value] * times)[:batch] if times > 1 else value[:batch]
        result[spec.name] = value
    return result
