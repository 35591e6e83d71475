"""Whole channels, units and heads go: which, how many of each group, and repaired how.

``prune_structured`` ties the parts together: groups (`groups`), the order in which their units go
(`criteria`), how many of each go (`allocation`, `search`), the cut (`cut`) and what repairs the
rest (`repair`, `descent`), judged on data that no fit has seen (`judge`).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim import presets
from onnxslim.errors import UsageError
from onnxslim.io import load
from onnxslim.ir import shapes
from onnxslim.ir.cost import snapshot
from onnxslim.ir.schema import is_op
from onnxslim.pipeline import Context
from onnxslim.pruning.candidates import Candidate
from onnxslim.pruning.costs import Speed
from onnxslim.pruning.criteria import CRITERIA, NEEDS_DATA, Ranking, Values
from onnxslim.pruning.data import PruningData, sample_count, wanted
from onnxslim.pruning.groups import Analysis, analyse
from onnxslim.pruning.judge import Judge, Score
from onnxslim.pruning.repair import RUNGS
from onnxslim.pruning.sampling import Feeds, with_noise
from onnxslim.pruning.search import Search, measured_speed
from onnxslim.validated_run import Progress

# Fewer samples than these are not enough for a least-squares fit to be believed unjudged.
_FEW_SAMPLES = 8


@dataclass(frozen=True)
class StructuredRequest:
    """What is asked for.

    Attributes:
        amount: share of every group that goes, 0..1; or a target.
        target: shares of what it was by name: ``macs``, ``size``, ``latency``.
        criterion: one of `criteria.CRITERIA`; None for the best that the data allows.
        repair: one of `repair.RUNGS`; None for the one that is judged best.
        align: what stays of every group is a multiple of it.
        exclude: patterns of weight names whose groups are left alone.
    """

    amount: float | None = None
    target: Mapping[str, float] | None = None
    criterion: str | None = None
    repair: str | None = None
    align: int = 1
    exclude: Sequence[str] = ()


@dataclass(frozen=True)
class GroupResult:
    """What became of one group.

    Attributes:
        name: the weight that makes its channels.
        kind: channels, units or heads.
        before: how many there were.
        after: how many stayed.
    """

    name: str
    kind: str
    before: int
    after: int


@dataclass
class StructuredOutcome:
    """What came of it.

    Attributes:
        model: the smaller model, a copy.
        groups: every group, before and after.
        criterion: what chose the units.
        rung: what repaired the rest.
        costs: MACs (None when unknown) and weight bytes: ``{"macs": (before, after), ...}``.
        speed: measured, where a latency was asked for.
        before: score of the original, where there was something to judge by.
        after: score of the result.
        basis: what was judged by.
        status: ``done`` or ``interrupted``.
        warnings: what the user should know, one line each.
    """

    model: ir.Model
    groups: list[GroupResult]
    criterion: str
    rung: str
    costs: dict[str, tuple[int | None, int | None]]
    speed: Speed | None = None
    before: Score | None = None
    after: Score | None = None
    basis: str = ""
    status: str = "done"
    warnings: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """What was done and what it cost, in one line."""
        kept = sum(group.after for group in self.groups)
        total = sum(group.before for group in self.groups)
        parts = [f"lossy: {kept} of {total} channels stay (by {self.criterion}, {self.rung})"]
        for name, (before, after) in self.costs.items():
            if before and after is not None:
                parts.append(f"{name} {before:,} -> {after:,} ({after / before:.0%})")
        if self.speed is not None:
            parts.append(f"latency {self.speed.before:.2f} -> {self.speed.after:.2f} ms")
        if self.before is not None and self.after is not None:
            parts.append(f"{self.before} -> {self.after} on {self.after.samples} samples")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON report."""
        return {
            "how": "channels cut",
            "exactness": "lossy",
            "status": self.status,
            "criterion": self.criterion,
            "repair": self.rung,
            "costs": {name: list(pair) for name, pair in self.costs.items()},
            "latency_ms": [self.speed.before, self.speed.after] if self.speed else None,
            "before": self.before.to_dict() if self.before else None,
            "after": self.after.to_dict() if self.after else None,
            "basis": self.basis,
            "groups": [vars(group) for group in self.groups],
        }


def prune_structured(
    model: ir.Model, request: StructuredRequest, data: PruningData, progress: Progress
) -> StructuredOutcome:
    """Cuts channels out of a copy of a model and refits what stays.

    Args:
        model: never changed; normalisations are folded first where it still has any.
        request: what is asked for.
        data: what to fit and to judge on; without calibration data nothing is refitted.
        progress: called with (stage, done, total). Ctrl-C keeps the best model so far that meets
            the limits.

    Raises:
        UsageError: a request that makes no sense, or needs data that is not there.
        DemandMissedError: a target or the limit of accuracy cannot be met; says which, and what
            can be reached.
        RuntimeRefusedError: the model does not run on the data.
    """
    _check(model, request, data)
    progress("looking for groups", 0, 1)
    base, gammas = _prepared(model)
    analysis = analyse(base)
    _exclude(analysis, request.exclude)
    if not analysis.groups:
        raise UsageError("the model has no channels that can be cut: all reach an output or mix")
    warnings = list(data.notes)
    feeds = _finite(data.fit, warnings)
    request = _settled(request, feeds, base, warnings, judged=data.judged)
    judge = Judge(base, data) if data.judged else None
    held_out = _finite(data.guard, warnings) if data.labels is None else ()
    # The order of the units comes from inputs alone, so the held-out ones may count for it.
    seen = with_noise([*feeds, *held_out], data.seed) if feeds else ()
    ranking = Ranking(analysis, seen, data.seed, gammas)
    search = Search(analysis, ranking, request, feeds, judge, data.seed, progress, held_out)
    found = search.run()
    return _outcome(base, search, found, [*warnings, *ranking.notes])


def _check(model: ir.Model, request: StructuredRequest, data: PruningData) -> None:
    if (request.amount is None) == (request.target is None) and data.max_drop is None:
        raise UsageError("give either --amount (a share) or --target (such as macs=0.5)")
    if request.amount is not None and not 0 < request.amount < 1:
        raise UsageError(f"amount {request.amount:g}: want a share between 0 and 1, such as 0.5")
    for name, share in (request.target or {}).items():
        if name not in ("macs", "size", "latency") or not 0 < share < 1:
            raise UsageError(f"target {name}={share:g}: want macs, size or latency, below 1")
    if request.criterion is not None and request.criterion not in CRITERIA:
        raise UsageError(f"criterion {request.criterion!r}: choose {', '.join(CRITERIA)}")
    if request.repair is not None and request.repair not in RUNGS:
        raise UsageError(f"repair {request.repair!r}: choose {', '.join(RUNGS)}")
    if request.align < 1:
        raise UsageError(f"align {request.align}: want 1 or more")
    if not data.fit:
        if request.criterion in NEEDS_DATA:
            raise wanted(model, f"criterion {request.criterion}")
        if request.repair not in (None, "none"):
            raise wanted(model, f"repair {request.repair}")
        if "latency" in (request.target or {}):
            raise wanted(model, "a latency target")


def _settled(
    request: StructuredRequest,
    feeds: Feeds,
    model: ir.Model,
    warnings: list[str],
    *,
    judged: bool,
) -> StructuredRequest:
    """The request with what the data decides; weaker data leads down the ladder, with a warning."""
    samples = sample_count(feeds, model) if feeds else 0
    if not samples:
        warnings.append(
            "nothing was refitted, since there is no calibration data; that costs far more "
            "accuracy than a refit: give --calibration"
        )
        return replace(request, criterion=request.criterion or "l2", repair="none")
    if samples == 1:
        warnings.append("one sample is too few to refit by: only biases were corrected")
        criterion = "l2" if request.criterion in (None, *NEEDS_DATA) else request.criterion
        return replace(request, criterion=criterion, repair=request.repair or "bias")
    if samples < _FEW_SAMPLES and not judged:
        warnings.append(f"{samples} samples are few to refit by: means and variances were matched")
        return replace(request, criterion=request.criterion or "l2", repair="affine")
    return replace(request, criterion=request.criterion or "obs")


def _prepared(model: ir.Model) -> tuple[ir.Model, dict[str, Values]]:
    """A copy with normalisations folded and shapes inferred, and the scales that were folded."""
    copy = load(model)
    gammas: dict[str, Values] = {}
    for node in copy.graph:
        if is_op(node, "BatchNormalization") and node.inputs[1] is not None:
            tensor = node.inputs[1].const_value
            if tensor is not None:
                scale = tensor.numpy().astype(np.float64)
                for value in (node.inputs[0], node.outputs[0]):
                    gammas[(value.name if value is not None else None) or ""] = scale
    if gammas:
        shapes.set_aside_declared(copy)
        presets.build("simplify").run(copy, Context(copy))
    shapes.infer(copy)
    return copy, gammas


def _exclude(analysis: Analysis, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        left = [one for one in analysis.groups if not fnmatch.fnmatchcase(one.name, pattern)]
        if len(left) == len(analysis.groups):
            names = ", ".join(one.name for one in analysis.groups[:5])
            raise UsageError(f"exclude {pattern!r}: no group is called so (there are: {names})")
        analysis.groups = left


def _finite(feeds: Feeds, warnings: list[str]) -> Feeds:
    """The feeds without those that hold NaN or infinity."""
    good = [feed for feed in feeds if all(_is_finite(content) for content in feed.values())]
    if len(good) < len(feeds):
        warnings.append(
            f"{len(feeds) - len(good)} of {len(feeds)} calibration feeds hold NaN or infinity and "
            "were left out"
        )
    return good


def _is_finite(content: Any) -> bool:
    array = np.asarray(content)
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _outcome(
    base: ir.Model, search: Search, found: Candidate, warnings: list[str]
) -> StructuredOutcome:
    before, after = snapshot(base, 0), snapshot(found.model, 0)
    groups = [
        GroupResult(group.name, group.kind, group.size, group.size - gone)
        for group, gone in zip(search.analysis.groups, found.plan, strict=True)
    ]
    judge, request = search.judge, search.request
    outcome = StructuredOutcome(
        found.model,
        groups,
        request.criterion or "",
        found.rung,
        {
            "macs": (before.macs, after.macs),
            "size": (before.weight_bytes, after.weight_bytes),
        },
        warnings=list(dict.fromkeys([*warnings, *found.notes, *search.notes])),
        status=search.status,
    )
    if "latency" in (request.target or {}):
        outcome.speed = measured_speed(base, found.model, search.feeds[0])
    if judge is not None:
        outcome.before, outcome.after, outcome.basis = judge.baseline, found.score, judge.basis
    return outcome
