"""Looks for the plan that meets what was asked for, and for the repair that suits it best.

With an amount the plan is given. With a target, small steps are ordered by measured sensitivity and
taken until the target is met. Where the judge then finds the loss too large, steps are taken one by
one instead: one that breaks the limit is undone, and its group is left alone from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

from onnxslim.errors import DemandMissedError
from onnxslim.ir.cost import snapshot
from onnxslim.pruning.allocation import Move, Plan, aligned, applied, uniform
from onnxslim.pruning.candidates import STRONGEST, Asked, Candidate, Candidates
from onnxslim.pruning.costs import Speed, race
from onnxslim.pruning.criteria import Ranking
from onnxslim.pruning.groups import Analysis
from onnxslim.pruning.judge import Judge
from onnxslim.pruning.sampling import Feeds
from onnxslim.pruning.sensitivity import Sensitivity
from onnxslim.runtime.session import Session, open_session
from onnxslim.validated_run import Progress

# A plan by formula is corrected by what it really costs so many times.
_CORRECTIONS = 4


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
        self._progress = progress
        self._candidates = Candidates(
            analysis, ranking, request, feeds, judge, seed, progress, held_out
        )
        self._sensitivity = Sensitivity(self._candidates, progress)
        self._best: Candidate | None = None
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
            found = self._candidates.best(plan, self._keep)
            return found if self._candidates.within(found) else self._step_by_step({}, found)
        targets = dict(self.request.target or {})
        if not targets:
            return self._step_by_step({}, None)
        found = self._candidates.best(self._plan_for(targets), self._keep)
        return found if self._candidates.within(found) else self._step_by_step(targets, found)

    def _keep(self, candidate: Candidate) -> None:
        """Remembers what to return if the search is interrupted now."""
        if self._candidates.within(candidate) and self._wanted(candidate.plan):
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
            return self._latency(self._candidates.cut(plan).model)
        model = self._sensitivity.costs[name]
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
        moves = self._sensitivity.moves(next(iter(targets)))
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
        taken = snapshot(self._candidates.cut(plan).model, 0)
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

    # -- guard ------------------------------------------------------------------------------------

    def _step_by_step(self, targets: dict[str, float], missed: Candidate | None) -> Candidate:
        """Small steps; one that breaks the limit is undone and its group frozen.

        Raises:
            DemandMissedError: the limit is reached before the target is.
        """
        moves = self._sensitivity.moves(next(iter(targets), "macs"))
        groups = len(self.analysis.groups)
        rung = missed.rung if missed is not None and self._candidates.fits else STRONGEST
        # A descent at every step would take too long; the last plan gets it.
        rung = STRONGEST if rung == "descent" else rung
        start = self._longest_prefix(moves, rung)
        plan = applied(moves, start, groups)
        best = self._candidates.quick(plan, rung) if any(plan) else None
        frozen: set[int] = set()
        for number, move in enumerate(moves[start:]):
            self._progress("taking small steps", number, len(moves) - start)
            if best is not None and self._limited() and self._wanted(plan):
                break
            if move.group in frozen:
                continue
            trial = list(plan)
            trial[move.group] += move.units
            candidate = self._candidates.quick(tuple(trial), rung)
            if self._candidates.within(candidate):
                plan, best = candidate.plan, candidate
                self._keep(best)
            else:
                frozen.add(move.group)
        if best is None or (self._limited() and not self._wanted(plan)):
            self._miss(plan, targets, missed)
        final = self._candidates.best(plan, self._keep)
        if self._candidates.within(final):
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
            candidate = self._candidates.quick(plan, rung)
            if self._candidates.within(candidate):
                low = middle
                self._keep(candidate)
                if self._limited() and self._wanted(plan):
                    return low
            else:
                high = middle - 1
        return low

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


def measured_speed(before: ir.Model, after: ir.Model, feed: Any) -> Speed:
    """Times of two models on one thread, in turns."""
    first, second = (open_session(model, optimize=True, threads=1) for model in (before, after))
    return race(first, second, feed)
