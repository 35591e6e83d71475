"""Finds the rewrite that breaks a model, by running the pipeline under falling limits."""

from __future__ import annotations

from collections.abc import Callable


def find_culprit(run: Callable[[int], bool], total: int) -> int | None:
    """The smallest limit at which the result is bad, by binary search.

    Args:
        run: makes the first ``limit`` rewrites and says whether the result is good.
        total: number of rewrites of the full run, whose result is bad.

    Returns:
        ``n`` such that ``n`` rewrites are bad and ``n - 1`` are good, so rewrite number ``n``
        (counted from 1) is the culprit. With several culprits it is one of them. None when even
        no rewrite at all is bad (the fault is not a rewrite's) or all of them are good.
    """
    if total < 0:
        raise ValueError(f"total must not be negative, not {total}")
    if not run(0) or total == 0 or run(total):
        return None
    good, bad = 0, total
    while bad - good > 1:
        middle = (good + bad) // 2
        if run(middle):
            good = middle
        else:
            bad = middle
    return bad
