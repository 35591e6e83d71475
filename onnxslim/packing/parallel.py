"""Runs tasks on threads and gives the results in the order of the tasks."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from onnxslim.errors import UsageError

Result = TypeVar("Result")

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many bytes of it are, and of how many."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Tell nobody."""


def thread_count(threads: int | None) -> int:
    """Return how many threads to use; None means one for each core, at most 16."""
    if threads is None:
        return min(16, os.cpu_count() or 1)
    if threads < 1:
        raise UsageError(f"threads must be at least 1, not {threads}")
    return threads


def in_order(tasks: Iterable[Callable[[], Result]], threads: int) -> Iterator[Result]:
    """Yield the result of each task in order; at most two tasks for each thread are under way.

    The window bounds memory: nothing is started far ahead of what has been consumed.
    """
    if threads == 1:
        for task in tasks:
            yield task()
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for task in tasks:
                waiting.append(pool.submit(task))
                if len(waiting) >= 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
