"""A metric of the user's own: ``module:function``, or a function.

With one parameter it is called with an iterable of ``(outputs, labels)``, one pair per feed, made
while it goes through: outputs by name, labels of these samples or None. With two it is called with
``outputs, labels`` of all samples together. It returns a number, higher being better, or one
number per sample, of which the mean counts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxslim.calibration.python_source import load_object
from onnxslim.errors import DataError, OnnxSlimError, UsageError
from onnxslim.runtime.specs import Array


@dataclass(frozen=True)
class CustomMetric:
    """A metric and how it is called in messages; see the module for what it gets and returns."""

    name: str
    function: Callable[..., Any]

    def call(
        self, names: Sequence[str], answers: Iterator[list[Any]], targets: Array | None
    ) -> Array:
        """The metric's number, or one per sample.

        Args:
            names: of the outputs.
            answers: outputs in that order, feed by feed.
            targets: labels of all samples in order, or None.

        Raises:
            DataError: it raises, or returns no finite number.
        """
        pairs = _pairs(names, answers, targets)
        try:
            if _parameters(self.function) == 1:
                found = self.function(pairs)
            else:
                found = self.function(_together(list(pairs)), targets)
            result = np.asarray(found, np.float64)
        except OnnxSlimError:
            raise
        except Exception as error:  # it is the user's code
            said = " ".join(str(error).split())
            raise DataError(f"metric {self.name} raised {type(error).__name__}: {said}") from error
        if not result.size or not np.isfinite(result).all():
            what = "nothing" if not result.size else str(result.reshape(-1)[0])
            if result.size > 1:
                what = "NaN or infinite numbers"
            raise DataError(f"metric {self.name} returned {what}; wanted is a finite number")
        return result


def find_metric(metric: str | Callable[..., Any] | None) -> CustomMetric | None:
    """The metric that a text or function means; None for none.

    Raises:
        UsageError: no such module or function.
    """
    if metric is None:
        return None
    if callable(metric):
        return CustomMetric(getattr(metric, "__name__", type(metric).__name__), metric)
    if ":" not in metric:
        raise UsageError(f"--metric {metric!r}: want module:function, such as my_metrics:f1")
    found = load_object(metric)
    if not callable(found):
        raise UsageError(f"--metric {metric}: that is a {type(found).__name__}, not a function")
    return CustomMetric(metric, found)


def _parameters(function: Callable[..., Any]) -> int:
    """How many arguments it wants: 1 or 2."""
    try:
        known = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built in; nothing is known of it
        return 2
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if any(one.kind == inspect.Parameter.VAR_POSITIONAL for one in known):
        return 2
    return 1 if sum(one.kind in places for one in known) == 1 else 2


def _pairs(
    names: Sequence[str], answers: Iterator[list[Any]], targets: Array | None
) -> Iterator[tuple[dict[str, Any], Array | None]]:
    done = 0
    for answer in answers:
        first = np.asarray(answer[0])
        count = len(first) if first.ndim else 1
        labels = None if targets is None else targets[done : done + count]
        done += count
        yield dict(zip(names, answer, strict=True)), labels


def _together(pairs: list[tuple[dict[str, Any], Array | None]]) -> dict[str, Any]:
    """Outputs of all samples; a list by feed where shapes differ."""
    result: dict[str, Any] = {}
    for name in pairs[0][0]:
        parts = [outputs[name] for outputs, _ in pairs]
        try:
            result[name] = np.concatenate(parts)
        except ValueError:
            result[name] = parts
    return result
