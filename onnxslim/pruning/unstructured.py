"""Which single weights become zero: the smallest ones, or random ones, in exact numbers.

Zeros that are there already count as the smallest, so they are part of the amount. Among equals the
one that comes first goes first, so the number is exact and the same every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from onnxslim.errors import UsageError
from onnxslim.pruning.weights import Mask, Weight

Array = npt.NDArray[Any]
Method = Literal["l1", "random"]
Scope = Literal["tensor", "global"]


def check_amount(amount: float, what: str = "amount") -> None:
    """Raises UsageError for a share outside 0..1."""
    if not 0 <= amount <= 1:
        raise UsageError(f"{what} {amount:g}: want a share between 0 and 1, such as 0.5")


def zero_masks(
    weights: Sequence[Weight], method: str, amount: float, scope: str = "tensor", seed: int = 0
) -> list[Mask]:
    """Per weight, True where it is to be zero.

    Per tensor of n elements ``round(amount · n)`` are True, or, globally, of all N elements
    together ``round(amount · N)`` (Python's rounding: half to even); more where there are more
    zeros already.

    Args:
        weights: see `find_weights`.
        method: ``l1``, the smallest magnitudes, or ``random``.
        amount: share that is to be zero, 0..1.
        scope: ``tensor`` or ``global``.
        seed: of the random choice.

    Raises:
        UsageError: an amount outside 0..1, or no such method or scope.
    """
    check_amount(amount)
    for given, known in ((method, Method), (scope, Scope)):
        if given not in get_args(known):
            raise UsageError(f"{given!r} is not known; choose from: {', '.join(get_args(known))}")
    keys = (_keys(weight, number, method, seed) for number, weight in enumerate(weights))
    if scope == "tensor":
        return [
            _smallest(key, round(amount * key.size)).reshape(weight.read().shape)
            for weight, key in zip(weights, keys, strict=True)
        ]
    return _global(weights, list(keys), amount)


def _keys(weight: Weight, number: int, method: str, seed: int) -> Array:
    """A flat key per element: the smallest go first, zeros before everything else."""
    content = weight.read().reshape(-1)
    if method == "l1":
        wide = np.float64 if content.dtype == np.float64 else np.float32
        return np.asarray(np.abs(content.astype(wide)))
    keys = np.random.default_rng([seed, number]).random(content.size)
    keys[content == 0] = -1.0
    return keys


def _smallest(keys: Array, count: int) -> Mask:
    """Marks exactly ``count`` keys, and all that are zero or below."""
    mask: Mask = keys <= 0
    known = int(mask.sum())
    if count <= known:
        return mask
    threshold = np.partition(keys, count - 1)[count - 1]
    mask |= keys < threshold
    equal = np.flatnonzero(keys == threshold)
    mask[equal[: count - int(mask.sum())]] = True
    return mask


def _global(weights: Sequence[Weight], keys: list[Array], amount: float) -> list[Mask]:
    if not keys:
        return []
    total = sum(key.size for key in keys)
    mask = _smallest(np.concatenate(keys), round(amount * total))
    ends = np.cumsum([key.size for key in keys])[:-1]
    parts = np.split(mask, ends)
    return [part.reshape(w.read().shape) for part, w in zip(parts, weights, strict=True)]
