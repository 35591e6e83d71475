"""What the values of a graph input are used as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import onnx_ir as ir

Size = int | str | None
SizeOf = Callable[[ir.Value | None, int], Size]


@dataclass(frozen=True)
class Bound:
    """Values must lie in ``[low, size + high)``; a size that is a symbol is known per feed."""

    low: int
    size: Size
    high: int = 0


@dataclass
class Role:
    """What an input is used as; several may hold at once.

    Attributes:
        bounds: integer ranges that all must hold.
        hints: integer ranges that would make the values interesting.
        mask: values are 0 or 1.
        axes: values are distinct axes.
        extents: values are sizes, counts or positions that stay small.
        reshapes: the values are the target shape of a Reshape.
        domain: for floats: "positive", "unit" (-0.9 to 0.9) or "above-one".
    """

    bounds: list[Bound] = field(default_factory=list)
    hints: list[Bound] = field(default_factory=list)
    mask: bool = False
    axes: bool = False
    extents: bool = False
    reshapes: bool = False
    domain: str = ""


class RoleBuilder:
    """Collects the role of one input while its uses are found.

    Args:
        size_of: gives the size of one dimension of a value.
    """

    def __init__(self, size_of: SizeOf) -> None:
        self.role = Role()
        self.size = size_of

    def bound(self, low: int, size: Size, shift: int, high: int = 0) -> None:
        """Used values lie in ``[low, size + high)``, so the input's in that minus the shift."""
        if size is None:
            size, high = low + 1, 0
        self.role.bounds.append(Bound(low - shift, size, high - shift))
