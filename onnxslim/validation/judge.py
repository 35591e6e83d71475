"""The standards of one validation, and the figures per output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnxslim.pipeline import Exactness
from onnxslim.validation.compare import Difference, compare, merge
from onnxslim.validation.result import OutputResult
from onnxslim.validation.verdict import Tolerance, tolerance_for

# Both models under a deployment's own optimizations, which reassociate on their own.
_OPTIMIZED_FACTOR = 10.0
_QUANTIZED_RTOL = 1e-2


@dataclass(frozen=True)
class Judge:
    """How outputs are judged in one validation.

    Attributes:
        rtol: overrides the allowed relative difference of floats.
        atol: overrides the allowed absolute difference of floats.
        exactness: the weakest promise among the passes that changed the model.
        random: outputs that are compared by form only.
        quantized: the model quantizes activations.
    """

    rtol: float | None
    atol: float | None
    exactness: Exactness
    random: frozenset[str]
    quantized: bool

    def tolerance(self, dtype: str) -> Tolerance:
        """What is allowed with graph optimizations off."""
        return tolerance_for(dtype, self.exactness, rtol=self.rtol, atol=self.atol)

    def optimized_tolerance(self, dtype: str) -> Tolerance:
        """The runtime reassociates on its own, whatever the passes promise."""
        wanted, usual = self.tolerance(dtype), tolerance_for(dtype, Exactness.ROUNDING)
        rtol, atol = max(wanted.rtol, usual.rtol), max(wanted.atol, usual.atol)
        if self.quantized:  # whether Q and DQ are fused moves values by whole steps
            rtol = max(rtol, _QUANTIZED_RTOL) if rtol else 0.0
        return Tolerance(rtol, atol).times(_OPTIMIZED_FACTOR)

    def differences(
        self, names: Sequence[str], reference: Sequence[Any], candidate: Sequence[Any]
    ) -> list[Difference]:
        """Compares all outputs of one feed, in order."""
        return [
            compare(one, other, values=name not in self.random)
            for name, one, other in zip(names, reference, candidate, strict=True)
        ]

    def outcome(self, name: str, differences: Sequence[Difference]) -> OutputResult:
        """Sums up one output over all feeds."""
        worst = merge(differences)
        tolerance = self.tolerance(worst.dtype)
        return OutputResult(
            name=name,
            dtype=worst.dtype,
            max_abs_error=worst.max_abs,
            max_rel_error=max(one.max_rel for one in differences),
            cosine=worst.cosine,
            exact=worst.exact,
            random=name in self.random,
            rtol=tolerance.rtol,
            atol=tolerance.atol,
            passed=all(tolerance.accepts(one) for one in differences),
        )
