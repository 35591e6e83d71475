"""Runs a model and its original on the same feeds and says whether they agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from onnxslim.calibration.feeds import FeedMaker
from onnxslim.errors import DataError, RuntimeRefusedError
from onnxslim.ir.schema import is_op
from onnxslim.ir.traversal import nodes
from onnxslim.pipeline import Exactness
from onnxslim.runtime.reference import ReferenceSession
from onnxslim.runtime.session import open_session
from onnxslim.runtime.specs import Feed
from onnxslim.validation.compare import Difference
from onnxslim.validation.judge import Judge
from onnxslim.validation.randomness import random_outputs
from onnxslim.validation.result import ValidationResult
from onnxslim.validation.verdict import explain

_RANDOM_FEEDS = 2
# Seconds for one run of a model with loops: made-up values may keep one from ever ending.
_LOOP_LIMIT = 10.0
_LOOP_LIMIT_ZEROS = 2.0


class Runner(Protocol):
    """Anything that runs a model."""

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, in order."""
        ...

    def run(self, feeds: Mapping[str, Any], *, limit: float | None = None) -> list[Any]:
        """The outputs for one feed."""
        ...


def validate(
    reference: ir.Model,
    candidate: ir.Model,
    *,
    feeds: Iterable[Mapping[str, Any]] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    exactness: Exactness = Exactness.ROUNDING,
    threads: int = 0,
    optimized: bool = True,
    progress: Callable[[str], None] | None = None,
) -> ValidationResult:
    """Compares a model with its original.

    Both run with graph optimizations off, then both once more with a deployment's optimizations.

    Args:
        reference: the original.
        candidate: the model that must give the same answers.
        feeds: inputs to use; made up when left out (two sizes per open dimension, and zeros).
        shapes: input shapes that made-up feeds must have.
        rtol: overrides the allowed relative difference of floats.
        atol: overrides the allowed absolute difference of floats.
        seed: for made-up feeds.
        exactness: the weakest promise among the passes that changed the model.
        threads: threads per operator; 0 lets onnxruntime choose.
        optimized: whether to run the second comparison.
        progress: called with a few words before every longer step.

    Raises:
        UsageError: ``shapes`` does not fit the inputs.
    """
    return _Validation(
        reference,
        candidate,
        Judge(rtol, atol, exactness, random_outputs(reference), _is_quantized(reference)),
        threads,
        progress or (lambda _: None),
    ).run(feeds, shapes, seed, optimized)


class _NotRunError(Exception):
    """The original cannot be run here."""


class _FailedError(Exception):
    """The candidate cannot do what the original can."""


class _Validation:
    def __init__(
        self,
        reference: ir.Model,
        candidate: ir.Model,
        judge: Judge,
        threads: int,
        progress: Callable[[str], None],
    ) -> None:
        self._reference, self._candidate = reference, candidate
        self._judge, self._threads, self._progress = judge, threads, progress
        loops = any(is_op(node, "Loop") for node in nodes(reference))
        self._limit = _LOOP_LIMIT if loops else None
        self._result = ValidationResult("passed")
        self._first: tuple[Feed, list[Any]] | None = None
        self._by_output: dict[str, list[Difference]] = {}

    def run(
        self,
        feeds: Iterable[Mapping[str, Any]] | None,
        shapes: Mapping[str, Sequence[int]] | None,
        seed: int,
        optimized: bool,
    ) -> ValidationResult:
        result = self._result
        try:
            self._compare_interface()
            self._compare_plain(feeds, shapes, seed)
            if optimized and result.evaluator == "onnxruntime":
                self._compare_optimized()
        except _NotRunError as error:
            result.status, result.reason = "not-run", str(error)
        except _FailedError as error:
            result.status, result.reason = "failed", str(error)
        if self._judge.random:
            names = ", ".join(sorted(self._judge.random))
            result.notes.append(f"random, so only dtype and rank were compared: {names}")
        return result

    def _compare_interface(self) -> None:
        for kind in ("inputs", "outputs"):
            names = [value.name for value in getattr(self._reference.graph, kind)]
            others = [value.name for value in getattr(self._candidate.graph, kind)]
            if names != others:
                raise _FailedError(f"the {kind} are {others} instead of {names}")

    # -- graph optimizations off ------------------------------------------------------------

    def _compare_plain(
        self,
        feeds: Iterable[Mapping[str, Any]] | None,
        shapes: Mapping[str, Sequence[int]] | None,
        seed: int,
    ) -> None:
        self._progress("opening the original")
        reference = self._open_reference()
        self._progress("opening the result")
        candidate = self._open_candidate()
        if feeds is not None:
            for feed in map(dict, feeds):
                try:
                    answers = reference.run(feed)
                except RuntimeRefusedError as error:
                    raise _NotRunError(
                        f"the original does not run on the feeds: {error}"
                    ) from error
                self._compare_feed(feed, answers, reference.output_names, candidate)
        else:
            self._compare_made_up(reference, candidate, shapes, seed)
        if self._first is None:
            raise _NotRunError("there are no feeds to run")
        self._judge_outputs()

    def _open_reference(self) -> Runner:
        try:
            return open_session(self._reference, optimize=False, threads=self._threads, spin=False)
        except RuntimeRefusedError as refusal:
            try:
                session = ReferenceSession(self._reference)
            except RuntimeRefusedError as error:
                raise _NotRunError(f"{refusal}; {error}") from error
            self._result.evaluator = "reference"
            self._result.notes.append(f"compared in onnx's reference evaluator: {refusal}")
            return session

    def _open_candidate(self) -> Runner:
        try:
            if self._result.evaluator == "reference":
                return ReferenceSession(self._candidate)
            return open_session(self._candidate, optimize=False, threads=self._threads, spin=False)
        except RuntimeRefusedError as error:
            raise _FailedError(f"the original opens, the result does not: {error}") from error

    def _compare_made_up(
        self,
        reference: Runner,
        candidate: Runner,
        shapes: Mapping[str, Sequence[int]] | None,
        seed: int,
    ) -> None:
        try:
            maker = FeedMaker(self._reference, seed=seed, shapes=shapes)
        except DataError as error:
            raise _NotRunError(str(error)) from error
        used: list[dict[str, Any]] = []
        for number in (*range(_RANDOM_FEEDS), None):
            self._progress(f"comparing feed {len(self._result.feeds) + 1}")
            made = _first_that_runs(reference, maker, number, used, self._limit)
            if isinstance(made, str):
                if self._first is None:
                    raise _NotRunError(f"the original could not be run on made-up inputs: {made}")
                continue
            feed, answers = made
            used.append(_shapes_of(feed))
            self._compare_feed(feed, answers, reference.output_names, candidate)

    def _compare_feed(
        self, feed: Feed, answers: list[Any], names: Sequence[str], candidate: Runner
    ) -> None:
        self._result.feeds.append(_shapes_of(feed))
        try:
            others = candidate.run(feed, limit=self._limit and 10 * self._limit)
        except RuntimeRefusedError as error:
            raise _FailedError(f"the original runs, the result does not: {error}") from error
        for name, one in zip(names, self._judge.differences(names, answers, others), strict=True):
            self._by_output.setdefault(name, []).append(one)
        if self._first is None:
            self._first = (feed, answers)

    def _judge_outputs(self) -> None:
        result = self._result
        for name, differences in self._by_output.items():
            outcome = self._judge.outcome(name, differences)
            result.outputs.append(outcome)
            if not any(one.finite for one in differences):
                result.notes.append(f"output {name} has no finite value on any feed")
            if not outcome.passed and result.status == "passed":
                tolerance = self._judge.tolerance(outcome.dtype)
                result.status = "failed"
                result.reason = explain(name, differences, tolerance)

    # -- a deployment's optimizations on ----------------------------------------------------

    def _compare_optimized(self) -> None:
        """Comparing with what the original gives under the same optimizations, on one feed."""
        if self._first is None or self._result.status != "passed":
            return
        self._progress("comparing under the runtime's optimizations")
        feed, plain = self._first
        try:
            _, answers = self._run_optimized(self._reference, feed)
        except RuntimeRefusedError as error:
            self._result.notes.append(f"not compared under optimizations: original: {error}")
            return
        try:
            names, others = self._run_optimized(self._candidate, feed)
        except RuntimeRefusedError as error:
            raise _FailedError(
                f"under the runtime's optimizations only the original works: {error}"
            ) from error
        self._judge_optimized(names, (answers, plain), others)

    def _run_optimized(self, model: ir.Model, feed: Feed) -> tuple[list[str], list[Any]]:
        session = open_session(model, optimize=True, threads=self._threads, spin=False)
        return session.output_names, session.run(feed)

    def _judge_optimized(
        self, names: Sequence[str], accepted: Sequence[list[Any]], others: list[Any]
    ) -> None:
        """Close to either answer of the original is good: the runtime has moved it itself.

        Integers that differ only here come from floats that the runtime rounded another way.
        """
        rounds = [self._judge.differences(names, answers, others) for answers in accepted]
        for name, *differences in zip(names, *rounds, strict=True):
            tolerance = self._judge.optimized_tolerance(differences[0].dtype)
            if any(tolerance.accepts(one) for one in differences):
                continue
            why = explain(name, differences[:1], tolerance)
            if tolerance.rtol == 0 and not differences[0].problem:
                self._result.notes.append(f"under the runtime's optimizations: {why}")
            else:
                raise _FailedError(f"under the runtime's optimizations: {why}")


def _first_that_runs(
    reference: Runner,
    maker: FeedMaker,
    number: int | None,
    used: Sequence[dict[str, Any]],
    limit: float | None,
) -> tuple[Feed, list[Any]] | str:
    """The first feed that the original accepts, in sizes that were not used, or the refusal.

    ``number`` None asks for the feed of zeros, whose sizes may repeat.
    """
    if number is None and limit is not None:
        limit = _LOOP_LIMIT_ZEROS
    refusal = ""
    fallback: tuple[Feed, list[Any]] | None = None
    for plan in maker.plans(number or 0):
        feed = maker.make(plan, number or 0, zeros=number is None)
        try:
            answers = reference.run(feed, limit=limit)
        except RuntimeRefusedError as error:
            refusal = refusal or str(error)
            if isinstance(error.__cause__, TimeoutError):
                break
            continue
        if number is None or _shapes_of(feed) not in used:
            return feed, answers
        fallback = fallback or (feed, answers)
    return fallback or refusal or "no sizes to try"


def _is_quantized(model: ir.Model) -> bool:
    return any(is_op(node, "QuantizeLinear", "DynamicQuantizeLinear") for node in nodes(model))


def _shapes_of(feed: Feed) -> dict[str, Any]:
    return {name: _shape_of(value) for name, value in feed.items()}


def _shape_of(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, list):
        return [_shape_of(item) for item in value]
    return list(np.shape(value))
