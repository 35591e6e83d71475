"""What a user asks of pruning, and the one place that runs it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxslim.errors import UsageError
from onnxslim.pruning.nm import Pattern
from onnxslim.pruning.unstructured import check_amount
from onnxslim.validated_run import Progress

if TYPE_CHECKING:
    from onnxslim.pruning.data import PruningData

TARGETS = ("macs", "size", "latency")
_METHODS = ("l1", "random")
_LOWEST_TARGET = 0.01


@dataclass(frozen=True)
class Pruning:
    """New sparsity, as a lossy step between the exact ones.

    Args:
        amount: share of the single weights, or of the channels with ``structured``, that goes.
        structured: cut whole channels, so that the model gets smaller and faster.
        target: ``macs``, ``size`` or ``latency`` to a share of what it was (structured).
        pattern: ``N:M``: at most N of M weights along the input axis are nonzero.
        method: of single weights: ``l1`` (the smallest) or ``random``.
        scope: of single weights: ``tensor`` or ``global``.
        criterion: of channels; None for the best one that the data allows.
        repair: of the layers behind cut channels; None for what is judged best.
        exclude: patterns of weight names whose channels stay.
        align: numbers of channels that stay are multiples of it.
        update: refit the weights that stay; None does it where there is calibration data.
        calibration: npz file or folder of npz with arrays by input name, or an iterable of feeds.
        labels: npz with inputs by name and ``labels``, to judge by.
        max_drop: points of accuracy (or of agreement) that may be lost at most. Without amount,
            target and pattern, channels are cut as far as it allows.
        seed: of every random choice.
        removes: then take out, exactly, the channels that are zero in whole.
    """

    amount: float | None = None
    structured: bool = False
    target: Mapping[str, float] | None = None
    pattern: str | None = None
    method: str = "l1"
    scope: str = "tensor"
    criterion: str | None = None
    repair: str | None = None
    exclude: Sequence[str] = ()
    align: int = 1
    update: bool | None = None
    calibration: Any = None
    labels: str | os.PathLike[str] | None = None
    max_drop: float | None = None
    seed: int = 0
    removes: bool = True

    def __post_init__(self) -> None:
        """Raises UsageError for what makes no sense together."""
        given = [
            name
            for name, value in (
                ("amount", self.amount),
                ("target", self.target),
                ("pattern", self.pattern),
            )
            if value is not None
        ]
        if len(given) > 1 or (not given and self.max_drop is None):
            what = " and ".join(given) or "nothing"
            raise UsageError(
                f"pruning wants one of amount, pattern and target, or max-drop alone; given: {what}"
            )
        if self.amount is not None:
            check_amount(self.amount)
        if self.pattern is not None:
            Pattern.parse(self.pattern)
            if self.structured:
                raise UsageError("a pattern is for single weights; leave structured out")
        self._check_choices()

    def _check_choices(self) -> None:
        for what, value, known in (
            ("method", self.method, _METHODS),
            ("scope", self.scope, ("tensor", "global")),
        ):
            if value not in known:
                raise UsageError(f"{what} {value!r}: choose {' or '.join(known)}")
        for name, share in (self.target or {}).items():
            if name not in TARGETS or not _LOWEST_TARGET <= share < 1:
                raise UsageError(
                    f"target {name}={share:g}: want macs, size or latency as a share of what it "
                    f"was, {_LOWEST_TARGET:g} up to 1, such as macs=0.5"
                )

    @property
    def cuts_channels(self) -> bool:
        """Whole channels go, not single weights."""
        unbound = self.amount is None and self.pattern is None
        return self.structured or self.target is not None or unbound


def parse_target(text: str) -> dict[str, float]:
    """``macs=0.5`` to name and share; several with commas.

    Raises:
        UsageError: not of that form.
    """
    found = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*=\s*([0-9.eE+-]+)\s*", part)
        try:
            share = float(match[2]) if match else None
        except ValueError:
            share = None
        if match is None or share is None or match[1] not in TARGETS:
            raise UsageError(f"target {text!r}: want macs=0.5, size=0.5 or latency=0.6")
        found[match[1]] = share
    return found


def parse_spec(text: str) -> Pruning:
    """The short form of the main command.

    ``0.5`` cuts half of all channels, ``macs=0.5`` (``size``, ``latency``) cuts to a target,
    ``2:4`` makes a pattern, ``l1=0.3`` and ``random=0.3`` zero single weights.

    Raises:
        UsageError: none of these.
    """
    text = text.strip()
    if ":" in text:
        return Pruning(pattern=text)
    name, equals, share = text.partition("=")
    if equals and name.strip() not in _METHODS:
        return Pruning(target=parse_target(text))
    try:
        amount = float(share if equals else text)
    except ValueError as error:
        raise UsageError(
            f"--prune {text!r}: want 0.5 (channels), macs=0.5, size=0.5, latency=0.6, 2:4, l1=0.3 "
            "or random=0.3"
        ) from error
    if equals:
        return Pruning(amount=amount, method=name.strip())
    return Pruning(amount=amount, structured=True)


@dataclass
class Pruned:
    """A pruned model.

    Attributes:
        model: a copy with new weights, or fewer channels.
        summary: what was done and what it cost, in one line.
        details: the same as plain data.
        warnings: what the user should know, one line each.
        shrinks: channels were cut, so that exact passes may find more to do.
    """

    model: ir.Model
    summary: str
    details: dict[str, Any]
    warnings: list[str] = field(default_factory=list)
    shrinks: bool = False


def read_pruning_data(model: ir.Model, pruning: Pruning) -> PruningData:
    """Reads the data of a request, before anything is computed.

    Raises:
        UsageError: data is missing.
        DataError: data that does not fit the model.
    """
    from onnxslim.pruning.data import read_data, wanted

    data = read_data(
        model,
        pruning.calibration,
        pruning.labels,
        max_drop=pruning.max_drop,
        seed=pruning.seed,
    )
    if pruning.update and not data.fit:
        raise wanted(model, "--update")
    return data


def run_pruning(model: ir.Model, pruning: Pruning, data: PruningData, progress: Progress) -> Pruned:
    """Prunes a copy of a model.

    Args:
        model: never changed.
        pruning: what is asked for.
        data: of `read_pruning_data`.
        progress: called with (stage, done, total).

    Raises:
        UsageError: something that makes no sense, or data that is missing.
        DemandMissedError: the limits cannot be met.
        RuntimeRefusedError: onnxruntime cannot run the model.
    """
    if pruning.cuts_channels:
        return _structured(model, pruning, data, progress)
    return _sparse(model, pruning, data, progress)


def _sparse(model: ir.Model, pruning: Pruning, data: PruningData, progress: Progress) -> Pruned:
    from onnxslim.pruning.sparse import SparseRequest, prune_sparse

    request = SparseRequest(
        pruning.amount, pruning.method, pruning.scope, pruning.pattern, pruning.update
    )
    outcome = prune_sparse(model, request, data, progress)
    share = outcome.zeros / outcome.size
    parts = [f"lossy: {outcome.how}; {share:.2%} of {outcome.size:,} weights are zero"]
    if outcome.before is not None and outcome.after is not None:
        parts.append(f"{outcome.before} -> {outcome.after} on {outcome.after.samples} samples")
    return Pruned(outcome.model, ", ".join(parts), outcome.to_dict(), outcome.warnings)


def _structured(model: ir.Model, pruning: Pruning, data: PruningData, progress: Progress) -> Pruned:
    from onnxslim.pruning.structured import StructuredRequest, prune_structured

    request = StructuredRequest(
        amount=pruning.amount,
        target=pruning.target,
        criterion=pruning.criterion,
        repair=pruning.repair,
        align=pruning.align,
        exclude=pruning.exclude,
    )
    outcome = prune_structured(model, request, data, progress)
    return Pruned(outcome.model, outcome.summary(), outcome.to_dict(), outcome.warnings, True)
