"""Static int8 from a float model and data to a result that is judged, or the float model."""

from __future__ import annotations

import time
from dataclasses import replace

import onnx_ir as ir

from onnxslim.calibration.checks import batch_of
from onnxslim.calibration.run import calibrate, model_digest
from onnxslim.calibration.store import Calibration
from onnxslim.compression.run import weight_only_int8
from onnxslim.errors import DataError, DemandMissedError, InvalidModelError, RuntimeRefusedError
from onnxslim.quantization.checks import check_conversion, check_result
from onnxslim.quantization.data import QuantData, single
from onnxslim.quantization.engine import (
    Prepared,
    QuantPlan,
    prepare_float,
    quantize_once,
    tensors_to_calibrate,
)
from onnxslim.quantization.equalize import correct_biases, equalize
from onnxslim.quantization.gap import Gap, fake_real_gap
from onnxslim.quantization.gate import Decision, Gate
from onnxslim.quantization.metric import Judge, Score
from onnxslim.quantization.outcome import Outcome
from onnxslim.quantization.prepare import is_quantized
from onnxslim.quantization.presets import unverifiable
from onnxslim.quantization.ranking import regions
from onnxslim.quantization.replay import Recipe, read_recipe, recipe_of
from onnxslim.quantization.request import Quantization
from onnxslim.quantization.search import Candidate, Limits, Search
from onnxslim.quantization.selection import find_nodes
from onnxslim.runtime.loaded import loaded_graph
from onnxslim.runtime.session import open_session
from onnxslim.runtime.specs import Feed
from onnxslim.validated_run import Progress, no_progress

_GAP_FEEDS = 4
_BATCHES = (1, 32)
_RANKING_SECONDS = 20.0


def run_quantization(
    model: ir.Model,
    request: Quantization,
    data: QuantData,
    progress: Progress = no_progress,
) -> Outcome:
    """Quantizes, searches, and decides what is worth writing.

    Args:
        model: the float model, with BatchNormalization folded; it stays as it is.
        request: what is asked for.
        data: from `onnxslim.quantization.data.read_data`, of the same inputs.
        progress: called with (stage, done, total).

    Raises:
        UsageError: a name or pattern that no node fits, or a recipe for something else.
        InvalidModelError: already quantized, nothing to quantize, an opset that cannot be raised.
        DataError: feeds or labels that do not fit, NaN or infinity, or a metric that fails.
        DemandMissedError: ``strict``, and no form keeps the target.
        RuntimeRefusedError: onnxruntime cannot run the model.
    """
    return _Run(model, request, data, progress).result()


class _Run:
    def __init__(
        self, model: ir.Model, request: Quantization, data: QuantData, progress: Progress
    ) -> None:
        self._model, self._request, self._data = model, request, data
        self._progress = progress
        self._settings = request.settings()
        self._warnings: list[str] = list(data.notes)
        self._verifiable = unverifiable(self._settings) is None
        self._digest = model_digest(model)
        self._recipe = None if request.recipe is None else self._read(request.recipe)
        if self._recipe is not None:
            self._settings = self._recipe.plan().preset

    def result(self) -> Outcome:
        """All of it."""
        request = self._request
        self._progress("preparing", 0, 1)
        self._prepared = prepare_float(
            self._model, preset=self._settings, requantize=request.requantize
        )
        self._float = self._float_model()
        plan = self._plan()
        calibration = self._calibrated(self._prepared, plan)
        self._warnings.extend(n for n in calibration.notes if n not in self._warnings)
        shared = self._data.shared()
        if shared is not None:
            self._warnings.append(shared)
        self._sample = self._data.sample()
        self._check_preparation()
        judge = self._judge()
        limits = Limits(self._limit(judge), request.max_evaluations, request.equalize)
        search = Search(judge, self._sample, limits, self._calibrated, self._progress)
        if self._recipe is not None:
            decision = self._replayed(self._recipe, calibration, search)
        else:
            plan = self._without_overflow(plan, calibration)
            candidate = search.run(self._prepared, calibration, plan)
            check_result(candidate.model, self._sample[0])
            decision = self._gate(search).decide(candidate)
            self._complete_ranking(candidate, search)
        return self._outcome(decision, search, judge)

    def _float_model(self) -> ir.Model:
        """The model that int8 is compared with: after what was quantized was taken back."""
        taken_back = self._request.requantize and is_quantized(self._model)
        return self._prepared.original if taken_back else self._model

    def _read(self, path: str) -> Recipe:
        recipe = read_recipe(path)
        if recipe.model != self._digest:
            raise DataError(
                f"{path}: the recipe is for another model: its float model has sha256 "
                f"{recipe.model[:16]}..., this one {self._digest[:16]}...; quantize without "
                "--recipe"
            )
        return recipe

    def _plan(self) -> QuantPlan:
        if self._recipe is not None:
            return self._recipe.plan()
        request, graph = self._request, self._prepared.model.graph
        float_nodes = find_nodes(graph, request.exclude)
        only = frozenset(find_nodes(graph, request.include)) if request.include else None
        return QuantPlan(
            self._settings,
            "qoperator" if request.form == "qoperator" else "qdq",
            frozenset(float_nodes),
            method=request.method,
            only=only,
        )

    def _calibrated(self, prepared: Prepared, plan: QuantPlan) -> Calibration:
        return calibrate(
            prepared.model,
            self._data.hashed(),
            tensors=tensors_to_calibrate(prepared, plan),
            strict=True,
            skip_bad=self._request.skip_bad,
            progress=lambda done, total: self._progress("calibrating", done, total),
        )

    def _check_preparation(self) -> None:
        if not self._sample:
            raise DataError("there are no calibration samples without NaN or infinity")
        if self._prepared.notes and self._float is self._model:
            is_half = any("float16" in note for note in self._prepared.notes)
            check_conversion(self._model, self._prepared.model, self._sample[0], is_half=is_half)

    def _judge(self) -> Judge | None:
        if self._data.judging is None:
            return None
        self._progress("measuring the original", 0, 1)
        return Judge(self._float, self._data.judging, fake=not self._verifiable)

    def _limit(self, judge: Judge | None) -> float:
        """Points that may be lost: one sample at least, where the original stands in for labels."""
        limit = self._request.limit
        if judge is None or self._request.max_drop is not None or not judge.is_stand_in:
            return limit
        if judge.resolution > limit:
            self._warnings.append(
                f"one held-out sample weighs {judge.resolution:.2f} points: that much may be lost; "
                "give more calibration data, or --labels"
            )
        return max(limit, judge.resolution)

    def _complete_ranking(self, candidate: Candidate, search: Search) -> None:
        """Ranks for the report where the search had no need to, if that takes no more than 20 s."""
        if search.ranking or search.judge is None or search.interrupted or candidate.plan.dynamic:
            return
        started = time.perf_counter()
        model, _ = quantize_once(candidate.prepared, candidate.calibration, candidate.plan)
        session = open_session(model, optimize=True)
        for feed in self._sample[:_GAP_FEEDS]:
            session.run(feed)
        each = time.perf_counter() - started
        if each * len(regions(candidate.prepared, candidate.plan)) <= _RANKING_SECONDS:
            search.rank(candidate)

    def _gate(self, search: Search) -> Gate:
        return Gate(
            self._float,
            search,
            self._latency_feeds(),
            self._request.threads,
            self._request.force,
            self._verifiable,
            self._progress,
        )

    def _latency_feeds(self) -> dict[int, Feed]:
        """Feeds for latency by batch size; the sample as it is where inputs do not take others."""
        asked, specs = self._request.latency_batch, self._data.specs
        session = open_session(self._float, optimize=True)
        found: dict[int, Feed] = {}
        for batch in [asked] if asked else _BATCHES:
            feed = single(self._sample[0], specs, batch)
            try:
                session.run(feed)
            except RuntimeRefusedError:
                continue
            found.setdefault(batch_of(feed, specs), feed)
        return found or {batch_of(self._sample[0], specs): self._sample[0]}

    def _without_overflow(self, plan: QuantPlan, calibration: Calibration) -> QuantPlan:
        """The plan, with weights of 7 bits where kernels here overflow with 8."""
        if plan.preset.reduce_range or not self._verifiable or plan.form != "qdq":
            return plan
        int8, _ = quantize_once(self._prepared, calibration, plan)
        check_result(int8, self._sample[0])
        gap = fake_real_gap(self._float, int8, self._sample[:1])
        if not gap.is_overflow:
            return plan
        self._warnings.append(
            f"int8 kernels of this processor overflow with weights of 8 bits ({gap.real:.1f} dB "
            f"instead of {gap.fake:.1f} dB at output {gap.output!r}): weights have 7 bits"
        )
        return replace(plan, preset=replace(plan.preset, reduce_range=True))

    def _replayed(self, recipe: Recipe, calibration: Calibration, search: Search) -> Decision:
        """What a recipe says, without search and without latency."""
        if recipe.data != self._data.digest:
            raise DataError(
                f"{self._request.recipe}: the recipe is for other calibration data: its samples "
                f"have sha256 {recipe.data[:16]}..., these {self._data.digest[:16]}..."
            )
        judge = search.judge
        if recipe.status == "kept-fp32":
            return Decision("kept-fp32", "float", self._float, None, None)
        if recipe.status == "int8-weights":
            model, _ = weight_only_int8(self._float)
            score = None if judge is None else judge.score(model)
            form = "int8 weights, float arithmetic"
            return Decision("int8-weights", form, model, score, None)
        candidate = self._repeated(recipe, calibration)
        if judge is not None:
            candidate = replace(candidate, score=judge.score(candidate.model))
        made = Decision(
            "quantized", "as in the recipe", candidate.model, candidate.score, candidate
        )
        if not search.meets(candidate.score):
            made.status = "target-not-met"
        return made

    def _repeated(self, recipe: Recipe, calibration: Calibration) -> Candidate:
        prepared, plan = self._prepared, recipe.plan()
        if recipe.equalized:
            found = equalize(prepared, self._sample, plan, steps=recipe.equalized)
            prepared = found.prepared
            calibration = self._calibrated(prepared, plan)
        model, report = quantize_once(prepared, calibration, plan)
        if recipe.corrected:
            model, _ = correct_biases(prepared.model, model, self._sample)
        return Candidate("recipe", model, report, plan, prepared, calibration, None, False)

    def _outcome(self, decision: Decision, search: Search, judge: Judge | None) -> Outcome:
        demanded = judge is not None and self._request.strict
        if decision.status == "target-not-met" and demanded:
            assert judge is not None
            self._refuse(decision, judge, search)
        if search.interrupted:
            self._warnings.append("interrupted: the best result until then was taken")
        candidate = decision.candidate
        engine = {} if candidate is None else candidate.report.to_dict()
        self._warnings.extend(
            note for note in engine.pop("warnings", []) if note not in self._warnings
        )
        result = Outcome(
            decision,
            self._settings.name,
            None if judge is None else judge.baseline,
            self._judged_by(judge),
            None if judge is None else search.limits.drop,
            self._gap(decision),
            self._kernels(decision.model),
            search.ranking,
            search.notes,
            [*self._warnings, *decision.reasons],
            engine,
            search.evaluations,
        )
        result.recipe = self._new_recipe(decision, search).to_toml()
        self._warn(result, decision.score, search)
        return result

    def _refuse(self, decision: Decision, judge: Judge, search: Search) -> None:
        assert decision.score is not None
        raise DemandMissedError(
            f"--max-drop {search.limits.drop:g} cannot be kept: the best result loses "
            f"{search.words(decision.score)} ({judge.metric} {judge.baseline.value:.2f} -> "
            f"{decision.score.value:.2f} on {decision.score.samples} samples, "
            f"{search.evaluations} evaluations); allow more or leave --strict out; nothing was "
            "written"
        )

    def _judged_by(self, judge: Judge | None) -> str:
        data = self._data.judging
        if judge is None or data is None:
            return "nothing: made-up data shows no accuracy"
        if not judge.is_stand_in:
            return f"{judge.metric} on {data.source}"
        return (
            f"{judge.metric} with the original on {data.source}, since there are no labels: it "
            "shows what changed, not what is right"
        )

    def _gap(self, decision: Decision) -> Gap | None:
        candidate = decision.candidate
        if candidate is None or not self._verifiable or candidate.plan.form != "qdq":
            return None
        return fake_real_gap(self._float, decision.model, self._sample[:_GAP_FEEDS])

    @staticmethod
    def _kernels(model: ir.Model) -> dict[str, int]:
        try:
            return loaded_graph(model).operators
        except (RuntimeRefusedError, InvalidModelError):
            return {}

    def _new_recipe(self, decision: Decision, search: Search) -> Recipe:
        if self._recipe is not None:
            return self._recipe
        candidate = decision.candidate
        plan = self._plan() if candidate is None else candidate.plan
        is_int8 = candidate is not None
        is_equal = is_int8 and candidate is not None and candidate.prepared is not self._prepared
        return recipe_of(
            plan,
            model=self._digest,
            data=self._data.digest,
            status=decision.status if not is_int8 else "quantized",
            equalized=search.equalized if is_equal else (),
            corrected=candidate is not None and candidate.corrected,
            requantized=self._request.requantize,
            held_out=self._data.held_out,
        )

    def _warn(self, result: Outcome, score: Score | None, search: Search) -> None:
        """Points out what figures do not show by themselves."""
        if score is None:
            return
        if result.decision.status == "target-not-met":
            result.warnings.append(
                f"TARGET NOT MET: {search.words(score)}, {search.limits.drop:g} are allowed"
            )
        elif score.interval is not None and score.interval[1] > search.limits.drop:
            result.warnings.append(
                f"the drop is within the limit of {search.limits.drop:g}, but its interval "
                f"[{score.interval[0]:.2f}, {score.interval[1]:.2f}] is not: more labelled samples "
                "would tell"
            )
