"""Single weights become zero: by magnitude, at random, or in an N:M pattern, and the rest adapts.

The shapes of the model stay as they are, so it does not run faster by itself; the zeros pay where
files are packed, and on hardware that skips them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxslim.errors import UsageError
from onnxslim.io import load
from onnxslim.ir import shapes
from onnxslim.pruning.data import PruningData, wanted
from onnxslim.pruning.judge import Judge, Score
from onnxslim.pruning.nm import Pattern, pattern_mask
from onnxslim.pruning.refit import refit
from onnxslim.pruning.unstructured import check_amount, zero_masks
from onnxslim.pruning.weights import Mask, TensorSparsity, Weight, find_weights, zeros_in
from onnxslim.validated_run import Progress


@dataclass(frozen=True)
class SparseRequest:
    """What is asked for.

    Attributes:
        amount: share of weights that are zero, 0..1; None with a pattern.
        method: ``l1`` or ``random``.
        scope: ``tensor``, the amount holds for each weight, or ``global``.
        pattern: ``N:M`` in place of an amount.
        update: refit the other weights; None does it where there is calibration data (not with
            the random method).
    """

    amount: float | None = None
    method: str = "l1"
    scope: str = "tensor"
    pattern: str | None = None
    update: bool | None = None


@dataclass
class SparseOutcome:
    """What came of it.

    Attributes:
        model: the sparse model, a copy.
        tensors: zeros per weight.
        how: what was done, in words.
        before: score of the original, where there was something to judge by.
        after: score of the result.
        basis: what was judged by.
        warnings: what the user should know, one line each.
        refitted: names of the weights that were refitted, not only masked.
    """

    model: ir.Model
    tensors: list[TensorSparsity]
    how: str
    before: Score | None = None
    after: Score | None = None
    basis: str = ""
    warnings: list[str] = field(default_factory=list)
    refitted: list[str] = field(default_factory=list)

    @property
    def zeros(self) -> int:
        """Zeros in all weights together."""
        return sum(tensor.zeros for tensor in self.tensors)

    @property
    def size(self) -> int:
        """Elements of all weights together."""
        return sum(tensor.size for tensor in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON report."""
        return {
            "how": self.how,
            "exactness": "lossy",
            "zeros": self.zeros,
            "weights": self.size,
            "sparsity": self.zeros / self.size if self.size else 0.0,
            "before": self.before.to_dict() if self.before else None,
            "after": self.after.to_dict() if self.after else None,
            "basis": self.basis,
            "tensors": [tensor.to_dict() for tensor in self.tensors],
        }


def prune_sparse(
    model: ir.Model, request: SparseRequest, data: PruningData, progress: Progress
) -> SparseOutcome:
    """Makes a sparse copy of a model.

    Where weights are refitted, the masked and the refitted copy are both judged, and the better one
    is taken.

    Args:
        model: never changed.
        request: what is asked for.
        data: what to fit and to judge on.
        progress: called with (stage, done, total). Ctrl-C during the refit keeps the masked copy.

    Raises:
        UsageError: a request that makes no sense, or needs data that is not there.
        DemandMissedError: the result is worse than the limit allows.
        RuntimeRefusedError: the model does not run on the data.
    """
    pattern = _checked(model, request, data)
    masked = load(model)
    weights = find_weights(masked)
    if not weights:
        raise UsageError("the model has no constant float weight of a Conv, Gemm, MatMul or RNN")
    zeros_before = [zeros_in(weight.read()) for weight in weights]
    masks = _masks(weights, request, pattern, data.seed)
    _apply(weights, masks)
    outcome = SparseOutcome(masked, [], _how(request, pattern))
    outcome.warnings.extend(data.notes)
    judge = Judge(model, data) if data.judged else None
    if _updates(request, data):
        by_name = {w.name: m for w, m in zip(weights, masks, strict=True)}
        _refit_better(model, outcome, by_name, pattern, data, judge, progress)
    elif pattern is not None:
        outcome.warnings.append(_masking_only(pattern, bool(data.fit)))
    if judge is not None:
        progress("measuring accuracy", 0, 1)
        outcome.before, outcome.basis = judge.baseline, judge.basis
        outcome.after = outcome.after or judge.score(outcome.model)
        judge.demand(outcome.after)
    outcome.tensors = _counted(outcome, zeros_before, pattern)
    return outcome


def _checked(model: ir.Model, request: SparseRequest, data: PruningData) -> Pattern | None:
    if (request.amount is None) == (request.pattern is None):
        raise UsageError("give either --amount (a share) or --pattern (such as 2:4)")
    if request.update and not data.fit:
        raise wanted(model, "--update")
    if request.amount is not None:
        check_amount(request.amount)
        return None
    return Pattern.parse(request.pattern or "")


def _updates(request: SparseRequest, data: PruningData) -> bool:
    if request.update is not None:
        return request.update
    return bool(data.fit) and (request.pattern is not None or request.method == "l1")


def _masks(
    weights: Sequence[Weight], request: SparseRequest, pattern: Pattern | None, seed: int
) -> list[Mask]:
    if pattern is not None:
        return [pattern_mask(weight, pattern) for weight in weights]
    amount = request.amount or 0.0
    return zero_masks(weights, request.method, amount, request.scope, seed)


def _apply(weights: Sequence[Weight], masks: Sequence[Mask]) -> None:
    for weight, mask in zip(weights, masks, strict=True):
        content = weight.read()
        if content[mask].any():
            new = content.copy()
            new[mask] = 0
            weight.write(new)


def _refit_better(
    model: ir.Model,
    outcome: SparseOutcome,
    masks: dict[str, Mask],
    pattern: Pattern | None,
    data: PruningData,
    judge: Judge | None,
    progress: Progress,
) -> None:
    """Refits a copy and takes it where it is judged better, or cannot be judged."""
    candidate, dense = load(outcome.model), load(model)
    for copy in (candidate, dense):
        shapes.set_aside_declared(copy)
        shapes.infer(copy)
    try:
        done = refit(
            dense,
            candidate,
            masks,
            data.fit,
            pattern=pattern,
            seed=data.seed,
            step=lambda done, total: progress("refitting weights", done, total),
        )
    except KeyboardInterrupt:
        outcome.warnings.append("interrupted: the masked weights were kept, without a refit")
        return
    shapes.restore_declared(candidate)
    outcome.warnings.extend(f"not refitted: {note}" for note in done.notes)
    if not done.layers:
        return
    score = judge.score(candidate) if judge is not None else None
    if judge is not None and score is not None:
        plain = judge.score(outcome.model)
        if plain >= score:
            outcome.after = plain
            outcome.warnings.append(
                f"the refit was no better on held-out data ({score} against {plain}), so the "
                "weights are as they were but for the zeros"
            )
            return
    outcome.model, outcome.after, outcome.refitted = candidate, score, done.layers
    count = len(done.layers)
    outcome.how += f", {count} layer{'' if count == 1 else 's'} refitted"


def _masking_only(pattern: Pattern, has_data: bool) -> str:
    why = "as asked for" if has_data else "because there is no calibration data"
    return (
        f"{pattern} BY MASKING ONLY, {why}: the other weights were not adapted, which costs far "
        "more accuracy than a refit; give --calibration to refit them"
    )


def _how(request: SparseRequest, pattern: Pattern | None) -> str:
    if pattern is not None:
        return f"at most {pattern.kept} of {pattern.block} weights nonzero"
    where = "each weight" if request.scope == "tensor" else "all weights together"
    kind = "smallest" if request.method == "l1" else "random"
    return f"{request.amount:.0%} of {where} zero, {kind} ones"


def _counted(
    outcome: SparseOutcome, before: Sequence[int], pattern: Pattern | None
) -> list[TensorSparsity]:
    found = []
    refitted = set(outcome.refitted)
    for weight, known in zip(find_weights(outcome.model), before, strict=True):
        content, notes = weight.read(), []
        if pattern is not None and not weight.agreed:
            notes.append("its readers sum over different axes; the pattern holds for the first one")
        if refitted and weight.name not in refitted:
            notes.append("masked only")
        zeros, note = zeros_in(content), "; ".join(notes)
        found.append(TensorSparsity(weight.name, content.shape, known, zeros, content.size, note))
    return found
