"""Says whether differences are acceptable, by dtype and by what the passes declared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxslim.pipeline import Exactness
from onnxslim.validation.compare import Difference

# Allowed difference by the largest magnitude of the output. EXACT passes keep every operation, yet
# the runtime may pick another kernel for the same one, which costs a few last bits; integers,
# strings and booleans must be equal under both.
_EXACT = {"float32": 1e-6, "float64": 1e-14, "float16": 1e-3, "bfloat16": 8e-3, "complex64": 1e-6}
_ROUNDING = {"float32": 1e-4, "float64": 1e-9, "float16": 1e-2, "bfloat16": 5e-2, "complex64": 1e-4}
# What is left of sums that cancel to zero, in units of the output.
_NOISE = {"float32": 1e-8, "float64": 1e-15, "float16": 1e-6, "bfloat16": 1e-6, "complex64": 1e-8}
_FLOAT8 = 0.13  # half a step of three bits of mantissa


@dataclass(frozen=True)
class Tolerance:
    """A difference is accepted up to ``atol + rtol * largest magnitude of the output``."""

    rtol: float
    atol: float

    def accepts(self, difference: Difference) -> bool:
        """True when one output of one feed is close enough."""
        if difference.problem:
            return False
        if difference.exact:
            return True
        return difference.max_abs <= self.atol + self.rtol * difference.scale

    def times(self, factor: float) -> Tolerance:
        """A looser one."""
        return Tolerance(self.rtol * factor, self.atol * factor)


def tolerance_for(
    dtype: str,
    exactness: Exactness,
    *,
    rtol: float | None = None,
    atol: float | None = None,
) -> Tolerance:
    """The tolerance for an output.

    Args:
        dtype: numpy's name of its dtype.
        exactness: the weakest promise among the passes that changed the model.
        rtol: overrides the relative part, for floats.
        atol: overrides the absolute part, for floats.
    """
    if "float" not in dtype and "complex" not in dtype:
        return Tolerance(0.0, 0.0)
    table = _EXACT if exactness is Exactness.EXACT else _ROUNDING
    noise = 0.0 if exactness is Exactness.EXACT else _NOISE.get(dtype, 0.0)
    return Tolerance(
        table.get(dtype, _FLOAT8) if rtol is None else rtol, noise if atol is None else atol
    )


def explain(name: str, differences: Sequence[Difference], tolerance: Tolerance) -> str:
    """Why an output fails, in one line, or "" when it passes on every feed."""
    for number, difference in enumerate(differences, start=1):
        if difference.problem:
            return f"output {name}, feed {number}: {difference.problem}"
        if not tolerance.accepts(difference):
            allowed = tolerance.atol + tolerance.rtol * difference.scale
            return (
                f"output {name}, feed {number}: differs by {difference.max_abs:.3g} "
                f"(allowed: {allowed:.3g}, largest value: {difference.scale:.3g})"
            )
    return ""
