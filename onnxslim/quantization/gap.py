"""How far the kernels of this processor are from the arithmetic that a quantized model describes.

With graph optimizations off, onnxruntime computes between conversions in float: that is what the
model means. With optimizations on it uses int8 kernels, and some of them add pairs of products in
16 bits, which overflow without a word. The gap between the two shows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim.runtime.session import open_session

WORST_GAP = 3.0
"""A larger gap, in dB, means kernels that overflow."""

_BEST = 200.0  # in dB; stands for no error at all


@dataclass(frozen=True)
class Gap:
    """Signal-to-noise ratios in dB against the float model, of the output that differs most.

    Attributes:
        output: its name.
        fake: with graph optimizations off.
        real: as deployed.
    """

    output: str
    fake: float
    real: float

    @property
    def decibels(self) -> float:
        """What the kernels lose; below 0 when they are nearer than the description."""
        return self.fake - self.real

    @property
    def is_overflow(self) -> bool:
        """True when rounding alone does not explain it."""
        return self.decibels > WORST_GAP


def fake_real_gap(
    original: ir.Model, quantized: ir.Model, feeds: Iterable[Mapping[str, Any]]
) -> Gap:
    """Runs both models on the feeds.

    Args:
        original: the float model.
        quantized: the same with pairs of conversions.
        feeds: by input name.

    Raises:
        RuntimeRefusedError: onnxruntime does not open one of them, or cannot run the feeds.
    """
    sessions = [
        open_session(original, optimize=True),
        open_session(quantized, optimize=False),
        open_session(quantized, optimize=True),
    ]
    names = sessions[0].output_names
    sums = {name: np.zeros(3) for name in names}  # signal, noise of fake, noise of real
    for feed in feeds:
        results = [session.run(feed) for session in sessions]
        for name, exact, fake, real in zip(names, *results, strict=True):
            if isinstance(exact, np.ndarray) and exact.dtype.kind == "f":
                sums[name] += _squares(exact, fake, real)
    found = [
        Gap(name, ratio(float(s[0]), float(s[1])), ratio(float(s[0]), float(s[2])))
        for name, s in sums.items()
    ]
    return max(found, key=lambda one: one.decibels, default=Gap("", _BEST, _BEST))


def ratio(signal: float, noise: float) -> float:
    """Signal to noise in dB, at most 200; -200 when there is noise alone."""
    if noise <= 0:
        return _BEST
    if signal <= 0:
        return -_BEST
    return max(-_BEST, min(_BEST, 10 * math.log10(signal / noise)))


def _squares(exact: Any, fake: Any, real: Any) -> Any:
    base = exact.astype(np.float64)
    keep = np.isfinite(base)
    base = base[keep]
    errors = [np.asarray(one, np.float64)[keep] - base for one in (fake, real)]
    return np.array([np.vdot(base, base), *(np.vdot(one, one) for one in errors)])
