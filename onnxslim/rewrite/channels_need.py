"""Which atoms are needed, and why: a search backward from everything that is pinned."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from onnxslim.rewrite.channels import Channelled, Contraction, Ids, Known, label, node_label

Mask = npt.NDArray[np.bool_]


class Need:
    """The needed atoms of a graph; all others can be removed together.

    An input channel of a matrix operator is needed when its weights for a needed output are not
    all zero, unless the channel is zero itself or a constant that the operator's bias can take up.
    An axis on which nothing is needed keeps one coordinate, for no axis may become empty.

    Args:
        state: the walked graph.
    """

    def __init__(self, state: Channelled) -> None:
        self.state = state
        self.roots = state.roots()
        self._live: Mask = np.zeros(len(self.roots), dtype=np.bool_)
        self._reasons: list[str | Contraction] = []
        self._why = np.full(len(self.roots), -1, dtype=np.int64)
        self._seen = [0] * len(state.contractions)
        self._varying: dict[int, str] | None = None
        for pin in state.pins:
            self._mark(pin.ids, pin.reason)
        self._settle()

    def kept(self, ids: Ids) -> Mask:
        """The coordinates that stay, for an array of atoms."""
        return self._live[self.roots[ids]]

    def any_removed(self) -> bool:
        """False when every atom stays."""
        return not self._live[self.roots].all()

    def keep(self, ids: Ids, reason: str) -> None:
        """Pins more atoms, with everything that they need."""
        self._mark(ids, reason)
        self._settle()

    def reason(self, root: int) -> str:
        """Why an atom is kept."""
        found = self._reasons[self._why[root]]
        return found if isinstance(found, str) else self._read_reason(found, root)

    def _mark(self, ids: Ids, reason: str | Contraction) -> bool:
        roots = self.roots[ids]
        new = roots[~self._live[roots]]
        if not new.size:
            return False
        self._live[new] = True
        self._why[new] = len(self._reasons)
        self._reasons.append(reason)
        return True

    def _settle(self) -> None:
        """Spreads the need to what it needs, and gives each empty axis one coordinate.

        Axes are filled backward: what one filled axis needs may fill those before it.
        """
        self._spread()
        for ids, known in _axes(self.state):
            if len(ids) and not self.kept(ids).any():
                constant = np.flatnonzero(~np.isnan(known)) if known is not None else ids[:0]
                position = int(constant[0]) if constant.size else 0
                self._mark(ids[[position]], "one channel has to stay")
                self._spread()

    def _spread(self) -> None:
        while self._spread_once():
            pass

    def _spread_once(self) -> bool:
        changed = False
        for index in reversed(range(len(self._seen))):
            contraction = self.state.contractions[index]
            live = self.kept(contraction.outputs)
            count = int(live.sum())
            if count == self._seen[index]:
                continue
            self._seen[index] = count
            reads = _reads(contraction, live)
            changed |= self._mark(contraction.inputs.ids[reads], contraction)
        return changed

    def _read_reason(self, reader: Contraction, root: int) -> str:
        where = np.flatnonzero(self.roots[reader.inputs.ids] == root)
        known = reader.inputs.filled()[where]
        constants = known[~np.isnan(known)]
        if constants.size:
            return f"constant {constants[0]:g} {reader.no_fold}: {node_label(reader.node)}"
        source = self._varying_sources().get(root)
        from_where = f", and {source} does not give it as a constant" if source else ""
        return f"{node_label(reader.node)} reads it{from_where}"

    def _varying_sources(self) -> dict[int, str]:
        """Per root, the first weighted operator that gives it as something that varies."""
        if self._varying is None:
            self._varying = {}
            for _, value in self.state.sources:
                channels = self.state.of(value)
                if channels is not None:
                    varies = self.roots[channels.ids[np.isnan(channels.filled())]]
                    for root in varies.tolist():
                        self._varying.setdefault(root, label(value))
        return self._varying


def _reads(contraction: Contraction, live: Mask) -> Mask:
    """The input channels that a matrix operator needs for these output channels."""
    weight = contraction.weight
    reads = weight.in_any() if live.all() else _any(weight.matrix()[live])
    known = contraction.inputs.known
    if known is None:
        return reads
    free = np.equal(known, 0.0) if contraction.fold is None else ~np.isnan(known)
    return reads & ~free


def _any(rows: Mask) -> Mask:
    return np.asarray(rows.any(axis=0), dtype=np.bool_)


def _axes(state: Channelled) -> Iterator[tuple[Ids, Known | None]]:
    """Every axis that may be cut, last values first (they tell which channel is constant)."""
    seen: set[int] = set()
    for channels in reversed(state.values.values()):
        if id(channels.ids) not in seen or channels.known is not None:
            seen.add(id(channels.ids))
            yield channels.ids, channels.known
    for ids in (
        *(ids for slots in state.slots.values() for ids in slots.values()),
        *(ids for _, ids in state.vectors.values()),
    ):
        if id(ids) not in seen:
            seen.add(id(ids))
            yield ids, None
