"""Runs a pipeline, validates the result against the original, and takes back what breaks it.

The passes ask for leave before every rewrite (`Context.allow`), so the same run can be repeated
with at most N rewrites. When outputs differ, the smallest N that already differs is found by
bisection; its last rewrite is the culprit, which is switched off before the next try.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnxslim.errors import DemandMissedError, PassError, VerificationError
from onnxslim.io import load
from onnxslim.ir import shapes
from onnxslim.ir.verify import verify
from onnxslim.pipeline import Context, Exactness, Instrument, Pass, PassResult, leaves

logger = logging.getLogger(__name__)

# Single rewrites are taken back so many times; after that whole passes are switched off.
MAX_CULPRITS = 8

Feeds = Mapping[str, npt.NDArray[Any]]
Progress = Callable[[str, int, int], None]


def no_progress(stage: str, done: int, total: int) -> None:
    """The progress callback of callers that do not want one."""


@dataclass
class Run:
    """A finished pipeline run.

    Attributes:
        model: the rewritten model; unusable when ``failure`` is set.
        context: journal, refusals and timings of the run.
        validation: the verdict against the original, as plain data.
        failure: why the run broke off, or None.
        failed_pass: the pass that broke off, where known.
        notes: what was taken back before this run.
    """

    model: ir.Model
    context: Context
    validation: dict[str, Any] = field(default_factory=dict)
    failure: str | None = None
    failed_pass: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Check:
    """How to validate; ``enabled`` False skips it, and the report says so."""

    enabled: bool = True
    feeds: Sequence[Feeds] | None = None
    rtol: float | None = None
    atol: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class ValidatedRun:
    """Repeats one pipeline on one original under limits, and judges the results.

    Args:
        original: the model to start from; never touched.
        pipeline: what to run.
        check: how to validate.
        verify_each: verify the graph after every pass that changed something.
        fold_growth: bytes by which constant folding may grow the model.
        progress: called with (stage, done, total).
        start: another form of the original that the passes begin with; None: the original.
        disabled: rewrites that are not made, as (pass name, site).
    """

    original: ir.Model
    pipeline: Pass
    check: Check = Check()
    verify_each: bool = False
    fold_growth: int = 0
    progress: Progress = no_progress
    start: ir.Model | None = None
    disabled: frozenset[tuple[str, str]] = frozenset()

    def run(self) -> Run:
        """The first run whose outputs agree with the original.

        Raises:
            DemandMissedError: none agrees, whatever is switched off.
        """
        disabled: set[tuple[str, str]] = set(self.disabled)
        notes: list[str] = []
        for _ in range(MAX_CULPRITS + len(list(leaves(self.pipeline)))):
            self.progress("rewriting", 0, 1)
            run = self._attempt(disabled, None)
            failure = self._failure(run)
            if failure is None:
                run.notes = notes
                return run
            culprit = self._culprit(run, disabled, failure)
            if len(disabled) - len(self.disabled) >= MAX_CULPRITS or culprit in disabled:
                culprit = (culprit[0], "*")
            disabled.add(culprit)
            where = f" at {culprit[1]}" if culprit[1] != "*" else ""
            notes.append(f"{culprit[0]}{where} was taken back, because with it: {failure}")
            logger.warning("%s", notes[-1])
        raise DemandMissedError(
            f"the outputs differ from the original whatever is switched off ({notes[-1]}); "
            "nothing was written, please report the model"
        )

    def _attempt(self, disabled: set[tuple[str, str]], limit: int | None) -> Run:
        """One run on a copy of what it starts with."""
        model = load(self.original if self.start is None else self.start)
        context = Context(model, limit=limit, disabled=disabled, fold_growth=self.fold_growth)
        instruments: tuple[Instrument, ...] = (_verify_after,) if self.verify_each else ()
        run = Run(model, context)
        try:
            shapes.set_aside_declared(model)
            self.pipeline(model, context, instruments)
            shapes.restore_declared(model)
            verify(model)
        except PassError as error:
            run.failure, run.failed_pass = str(error), error.pass_name
        except VerificationError as error:
            run.failure = str(error)
        return run

    def _failure(self, run: Run) -> str | None:
        """Why the run cannot be used, or None; fills in its verdict."""
        if run.failure is not None:
            return run.failure
        if not self.check.enabled:
            run.validation = {"status": "skipped", "reason": "--no-validate was given"}
            return None
        self.progress("validating", 0, 1)
        run.validation = self._judge(run)
        if run.validation["status"] != "failed":
            return None
        return str(run.validation.get("reason") or "outputs differ")

    def _judge(self, run: Run) -> dict[str, Any]:
        """Compares with the original, with the tolerance that the passes with changes declare."""
        from onnxslim.validation import validate

        timings = run.context.timings
        exact = all(timing.exactness is Exactness.EXACT for timing in timings if timing.changes)
        result = validate(
            self.original,
            run.model,
            feeds=self.check.feeds,
            rtol=self.check.rtol,
            atol=self.check.atol,
            seed=self.check.seed,
            exactness=Exactness.EXACT if exact else Exactness.ROUNDING,
        )
        return dict(result.to_dict())

    def _culprit(self, run: Run, disabled: set[tuple[str, str]], failure: str) -> tuple[str, str]:
        """The rewrite that first makes the result bad, as (pass name, site)."""
        from onnxslim.validation import find_culprit

        first = self._attempt(disabled, 0)
        if self._failure(first) is not None or not run.context.journal:
            if first.failed_pass is None:
                raise DemandMissedError(f"{failure}; it is so even without any rewrite")
            return first.failed_pass, "*"

        def is_bad(limit: int) -> bool:
            self.progress("bisecting", 0, 1)
            return self._failure(self._attempt(disabled, limit)) is not None

        limit = find_culprit(is_bad, len(run.context.journal))
        entry = self._attempt(disabled, limit).context.journal[limit - 1]
        return entry.pass_name, entry.site


def _verify_after(step: Pass, model: ir.Model, _: PassResult) -> None:
    try:
        verify(model)
    except VerificationError as error:
        raise PassError(
            f"pass {step.name} broke the graph: {error}", pass_name=step.name
        ) from error
