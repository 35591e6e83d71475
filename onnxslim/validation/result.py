"""What a validation says, as data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["passed", "failed", "not-run"]


@dataclass(frozen=True)
class OutputResult:
    """One output over all feeds.

    Attributes:
        name: its name.
        dtype: numpy's name of the dtype.
        max_abs_error: largest absolute difference.
        max_rel_error: largest difference by the largest magnitude of the output in the same feed.
        cosine: smallest cosine similarity.
        exact: the same bits on every feed.
        random: depends on random numbers; only dtype and rank were compared.
        rtol: allowed relative difference.
        atol: allowed absolute difference.
        passed: within what is allowed.
    """

    name: str
    dtype: str
    max_abs_error: float
    max_rel_error: float
    cosine: float
    exact: bool
    random: bool
    rtol: float
    atol: float
    passed: bool


@dataclass
class ValidationResult:
    """The outcome of a comparison.

    Attributes:
        status: "passed", "failed", or "not-run" when the original itself cannot be run.
        reason: why it failed or was not run, in one line; "" when it passed.
        outputs: the figures per output.
        feeds: the shape of every input per feed.
        evaluator: "onnxruntime" or "reference" (onnx's evaluator).
        notes: what else there is to know.
    """

    status: Status
    reason: str = ""
    outputs: list[OutputResult] = field(default_factory=list)
    feeds: list[dict[str, Any]] = field(default_factory=list)
    evaluator: str = "onnxruntime"
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """True when the comparison took place and found no difference that matters."""
        return self.status == "passed"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON report; errors that are no finite number become None."""
        data = asdict(self)
        for output in data["outputs"]:
            for key, value in output.items():
                if isinstance(value, float) and not math.isfinite(value):
                    output[key] = None
        return data
