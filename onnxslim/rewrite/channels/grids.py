"""What a block of atoms asks for: the lines of each row that stays, and equally long rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from onnxslim.rewrite.channels.atoms import Grid, Ids, node_label

Mask = npt.NDArray[np.bool_]
Kept = Callable[[Ids], Mask]


def unmet(part: Grid, kept: Kept) -> Iterator[tuple[Ids, str]]:
    """Atoms that what stays of a block needs, besides an equal length of its rows.

    A coordinate needs the lines it lies on; a row that stays needs the coordinates it reads.

    Args:
        part: the block.
        kept: the mask of coordinates that stay so far, for an array of atoms.

    Yields:
        atoms that must stay, and why.
    """
    mask = kept(part.ids)
    rows: Mask = np.asarray(mask.any(axis=-1), dtype=np.bool_)
    for place, line in enumerate(part.lines):
        others = tuple(axis for axis in range(rows.ndim) if axis != place)
        missing = rows.any(axis=others) & ~kept(line)
        if missing.any():
            yield line[missing], f"{node_label(part.node)} keeps other channels of the same head"
    if part.reads is None:
        return
    wanted = staying(part, kept)[..., np.newaxis] & part.reads & ~mask
    if wanted.any():
        yield part.ids[wanted], f"{node_label(part.node)} multiplies it with what is not zero"


def uneven(part: Grid, kept: Kept, why: Callable[[int], str]) -> Iterator[tuple[Ids, str]]:
    """Atoms that make all rows that stay equally long, at least one.

    Args:
        part: the block.
        kept: the mask of coordinates that stay so far, for an array of atoms.
        why: the reason why an atom stays.

    Yields:
        atoms that must stay, and why.
    """
    size = part.ids.shape[-1]
    mask = kept(part.ids).reshape(-1, size)
    counts = mask.sum(axis=1)
    wanted = max(1, int(counts.max()))
    missing = np.where(staying(part, kept).reshape(-1), wanted - counts, 0)
    empty = np.flatnonzero((missing > 0) & (counts == 0))
    if empty.size:
        place = np.unravel_index(int(empty[0]), part.ids.shape[:-1])[-1]
        own = np.where(counts == 0, missing, 0)
        yield _cheapest(part, mask, own), f"its head stays: {why(int(part.lines[-1][place]))}"
    if (counts[missing > 0] > 0).any():
        reason = f"{node_label(part.node)} needs equally many channels in every head"
        yield _cheapest(part, mask, np.where(counts == 0, 0, missing)), reason


def staying(part: Grid, kept: Kept) -> Mask:
    """The rows of a block of which all lines stay."""
    rows = np.ones(part.ids.shape[:-1], dtype=np.bool_)
    for place, line in enumerate(part.lines):
        shape = [1] * rows.ndim
        shape[place] = len(line)
        rows &= kept(line).reshape(shape)
    return rows


def _cheapest(part: Grid, mask: Mask, missing: Ids) -> Ids:
    """Atoms for ``missing[r]`` more coordinates of row ``r``, zeros first: they read nothing."""
    known = part.known.reshape(mask.shape)
    cost = np.where(known == 0, 0, np.where(np.isnan(known), 2, 1)) + 3 * mask
    order = np.argsort(cost, axis=1, kind="stable")
    ids = np.take_along_axis(part.ids.reshape(mask.shape), order, axis=1)
    wanted = np.arange(mask.shape[1]) < missing[:, np.newaxis]
    return np.asarray(ids[wanted], dtype=np.int64)
