"""Looks for the plan that meets what was asked for, and for the repair that suits it best.

With an amount the plan is given. With a target, small steps are ordered by measured sensitivity and
taken until the target is met. Where the judge then finds the loss too large, steps are taken one by
one instead: one that breaks the limit is undone, and its group is left alone from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from onnxslim.errors import DemandMissedError
from onnxslim.ir.cost import snapshot
from onnxslim.pruning.allocation import LEVELS, Move, Plan, aligned, applied, greedy, most, uniform
from onnxslim.pruning.costs import CostModel, Speed, race
from onnxslim.pruning.criteria import Ranking
from onnxslim.pruning.cut import Cut, cut
from onnxslim.pruning.groups import Analysis, choose
from onnxslim.pruning.judge import Judge, Score
from onnxslim.pruning.repair import Repaired, adds_into_sums, repair, sweep_again
from onnxslim.pruning.sampling import Feeds, Teacher, with_noise
from onnxslim.rewrite.channels.atoms import Ids
from onnxslim.runtime.session import Session, open_session
from onnxslim.validated_run import Progress

_STRONGEST = "residual"
# A plan by formula is corrected by what it really costs so many times.
_CORRECTIONS = 4
_SENSITIVITY_FEEDS = 4
# Heads of an attention are left out for a trial where there are no more than these.
_TRIED_HEADS = 16


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


class Search:
    """One search over plans.

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
        status: ``done``, or ``interrupted`` by Ctrl-C.
        notes: for the report.
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
        self.status = "done"
        self.notes: list[str] = []
        self._ranking = ranking
        self._progress = progress
        self._teacher = Teacher(analysis.model, with_noise(feeds, seed), seed) if feeds else None
        self._everything = (
            Teacher(analysis.model, with_noise([*feeds, *held_out], seed), seed)
            if feeds and held_out
            else None
        )
        self._orders: dict[int, Ids] = {}
        self._best: Candidate | None = None
        self._costs = {name: CostModel(analysis, name) for name in ("macs", "size")}
        self._base = snapshot(analysis.model, 0)
        self._session: Session | None = None

    def run(self) -> Candidate:
        """The best model that meets what was asked for.

        Raises:
            DemandMissedError: a limit cannot be met; says which, and what can be reached.
        """
        try:
            return self._found()
        except KeyboardInterrupt:
            if self._best is None:
                raise
            self.status = "interrupted"
            self.notes.append("interrupted: the best model so far was kept")
            return self._best

    def _found(self) -> Candidate:
        if self.request.amount is not None:
            plan = uniform(self.analysis.groups, self.request.amount, self.request.align)
            if not any(plan):
                raise DemandMissedError(
                    f"amount {self.request.amount:g} is less than one channel of every group; "
                    "ask for more"
                )
            found = self._repaired_best(plan)
            return found if self._within(found) else self._step_by_step({}, found)
        targets = dict(self.request.target or {})
        if not targets:
            return self._step_by_step({}, None)
        found = self._repaired_best(self._plan_for(targets))
        return found if self._within(found) else self._step_by_step(targets, found)

    # -- candidates -------------------------------------------------------------------------------

    def _cut(self, plan: Plan) -> Cut:
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
        assert self._teacher is not None
        group = self.analysis.groups[number]
        gone: list[int] = []
        while len(gone) < group.size - 1:
            drifts = {}
            for unit in range(group.size):
                if unit not in gone:
                    dead = np.concatenate([group.units[one] for one in (*gone, unit)])
                    made = cut(self.analysis.model, dead)
                    fitted = repair(self._teacher, made, "least-squares", nearest=True)
                    drifts[unit] = self._drift(fitted.model)
            gone.append(min(drifts, key=lambda unit: drifts[unit]))
        return np.array([*gone, *(set(range(group.size)) - set(gone))], dtype=np.int64)

    def _repaired_best(self, plan: Plan) -> Candidate:
        """A plan under the rung that is judged best."""
        made = self._cut(plan)
        best: Candidate | None = None
        for repaired in self._ladder(made):
            candidate = self._judged(plan, repaired)
            if best is None or _score(candidate) > _score(best):
                best = candidate
                self._keep(best)
        assert best is not None
        return self._on_all_data(best, made)

    def _on_all_data(self, found: Candidate, made: Cut) -> Candidate:
        """The rung that was chosen, fitted on the held-out feeds too; the score stays what it was.

        More data makes a better fit. The held-out feeds have done their work by then, and what they
        said of the rung is the honest score.
        """
        if self._everything is None or found.rung in ("none", "bias", "affine"):
            return found
        kept, self._teacher = self._teacher, self._everything
        try:
            again = self._sweeps(made) if found.rung == "second-sweep" else None
            repaired = again or self._repair(made, found.rung)
        finally:
            self._teacher = kept
        refitted = self._judged(found.plan, repaired)
        if not self._within(refitted) or _score(refitted) < _score(found):
            return found
        return Candidate(found.plan, repaired.model, found.rung, found.score, repaired.notes)

    def _ladder(self, made: Cut) -> Iterator[Repaired]:
        """The repairs that come into question; only one where nothing tells which is best."""
        teacher, wanted = self._teacher, self.request.repair
        if teacher is None:
            yield Repaired(made.model, "none")
            return
        if wanted is not None or self.judge is None:
            rung = wanted or _STRONGEST
            yield self._sweeps(made) if rung == "second-sweep" else self._repair(made, rung)
            return
        for rung in ("none", "bias", "affine"):
            yield self._repair(made, rung)
        last = self._repair(made, "least-squares")
        yield last
        if adds_into_sums(made.model):
            last = self._repair(made, "residual")
            yield last
        yield sweep_again(teacher, made, last)

    def _repair(self, made: Cut, rung: str) -> Repaired:
        assert self._teacher is not None
        stage = f"repairing ({rung})"
        return repair(
            self._teacher, made, rung, lambda done, total: self._progress(stage, done, total)
        )

    def _sweeps(self, made: Cut) -> Repaired:
        assert self._teacher is not None
        return sweep_again(self._teacher, made, self._repair(made, _STRONGEST))

    def _judged(self, plan: Plan, repaired: Repaired) -> Candidate:
        score = self.judge.score(repaired.model) if self.judge is not None else None
        return Candidate(plan, repaired.model, repaired.rung, score, repaired.notes)

    def _within(self, candidate: Candidate) -> bool:
        if self.judge is None or candidate.score is None:
            return True
        return self.judge.within(candidate.score)

    def _keep(self, candidate: Candidate) -> None:
        """Remembers what to return if the search is interrupted now."""
        if self._within(candidate) and self._wanted(candidate.plan):
            self._best = candidate

    def _wanted(self, plan: Plan) -> bool:
        """Does a plan meet the targets, or the amount?"""
        if self.request.amount is not None:
            return _share(self.analysis, plan) >= self._share_asked() - 1e-9
        return all(
            self._cost(plan, name) <= share for name, share in (self.request.target or {}).items()
        )

    def _share_asked(self) -> float:
        amount = self.request.amount or 0.0
        plan = uniform(self.analysis.groups, amount, self.request.align)
        return _share(self.analysis, plan)

    # -- targets ----------------------------------------------------------------------------------

    def _cost(self, plan: Plan, name: str) -> float:
        """The cost of a plan as a share of what it was."""
        if name == "latency":
            return self._latency(self._cut(plan).model)
        model = self._costs[name]
        return model.cost(plan) / model.total if model.total else 1.0

    def _latency(self, model: ir.Model) -> float:
        if self._session is None:
            self._session = open_session(self.analysis.model, optimize=True, threads=1)
        other = open_session(model, optimize=True, threads=1)
        return race(self._session, other, self.feeds[0]).ratio

    def _plan_for(self, targets: dict[str, float]) -> Plan:
        """The first plan along the greedy order that meets every target.

        Raises:
            DemandMissedError: not even the last one does.
        """
        moves = self._moves(next(iter(targets)))
        asked = dict(targets)
        for _ in range(_CORRECTIONS):
            plan = self._shortest(moves, asked)
            real = self._real(plan, targets)
            missed = {name: share for name, share in real.items() if share > targets[name] + 1e-9}
            if not missed:
                return plan
            for name, share in missed.items():
                asked[name] *= targets[name] / share
        return plan

    def _real(self, plan: Plan, targets: dict[str, float]) -> dict[str, float]:
        """What a plan costs as it is cut, as shares; the latency is not measured again here."""
        taken = snapshot(self._cut(plan).model, 0)
        shares = {}
        if "size" in targets:
            shares["size"] = taken.weight_bytes / max(self._base.weight_bytes, 1)
        if "macs" in targets and taken.macs and self._base.macs:
            shares["macs"] = taken.macs / self._base.macs
        return shares

    def _shortest(self, moves: Sequence[Move], targets: dict[str, float]) -> Plan:
        groups = len(self.analysis.groups)

        def meets(plan: Plan) -> bool:
            return all(self._cost(plan, name) <= share for name, share in targets.items())

        low, high = 0, len(moves)
        if not meets(applied(moves, high, groups)):
            self._unreachable(applied(moves, high, groups), targets)
        while low < high:
            middle = (low + high) // 2
            if meets(applied(moves, middle, groups)):
                high = middle
            else:
                low = middle + 1
        plan = applied(moves, high, groups)
        return plan if "latency" in targets else self._given_back(plan, meets)

    def _given_back(self, plan: Plan, meets: Callable[[Plan], bool]) -> Plan:
        """The plan without units that the targets do not need, so that it ends close to them."""
        for number, group in enumerate(self.analysis.groups):
            while plan[number] > 0:
                step = max(group.step, self.request.align)
                less = aligned(group, max(0, plan[number] - step), self.request.align)
                trial = (*plan[:number], less, *plan[number + 1 :])
                if less >= plan[number] or not meets(trial):
                    break
                plan = trial
        return plan

    def _unreachable(self, plan: Plan, targets: dict[str, float]) -> None:
        reached = ", ".join(f"{name}={self._cost(plan, name):.2f}" for name in targets)
        asked = ", ".join(f"{name}={share:g}" for name, share in targets.items())
        raise DemandMissedError(
            f"target {asked} cannot be reached: with a tenth of every group left the model is at "
            f"{reached}; ask for that at most, or exclude less"
        )

    # -- sensitivity ------------------------------------------------------------------------------

    def _moves(self, cost: str) -> list[Move]:
        model = self._costs.get(cost, self._costs["macs"])
        if not model.total:
            model = self._costs["size"]
        return greedy(
            self.analysis.groups,
            [self._drifts(number) for number in range(len(self.analysis.groups))],
            lambda plan: model.total - model.cost(plan),
            self.request.align,
        )

    def _drifts(self, number: int) -> dict[int, float]:
        """How far the outputs drift when so many units of one group go and its readers adapt.

        Without data the drift is the square of the share: the same share of every group goes.
        """
        group, align = self.analysis.groups[number], self.request.align
        total = len(LEVELS) * len(self.analysis.groups)
        drifts: dict[int, float] = {}
        for place, level in enumerate(LEVELS):
            self._progress("measuring sensitivity", number * len(LEVELS) + place, total)
            count = aligned(group, min(round(level * group.size), most(group, align)), align)
            if count <= 0 or count in drifts:
                continue
            if self._teacher is None:
                drifts[count] = (count / group.size) ** 2
                continue
            plan = [0] * len(self.analysis.groups)
            plan[number] = count
            made = self._cut(tuple(plan))
            fitted = repair(self._teacher, made, "least-squares", nearest=True)
            drifts[count] = self._drift(fitted.model)
        return drifts

    def _drift(self, model: ir.Model) -> float:
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

    # -- guard ------------------------------------------------------------------------------------

    def _step_by_step(self, targets: dict[str, float], missed: Candidate | None) -> Candidate:
        """Small steps; one that breaks the limit is undone and its group frozen.

        Raises:
            DemandMissedError: the limit is reached before the target is.
        """
        moves = self._moves(next(iter(targets), "macs"))
        groups = len(self.analysis.groups)
        rung = missed.rung if missed is not None and self._teacher is not None else _STRONGEST
        start = self._longest_prefix(moves, rung)
        plan = applied(moves, start, groups)
        best = self._quick(plan, rung) if any(plan) else None
        frozen: set[int] = set()
        for number, move in enumerate(moves[start:]):
            self._progress("taking small steps", number, len(moves) - start)
            if best is not None and self._limited() and self._wanted(plan):
                break
            if move.group in frozen:
                continue
            trial = list(plan)
            trial[move.group] += move.units
            candidate = self._quick(tuple(trial), rung)
            if self._within(candidate):
                plan, best = candidate.plan, candidate
                self._keep(best)
            else:
                frozen.add(move.group)
        if best is None or (self._limited() and not self._wanted(plan)):
            self._miss(plan, targets, missed)
        final = self._repaired_best(plan)
        if self._within(final):
            return final
        assert best is not None
        return best

    def _limited(self) -> bool:
        """Is there an amount or a target, or only a limit to the loss?"""
        return self.request.amount is not None or bool(self.request.target)

    def _longest_prefix(self, moves: Sequence[Move], rung: str) -> int:
        """How many moves can be taken together within the limit, by bisection."""
        low, high = 0, len(moves)
        while low < high:
            middle = (low + high + 1) // 2
            plan = applied(moves, middle, len(self.analysis.groups))
            candidate = self._quick(plan, rung)
            if self._within(candidate):
                low = middle
                self._keep(candidate)
                if self._limited() and self._wanted(plan):
                    return low
            else:
                high = middle - 1
        return low

    def _quick(self, plan: Plan, rung: str) -> Candidate:
        """A plan under one rung."""
        made = self._cut(plan)
        if self._teacher is None or rung == "none":
            return self._judged(plan, Repaired(made.model, "none"))
        again = rung == "second-sweep"
        return self._judged(plan, self._sweeps(made) if again else self._repair(made, rung))

    def _miss(self, plan: Plan, targets: dict[str, float], missed: Candidate | None) -> None:
        judge = self.judge
        lost = ""
        if judge is not None and missed is not None and missed.score is not None:
            lost = f" ({judge.baseline} before, {missed.score} as asked for)"
        if targets:
            asked = ", ".join(f"{name}={share:g}" for name, share in targets.items())
            reached = ", ".join(f"{name}={self._cost(plan, name):.2f}" for name in targets)
        else:
            asked = f"amount {self.request.amount:g}" if self.request.amount else "any cut"
            reached = f"amount {_share(self.analysis, plan):.2f}"
        raise DemandMissedError(
            f"{asked} was missed: the limit of accuracy is broken first{lost}; within it "
            f"{reached} can be reached; ask for that, or allow a larger --max-drop"
        )


def _share(analysis: Analysis, plan: Plan) -> float:
    """The share of all units that goes."""
    return sum(plan) / max(1, sum(group.size for group in analysis.groups))


def _score(candidate: Candidate) -> tuple[float, float]:
    """What candidates for one plan are compared by; all are equal without a judge.

    Without labels closeness comes first: it says more than the few answers that flip.
    """
    score = candidate.score
    if score is None:
        return (0.0, 0.0)
    points = -np.inf if np.isnan(score.points) else score.points
    labelled = score.metric in ("top1", "psnr")
    return (points, score.closeness) if labelled else (score.closeness, points)


def measured_speed(before: ir.Model, after: ir.Model, feed: Any) -> Speed:
    """Times of two models on one thread, in turns."""
    first, second = (open_session(model, optimize=True, threads=1) for model in (before, after))
    return race(first, second, feed)
