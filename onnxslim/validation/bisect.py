"""Finds the rewrite that breaks a model, by running the pipeline under falling limits."""

from __future__ import annotations

from collections.abc import Callable


def find_culprit(is_bad: Callable[[int], bool], total: int) -> int:
    """The smallest limit at which the result is bad, by binary search.

    Args:
        is_bad: makes the first ``limit`` rewrites and says whether the result is bad. It is asked
            only about limits between 1 and ``total - 1``.
        total: number of rewrites of the full run, whose result is known to be bad, as that of no
            rewrite at all is known to be good.

    Returns:
        ``n`` such that ``n`` rewrites are bad and ``n - 1`` are good, so rewrite number ``n``
        (counted from 1) is a culprit; with several culprits it is one of them.

    Raises:
        ValueError: ``total`` is less than 1.
    """
    if total < 1:
        raise ValueError(f"without a rewrite there is no culprit: total is {total}")
    good, bad = 0, total
    while bad - good > 1:
        middle = (good + bad) // 2
        if is_bad(middle):
            bad = middle
        else:
            good = middle
    return bad
