"""Zeros in the weights of a linear layer, and the other weights refitted to make up for them.

With H the (damped) second moment of the layer's input, the squared output error of weights W is
``(W - T) H (W - T)ᵀ``, T being the best dense ones. The sweep goes through the inputs once: each
weight that becomes zero spreads its error over the inputs behind it, by a Cholesky factor of the
inverse of H, which is the optimal correction for the inputs that are still free. A conjugate
gradient on the weights that stay then takes the error down to what the mask allows.

Source: the optimal brain surgeon (Hassibi and Stork, 1993), its column-wise form for many outputs
at once (Frantar and Alistarh, 2023); the polish is plain linear algebra.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from onnxslim.pruning.nm import Pattern
from onnxslim.pruning.weights import Mask

Rows = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

DAMPING = 0.01
"""Added to the diagonal of H, relative to its mean."""

_COLUMNS = 128
_POLISH_STEPS = 40


def damped(second: Rows, damping: float = DAMPING) -> Rows:
    """A symmetric ``(u, u)`` with its diagonal raised, so that it can be inverted."""
    level = damping * float(np.trace(second)) / len(second)
    return np.asarray(second + max(level, 1e-12) * np.eye(len(second)))


def refit_masked(target: Rows, moment: Rows, zero: Mask) -> Rows:
    """The best weights with zeros at given places.

    Args:
        target: ``(o, u)``, the best dense weights.
        moment: ``(u, u)``, positive definite.
        zero: ``(o, u)``, True where the weight is to be zero.

    Raises:
        numpy.linalg.LinAlgError: ``moment`` cannot be factored.
    """
    swept, _ = _sweep(target, moment, lambda start, block, diagonal: None, zero.copy(), [])
    return _polish(swept, target, moment, zero)


def refit_pattern(
    target: Rows, moment: Rows, pattern: Pattern, order: Ids, sizes: Sequence[int], zero: Mask
) -> tuple[Rows, Mask]:
    """Chooses zeros block by block, and the best weights around them.

    Three choices compete, for each output on its own: by what a weight's loss costs during the
    sweep, by magnitude, and by magnitude times the size of the input. None of them is always best.

    Args:
        target: ``(o, u)``, the best dense weights.
        moment: ``(u, u)``, positive definite.
        pattern: how many of a block are zero at least.
        order: the unknowns in an order in which blocks are contiguous.
        sizes: of the blocks in that order.
        zero: ``(o, u)``, zeros that are there already, and count.

    Returns:
        The weights ``(o, u)`` and where they are zero.

    Raises:
        numpy.linalg.LinAlgError: ``moment`` cannot be factored.
    """

    def choose(start: int, block: Rows, diagonal: Rows) -> Mask:
        """The weights of a block whose loss costs the least; existing zeros first."""
        cost = np.square(block / diagonal)
        known = zero[:, order[start : start + block.shape[1]]]
        ranks = np.argsort(np.where(known, -1.0, cost), axis=1, kind="stable")
        chosen = known.copy()
        np.put_along_axis(chosen, ranks[:, : pattern.zeros_of(block.shape[1])], True, axis=1)
        return chosen

    turned, wanted = moment[np.ix_(order, order)], target[:, order]
    mask = np.zeros(target.shape, dtype=np.bool_)
    swept, mask = _sweep(wanted, turned, choose, mask, sizes)
    best, mask = _polish(swept, wanted, turned, mask), mask.copy()
    least = _errors(best, wanted, turned)
    for scale in (np.ones(len(turned)), np.sqrt(np.diag(turned))):
        other = _by_size(np.abs(wanted) * scale, zero[:, order], pattern, sizes)
        found = _polish(np.where(other, 0.0, wanted), wanted, turned, other)
        errors = _errors(found, wanted, turned)
        better = errors < least
        best[better], mask[better], least[better] = found[better], other[better], errors[better]
    weights, zeros = np.empty_like(best), np.empty_like(mask)
    weights[:, order], zeros[:, order] = best, mask
    return weights, zeros


def _by_size(sizes_of: Rows, zero: Mask, pattern: Pattern, sizes: Sequence[int]) -> Mask:
    """Marks the least of every block, zeros that are there already first."""
    mask = zero.copy()
    first = 0
    for size in sizes:
        block = np.where(zero[:, first : first + size], -1.0, sizes_of[:, first : first + size])
        ranks = np.argsort(block, axis=1, kind="stable")
        part = mask[:, first : first + size]
        np.put_along_axis(part, ranks[:, : pattern.zeros_of(size)], True, axis=1)
        first += size
    return mask


def _errors(weights: Rows, target: Rows, moment: Rows) -> Rows:
    """Squared output error per output."""
    apart = weights - target
    return _row_dots(apart @ moment, apart)


def _sweep(
    target: Rows,
    moment: Rows,
    choose: Callable[[int, Rows, Rows], Mask | None],
    zero: Mask,
    sizes: Sequence[int],
) -> tuple[Rows, Mask]:
    """One pass over the columns; where blocks begin, ``choose`` may set their mask."""
    factor = _upper_factor(moment)
    starts = dict(zip(np.cumsum([0, *sizes[:-1]]).tolist(), sizes, strict=True)) if sizes else {}
    weights = target.copy()
    count = weights.shape[1]
    first = 0
    while first < count:
        last = _piece_end(first, count, starts)
        errors = np.zeros((len(weights), last - first))
        for column in range(first, last):
            if column in starts:
                end = column + starts[column]
                diagonal = np.diag(factor)[column:end]
                chosen = choose(column, weights[:, column:end], diagonal)
                if chosen is not None:
                    zero[:, column:end] = chosen
            error = np.where(zero[:, column], weights[:, column], 0.0) / factor[column, column]
            weights[:, column:last] -= np.outer(error, factor[column, column:last])
            errors[:, column - first] = error
        weights[:, last:] -= errors @ factor[first:last, last:]
        first = last
    weights[zero] = 0.0
    return weights, zero


def _piece_end(first: int, count: int, starts: dict[int, int]) -> int:
    """Where a piece of columns ends that is worked off at once: never inside a block."""
    last = min(first + _COLUMNS, count)
    while last < count and starts and last not in starts:
        last += 1
    return last


def _upper_factor(moment: Rows) -> Rows:
    """Upper triangular U with ``Uᵀ U`` the inverse of a positive definite matrix."""
    inverse = np.linalg.inv(moment)
    return np.asarray(np.linalg.cholesky((inverse + inverse.T) / 2).T)


def _polish(start: Rows, target: Rows, moment: Rows, zero: Mask) -> Rows:
    """Conjugate gradients on the weights that stay, all outputs at once.

    Each output is a system of its own, whose matrix is ``moment`` without the rows and columns of
    its zeros; the diagonal preconditions it. The error never rises.
    """
    weights = start.copy()
    diagonal = np.diag(moment)
    residual = np.where(zero, 0.0, (target - weights) @ moment)
    size = _row_dots(residual, residual / diagonal)
    goal = 1e-8 * np.maximum(size, np.finfo(np.float64).tiny)
    direction = residual / diagonal
    for _ in range(_POLISH_STEPS):
        if (size <= goal).all():
            break
        image = np.where(zero, 0.0, direction @ moment)
        curvature = _row_dots(direction, image)
        length = _ratio(size, curvature)
        weights += length[:, None] * direction
        residual -= length[:, None] * image
        scaled = residual / diagonal
        new = _row_dots(residual, scaled)
        direction = scaled + _ratio(new, size)[:, None] * direction
        size = new
    return weights


def _row_dots(one: Rows, other: Rows) -> Rows:
    return np.asarray(np.einsum("ou,ou->o", one, other))


def _ratio(above: Rows, below: Rows) -> Rows:
    """Elementwise quotient, 0 where nothing is left to do."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
