"""What becomes of every group of tied channels, and why: the data behind ``--explain``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxslim.pipeline import Explanation, Kept
from onnxslim.rewrite.channels.atoms import Channelled, Channels, Ids
from onnxslim.rewrite.channels.need import Mask, Need
from onnxslim.rewrite.channels.operators.quantized import is_stored


def explain(state: Channelled, need: Need) -> Iterator[Explanation]:
    """One account per group: the weights that make the same channels.

    Args:
        state: the walked graph.
        need: what stays, with everything that was held back or not allowed.
    """
    constant = _constant_somewhere(state, need)
    idle = candidates(state, need)
    shapes = _shapes(state, need)
    for sites, channels in _groups(state, need):
        kept = need.kept(channels.ids)
        removed = dict(_removed(need, channels, constant))
        yield Explanation(
            site=sites[0],
            tied=tuple(sites[1:]),
            before=len(kept),
            after=int(kept.sum()),
            shapes={site: shapes[site] for site in sites if site in shapes},
            removed=removed,
            kept=list(_kept(need, need.roots[channels.ids[kept]], idle)),
        )


def candidates(state: Channelled, need: Need) -> Mask:
    """Per root: is it constant somewhere, or unread by the outputs of some operator?"""
    found = _constant_somewhere(state, need)
    for part in state.contractions:
        unread = ~part.weight.in_any() if need.kept(part.outputs).any() else slice(0)
        found[need.roots[part.inputs.ids[unread]]] = True
    return np.asarray(found | need.held(np.arange(len(need.roots))), dtype=np.bool_)


def _constant_somewhere(state: Channelled, need: Need) -> Mask:
    found = np.zeros(len(need.roots), dtype=np.bool_)
    for value, channels in state.values.items():
        if channels.known is not None and not is_stored(value):
            found[need.roots[channels.ids[~np.isnan(channels.known)]]] = True
    return found


def _groups(state: Channelled, need: Need) -> Iterator[tuple[list[str], Channels]]:
    """Weights by the set of channels that they make, in graph order."""
    found: dict[bytes, tuple[list[str], Channels]] = {}
    for site, value in state.sources:
        channels = state.of(value)
        if channels is not None:
            key = np.unique(need.roots[channels.ids]).tobytes()
            sites, _ = found.setdefault(key, ([], channels))
            if site not in sites:
                sites.append(site)
    yield from found.values()


def _shapes(state: Channelled, need: Need) -> dict[str, tuple[list[int], list[int]]]:
    """Per weight: its shape as it is, and as it will be."""
    found = {}
    for value, slots in state.slots.items():
        if value.shape is not None and value.name is not None:
            before = [int(extent) for extent in value.shape.numpy()]
            after = list(before)
            for axis, ids in slots.items():
                after[axis] = int(need.kept(ids).sum())
            found[value.name] = (before, after)
    return found


def _removed(need: Need, channels: Channels, constant: Mask) -> Iterator[tuple[str, int]]:
    """How many channels go for which reason."""
    gone = ~need.kept(channels.ids)
    known = channels.filled()
    varies = np.isnan(known)
    later = constant[need.roots[channels.ids]]
    kinds = [
        ("zero filter", known == 0),
        ("constant", ~varies & (known != 0)),
        ("constant further on", varies & later),
        ("unread", varies & ~later),
    ]
    for name, mask in kinds:
        count = int((mask & gone).sum())
        if count:
            yield name, count


def _kept(need: Need, roots: Ids, idle: Mask) -> Iterator[Kept]:
    """Why channels stay: first those that could go by themselves, then the commonest reasons."""
    rows: dict[tuple[str, str, bool], int] = {}
    whys = need.causes(roots)
    for flag in (True, False):
        for cause in np.unique(whys[idle[roots] == flag]).tolist():
            own = roots[(whys == cause) & (idle[roots] == flag)]
            root = int(own[0])
            node = need.holder(root)
            reason = need.reason(root) if flag else need.plain_reason(root)
            key = (reason, node, flag)
            rows[key] = rows.get(key, 0) + len(own)
    order = sorted(rows.items(), key=lambda row: (not row[0][2], -row[1]))
    for (reason, node, flag), count in order:
        yield Kept(count, reason, node, idle=flag)
