"""Scores candidates on data that no fit has seen, in points, higher is better.

``Judge(original, data).score(model) -> Score``; ``Judge.baseline`` is the score of the original and
``Judge.drop(score)`` how many points a candidate lies below it. What a point is depends on the
data:

* ``top1``: percent of right answers on labelled data (a point is one percent of the samples);
* ``psnr``: dB against labelled outputs (a point is one dB);
* ``agreement``: percent of the original's top-1 answers that are the same, without labels, where
  the first output is ``(samples, classes)``;
* ``similarity``: 100 minus the error of the outputs relative to the original's, in percent, for
  other outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxslim.errors import DemandMissedError, UsageError
from onnxslim.pruning.data import PruningData
from onnxslim.runtime.session import Session, open_session
from onnxslim.validation.accuracy import Accuracy, AgreementMeter, measure_labelled

Metric = Literal["top1", "psnr", "agreement", "similarity"]

# Answers of the original are kept up to so many bytes, and computed again beyond.
_CACHE_BYTES = 256 << 20
# PSNR beyond this many dB counts as equal.
_BEST_PSNR = 150.0


@dataclass(frozen=True, order=True)
class Score:
    """How good a candidate is; compares by points, and by closeness to the original among equals.

    Attributes:
        points: see the module; higher is better.
        closeness: ratio of output to deviation from the original in dB, over all float outputs.
        metric: what the points are.
        samples: rows or samples that were judged.
    """

    points: float
    closeness: float
    metric: Metric
    samples: int

    def __str__(self) -> str:
        """``top-1 96.90 %``, ``PSNR 31.20 dB``, ``agreement 99.10 %``, ``similarity 97.40 %``."""
        name = {"top1": "top-1", "psnr": "PSNR"}.get(self.metric, self.metric)
        return f"{name} {self.points:.2f} {'dB' if self.metric == 'psnr' else '%'}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data; a closeness that is infinite becomes None."""
        closeness = self.closeness if math.isfinite(self.closeness) else None
        return {
            "metric": self.metric,
            "points": self.points,
            "closeness_db": closeness,
            "samples": self.samples,
        }


class Judge:
    """Compares candidates with the original on the guard data.

    Args:
        original: what candidates come from, with the same inputs and outputs.
        data: with labels or guard feeds.

    Attributes:
        baseline: the score of the original.

    Raises:
        UsageError: there is nothing to judge by.
        RuntimeRefusedError: the original does not run on the data.
        DataError: labels that do not fit the first output.
    """

    def __init__(self, original: ir.Model, data: PruningData) -> None:
        if not data.judged:
            raise UsageError("there is no data to judge a pruned model by")
        self._labels = data.labels
        self._feeds: Sequence[Mapping[str, Any]] = (
            data.labels.feeds if data.labels is not None else data.guard
        )
        self._max_drop = data.max_drop
        self._session = open_session(original, optimize=True)
        self._answers: list[list[Any]] | None = None
        self._remember()
        self.baseline = self._scored(self._session)

    def score(self, model: ir.Model) -> Score:
        """The score of a candidate.

        Raises:
            RuntimeRefusedError: it cannot be run.
        """
        return self._scored(open_session(model, optimize=True))

    def drop(self, score: Score) -> float:
        """Points below the original; negative where the candidate is better."""
        return self.baseline.points - score.points

    def within(self, score: Score) -> bool:
        """Does a candidate keep to the limit? True when there is none."""
        limit = self._max_drop
        return limit is None or (self.drop(score) <= limit + 1e-9 and not math.isnan(score.points))

    def demand(self, score: Score) -> None:
        """Insists on the limit.

        Raises:
            DemandMissedError: the candidate lies below it; says by how much.
        """
        if self.within(score):
            return
        drop, limit = self.drop(score), self._max_drop or 0.0
        unit = "dB" if score.metric == "psnr" else "points"
        raise DemandMissedError(
            f"--max-drop {limit:g} was missed by {drop - limit:.2f} {unit}: {self.baseline} "
            f"before, {score} after on {score.samples} samples ({self.basis}); prune less, "
            "or allow a larger drop"
        )

    @property
    def basis(self) -> str:
        """What was judged by, in words."""
        if self._labels is not None:
            return "labelled data"
        return "agreement with the original on held-out calibration data, which has no labels"

    def _remember(self) -> None:
        answers, size = [], 0
        for feed in self._feeds:
            answer = self._session.run(feed)
            size += sum(getattr(item, "nbytes", 0) for item in answer)
            if size > _CACHE_BYTES:
                return
            answers.append(answer)
        self._answers = answers

    def _scored(self, session: Session) -> Score:
        meter = AgreementMeter(session.output_names)
        signal = noise = 0.0
        for number, feed in enumerate(self._feeds):
            known = self._answers
            reference = known[number] if known is not None else self._session.run(feed)
            answer = reference if session is self._session else session.run(feed)
            meter.add(reference, answer)
            signal, noise = _energies(reference, answer, signal, noise)
        closeness = _decibel(signal, noise)
        if self._labels is not None:
            return _labelled(measure_labelled(session, self._labels), closeness)
        first = meter.result()[0]
        if first.top1 is not None:
            return Score(100 * first.top1, closeness, "agreement", self._rows())
        return Score(_similarity(signal, noise), closeness, "similarity", self._rows())

    def _rows(self) -> int:
        """Samples in the guard feeds, by the first dimension of their first array."""
        shapes = [np.shape(next(iter(feed.values()))) for feed in self._feeds if feed]
        return sum(int(shape[0]) if shape else 1 for shape in shapes)


def _labelled(accuracy: Accuracy, closeness: float) -> Score:
    if accuracy.metric == "top1":
        return Score(100 * accuracy.value, closeness, "top1", accuracy.samples)
    value = -math.inf if math.isnan(accuracy.value) else min(accuracy.value, _BEST_PSNR)
    return Score(value, closeness, "psnr", accuracy.samples)


def _energies(
    reference: Sequence[Any], answer: Sequence[Any], signal: float, noise: float
) -> tuple[float, float]:
    """Adds the energies of the outputs and of their deviations; a misfit is infinitely noisy."""
    for one, other in zip(reference, answer, strict=True):
        if not isinstance(one, np.ndarray) or one.dtype.kind != "f":
            continue
        wide = one.astype(np.float64)
        signal += float(np.square(wide).sum())
        other = np.asarray(other)
        if one.shape != other.shape:
            noise = math.inf
            continue
        part = float(np.square(wide - other.astype(np.float64)).sum())
        noise += part if math.isfinite(part) else math.inf
    return signal, noise


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    if signal == 0 or not math.isfinite(noise):
        return -math.inf
    return 10 * math.log10(signal / noise)


def _similarity(signal: float, noise: float) -> float:
    if noise == 0:
        return 100.0
    if signal == 0 or not math.isfinite(noise):
        return -math.inf
    return 100 * (1 - math.sqrt(noise / signal))
