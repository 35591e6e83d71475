"""Numbers as people read them."""

from __future__ import annotations


def size(number: int) -> str:
    """Bytes as people read them: ``532 B``, ``1.4 kB``, ``23.1 MB`` (powers of 1000)."""
    value, unit = _scaled(number, ("B", "kB", "MB", "GB"))
    if unit == "B":
        return f"{number} B"
    return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"


def count(number: int | None) -> str:
    """A large count: ``987``, ``12.3 k``, ``4.56 M``; a dash for unknown."""
    if number is None:
        return "–"
    value, unit = _scaled(number, ("", "k", "M", "G"))
    return f"{value:.3g} {unit}" if unit else str(number)


def _scaled(number: int, units: tuple[str, ...]) -> tuple[float, str]:
    value, index = float(number), 0
    while value >= 1000 and index < len(units) - 1:
        value, index = value / 1000, index + 1
    return value, units[index]


def change(before: int | None, after: int | None) -> str:
    """The relative change in percent, with its sign; empty when there is none."""
    if not before or after is None or before == after:
        return ""
    share = (after - before) / before * 100
    return f"{share:+.1f} %" if abs(share) >= 0.05 else "±0.0 %"
