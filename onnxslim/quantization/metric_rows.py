"""What a metric needs of every sample, so that it can be computed again on a resampled set.

A metric is a function of column means over samples: ``rows`` has one row per sample (or per feed,
where outputs do not have samples along their first axis) and as many columns as the metric wants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.errors import DataError
from onnxslim.runtime.specs import Array

Rows = npt.NDArray[np.float64]

BEST_DB = 150.0
"""Stands for equal outputs, in dB."""

Points = Callable[[Rows], float]


def percent(means: Rows) -> float:
    """Percent of a share."""
    return 100 * float(means[0])


def decibels(means: Rows) -> float:
    """PSNR of squared errors that are relative to the square of the peak, at most 150 dB."""
    noise = float(means[0])
    return BEST_DB if noise <= 0 else min(BEST_DB, -10 * math.log10(noise))


def kept_energy(means: Rows) -> float:
    """Percent of the signal's energy that is no error: 99 are 20 dB of signal to noise."""
    noise, signal = float(means[0]), float(means[1])
    if noise <= 0:
        return 100.0
    if signal <= 0 or not math.isfinite(noise):
        return -math.inf
    return 100 * (1 - noise / signal)


def plain_mean(means: Rows) -> float:
    """The number itself."""
    return float(means[0])


def top1_rows(answer: Array, targets: Array, source: str) -> Rows:
    """Share of right answers per sample.

    Args:
        answer: the first output; its last axis holds the classes.
        targets: classes, from the first sample of the answer on.
        source: for messages.

    Raises:
        DataError: labels and output do not fit.
    """
    if answer.ndim == 0 or answer.ndim != targets.ndim + 1:
        raise DataError(
            f"{source}: integer labels of shape {list(targets.shape)} do not fit the first output "
            f"of shape {list(answer.shape)}, whose last axis must hold the classes"
        )
    wanted = targets[: len(answer)]
    if wanted.shape != answer.shape[:-1]:
        raise DataError(f"{source}: there are fewer labels than samples")
    right = (answer.argmax(-1) == wanted).reshape(len(answer), -1)
    found: Rows = right.mean(axis=1, keepdims=True, dtype=np.float64)
    return found


def psnr_rows(answer: Array, targets: Array, peak: float, source: str) -> Rows:
    """Mean squared error per sample, relative to the square of the peak.

    Raises:
        DataError: labels and output do not fit.
    """
    wanted = targets[: len(answer)] if answer.ndim else targets[:0]
    if wanted.shape != answer.shape:
        raise DataError(
            f"{source}: float labels of shape {list(targets.shape[1:])} per sample do not fit a "
            f"first output of shape {list(answer.shape)}"
        )
    error = (wanted.astype(np.float64) - answer.astype(np.float64)).reshape(len(answer), -1)
    found: Rows = np.square(error).mean(axis=1, keepdims=True) / (peak * peak or 1.0)
    return found


def same_rows(reference: Array, answer: Array) -> Rows:
    """1 where the largest of a row is at the same place."""
    same = reference.argmax(-1) == answer.argmax(-1)
    found: Rows = same.astype(np.float64)[:, None]
    return found


def energy_rows(reference: Sequence[Any], answer: Sequence[Any]) -> Rows:
    """Energies of the errors and of the reference over the float outputs, per sample.

    Every output counts alike: its energies are relative to those of the reference in this feed.
    """
    found = []
    for one, other in zip(reference, answer, strict=True):
        if not isinstance(one, np.ndarray) or one.dtype.kind != "f":
            continue
        other = np.asarray(other)
        if one.shape != other.shape:
            return np.array([[math.inf, 1.0]])
        found.append(_energies(one.astype(np.float64), other.astype(np.float64)))
    if not found:
        return np.zeros((1, 2))
    if len({len(rows) for rows in found}) > 1:
        found = [rows.mean(axis=0, keepdims=True) for rows in found]
    mean: Rows = np.mean(found, axis=0)
    return mean


def _energies(one: Rows, other: Rows) -> Rows:
    finite = np.isfinite(one)  # where the original gives none there is nothing to lose
    one, other = np.where(finite, one, 0.0), np.where(finite, other, 0.0)
    length = len(one) if one.ndim else 1
    error = np.square(one - other).reshape(length, -1).sum(axis=1)
    error = np.where(np.isfinite(error), error, math.inf)
    signal = np.square(one).reshape(length, -1).sum(axis=1)
    scale = float(signal.mean()) if signal.size else 0.0
    return np.stack([error, signal], axis=1) / (scale or 1.0)
