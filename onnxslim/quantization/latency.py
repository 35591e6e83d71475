"""Latency of several models beside each other, in the sessions that will serve.

Other work on a machine only ever makes a run slower, so models run in turn and the least time of
many rounds decides; the whole is repeated, and a claim has to hold every time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim.runtime.session import Session, open_session
from onnxslim.runtime.specs import Feed

_SECONDS = 0.6  # per series
_ROUNDS = (9, 400)  # at least and at most, per series
_SERIES = 3
_WARM_UP = 3
_LONG_MS = 5.0


@dataclass(frozen=True)
class Latency:
    """Times of one model in milliseconds.

    Attributes:
        least: of each series of rounds.
        p50: median over all rounds.
        p90: exceeded by one round in ten.
    """

    least: tuple[float, ...]
    p50: float
    p90: float

    @property
    def best(self) -> float:
        """The least time of all."""
        return min(self.least)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, in milliseconds."""
        return {"least_ms": self.best, "p50_ms": self.p50, "p90_ms": self.p90}


@dataclass(frozen=True)
class Pair:
    """Float and another form at one batch size.

    Attributes:
        batch: samples per run.
        before: the float model.
        after: the other form.
    """

    batch: int
    before: Latency
    after: Latency

    @property
    def ratios(self) -> list[float]:
        """How many times faster, per series, in ascending order."""
        pairs = zip(self.before.least, self.after.least, strict=True)
        return sorted(one / other for one, other in pairs)

    @property
    def speedup(self) -> float:
        """How many times faster: the least of all series, which noise cannot flatter."""
        return self.ratios[0]

    @property
    def typical(self) -> float:
        """The same, of the series in the middle."""
        return self.ratios[len(self.ratios) // 2]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, in milliseconds."""
        return {
            "batch": self.batch,
            "speedup": round(self.speedup, 3),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
        }


def gain(pairs: Sequence[Pair]) -> float:
    """Geometric mean of the speed-ups."""
    return float(np.exp(np.mean(np.log([one.speedup for one in pairs])))) if pairs else 1.0


def compare(
    before: ir.Model, after: ir.Model, feeds: Mapping[int, Feed], *, threads: int = 1
) -> list[Pair]:
    """Times two models at several batch sizes.

    Args:
        before: the float model.
        after: another form of it.
        feeds: by batch size, small ones first; once a run takes more than 5 ms larger ones are
            left out, since they would show the same.
        threads: of the sessions.

    Raises:
        RuntimeRefusedError: one cannot be opened or run.
    """
    found: list[Pair] = []
    for batch, feed in feeds.items():
        times = race({"before": before, "after": after}, feed, threads=threads)
        found.append(Pair(batch, times["before"], times["after"]))
        if times["before"].best > _LONG_MS:
            break
    return found


def race(models: Mapping[str, ir.Model], feed: Feed, *, threads: int = 1) -> dict[str, Latency]:
    """Times models in turn.

    Args:
        models: by label.
        feed: for all of them.
        threads: of every session; 0 lets onnxruntime choose.

    Raises:
        RuntimeRefusedError: one cannot be opened or run.
    """
    sessions = {
        label: open_session(model, optimize=True, threads=threads, prepack=True)
        for label, model in models.items()
    }
    for session in sessions.values():
        for _ in range(_WARM_UP):
            session.run(feed)
    series = [_series(sessions, feed) for _ in range(_SERIES)]
    return {label: _summed([one[label] for one in series]) for label in models}


def _series(sessions: Mapping[str, Session], feed: Feed) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {label: [] for label in sessions}
    started = time.perf_counter()
    for number in range(_ROUNDS[1]):
        if number >= _ROUNDS[0] and time.perf_counter() - started > _SECONDS:
            break
        for label, session in sessions.items():
            begun = time.perf_counter()
            session.run(feed)
            times[label].append((time.perf_counter() - begun) * 1000)
    return times


def _summed(series: Sequence[Sequence[float]]) -> Latency:
    together = np.concatenate([np.asarray(one) for one in series])
    p50, p90 = np.percentile(together, [50, 90])
    return Latency(tuple(min(one) for one in series), float(p50), float(p90))
