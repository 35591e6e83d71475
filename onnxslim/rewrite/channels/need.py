"""Which atoms are needed, and why: a search backward from everything that is pinned."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from onnxslim.rewrite.channels.atoms import (
    Balance,
    Channelled,
    Channels,
    Contraction,
    Grid,
    Ids,
    Known,
    label,
    node_label,
)
from onnxslim.rewrite.channels.grids import uneven, unmet
from onnxslim.rewrite.channels.watch import Watch

Mask = npt.NDArray[np.bool_]

# The weights that one constant gets for a larger one are at most this much larger.
_MERGE_RATIO = 4.0

# A node inside a reason, as `node_label` writes it.
_NODE = re.compile(r"(\S+ -> '[^']*')")
_AT_NODE = re.compile(r" in (\S+ -> '[^']*')$")

_SUMS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class Need:
    """The needed atoms of a graph; all others can be removed together.

    An input channel of a matrix operator is needed when its weights for a needed output are not
    all zero, unless the channel is zero itself or a constant that the operator's bias can take up.
    Where no bias can, one constant channel is needed, which stands for all the others.
    An axis on which nothing is needed keeps one coordinate, for no axis may become empty.

    Args:
        state: the walked graph.
    """

    def __init__(self, state: Channelled) -> None:
        self.state = state
        self.roots = state.roots()
        self.live: Mask = np.zeros(len(self.roots), dtype=np.bool_)
        self._held: Mask = np.zeros(len(self.roots), dtype=np.bool_)
        self._reasons: list[str | Contraction] = []
        self._why = np.full(len(self.roots), -1, dtype=np.int64)
        self._seen = [0] * len(state.contractions)
        self._varying: dict[int, str] | None = None
        self._burden: Ids | None = None
        self._meet: dict[int, str] | None = None
        contractions = [part.outputs for part in state.contractions]
        grids = [np.concatenate([part.ids.ravel(), *part.lines]) for part in state.grids]
        balances = [np.concatenate([part.inputs.ids, part.outputs.ids]) for part in state.balances]
        self._contractions = Watch(self.roots, contractions, backward=True)
        self._grids = Watch(self.roots, grids, backward=True)
        self._balances = Watch(self.roots, balances, backward=False)
        self._rows: dict[int, None] = {}
        for pin in state.pins:
            self._mark(pin.ids, pin.reason)
        self._settle()

    def kept(self, ids: Ids) -> Mask:
        """The coordinates that stay, for an array of atoms."""
        return self.live[self.roots[ids]]

    def any_removed(self) -> bool:
        """False when every atom stays."""
        return not self.live[self.roots].all()

    def keep(self, ids: Ids, reason: str) -> None:
        """Pins more atoms, with everything that they need."""
        self._mark(ids, reason)
        self._spread()

    def hold(self, roots: Ids, reason: str) -> None:
        """Keeps atoms that could go, without what they read: nobody looks at what they hold.

        What is held as a constant still is one, for what is missing of its inputs is folded.
        """
        new = roots[~self.live[roots]]
        self._held[new] = True
        self._enliven(new, reason)
        self._spread()

    def held(self, ids: Ids) -> Mask:
        """The coordinates that `hold` keeps, for an array of atoms."""
        return self._held[self.roots[ids]]

    def burden(self) -> Ids:
        """Per root: 0 when it is zero where it is made, 1 when constant, 2 when only unread."""
        if self._burden is None:
            self._burden = np.zeros(len(self.roots), dtype=np.int64)
            for _, value in self.state.sources:
                channels = self.state.of(value)
                if channels is not None:
                    known = channels.filled()
                    rank = np.where(known == 0, 0, np.where(np.isnan(known), 2, 1))
                    np.maximum.at(self._burden, self.roots[channels.ids], rank)
        return self._burden

    def reason(self, root: int) -> str:
        """Why an atom is kept."""
        found = self._reasons[self._why[root]]
        return found if isinstance(found, str) else self._read_reason(found, root)

    def plain_reason(self, root: int) -> str:
        """Why an atom is kept that nothing speaks against keeping."""
        found = self._reasons[self._why[root]]
        return found if isinstance(found, str) else f"{node_label(found.node)} reads it"

    def causes(self, roots: Ids) -> Ids:
        """Per root that is kept, a number; equal numbers have the same cause."""
        return np.asarray(self._why[roots], dtype=np.int64)

    def holder(self, root: int) -> str:
        """The node that keeps an atom: its reader, or where a pin was put; empty for none."""
        found = self._reasons[self._why[root]]
        if isinstance(found, Contraction):
            return node_label(found.node)
        named = _NODE.match(found) or _AT_NODE.search(found)
        return named.group(1) if named else ""

    def _mark(self, ids: Ids, reason: str | Contraction) -> bool:
        roots = self.roots[ids]
        new = roots[~self.live[roots] | self._held[roots]]
        if not new.size:
            return False
        self._held[new] = False
        self._enliven(new, reason)
        return True

    def _enliven(self, new: Ids, reason: str | Contraction) -> None:
        self.live[new] = True
        self._why[new] = len(self._reasons)
        self._reasons.append(reason)
        for watch in (self._contractions, self._grids, self._balances):
            watch.touch(new)

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
        """What needed atoms need; parts of which nothing came alive are not looked at again."""
        while True:
            while (index := self._contractions.next()) is not None:
                self._spread_from(index)
            if not self._grids_once() and not self._balance_once():
                return

    def _grids_once(self) -> bool:
        """What blocks need, then (if nothing) equally long rows; each in one sweep, backward."""
        waiting = self._grids.drain()
        self._rows.update(dict.fromkeys(waiting))
        changed = [self._unmet(self.state.grids[index]) for index in waiting]
        if not any(changed):
            rows = sorted(self._rows, reverse=True)
            self._rows.clear()
            changed = [self._uneven(self.state.grids[index]) for index in rows]
        return any(changed)

    def _unmet(self, part: Grid) -> bool:
        wanted = [self._mark(ids, reason) for ids, reason in unmet(part, self.kept)]
        return any(wanted)

    def _uneven(self, part: Grid) -> bool:
        wanted = [self._mark(ids, reason) for ids, reason in uneven(part, self.kept, self._line)]
        return any(wanted)

    def _line(self, atom: int) -> str:
        return self.reason(int(self.roots[atom]))

    def _balance_once(self) -> bool:
        while (index := self._balances.next()) is not None:
            if self._balance(self.state.balances[index]):
                return True
        return False

    def _balance(self, part: Balance) -> bool:
        """Fills up the groups that have fewer channels than another one; True for any."""
        sides = (part.inputs, part.outputs)
        kept = [self.kept(side.ids).reshape(part.groups, -1) for side in sides]
        stays = kept[0].any(axis=1) | kept[1].any(axis=1) | (not part.may_go)
        reason = f"{node_label(part.node)} needs equally many channels in every group"
        for side, mask in zip(sides, kept, strict=True):
            counts = mask.sum(axis=1)
            missing = np.where(stays, max(1, int(counts.max())) - counts, 0)
            if missing.any():
                return self._mark(_cheapest(side, mask, missing), reason)
        return False

    def _spread_from(self, index: int) -> None:
        """Marks what one matrix operator needs for the outputs that are needed by now."""
        contraction = self.state.contractions[index]
        live = self.kept(contraction.outputs)
        if _is_sum(contraction):
            live &= ~self._held[self.roots[contraction.outputs]]
        count = int(live.sum())
        if count != self._seen[index]:
            self._seen[index] = count
            reads = self._reads(contraction, live)
            self._mark(contraction.inputs.ids[reads], contraction)

    def _reads(self, contraction: Contraction, live: Mask) -> Mask:
        """The input channels that a matrix operator needs for these output channels."""
        reads: Mask = _weighted(contraction, live)
        known = contraction.inputs.known
        if known is None:
            return reads
        reads = np.logical_and(reads, known != 0)
        constants: Mask = np.logical_and(~np.isnan(known), known != 0)
        if contraction.fold is not None:
            return np.asarray(reads & ~constants, dtype=np.bool_)
        if not contraction.merge or not (reads & constants).any():
            return reads
        sizes = np.where(constants, np.abs(known), 0.0)
        largest = sizes[reads & constants].max()
        # A small constant cannot stand for large ones: its weights would become too large.
        stands = self.kept(contraction.inputs.ids) & (sizes * _MERGE_RATIO >= largest)
        reads &= ~constants
        if not stands.any():
            reads[int(sizes.argmax())] = True
        return reads

    def _read_reason(self, reader: Contraction, root: int) -> str:
        if reader.why:
            return f"{node_label(reader.node)} {reader.why}"
        where = np.flatnonzero(self.roots[reader.inputs.ids] == root)
        known = reader.inputs.filled()[where]
        constants = known[~np.isnan(known)]
        if constants.size:
            return f"constant {constants[0]:g} {reader.no_fold}: {node_label(reader.node)}"
        source = self._varying_sources().get(root)
        from_where = f", and {source} does not give it as a constant" if source else ""
        joint = self._joints().get(root)
        if from_where and joint:
            from_where += f" (they meet in {joint})"
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

    def _joints(self) -> dict[int, str]:
        """Per root, the first node that makes something that varies of a constant."""
        if self._meet is None:
            self._meet = {}
            for value, channels in self.state.values.items():
                node = value.producer()
                if node is None or len(node.inputs) < 2:
                    continue
                varies = channels.ids[np.isnan(channels.filled())]
                entering = [self.state.of(item) for item in node.inputs]
                constant = [
                    found.ids[~np.isnan(found.filled())] for found in entering if found is not None
                ]
                for ids in constant:
                    meeting = np.intersect1d(self.roots[varies], self.roots[ids])
                    for root in meeting.tolist():
                        self._meet.setdefault(root, node_label(node))
        return self._meet


def _is_sum(contraction: Contraction) -> bool:
    """An operator whose outputs may be computed of fewer inputs, where nobody looks at them."""
    return contraction.node.op_type in _SUMS and not contraction.why


def _weighted(contraction: Contraction, live: Mask) -> Mask:
    """The input channels with a weight for these output channels."""
    weight = contraction.weight
    return weight.in_any() if live.all() else _any(weight.matrix()[live])


def _cheapest(side: Channels, kept: Mask, missing: Ids) -> Ids:
    """Atoms for ``missing[g]`` more coordinates of each group, zeros first: they read nothing.

    Args:
        side: the channels, group after group.
        kept: ``(groups, size)``, the coordinates that stay so far.
        missing: how many more are wanted, per group.
    """
    known = side.filled().reshape(kept.shape)
    cost = np.where(known == 0, 0, np.where(np.isnan(known), 2, 1)) + 3 * kept
    order = np.argsort(cost, axis=1, kind="stable")
    ids = np.take_along_axis(side.ids.reshape(kept.shape), order, axis=1)
    wanted = np.arange(kept.shape[1]) < missing[:, np.newaxis]
    return np.asarray(ids[wanted], dtype=np.int64)


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
