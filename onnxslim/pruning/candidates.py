"""Candidates for a plan: which units go, the cut, and the repair that is judged best."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from onnxslim.pruning.allocation import Plan
from onnxslim.pruning.criteria import Ranking
from onnxslim.pruning.cut import Cut, cut
from onnxslim.pruning.descent import can_descend, descend, trial
from onnxslim.pruning.groups import Analysis, Group, choose
from onnxslim.pruning.judge import Judge, Score
from onnxslim.pruning.mixtures import Mixtures
from onnxslim.pruning.repair import Repaired, adds_into_sums, repair, sweep_again
from onnxslim.pruning.sampling import Feeds, Teacher, with_noise
from onnxslim.rewrite.channels.atoms import Ids
from onnxslim.runtime.session import open_session
from onnxslim.validated_run import Progress

STRONGEST = "residual"
"""The rung of least squares that is taken where nothing tells which is best."""

_SENSITIVITY_FEEDS = 4
# Heads of an attention are left out for a trial where there are no more than these.
_TRIED_HEADS = 16
_DESCENDED_HEADS = 8


class Asked(Protocol):
    """The part of a request that matters here."""

    @property
    def amount(self) -> float | None:
        """Share of every group that goes."""

    @property
    def target(self) -> Any:
        """Shares of costs by name, or None."""

    @property
    def criterion(self) -> str | None:
        """What orders the units."""

    @property
    def repair(self) -> str | None:
        """The rung, or None for the best."""

    @property
    def align(self) -> int:
        """What stays is a multiple of it."""


@dataclass
class Candidate:
    """A pruned and repaired model.

    Attributes:
        plan: units gone per group.
        model: the model.
        rung: how it was repaired.
        score: by the judge, where there is one.
        notes: from the repair.
    """

    plan: Plan
    model: ir.Model
    rung: str
    score: Score | None = None
    notes: list[str] = field(default_factory=list)


Keep = Callable[[Candidate], None]


class Candidates:
    """Makes candidates of plans.

    Args:
        analysis: the walked model and its groups.
        ranking: orders the units of a group.
        request: what is asked for.
        feeds: to fit on; may be empty.
        judge: None where there is nothing to judge by.
        seed: of sampled positions and of noise.
        progress: called with (stage, done, total).
        held_out: feeds of the judge that have no labels, for the last fit.

    Attributes:
        fits: there is data to fit on.
    """

    def __init__(
        self,
        analysis: Analysis,
        ranking: Ranking,
        request: Asked,
        feeds: Feeds,
        judge: Judge | None,
        seed: int,
        progress: Progress,
        held_out: Feeds = (),
    ) -> None:
        self.analysis = analysis
        self.request = request
        self.feeds = feeds
        self.judge = judge
        self.fits = bool(feeds)
        self._ranking = ranking
        self._progress = progress
        self._seed = seed
        self._teacher, self._tutor = self._teachers(feeds)
        self._everything = self._teachers([*feeds, *held_out]) if feeds and held_out else None
        self._orders: dict[int, Ids] = {}

    def _teachers(self, feeds: Feeds) -> tuple[Teacher | None, Teacher | None]:
        """For least squares, and for a descent, which needs many more samples."""
        if not feeds:
            return None, None
        model, seed = self.analysis.model, self._seed
        noisy, mixed = with_noise(feeds, seed), Mixtures(feeds, seed)
        return Teacher(model, noisy, seed), Teacher(model, mixed, seed)

    def cut(self, plan: Plan) -> Cut:
        dead = [self._chosen(number, count) for number, count in enumerate(plan) if count]
        none = np.zeros(0, dtype=np.int64)
        return cut(self.analysis.model, np.concatenate(dead) if dead else none)

    def _chosen(self, number: int, count: int) -> Ids:
        group = self.analysis.groups[number]
        if number not in self._orders:
            self._progress("ranking channels", number, len(self.analysis.groups))
            tried = group.kind == "heads" and group.size <= _TRIED_HEADS
            if tried and self.request.criterion == "obs" and self._teacher is not None:
                self._orders[number] = self._by_trial(number)
            else:
                self._orders[number] = self._ranking.order(group, self.request.criterion or "l2")
        return choose(group, self._orders[number], count)

    def _by_trial(self, number: int) -> Ids:
        """Heads in the order of the least drift: each is left out for a trial, the rest refitted.

        What a head does for the outputs shows poorly in the layer that reads it, and there are few.
        """
        group = self.analysis.groups[number]
        gone: list[int] = []
        while len(gone) < group.size - 1:
            drifts = {}
            for unit in range(group.size):
                if unit not in gone:
                    drifts[unit] = self._without(group, (*gone, unit))
            gone.append(min(drifts, key=lambda unit: drifts[unit]))
        return np.array([*gone, *(set(range(group.size)) - set(gone))], dtype=np.int64)

    def _without(self, group: Group, units: tuple[int, ...]) -> float:
        """What is lost without some heads, when the rest has been refitted.

        A head can be replaced by what the others learn to look at, which only a descent tells; it
        takes a second or more, so where there are many heads least squares has to do.
        """
        assert self._teacher is not None
        assert self._tutor is not None
        made = cut(self.analysis.model, np.concatenate([group.units[one] for one in units]))
        found = trial(self._tutor, made) if group.size <= _DESCENDED_HEADS else None
        if found is None:
            fitted = repair(self._teacher, made, "least-squares", nearest=True)
            found = self.drift(fitted.model)
        return found

    def best(self, plan: Plan, keep: Keep) -> Candidate:
        """A plan under the rung that is judged best; ``keep`` sees each that is better."""
        made = self.cut(plan)
        best: Candidate | None = None
        for repaired in self._ladder(made):
            candidate = self._judged(plan, repaired)
            if best is None or score_of(candidate) > score_of(best):
                best = candidate
                keep(best)
        assert best is not None
        return self._on_all_data(best, made)

    def _on_all_data(self, found: Candidate, made: Cut) -> Candidate:
        """The rung that was chosen, fitted on the held-out feeds too; the score stays what it was.

        More data makes a better fit. The held-out feeds have done their work by then, and what they
        said of the rung is the honest score.
        """
        if self._everything is None or found.rung in ("none", "bias", "affine"):
            return found
        kept = self._teacher, self._tutor
        self._teacher, self._tutor = self._everything
        try:
            descended = found.rung == "descent" and can_descend(self.analysis.model, made)
            # A descent goes on from where it came to, which the judge has seen already.
            start = found.model if descended else None
            repaired = self._descended(made, start) if descended else self._repair(made, found.rung)
        finally:
            self._teacher, self._tutor = kept
        refitted = self._judged(found.plan, repaired)
        if not self.within(refitted) or score_of(refitted) < score_of(found):
            return found
        return Candidate(found.plan, repaired.model, found.rung, found.score, repaired.notes)

    def _ladder(self, made: Cut) -> Iterator[Repaired]:
        """The repairs that come into question; only one where nothing tells which is best."""
        teacher, wanted = self._teacher, self.request.repair
        if teacher is None:
            yield Repaired(made.model, "none")
            return
        if wanted is not None or self.judge is None:
            rung = wanted or STRONGEST
            yield self._repair(made, rung)
            return
        for rung in ("none", "bias", "affine"):
            yield self._repair(made, rung)
        last = self._repair(made, "least-squares")
        yield last
        if adds_into_sums(made.model):
            last = self._repair(made, "residual")
            yield last
        yield sweep_again(teacher, made, last)
        if can_descend(self.analysis.model, made):
            yield self._descended(made)

    def _repair(self, made: Cut, rung: str) -> Repaired:
        """Any rung from the start."""
        assert self._teacher is not None
        if rung == "second-sweep":
            return sweep_again(self._teacher, made, self._repair(made, STRONGEST))
        if rung == "descent" and can_descend(self.analysis.model, made):
            return self._descended(made)
        if rung == "descent":
            found = self._repair(made, STRONGEST)
            found.notes.append(
                f"descent: there is no attention, or an operator without a derivative; {STRONGEST} "
                "was used"
            )
            return found
        stage = f"repairing ({rung})"
        return repair(
            self._teacher, made, rung, lambda done, total: self._progress(stage, done, total)
        )

    def _descended(self, made: Cut, start: ir.Model | None = None) -> Repaired:
        """The last rung, from the cut itself: what least squares came to is harder to leave.

        Or from what a descent made of it.
        """
        assert self._tutor is not None
        model = descend(
            self._tutor,
            made,
            start,
            lambda done, total: self._progress("repairing (descent)", done, total),
        )
        return Repaired(model, "descent")

    def _judged(self, plan: Plan, repaired: Repaired) -> Candidate:
        score = self.judge.score(repaired.model) if self.judge is not None else None
        return Candidate(plan, repaired.model, repaired.rung, score, repaired.notes)

    def within(self, candidate: Candidate) -> bool:
        if self.judge is None or candidate.score is None:
            return True
        return self.judge.within(candidate.score)

    def quick(self, plan: Plan, rung: str) -> Candidate:
        """A plan under one rung."""
        made = self.cut(plan)
        if self._teacher is None or rung == "none":
            return self._judged(plan, Repaired(made.model, "none"))
        return self._judged(plan, self._repair(made, rung))

    def drift(self, model: ir.Model) -> float:
        """The squared error of the outputs relative to the original's, over some feeds."""
        first = open_session(self.analysis.model, optimize=False)
        second = open_session(model, optimize=False)
        signal = noise = 0.0
        for feed in self.feeds[:_SENSITIVITY_FEEDS]:
            for one, other in zip(first.run(feed), second.run(feed), strict=True):
                if isinstance(one, np.ndarray) and one.dtype.kind == "f":
                    wide = one.astype(np.float64)
                    signal += float(np.square(wide).sum())
                    noise += float(np.square(wide - other).sum())
        return noise / signal if signal > 0 and np.isfinite(noise) else 1.0

    def drift_of(self, plan: Plan) -> float:
        """The drift of a plan whose readers adapt, those behind them not."""
        assert self._teacher is not None
        fitted = repair(self._teacher, self.cut(plan), "least-squares", nearest=True)
        return self.drift(fitted.model)


def score_of(candidate: Candidate) -> tuple[float, float]:
    """What candidates for one plan are compared by; all are equal without a judge.

    Without labels closeness comes first: it says more than the few answers that flip.
    """
    score = candidate.score
    if score is None:
        return (0.0, 0.0)
    points = -np.inf if np.isnan(score.points) else score.points
    labelled = score.metric in ("top1", "psnr")
    return (points, score.closeness) if labelled else (score.closeness, points)
