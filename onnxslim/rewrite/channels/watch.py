"""Which parts of a graph have to be looked at again, since some of their atoms came alive."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


class Watch:
    """Parts that wait to be looked at; at first all of them, later those that were touched.

    Args:
        roots: the representative of every atom.
        parts: per part, the atoms that it depends on.
        backward: the last part is looked at first.
    """

    def __init__(self, roots: Ids, parts: Sequence[Ids], *, backward: bool) -> None:
        sizes = [len(part) for part in parts]
        atoms = roots[np.concatenate(parts)] if parts else roots[:0]
        order = np.argsort(atoms, kind="stable")
        self._owners = np.repeat(np.arange(len(parts)), sizes)[order]
        self._starts = np.searchsorted(atoms[order], np.arange(len(roots) + 1))
        self._waits = np.ones(len(parts), dtype=np.bool_)
        self._sign = -1 if backward else 1
        self._heap = sorted(self._sign * index for index in range(len(parts)))

    def touch(self, roots: Ids) -> None:
        """These atoms came alive: the parts that depend on them wait again."""
        if not self._owners.size:
            return
        first, last = self._starts[roots], self._starts[roots + 1]
        places = [self._owners[start:stop] for start, stop in zip(first, last, strict=True)]
        if not places:
            return
        owners = np.concatenate(places)
        for index in set(owners[~self._waits[owners]].tolist()):  # the heap puts them in order
            self._waits[index] = True
            heapq.heappush(self._heap, self._sign * index)

    def next(self) -> int | None:
        """The next part that waits, which no longer does; None when all are done."""
        if not self._heap:
            return None
        index = self._sign * heapq.heappop(self._heap)
        self._waits[index] = False
        return index

    def drain(self) -> list[int]:
        """All parts that wait, in order."""
        found: list[int] = []
        while (index := self.next()) is not None:
            found.append(index)
        return found
