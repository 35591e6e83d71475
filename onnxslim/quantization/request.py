"""What is asked of static int8."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from onnxslim.calibration.ranges import check_method
from onnxslim.errors import UsageError
from onnxslim.quantization.custom_metric import find_metric
from onnxslim.quantization.presets import PRESETS, QuantizePreset, find_preset

DEFAULT_DROP = 1.0
"""Points that may be lost where nothing else is asked for."""


@dataclass(frozen=True)
class Quantization:
    """Static int8, as a step after the exact ones.

    Args:
        calibration: npz file or folder of npz with arrays by input name, a folder of images or of
            test_data_set_*, ``module:function``, or an iterable of feeds.
        preset: ``auto`` (this processor), or a target: ``cpu-avx2``, ``cpu-vnni``, ``cpu-arm``,
            ``tensorrt``, ``openvino``, ``qnn``, ``web``, ``portable`` ...
        labels: npz with inputs by name and ``labels``: integers are classes, floats outputs.
        exclude: nodes to leave in float: names, names of outputs, or patterns.
        include: the only nodes that may get int8, in the same form; empty for all.
        metric: ``module:function`` or a function, see `onnxslim.quantization.custom_metric`.
        max_drop: points that may be lost (percent; dB with labels that are outputs); None for 1.
        form: ``qdq`` or ``qoperator``.
        force: write full int8, also where that is slower or worse.
        strict: a result that loses more than ``max_drop`` is an error.
        requantize: take a quantized model back to float first.
        random_data: make up calibration data; no claim about accuracy is made then.
        max_evaluations: how often a candidate may be measured with the metric.
        method: how ranges are chosen: ``auto``, ``minmax``, ``percentile``, ``entropy``, ``mse``.
        skip_bad: leave out samples with NaN or infinity, up to 5 percent.
        equalize: try cross-layer equalization, smoothing and bias correction where they may help.
        threads: threads of the sessions that measure latency; 0 lets onnxruntime choose.
        latency_batch: samples per run when latency is measured, where the model leaves that open;
            0 measures 1 and 32, and int8 must be slower at neither.
        recipe: TOML file of a run that is to be repeated byte for byte.
        images: how images become inputs, as ``KEY=VALUE``; see ``onnxslim calibrate --help``.
        seed: of made-up data.

    Raises:
        UsageError: an option that does not exist or does not go with another.
    """

    calibration: Any = None
    preset: str = "auto"
    labels: str | None = None
    exclude: Sequence[str] = ()
    include: Sequence[str] = ()
    metric: str | Callable[..., Any] | None = None
    max_drop: float | None = None
    form: str = "qdq"
    force: bool = False
    strict: bool = False
    requantize: bool = False
    random_data: bool = False
    max_evaluations: int = 24
    method: str = "auto"
    skip_bad: bool = False
    equalize: bool = True
    threads: int = 1
    latency_batch: int = 0
    recipe: str | None = None
    images: Sequence[str] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        self.settings()
        check_method(self.method)
        if self.form not in ("qdq", "qoperator"):
            raise UsageError(f"--format {self.form!r}: want qdq or qoperator")
        if self.max_drop is not None and not -math.inf < self.max_drop < math.inf:
            raise UsageError(f"--max-drop {self.max_drop}: want points, such as 0.5")
        if self.max_evaluations < 1:
            raise UsageError(f"--max-evaluations {self.max_evaluations}: want 1 or more")
        if min(self.threads, self.latency_batch) < 0:
            raise UsageError("--threads and --latency-batch want 0 or more")
        if self.random_data:
            self._check_random()
        find_metric(self.metric)

    def _check_random(self) -> None:
        if self.calibration is not None:
            raise UsageError("--random-data and --calibration exclude each other: give one of them")
        for name, value in (
            ("--max-drop", self.max_drop),
            ("--labels", self.labels),
            ("--metric", self.metric),
        ):
            if value is not None:
                raise UsageError(
                    f"{name} needs real data: ranges from --random-data are not representative, so "
                    "no accuracy can be promised; give --calibration"
                )
        if self.strict:
            raise UsageError("--strict needs a target, which --random-data cannot have")

    @property
    def limit(self) -> float:
        """Points that may be lost."""
        return DEFAULT_DROP if self.max_drop is None else self.max_drop

    def settings(self) -> QuantizePreset:
        """The preset.

        Raises:
            UsageError: no such preset.
        """
        short = f"cpu-{self.preset}"
        return find_preset(short if short in PRESETS else self.preset)
