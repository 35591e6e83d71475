"""Compares what two models answered to the same feed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Elements that are widened to float64 at a time.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Difference:
    """How far one output of one feed is from the reference.

    Attributes:
        dtype: numpy's name of the reference's dtype ("float32"), "string", or "none".
        max_abs: largest absolute difference over elements that are finite on both sides.
        scale: largest finite magnitude in the reference.
        cosine: cosine similarity of the finite elements; 1 when both are all zero.
        exact: every bit is the same (any NaN equals any NaN).
        problem: what cannot be put into a number: another dtype, shape, or NaN elsewhere; or "".
        finite: some element was finite, so that there was something to compare.
    """

    dtype: str
    max_abs: float = 0.0
    scale: float = 0.0
    cosine: float = 1.0
    exact: bool = True
    problem: str = ""
    finite: bool = True

    @property
    def max_rel(self) -> float:
        """Largest absolute difference by the largest magnitude in the reference."""
        if self.max_abs == 0:
            return 0.0
        return self.max_abs / self.scale if self.scale else math.inf


def compare(reference: Any, candidate: Any, *, values: bool = True) -> Difference:
    """Compares one output: an array, a list of them (a sequence), or None (an empty optional).

    Args:
        reference: what the original answered.
        candidate: what the other model answered.
        values: False compares only kind, dtype and shape (outputs that are random).
    """
    if reference is None or candidate is None:
        if reference is candidate:
            return Difference("none")
        return Difference("none", exact=False, problem="one is an empty optional, the other not")
    if isinstance(reference, dict) or isinstance(candidate, dict):
        return _compare_plain(reference, candidate)
    if isinstance(reference, list) or isinstance(candidate, list):
        return _compare_lists(reference, candidate, values)
    return _compare_arrays(np.asarray(reference), np.asarray(candidate), values)


def _compare_plain(reference: Any, candidate: Any) -> Difference:
    """Maps (ai.onnx.ml) must have the same keys, and values that compare."""
    if not isinstance(reference, dict) or not isinstance(candidate, dict):
        return Difference("map", exact=False, problem="one is a map, the other not")
    if list(reference) != list(candidate):
        return Difference("map", exact=False, problem="the maps have different keys")
    return _compare_arrays(np.array([*reference.values()]), np.array([*candidate.values()]), True)


def _compare_lists(reference: Any, candidate: Any, values: bool) -> Difference:
    if not isinstance(reference, list) or not isinstance(candidate, list):
        return Difference("sequence", exact=False, problem="one is a sequence, the other not")
    if len(reference) != len(candidate):
        if not values:
            return Difference("sequence")
        problem = f"sequence of {len(candidate)} instead of {len(reference)}"
        return Difference("sequence", exact=False, problem=problem)
    parts = [
        compare(one, other, values=values) for one, other in zip(reference, candidate, strict=True)
    ]
    return merge(parts) if parts else Difference("sequence")


def merge(parts: Sequence[Difference]) -> Difference:
    """The worst of several differences of one output; ``parts`` must not be empty."""
    return Difference(
        dtype=parts[0].dtype,
        max_abs=max(part.max_abs for part in parts),
        scale=max(part.scale for part in parts),
        cosine=min(part.cosine for part in parts),
        exact=all(part.exact for part in parts),
        problem=next((part.problem for part in parts if part.problem), ""),
        finite=any(part.finite for part in parts),
    )


def _compare_arrays(reference: Array, candidate: Array, values: bool) -> Difference:
    name = "string" if reference.dtype.kind in "OUS" else str(reference.dtype)
    if reference.dtype != candidate.dtype and not _both_text(reference, candidate):
        problem = f"dtype {candidate.dtype} instead of {reference.dtype}"
        return Difference(name, exact=False, problem=problem)
    if reference.ndim != candidate.ndim or (values and reference.shape != candidate.shape):
        problem = f"shape {list(candidate.shape)} instead of {list(reference.shape)}"
        return Difference(name, exact=False, problem=problem)
    if not values:
        return Difference(name)
    if name == "string":
        same = bool(np.array_equal(reference, candidate))
        return Difference(name, exact=same, problem="" if same else "the strings differ")
    return _compare_numbers(reference, candidate, name)


def _both_text(reference: Array, candidate: Array) -> bool:
    return reference.dtype.kind in "OUS" and candidate.dtype.kind in "OUS"


def _compare_numbers(reference: Array, candidate: Array, name: str) -> Difference:
    if reference.dtype.kind in "iu":
        return _compare_integers(reference, candidate, name)
    max_abs = scale = dot = norm_one = norm_other = 0.0
    exact, any_finite = True, reference.size == 0
    for one, other in _blocks(reference, candidate):
        finite = np.isfinite(one) & np.isfinite(other)
        if not _same_outside(one, other, finite):
            return Difference(
                name, math.inf, scale, 0.0, False, "NaN or infinity in different places"
            )
        one, other = one[finite], other[finite]
        if not one.size:
            continue
        any_finite = True
        exact = exact and bool(np.array_equal(one, other))
        max_abs = max(max_abs, float(np.abs(one - other).max()))
        scale = max(scale, float(np.abs(one).max()))
        dot += float(np.vdot(other, one).real)
        norm_one += float(np.vdot(one, one).real)
        norm_other += float(np.vdot(other, other).real)
    cosine = 1.0 if exact else _cosine(dot, norm_one, norm_other, max_abs)
    return Difference(name, max_abs, scale, cosine, exact, finite=any_finite)


def _compare_integers(reference: Array, candidate: Array, name: str) -> Difference:
    """Integers are compared as such: float64 would hide differences above 2**53."""
    exact = bool(np.array_equal(reference, candidate))
    if exact or not reference.size:
        largest = float(np.abs(reference.astype(np.float64)).max()) if reference.size else 0.0
        return Difference(name, 0.0, largest, 1.0, exact)
    one, other = reference.astype(np.float64).ravel(), candidate.astype(np.float64).ravel()
    max_abs = max(float(np.abs(one - other).max()), 1.0)
    dots = float(one @ other), float(one @ one), float(other @ other)
    return Difference(name, max_abs, float(np.abs(one).max()), _cosine(*dots, max_abs), False)


def _blocks(reference: Array, candidate: Array) -> Iterator[tuple[Array, Array]]:
    one, other = reference.reshape(-1), candidate.reshape(-1)
    wide = np.complex128 if one.dtype.kind == "c" else np.float64
    for start in range(0, one.size, _BLOCK):
        part = slice(start, start + _BLOCK)
        yield one[part].astype(wide), other[part].astype(wide)


def _same_outside(one: Array, other: Array, finite: Array) -> bool:
    """True when the elements that are not finite are the same: NaN for NaN, +inf for +inf."""
    if bool(finite.all()):
        return True
    return bool(np.array_equal(one[~finite], other[~finite], equal_nan=True))


def _cosine(dot: float, norm_one: float, norm_other: float, max_abs: float) -> float:
    if norm_one == 0 or norm_other == 0 or not math.isfinite(norm_one * norm_other):
        return 1.0 if max_abs == 0 else 0.0
    return max(-1.0, min(1.0, dot / math.sqrt(norm_one) / math.sqrt(norm_other)))
