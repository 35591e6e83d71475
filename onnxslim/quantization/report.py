"""What static int8 did to a model, as plain data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class QuantizeReport:
    """Outcome of static int8.

    Attributes:
        preset: the settings used; never ``auto``.
        feeds: number of calibration feeds.
        ranges: number of tensors whose range was measured.
        quantized: nodes that read int8, or were absorbed by one that does, by operator.
        kept_float: nodes left as they were, by operator and reason.
        warnings: what the user should know, one line each.
    """

    preset: str
    feeds: int = 0
    ranges: int = 0
    quantized: Counter[str] = field(default_factory=Counter)
    kept_float: dict[str, Counter[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def keep(self, op_type: str, reason: str) -> None:
        """Counts a node that stays in float."""
        self.kept_float.setdefault(op_type, Counter())[reason] += 1

    def summary(self) -> str:
        """The figures in one line."""
        kept = sum(sum(reasons.values()) for reasons in self.kept_float.values())
        return (
            f"{sum(self.quantized.values())} nodes in int8, {kept} in float, "
            f"{self.ranges} ranges from {self.feeds} feeds, preset {self.preset}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON report."""
        return {
            "preset": self.preset,
            "feeds": self.feeds,
            "ranges": self.ranges,
            "quantized": dict(sorted(self.quantized.items())),
            "kept_float": {
                op_type: dict(sorted(reasons.items()))
                for op_type, reasons in sorted(self.kept_float.items())
            },
            "warnings": list(self.warnings),
        }
