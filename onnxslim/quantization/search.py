"""Looks for the int8 form that keeps the target, from the cheapest to the most careful.

Levels: the preset as it is; equalized; without kinds of operators that int8 often hurts; with the
worst regions in float, as few as bisection finds enough; of these, given back what is not needed.
Every candidate is quantized from ranges that are known and scored as it will be served.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from onnxslim.calibration.store import Calibration
from onnxslim.errors import InvalidModelError, OnnxSlimError
from onnxslim.quantization.engine import Prepared, QuantPlan, candidates, quantize_once
from onnxslim.quantization.equalize import correct_biases, equalize
from onnxslim.quantization.metric import Judge, Score
from onnxslim.quantization.ranking import Region, rank
from onnxslim.quantization.report import QuantizeReport
from onnxslim.quantization.selection import INT8_OPS, MATRIX_OPS
from onnxslim.runtime.specs import Feed

# More than this share of the limit, or an output with less than so many dB, is worth another try.
_COMFORT, _COMFORT_DB = 0.5, 30.0

# Sums, tables and curves, whose int8 forms lose most; the others only move numbers or follow.
_CAREFUL = frozenset({"Add", "Concat", "LeakyRelu", "Mul", "Sigmoid", "Softmax", "Where"})

_GATE_RESERVE = 4  # evaluations that are kept for the forms that the gate may try
_SLACK = 1e-9

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Candidate:
    """A quantized model and how it came about.

    Attributes:
        level: of the search, in words.
        model: int8.
        report: of the engine.
        plan: for `quantize_once`.
        prepared: the float model that was quantized.
        calibration: of that.
        score: None where there is nothing to judge by.
        corrected: biases were corrected after quantizing.
    """

    level: str
    model: ir.Model
    report: QuantizeReport
    plan: QuantPlan
    prepared: Prepared
    calibration: Calibration
    score: Score | None = None
    corrected: bool = False


@dataclass(frozen=True)
class Limits:
    """What a search may lose and spend.

    Attributes:
        drop: points.
        evaluations: candidates that may be scored.
        equalizes: may the float model be equalized?
    """

    drop: float
    evaluations: int
    equalizes: bool = True


@dataclass
class Search:
    """One search.

    Args:
        judge: None where there is nothing to judge by; then the preset's form is the result.
        sample: calibration feeds in memory.
        limits: what it may lose and spend.
        recalibrate: measures ranges of an equalized model on all feeds.
        progress: called with (stage, done, total).

    Attributes:
        best: the best candidate so far.
        evaluations: scored so far.
        ranking: regions, the worst first, where that had to be found out.
        notes: what was tried, one line each.
        interrupted: by Ctrl-C; ``best`` is the best until then.
        equalized: steps of equalization that were kept.
    """

    judge: Judge | None
    sample: Sequence[Feed]
    limits: Limits
    recalibrate: Callable[[Prepared, QuantPlan], Calibration]
    progress: Progress
    best: Candidate | None = None
    evaluations: int = 0
    ranking: list[Region] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False
    equalized: tuple[str, ...] = ()

    def run(self, prepared: Prepared, calibration: Calibration, plan: QuantPlan) -> Candidate:
        """The first candidate that keeps the target, or the best of all.

        Raises:
            InvalidModelError: nothing to quantize, or a result that onnxruntime does not run.
        """
        try:
            self._levels(prepared, calibration, plan)
        except KeyboardInterrupt:
            if self.best is None:
                raise
            self.interrupted = True
            self.notes.append("interrupted: this is the best until then")
        assert self.best is not None
        return self.best

    def meets(self, score: Score | None) -> bool:
        """Does a score keep the target? True where there is nothing to judge by."""
        return score is None or score.drop <= self.limits.drop + _SLACK

    @property
    def left(self) -> int:
        """Evaluations that the search may still spend."""
        most = max(1, self.limits.evaluations - _GATE_RESERVE)
        return most - self.evaluations

    def attempt(self, level: str, base: Candidate, plan: QuantPlan) -> Candidate | None:
        """Quantizes and scores one plan; None when it leaves nothing in int8."""
        try:
            model, report = quantize_once(base.prepared, base.calibration, plan)
        except InvalidModelError:
            return None
        made = replace(
            base, level=level, model=model, report=report, plan=plan, score=None, corrected=False
        )
        return self.scored(made)

    def scored(self, candidate: Candidate) -> Candidate:
        """The candidate with its score; the better one of it and the best is remembered."""
        self.progress("evaluating", self.evaluations, self.limits.evaluations)
        if self.judge is not None:
            self.evaluations += 1
            score = self.judge.score(candidate.model)
            candidate = replace(candidate, score=score)
            self.notes.append(f"{candidate.level}: {self.words(score)}")
        if self.best is None or self._is_better(candidate, self.best):
            self.best = candidate
        return candidate

    def words(self, score: Score) -> str:
        """A score in a line."""
        unit = "dB" if score.metric == "psnr" else "points"
        return f"{score.drop:.2f} {unit} lost, {score.closeness:.1f} dB"

    def _is_better(self, one: Candidate, other: Candidate) -> bool:
        """Smaller drops first; among equal ones, and such well within the target, the closer."""
        if one.score is None or other.score is None:
            return False
        if self.meets(one.score) != self.meets(other.score):
            return self.meets(one.score)
        both_fit = self._fits_well(one.score) and self._fits_well(other.score)
        if not both_fit and abs(one.score.drop - other.score.drop) > _SLACK:
            return one.score.drop < other.score.drop
        return one.score.closeness > other.score.closeness

    def _levels(self, prepared: Prepared, calibration: Calibration, plan: QuantPlan) -> None:
        model, report = quantize_once(prepared, calibration, plan)
        start = Candidate("preset", model, report, plan, prepared, calibration)
        self.scored(start)
        if self.judge is None or self._comfortable():
            return
        if self.limits.equalizes and plan.engine == "onnxslim":
            self._equalized(start)
        if not self._is_met():
            self._without_kinds(plan)
        if not self._is_met():
            self._with_regions_in_float(plan)
        if not self._comfortable():
            self.corrected()

    def _is_met(self) -> bool:
        return self.best is not None and self.meets(self.best.score)

    def _comfortable(self) -> bool:
        score = self.best.score if self.best is not None else None
        if score is None or not self.meets(score):
            return False
        return self._fits_well(score) and score.closeness >= _COMFORT_DB

    def _fits_well(self, score: Score) -> bool:
        """Far enough within the target that a few samples do not matter."""
        return score.drop <= max(self.limits.drop, 0.0) * _COMFORT + _SLACK

    def _equalized(self, start: Candidate) -> None:
        if self.left < 1:
            return
        self.progress("equalizing", 0, 1)
        found = equalize(
            start.prepared,
            self.sample,
            start.plan,
            progress=lambda done, total: self.progress("equalizing", done, total),
        )
        self.notes.extend(str(note) for note in found.notes if note.kept)
        self.equalized = tuple(
            note.step for note in found.notes if note.kept and note.site == "model"
        )
        if found.prepared is not start.prepared:
            calibration = self.recalibrate(found.prepared, start.plan)
            base = replace(start, prepared=found.prepared, calibration=calibration)
            self.attempt("equalized", base, start.plan)
        if not self._comfortable():
            self.corrected()

    def corrected(self) -> None:
        """Corrects biases of the best candidate, and keeps that where it gets no worse."""
        base = self.best
        if base is None or base.corrected or base.plan.form != "qdq" or self.left < 1:
            return
        if base.plan.dynamic or not self.limits.equalizes or self.judge is None:
            return
        self.progress("correcting biases", 0, 1)
        try:
            model, found = correct_biases(base.prepared.model, base.model, self.sample)
        except OnnxSlimError as error:
            self.notes.append(f"biases were not corrected: {error}")
            return
        if model is base.model:
            return
        made = self.scored(
            replace(base, level=f"{base.level}, biases corrected", model=model, corrected=True)
        )
        if self.best is made:
            self.notes.extend(str(note) for note in found if note.kept)

    def _without_kinds(self, plan: QuantPlan) -> None:
        """Leaves kinds of operators, the first and last product, or both in float."""
        base = self.best
        assert base is not None
        full = set(candidates(base.prepared, plan))
        names = list(base.prepared.names)
        products = [n for n in names if n in full and self._op(base, n) in MATRIX_OPS]
        ends = frozenset({products[0], products[-1]}) if len(products) > 2 else frozenset()
        kinds = tuple(sorted(set(plan.op_types or INT8_OPS) - _CAREFUL))
        has_kinds = any(self._op(base, name) in _CAREFUL for name in full)
        tries = []
        if has_kinds:
            tries.append(("sums and curves in float", replace(plan, op_types=kinds)))
        if ends:
            ended = replace(plan, float_nodes=plan.float_nodes | ends)
            tries.append(("first and last product in float", ended))
            if has_kinds:
                tries.append(("both of these", replace(ended, op_types=kinds)))
        for level, one in tries:
            if self.left < 1:
                return
            made = self.attempt(level, base, one)
            if made is not None and self.meets(made.score):
                return

    @staticmethod
    def _op(base: Candidate, name: str) -> str:
        return base.prepared.names[name].op_type

    def _with_regions_in_float(self, plan: QuantPlan) -> None:
        """Takes the worst regions back to float: as few as bisection finds, then fewer."""
        assert self.best is not None
        base = replace(self.best, plan=plan, corrected=False)
        self.rank(base)
        order = self.ranking
        low, high = 1, len(order) - 1
        found: tuple[int, Candidate] | None = None
        while low <= high and self.left > 0:
            middle = (low + high) // 2
            made = self._fallen(base, plan, order[:middle])
            if made is not None and self.meets(made.score):
                found, high = (middle, made), middle - 1
            else:
                low = middle + 1
        if found is not None:
            self._given_back(base, plan, order[: found[0]])

    def rank(self, base: Candidate) -> None:
        """Fills the ranking."""
        self.ranking = rank(
            base.prepared,
            base.calibration,
            base.plan,
            self.sample,
            lambda done, total: self.progress("ranking operators", done, total),
        )

    def _fallen(
        self, base: Candidate, plan: QuantPlan, parts: Sequence[Region]
    ) -> Candidate | None:
        names = frozenset(name for part in parts for name in part.nodes)
        level = f"{len(parts)} of {len(self.ranking)} regions in float"
        made = self.attempt(level, base, replace(plan, float_nodes=plan.float_nodes | names))
        if made is None:
            return None
        if self.meets(made.score):
            self.best = made  # also where one with more in float would be closer
        return made

    def _given_back(self, base: Candidate, plan: QuantPlan, fallen: Sequence[Region]) -> None:
        """Tries to return regions to int8, the least harmful first; the last was needed."""
        kept = list(fallen)
        for part in list(reversed(fallen))[1:]:
            if self.left < 1:
                self.notes.append("more regions might go back to int8: evaluations were used up")
                return
            fewer = [one for one in kept if one is not part]
            made = self._fallen(base, plan, fewer)
            if made is not None and self.meets(made.score):
                kept = fewer
