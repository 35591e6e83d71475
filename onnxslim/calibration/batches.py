"""Cuts arrays of samples into feeds of the sizes that a model wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from onnxslim.errors import DataError
from onnxslim.runtime.specs import Array, Dim, Feed, InputSpec, shape_text

Way = Literal["shared", "stacked", "fixed", "open"]


@dataclass(frozen=True)
class Layout:
    """One input with its array, and how the array is cut.

    ``shared`` goes whole into every feed; ``stacked`` has an axis of samples in front of the
    input's own; ``fixed`` is cut into groups of the declared size; ``open`` as one likes.
    """

    spec: InputSpec
    array: Array
    source: str

    @property
    def way(self) -> Way:
        """How the array is cut.

        Raises:
            DataError: the rank or a fixed dimension does not fit.
        """
        shape, array = self.spec.shape, self.array
        if shape is None:
            return "open" if array.ndim else "shared"
        if array.ndim == len(shape) + 1 and _fits(array.shape[1:], shape):
            return "stacked"
        if array.ndim != len(shape) or not _fits(array.shape[1:], shape[1:]):
            raise self._misfit()
        if not shape:
            return "shared"
        size = shape[0]
        if not isinstance(size, int):
            return "open"
        if len(array) < size:
            raise self._misfit()
        return "fixed" if size > 0 else "shared"

    @property
    def group(self) -> int:
        """Samples that one feed of a ``fixed`` input takes."""
        first = self.spec.shape[0] if self.spec.shape else 1
        return first if isinstance(first, int) else 1

    def _misfit(self) -> DataError:
        return DataError(
            f"{self.source}: array {self.spec.name} has shape {list(self.array.shape)}, which does "
            f"not fit {shape_text(self.spec.shape)}; the first axis counts samples"
        )

    def feeds_it_makes(self) -> int | None:
        """How many feeds the array is good for; None when that is not its decision."""
        match self.way:
            case "stacked":
                return len(self.array)
            case "fixed":
                return len(self.array) // self.group
        return None


def _fits(shape: tuple[int, ...], declared: tuple[Dim, ...]) -> bool:
    return all(
        not isinstance(want, int) or want == got for got, want in zip(shape, declared, strict=True)
    )


def cut(
    layouts: Sequence[Layout], batch_size: int, source: str
) -> tuple[list[Feed], int, list[str]]:
    """Cuts all inputs alike.

    Returns:
        The feeds, the number of samples in them, and notes about what was left out.

    Raises:
        DataError: no samples, or arrays that do not belong together.
    """
    for layout in layouts:
        if layout.way != "shared" and len(layout.array) == 0:
            raise DataError(f"{source}: array {layout.spec.name} holds no samples")
    count = _feed_count(layouts, source)
    if count is None:
        return _cut_open(layouts, batch_size, source)
    return _cut_fixed(layouts, count, source)


def _feed_count(layouts: Sequence[Layout], source: str) -> int | None:
    """The number of feeds, where fixed or stacked inputs decide it."""
    counts = {layout.spec.name: layout.feeds_it_makes() for layout in layouts}
    decided = {name: count for name, count in counts.items() if count is not None}
    # A fixed input that fills one feed only goes along with every other.
    several = {name: count for name, count in decided.items() if count > 1}
    if len(set(several.values())) > 1:
        parts = ", ".join(f"{name} {count}" for name, count in several.items())
        raise DataError(f"{source}: the arrays make different numbers of feeds: {parts}")
    if several:
        return next(iter(several.values()))
    stacked = any(layout.way == "stacked" for layout in layouts)
    return 1 if stacked or (decided and not any(la.way == "open" for la in layouts)) else None


def _cut_open(
    layouts: Sequence[Layout], batch_size: int, source: str
) -> tuple[list[Feed], int, list[str]]:
    """Open first dimensions: ``batch_size`` samples at a time, the last feed with what is left."""
    open_ones = [layout for layout in layouts if layout.way == "open"]
    rest = {
        la.spec.name: la.array if la.way == "shared" else la.array[: la.group] for la in layouts
    }
    lengths = {layout.spec.name: len(layout.array) for layout in open_ones}
    if len(set(lengths.values())) > 1:
        if not _independent(open_ones):
            parts = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise DataError(f"{source}: the arrays hold different numbers of samples: {parts}")
        whole = {layout.spec.name: layout.array for layout in open_ones}
        return [{**rest, **whole}], 1, ["arrays of different length were taken as one feed"]
    total = next(iter(lengths.values()), 1)
    feeds: list[Feed] = []
    for start in range(0, total, max(batch_size, 1)):
        part = slice(start, start + max(batch_size, 1))
        feeds.append({**rest, **{la.spec.name: la.array[part] for la in open_ones}})
    return feeds, total, []


def _independent(layouts: Sequence[Layout]) -> bool:
    """True when no two first dimensions share a symbol or lack one, so that lengths may differ."""
    symbols = [layout.spec.shape[0] if layout.spec.shape else None for layout in layouts]
    return None not in symbols and len(set(symbols)) == len(symbols)


def _cut_fixed(
    layouts: Sequence[Layout], count: int, source: str
) -> tuple[list[Feed], int, list[str]]:
    notes: list[str] = []
    parts = [_parts(layout, count, source, notes) for layout in layouts]
    feeds = [
        {layout.spec.name: part[number] for layout, part in zip(layouts, parts, strict=True)}
        for number in range(count)
    ]
    groups = [layout.group for layout in layouts if layout.way == "fixed"]
    return feeds, count * max(groups, default=1), notes


def _parts(layout: Layout, count: int, source: str, notes: list[str]) -> list[Array]:
    array = layout.array
    match layout.way:
        case "shared":
            return [array] * count
        case "stacked":
            return (
                [array[number] for number in range(len(array))]
                if len(array) > 1
                else [array[0]] * count
            )
        case "fixed":
            size = layout.group
        case "open":
            if len(array) % count:
                raise DataError(
                    f"{source}: array {layout.spec.name} holds {len(array)} samples, which do not "
                    f"divide into {count} feeds"
                )
            size = len(array) // count
    left = len(array) - size * (len(array) // size)
    if left:
        notes.append(
            f"{left} samples of {layout.spec.name} do not fill a batch of {size}: left out"
        )
    if len(array) // size == 1:
        return [array[:size]] * count
    return [array[number * size : (number + 1) * size] for number in range(count)]
