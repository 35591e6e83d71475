"""Ridge regression on sampled rows, with the ridge cross-validated, also behind a Relu."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float64]

# Candidates, times the mean of the Gram matrix' diagonal.
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_DEFAULT_RIDGE = 1e-3
# Larger Gram matrices are not decomposed, which is what cross-validation takes.
_LARGEST_DECOMPOSED = 2048
# How often the goal behind a Relu is adapted to what is reached.
RECTIFIED_TURNS = 12


@dataclass
class Problem:
    """Sampled rows of one layer: ``given + rows @ change + shift`` is to become ``wanted``.

    Attributes:
        intercept: whether there is a bias to solve for.
        rows: per feed ``(n, groups, unknowns)``, float32.
        given: per feed ``(n, outputs)``: what there is.
        wanted: per feed ``(n, outputs)``: the goal.
    """

    intercept: bool
    rows: list[npt.NDArray[np.float32]] = field(default_factory=list)
    given: list[Rows] = field(default_factory=list)
    wanted: list[Rows] = field(default_factory=list)

    def add(self, rows: npt.NDArray[Any], given: Rows, wanted: Rows) -> None:
        """Takes in the rows of one feed; those with anything not finite are left out."""
        finite = np.isfinite(given).all(axis=1) & np.isfinite(wanted).all(axis=1)
        finite &= np.isfinite(rows).all(axis=(1, 2))
        self.rows.append(rows[finite].astype(np.float32))
        self.given.append(given[finite])
        self.wanted.append(wanted[finite])

    @property
    def count(self) -> int:
        """Rows in all."""
        return sum(len(rows) for rows in self.rows)

    def solve(self, *, rectified: bool = False) -> tuple[Rows, Rows] | None:
        """The change of the weights ``(groups, outputs per group, unknowns)`` and of the bias.

        Args:
            rectified: a Relu reads the result, so that below zero any value is as good: where the
                goal is not positive, only what is above zero counts as wrong. Solved by turns: the
                goal becomes what is reached there, and is reached for again.

        Returns:
            None when there are fewer than two rows, nothing is missing, or nothing can be solved.
        """
        if self.count < 2:
            return None
        try:
            solver = _Solver(self)
            change, shift = solver.fit(self.wanted, self.given)
            for _ in range(RECTIFIED_TURNS if rectified else 0):
                reached = [
                    given + _product(rows, change) + shift
                    for rows, given in zip(self.rows, self.given, strict=True)
                ]
                goals = [
                    np.where(wanted > 0, wanted, np.minimum(now, 0.0))
                    for wanted, now in zip(self.wanted, reached, strict=True)
                ]
                change, shift = solver.fit(goals, self.given)
        except np.linalg.LinAlgError:
            return None
        if not (change.any() or shift.any()):
            return None
        return change.transpose(0, 2, 1), shift


def _product(rows: npt.NDArray[np.float32], change: Rows) -> Rows:
    """``(n, outputs)`` of rows ``(n, groups, unknowns)`` and ``(groups, unknowns, outputs)``."""
    by_group = rows.transpose(1, 0, 2) @ change.astype(np.float32)
    return by_group.transpose(1, 0, 2).reshape(len(rows), -1).astype(np.float64)


class _Solver:
    """The decomposed Gram matrices of a problem, for any number of goals."""

    def __init__(self, problem: Problem) -> None:
        self._rows = problem.rows
        self._intercept = problem.intercept
        self._groups, self._unknowns = problem.rows[0].shape[1:]
        self._ridge: float | None = None
        grams = [_Gram(problem.rows[half::2], problem.intercept) for half in (0, 1)]
        self._whole = grams[0] + grams[1]
        self._halves = grams if min(gram.count for gram in grams) > 1 else []
        if self._unknowns > _LARGEST_DECOMPOSED:
            self._halves = []

    def fit(self, wanted: list[Rows], given: list[Rows]) -> tuple[Rows, Rows]:
        """``(groups, unknowns, outputs per group)`` and ``(outputs,)`` for one goal."""
        missing = [one - other for one, other in zip(wanted, given, strict=True)]
        crosses = [self._cross(missing, half) for half in (0, 1)]
        if self._ridge is None:
            self._ridge = self._best_ridge(crosses)
        total, means = crosses[0][0] + crosses[1][0], crosses[0][1] + crosses[1][1]
        cross, mean_missing = self._whole.centred_cross(total, means)
        change = self._whole.solve(cross, self._ridge)
        shift = np.zeros(change.shape[0] * change.shape[2])
        if self._intercept:
            mean_rows = self._whole.mean[:, np.newaxis, :]
            shift = (mean_missing - (mean_rows @ change)[:, 0, :]).reshape(-1)
        return change, shift

    def _cross(self, missing: list[Rows], half: int) -> tuple[Rows, Rows]:
        """Sums of ``rows x missing`` and of ``missing`` over one half of the feeds."""
        outputs = missing[0].shape[1] // self._groups
        cross = np.zeros((self._groups, self._unknowns, outputs))
        total = np.zeros((self._groups, outputs))
        for rows, part in list(zip(self._rows, missing, strict=True))[half::2]:
            wanted = part.reshape(len(part), self._groups, -1).transpose(1, 0, 2)
            cross += rows.transpose(1, 2, 0) @ wanted.astype(np.float32)
            total += wanted.sum(axis=1)
        return cross, total

    def _best_ridge(self, crosses: list[tuple[Rows, Rows]]) -> float:
        """The ridge under which one half of the feeds predicts the other best."""
        if not self._halves:
            return _DEFAULT_RIDGE
        centred = [
            gram.centred_cross(*cross)[0] for gram, cross in zip(self._halves, crosses, strict=True)
        ]
        judge = self._halves[1].content
        errors = []
        for ridge in RIDGES:
            change = self._halves[0].solve_any(centred[0], ridge)
            errors.append(float(np.sum(change * (judge @ change - 2 * centred[1]))))
        return RIDGES[int(np.argmin(errors))]


class _Gram:
    """A Gram matrix per group, around the means where there is an intercept, in float64."""

    def __init__(self, parts: list[npt.NDArray[np.float32]], intercept: bool) -> None:
        shape = parts[0].shape[1:] if parts else (0, 0)
        self.intercept = intercept
        self.count = sum(len(rows) for rows in parts)
        self._products = np.zeros((shape[0], shape[1], shape[1]))
        self._totals = np.zeros(shape)
        for rows in parts:
            by_group = rows.transpose(1, 0, 2)
            self._products += by_group.transpose(0, 2, 1) @ by_group
            self._totals += rows.sum(axis=0, dtype=np.float64)
        self._finish()

    def _finish(self) -> None:
        count = max(self.count, 1)
        self.mean = self._totals / count
        self.content = self._products / count
        if self.intercept:
            self.content = self.content - self.mean[:, :, np.newaxis] * self.mean[:, np.newaxis, :]
        self._parts: tuple[Rows, Rows] | None = None
        self._inverse: Rows | None = None

    def __add__(self, other: _Gram) -> _Gram:
        if not other.count:
            return self
        total = _Gram([], self.intercept)
        total.count = self.count + other.count
        total._products = self._products + other._products
        total._totals = self._totals + other._totals
        total._finish()
        return total

    def centred_cross(self, cross: Rows, missing: Rows) -> tuple[Rows, Rows]:
        """Cross products and means per row, from sums."""
        count = max(self.count, 1)
        means = missing / count
        cross = cross / count
        if self.intercept:
            cross = cross - self.mean[:, :, np.newaxis] * means[:, np.newaxis, :]
        return cross, means

    def _size(self, ridge: float) -> Rows:
        """What a ridge adds to the diagonal, per group."""
        size = ridge * np.trace(self.content, axis1=1, axis2=2) / self.content.shape[1]
        return np.asarray(np.maximum(size, np.finfo(np.float64).tiny), dtype=np.float64)

    def solve(self, cross: Rows, ridge: float) -> Rows:
        """``(groups, unknowns, outputs)`` under one ridge, the same in every call."""
        if self._inverse is None:
            eye = np.eye(self.content.shape[1])
            damped = self.content + self._size(ridge)[:, np.newaxis, np.newaxis] * eye
            self._inverse = np.asarray(np.linalg.inv(damped), dtype=np.float64)
        return np.asarray(self._inverse @ cross, dtype=np.float64)

    def solve_any(self, cross: Rows, ridge: float) -> Rows:
        """The same under ridges that differ from call to call."""
        size = self._size(ridge)
        if self._parts is None:
            self._parts = np.linalg.eigh(self.content)
        values, vectors = self._parts
        damped = np.maximum(values, 0.0)[:, :, np.newaxis] + size[:, np.newaxis, np.newaxis]
        return vectors @ ((vectors.transpose(0, 2, 1) @ cross) / damped)
