"""What is asked of a compression, and the passes that do it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

from onnxslim import passes
from onnxslim.errors import UsageError
from onnxslim.pipeline import Pass, Pipeline
from onnxslim.rewrite.stored_weights.find import MIN_BYTES

Runtime = Literal["portable", "ort"]

FORMS = ("fp16", "bf16", "int8", "int4", "palette16", "palette256", "auto", "exact")

# The pass of each form with its options, and the largest relative error (Frobenius norm of the
# difference to that of the weight) that it may make where the user sets no limit.
_PASSES: dict[str, tuple[str, dict[str, Any], float]] = {
    "fp16": ("store-weights-half", {}, 0.01),
    "bf16": ("store-weights-half", {"bfloat": True}, 0.01),
    "int8": ("store-weights-int8", {}, 0.05),
    "int4": ("store-weights-int4", {}, 0.12),
    "palette16": ("store-weights-palette", {"levels": 16}, 0.15),
    "palette256": ("store-weights-palette", {"levels": 256}, 0.05),
}

# What is tried per weight, one after the other: the first whose error is small enough is taken.
_CHAINS: dict[str, tuple[str, ...]] = {
    "fp16": ("fp16",),
    "bf16": ("bf16",),
    "int8": ("int8", "fp16"),
    "int4": ("int4", "int8", "fp16"),
    "palette16": ("palette16", "palette256", "fp16"),
    "palette256": ("palette256", "fp16"),
    "auto": ("int4", "int8", "fp16"),
    "exact": (),
}
# ``auto`` is for those who want no thought: the error that int8 rarely passes.
_AUTO_ERROR = 0.03
_NBITS = {"int4": (4, 8), "int8": (8,), "auto": (4, 8)}
_OPSETS = {"bf16": 13, "int4": 21, "palette16": 21, "auto": 21}
_LEAST_OPSET = 7


@dataclass(frozen=True)
class Compression:
    """Weights in fewer bytes.

    Args:
        weights: ``int8``, ``int4``, ``fp16``, ``bf16``, ``palette16``, ``palette256``, ``auto``
            (per weight the smallest whose error is small enough) or ``exact`` (only what comes back
            bit for bit).
        max_error: largest relative error of a weight (Frobenius norm of the difference to that of
            the weight); one that is above it takes the next wider form. None: by form.
        runtime: ``portable`` (standard operators) or ``ort`` (onnxruntime's own, for matrices).
        calibration: inputs to compare outputs on: npz, folder of npz, or an iterable of feeds.
        labels: npz with the inputs by name and ``labels``, to measure accuracy.
        max_drop: points (percent of accuracy or agreement, dB of PSNR) that may be lost.
        share_transposed: store a matrix that is another's transpose as a Transpose of that.
        min_bytes: smaller weights stay as they are.

    Raises:
        UsageError: a form, limit or combination that does not exist.
    """

    weights: str = "int8"
    max_error: float | None = None
    runtime: str = "portable"
    calibration: Any = None
    labels: str | None = None
    max_drop: float | None = None
    share_transposed: bool = False
    min_bytes: int = MIN_BYTES

    def __post_init__(self) -> None:
        if self.weights not in FORMS:
            near = passes.nearest(self.weights, list(FORMS))
            raise UsageError(f"weights {self.weights!r}: there is no such form{near}")
        if self.runtime not in ("portable", "ort"):
            raise UsageError(f"target {self.runtime!r}: want portable or ort")
        if self.max_error is not None and not 0 <= self.max_error < math.inf:
            raise UsageError(f"max-error {self.max_error}: want a share of 0 or more, such as 0.02")
        if self.max_drop is not None and not 0 <= self.max_drop < math.inf:
            raise UsageError(f"max-drop {self.max_drop}: want points of 0 or more, such as 0.5")
        if self.max_drop is not None and self.labels is None and self.calibration is None:
            raise UsageError(
                "--max-drop needs data to measure the drop on: give --labels FILE.npz (inputs and "
                "'labels') or --calibration DATA"
            )
        if self.runtime == "ort" and self.weights not in _NBITS:
            known = ", ".join(_NBITS)
            raise UsageError(f"target ort has no operator for {self.weights} weights; for: {known}")

    @property
    def opset(self) -> int:
        """The lowest version of the standard operators that the forms need."""
        return _OPSETS.get(self.weights, _LEAST_OPSET)

    def limit(self, form: str) -> float:
        """The largest relative error that a weight may have in a form."""
        if self.max_error is not None:
            return self.max_error
        return _AUTO_ERROR if self.weights == "auto" else _PASSES[form][2]

    def pipeline(self) -> Pipeline:
        """What is free of loss first, then the forms, from narrow to wide."""
        made = [_make("fill-with-expand", {}), *self._shared()]
        if self.weights == "exact":
            made.append(_make("store-weights-narrow", {"min_bytes": self.min_bytes}))
        if self.runtime == "ort":
            # before anything else, which would hide matrices from it
            made = [*self._products(), *made]
        for form in _CHAINS[self.weights]:
            name, options, _ = _PASSES[form]
            limits = {"max_error": self.limit(form), "min_bytes": self.min_bytes}
            made.append(_make(name, {**options, **limits}))
        return Pipeline(tuple(made))

    def _products(self) -> list[Pass]:
        """Products with narrow weights, from narrow to wide."""
        return [
            _make(
                "use-matmul-nbits",
                {
                    "bits": bits,
                    "max_error": self.limit(f"int{bits}"),
                    "min_bytes": self.min_bytes,
                },
            )
            for bits in _NBITS[self.weights]
        ]

    def _shared(self) -> list[Pass]:
        return [_make("share-transposed-weights", {})] if self.share_transposed else []


def _make(name: str, options: dict[str, Any]) -> Pass:
    made: Pass = cast(Any, passes.load(name))(**options)
    return made
