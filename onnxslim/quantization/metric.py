"""Scores int8 candidates as they will be served: optimized, with the kernels of this processor.

What is measured depends on the data. ``top1``: percent of right answers on integer labels;
``psnr``: dB against labels that are outputs; ``custom``: a function of the user's. Without labels
the original stands in: ``agreement`` is the percent of its top-1 answers that stay the same, where
its first output is ``(samples, classes)``; ``fidelity`` is the percent of the outputs' energy that
is no error (99 are 20 dB of signal to noise).

A drop is in points: percent, dB for ``psnr``, and percent of the original's value for ``custom``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxslim.errors import DataError
from onnxslim.quantization import metric_rows as rows_of
from onnxslim.quantization.custom_metric import CustomMetric
from onnxslim.quantization.metric_rows import Points, Rows
from onnxslim.runtime.session import Session, open_session
from onnxslim.runtime.specs import Array
from onnxslim.validation.accuracy import AgreementMeter, OutputAgreement

Metric = Literal["top1", "psnr", "custom", "agreement", "fidelity"]

_CACHE_BYTES = 256 << 20  # answers of the original are kept up to this, and computed again beyond
_RESAMPLED = 1000  # sets for an interval
_DRAWS = 20_000_000  # and at most so many samples in all of them
_INTERVAL = (2.5, 97.5)

_POINTS: dict[str, Points] = {
    "top1": rows_of.percent,
    "psnr": rows_of.decibels,
    "custom": rows_of.plain_mean,
    "agreement": rows_of.percent,
    "fidelity": rows_of.kept_energy,
}


@dataclass(frozen=True)
class JudgeData:
    """What candidates are judged by.

    Attributes:
        feeds: inputs; none of them was used for calibration, if that can be.
        targets: labels, one per sample in order, or None.
        source: where they come from, for messages.
        metric: a function of the user's, instead of what the labels say.
    """

    feeds: Sequence[Mapping[str, Any]]
    targets: Array | None = None
    source: str = "calibration data"
    metric: CustomMetric | None = None


@dataclass(frozen=True)
class Score:
    """What a model is worth.

    Attributes:
        metric: what was measured.
        value: in percent, dB, or the user's unit; higher is better.
        drop: points below the original; negative where it is better.
        interval: of the drop, 95 percent, by paired bootstrap; None where samples have no numbers.
        samples: samples that were judged.
        outputs: closeness to the original by output.
        flips: samples whose top-1 answer is another than the original's; None for other outputs.
    """

    metric: Metric
    value: float
    drop: float
    interval: tuple[float, float] | None
    samples: int
    outputs: list[OutputAgreement] = field(default_factory=list)
    flips: int | None = None

    @property
    def closeness(self) -> float:
        """The lowest signal to noise ratio of the outputs, in dB."""
        found = [one.sqnr_db for one in self.outputs if one.sqnr_db is not None]
        return max(-rows_of.BEST_DB, min([*found, rows_of.BEST_DB]))

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what is infinite becomes None."""
        return {
            "metric": self.metric,
            "value": _finite(self.value),
            "drop": _finite(self.drop),
            "drop_interval_95": None if self.interval is None else list(self.interval),
            "samples": self.samples,
            "top1_flips": self.flips,
            "outputs": [
                {"name": one.name, "sqnr_db": _finite(one.sqnr_db), "top1": one.top1}
                for one in self.outputs
            ],
        }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


class Judge:
    """Scores candidates beside the original.

    Args:
        original: what candidates come from.
        data: what to judge by.
        threads: of the sessions; 0 lets onnxruntime choose.
        fake: run candidates with graph optimizations off: in the arithmetic that they describe,
            where the kernels of this processor are not those of the target.

    Attributes:
        metric: what is measured.
        baseline: the score of the original.

    Raises:
        DataError: nothing to judge by, labels that do not fit, or a metric that fails.
        RuntimeRefusedError: the original does not run on the data.
    """

    def __init__(
        self, original: ir.Model, data: JudgeData, *, threads: int = 0, fake: bool = False
    ) -> None:
        if not data.feeds:
            raise DataError(f"{data.source}: there are no samples to judge a result by")
        self._data, self._threads, self._fake = data, threads, fake
        self._session = open_session(original, optimize=True, threads=threads, prepack=True)
        self._names = self._session.output_names
        self._answers = self._remembered()
        self._peak = 0.0
        self.metric = self._kind()
        if self.metric == "psnr" and data.targets is not None:
            self._peak = float(np.abs(data.targets).max(initial=0.0))
        self._base_rows, self._base_value = self._measured(self.answers_of(self._session))
        self.baseline = self._finished(self._base_rows, self._base_value, [], None)

    def score(self, model: ir.Model) -> Score:
        """The score of a candidate.

        Raises:
            DataError: the metric fails.
            RuntimeRefusedError: it cannot be run.
        """
        session = open_session(model, optimize=not self._fake, threads=self._threads, prepack=True)
        meter = _Beside(AgreementMeter(self._names), self)
        found, value = self._measured(meter.through(session))
        return self._finished(found, value, meter.meter.result(), meter.flips)

    @property
    def is_stand_in(self) -> bool:
        """True when the original stands in for labels."""
        return self.metric in ("agreement", "fidelity")

    @property
    def resolution(self) -> float:
        """Points that one sample weighs, where samples are right or wrong; else 0."""
        counted = self.metric in ("top1", "agreement")
        return 100 / max(len(self._base_rows), 1) if counted and self._base_rows is not None else 0

    def reference(self) -> Iterator[list[Any]]:
        """What the original answers, feed by feed."""
        if self._answers is not None:
            yield from self._answers
        else:
            yield from (self._session.run(feed) for feed in self._data.feeds)

    def _kind(self) -> Metric:
        if self._data.metric is not None:
            return "custom"
        if self._data.targets is not None:
            return "top1" if self._data.targets.dtype.kind in "iu" else "psnr"
        first = np.asarray(next(self.reference())[0])
        classes = first.ndim == 2 and first.shape[1] > 1 and first.dtype.kind == "f"
        return "agreement" if classes else "fidelity"

    def _remembered(self) -> list[list[Any]] | None:
        answers, size = [], 0
        for feed in self._data.feeds:
            answer = self._session.run(feed)
            size += sum(getattr(item, "nbytes", 0) for item in answer)
            if size > _CACHE_BYTES:
                return None
            answers.append(answer)
        return answers

    def answers_of(self, session: Session) -> Iterator[list[Any]]:
        """What a session answers, feed by feed."""
        if session is self._session:
            yield from self.reference()
        else:
            yield from (session.run(feed) for feed in self._data.feeds)

    def _measured(self, answers: Iterator[list[Any]]) -> tuple[Rows, float]:
        """Rows of all samples, and the metric's value."""
        custom = self._data.metric
        if custom is not None:
            result = custom.call(self._names, answers, self._data.targets)
            found = np.asarray(result, np.float64).reshape(-1, 1)
            return found, float(found.mean())
        parts, done = [], 0
        for answer, reference in zip(answers, self.reference(), strict=True):
            part = self._rows(answer, reference, done)
            done += len(part)
            parts.append(part)
        found = np.concatenate(parts)
        return found, _POINTS[self.metric](found.mean(axis=0))

    def _rows(self, answer: list[Any], reference: list[Any], done: int) -> Rows:
        first, targets, source = np.asarray(answer[0]), self._data.targets, self._data.source
        if self.metric == "top1" and targets is not None:
            return rows_of.top1_rows(first, targets[done:], source)
        if self.metric == "psnr" and targets is not None:
            return rows_of.psnr_rows(first, targets[done:], self._peak, source)
        if self.metric == "agreement":
            return rows_of.same_rows(np.asarray(reference[0]), first)
        return rows_of.energy_rows(reference, answer)

    def _finished(
        self, found: Rows, value: float, outputs: list[OutputAgreement], flips: int | None
    ) -> Score:
        drop = self._drop(self._base_value, value)
        interval = self._interval(found) if outputs else None
        return Score(self.metric, value, drop, interval, len(found), outputs, flips)

    def _drop(self, before: float, after: float) -> float:
        if self.metric == "custom":
            return 100 * (before - after) / abs(before) if before else before - after
        return 0.0 if before == after else before - after

    def _interval(self, found: Rows) -> tuple[float, float] | None:
        """Draws sets of samples, the same for both models."""
        count = len(found)
        if count < 2 or found.shape != self._base_rows.shape or not np.isfinite(found).all():
            return None
        rng, points = np.random.default_rng(0), _POINTS[self.metric]
        drops = []
        for _ in range(min(_RESAMPLED, max(_DRAWS // count, 100))):
            drawn = rng.integers(0, count, count)
            pair = (points(self._base_rows[drawn].mean(axis=0)), points(found[drawn].mean(axis=0)))
            drops.append(self._drop(*pair))
        low, high = np.percentile(drops, _INTERVAL)
        return float(low), float(high)


@dataclass
class _Beside:
    """Passes answers of a candidate on, and compares them with the original's on the way."""

    meter: AgreementMeter
    judge: Judge
    flips: int | None = None

    def through(self, session: Session) -> Iterator[list[Any]]:
        """The answers, feed by feed."""
        answers = self.judge.answers_of(session)
        for answer, reference in zip(answers, self.judge.reference(), strict=True):
            self.meter.add(reference, answer)
            one, other = np.asarray(reference[0]), np.asarray(answer[0])
            if one.ndim == 2 and one.shape[1] > 1 and one.shape == other.shape:
                different = int(np.count_nonzero(one.argmax(1) != other.argmax(1)))
                self.flips = (self.flips or 0) + different
            yield answer
