"""Lets an int8 model pass only where it is faster here, and offers cheaper forms otherwise.

In turn: full int8; int8 in fewer places, or with activations rounded while the model runs; int8
weights that come back as floats when the model is opened (a quarter of the size at the speed of
float); the float model. Every step down has its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import onnx_ir as ir

from onnxslim.compression.run import weight_only_int8
from onnxslim.errors import OnnxSlimError
from onnxslim.quantization.latency import Pair, compare, gain
from onnxslim.quantization.metric import Score
from onnxslim.quantization.search import Candidate, Search
from onnxslim.quantization.selection import MATRIX_OPS
from onnxslim.runtime.loaded import loaded_graph
from onnxslim.runtime.specs import Feed

WORTH = 1.05
"""int8 has to be this many times faster than float, as a geometric mean over batch sizes."""

# What two models of the same speed can differ by in the least of many times; and what one graph can
# differ by from itself on a busy machine, where it is known to be the same graph.
_NOISE, _SAME_GRAPH = 0.99, 0.95

Status = Literal["quantized", "int8-weights", "kept-fp32", "target-not-met"]

# Operators that move numbers or follow a product at no cost: they stay beside the products.
_ALONG = frozenset({"Clip", "Flatten", "MaxPool", "Relu", "Reshape", "Squeeze", "Unsqueeze"})


@dataclass
class Decision:
    """What the gate lets through.

    Attributes:
        status: ``quantized``, ``int8-weights``, ``kept-fp32`` or ``target-not-met``.
        form: what was taken, in words.
        model: the result.
        score: of the result; None where there is nothing to judge by.
        candidate: its int8 form; None when the result is none.
        reasons: of every form that was not taken, one line each.
        times: of the float model and the result, by batch size; empty where not measured.
        tried: forms with their speed-up.
    """

    status: Status
    form: str
    model: ir.Model
    score: Score | None
    candidate: Candidate | None
    reasons: list[str] = field(default_factory=list)
    times: list[Pair] = field(default_factory=list)
    tried: list[dict[str, Any]] = field(default_factory=list)

    @property
    def gain(self) -> float:
        """How many times faster than float; 1 where it was not measured."""
        return gain(self.times)

    @property
    def is_slower(self) -> bool:
        """True where a batch size shows it, beyond the noise of the measurement."""
        least = _SAME_GRAPH if self.status == "int8-weights" else _NOISE
        return any(one.typical < least for one in self.times)


@dataclass
class Gate:
    """Decides which form is written.

    Args:
        model: the float model that came in.
        search: with the judge and what it may spend.
        feeds: what latency is measured with, by batch size.
        threads: of the sessions.
        force: full int8 passes whatever it costs.
        verifiable: False where this processor cannot show what the target does.
        progress: called with (stage, done, total).
    """

    model: ir.Model
    search: Search
    feeds: Mapping[int, Feed]
    threads: int
    force: bool
    verifiable: bool
    progress: Callable[[str, int, int], None]

    def decide(self, candidate: Candidate) -> Decision:
        """What to write instead of, or as, the best int8 candidate."""
        decision = self._of("quantized", candidate.level, candidate)
        if not self.verifiable:
            decision.reasons.append(
                "latency was not measured: this processor does not stand for the target"
            )
            return self._judged(decision)
        if not self.search.meets(candidate.score) and not self.force:
            return self._missed(candidate)
        self._time(decision)
        if self._passes(decision):
            return self._judged(decision)
        decision.reasons.append(self._slow("full int8", decision))
        if self.force:
            decision.reasons.append("written all the same, because --force asks for it")
            return self._judged(decision)
        best = self._cheaper(candidate, decision.reasons, decision.tried)
        if best is None:
            best = self._weights_only(decision.reasons, decision.tried)
        if best is None:
            best = self._kept(decision)
        best.reasons, best.tried = decision.reasons, decision.tried
        return best

    def _of(self, status: Status, form: str, candidate: Candidate) -> Decision:
        return Decision(status, form, candidate.model, candidate.score, candidate)

    def _judged(self, decision: Decision) -> Decision:
        if not self.search.meets(decision.score):
            decision.status = "target-not-met"
        return decision

    def _missed(self, candidate: Candidate) -> Decision:
        """No int8 form keeps the target: perhaps its weights alone do."""
        assert candidate.score is not None
        words = self.search.words(candidate.score)
        reasons = [f"no int8 form that was tried keeps the target; the best: {words}"]
        tried: list[dict[str, Any]] = []
        best = self._weights_only(reasons, tried)
        if best is None:
            best = self._of("target-not-met", candidate.level, candidate)
            self._time(best)
            if best.is_slower:
                reasons.append(self._slow("int8", best))
                best = self._kept(best)
                best.status = "target-not-met"
        best.reasons, best.tried = reasons, tried
        return best

    def _time(self, decision: Decision) -> None:
        """Fills in the latencies."""
        self.progress("measuring latency", 0, 1)
        decision.times = compare(self.model, decision.model, self.feeds, threads=self.threads)
        decision.tried.append(
            {"form": decision.form, **{f"batch {p.batch}": p.speedup for p in decision.times}}
        )

    def _passes(self, decision: Decision) -> bool:
        return decision.gain >= WORTH and not decision.is_slower

    def _slow(self, form: str, decision: Decision) -> str:
        speeds = " and ".join(f"{p.typical:.2f} (batch {p.batch})" for p in decision.times)
        what = "is slower here" if decision.is_slower else "is hardly faster here"
        return f"{form} {what}: {speeds} times the speed of float"

    def _cheaper(
        self, base: Candidate, reasons: list[str], tried: list[dict[str, Any]]
    ) -> Decision | None:
        """The fastest of the forms that do less, when one is fast and good enough."""
        best: Decision | None = None
        for form, made in self._forms(base):
            if self.search.evaluations >= self.search.limits.evaluations:
                reasons.append(f"{form} was not tried: evaluations were used up")
                continue
            try:
                candidate = self.search.attempt(form, base, made)
                if candidate is None:
                    continue
                decision = self._of("quantized", form, candidate)
                if not self.search.meets(candidate.score):
                    assert candidate.score is not None
                    reasons.append(f"{form}: {self.search.words(candidate.score)}, too much")
                    continue
                self._time(decision)
            except OnnxSlimError as error:
                reasons.append(f"{form} does not run here: {error}")
                continue
            tried.extend(decision.tried)
            if not self._passes(decision):
                reasons.append(self._slow(form, decision))
            elif best is None or decision.gain > best.gain:
                best = decision
        return best

    def _forms(self, base: Candidate) -> list[tuple[str, Any]]:
        plan, names = base.plan, base.prepared.names
        operators = {node.op_type for node in names.values()}
        found = []
        products = tuple(sorted(MATRIX_OPS | _ALONG))
        if operators & MATRIX_OPS:
            found.append(("int8 in products only", replace(plan, op_types=products)))
        if "MatMul" in operators and not plan.preset.constant_matmul_only:
            narrow = replace(plan.preset, constant_matmul_only=True)
            found.append(("int8 in products with weights only", replace(plan, preset=narrow)))
        if "MatMul" in operators or ("Gemm" in operators and "Conv" not in operators):
            found.append(("activations rounded at run time", replace(plan, dynamic=True)))
        return found

    def _weights_only(self, reasons: list[str], tried: list[dict[str, Any]]) -> Decision | None:
        """int8 weights, float arithmetic."""
        form = "int8 weights, float arithmetic"
        try:
            model, _ = weight_only_int8(self.model)
            if not _has_stored(self.model, model):
                reasons.append(f"{form}: no weight is worth it")
                return None
            score = None
            if self.search.judge is not None:
                score = self.search.judge.score(model)
                if not self.search.meets(score):
                    reasons.append(f"{form}: {self.search.words(score)}, too much")
                    return None
            decision = Decision("int8-weights", form, model, score, None)
            self._time(decision)
        except OnnxSlimError as error:
            reasons.append(f"{form} does not run here: {error}")
            return None
        tried.extend(decision.tried)
        if self._runs_other_graph(model) or decision.is_slower:
            reasons.append(self._slow(form, decision))
            return None
        return decision

    def _runs_other_graph(self, model: ir.Model) -> bool:
        """True when onnxruntime does not fold the way back of the weights."""
        before, after = (loaded_graph(one).operators for one in (self.model, model))
        return before != after

    def _kept(self, decision: Decision) -> Decision:
        score = None if self.search.judge is None else self.search.judge.score(self.model)
        kept = Decision("kept-fp32", "float", self.model, score, None)
        kept.times = [Pair(one.batch, one.before, one.before) for one in decision.times]
        return kept


def _has_stored(before: ir.Model, after: ir.Model) -> bool:
    """True when weights became smaller."""
    sizes = []
    for model in (before, after):
        tensors = (value.const_value for value in model.graph.initializers.values())
        sizes.append(sum(one.nbytes for one in tensors if one is not None))
    return sizes[1] < sizes[0]
