"""Figures for steps that change the outputs on purpose: agreement, noise, accuracy on labels."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.calibration.readers import input_specs, load_arrays, read_feeds
from onnxslim.errors import DataError
from onnxslim.runtime.session import Session, open_session

Array = npt.NDArray[Any]
Metric = Literal["top1", "psnr"]


@dataclass(frozen=True)
class OutputAgreement:
    """How close one output stays to the original's over all feeds.

    Attributes:
        name: the output.
        sqnr_db: signal to quantization noise, in dB: infinite when equal, None when it is no
            float output.
        top1: share of rows whose largest element is at the same place, for 2-D float outputs with
            more than one column; None for others.
    """

    name: str
    sqnr_db: float | None
    top1: float | None


@dataclass(frozen=True)
class Accuracy:
    """A figure against labels: ``top1`` as a share, or ``psnr`` in dB (infinite when equal)."""

    metric: Metric
    value: float
    samples: int


@dataclass
class AccuracyReport:
    """Original and changed model side by side.

    Attributes:
        outputs: agreement per output on the feeds.
        before: the original on the labels, when there are labels.
        after: the changed model on the labels.
        samples: number of feeds that were compared.
    """

    outputs: list[OutputAgreement] = field(default_factory=list)
    before: Accuracy | None = None
    after: Accuracy | None = None
    samples: int = 0

    def summary(self) -> str:
        """The figures that matter most, in one line."""
        parts = []
        if self.before is not None and self.after is not None:
            form, unit = (".2%", "") if self.before.metric == "top1" else (".2f", " dB")
            parts.append(
                f"{self.before.metric} {self.before.value:{form}}{unit} -> "
                f"{self.after.value:{form}}{unit} on {self.before.samples} samples"
            )
        for output in self.outputs:
            if output.top1 is not None:
                parts.append(f"{output.name} agrees {output.top1:.2%}")
            if output.sqnr_db is not None:
                parts.append(f"{output.name} SQNR {output.sqnr_db:.1f} dB")
        return ", ".join(parts) or "nothing to measure"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON report; figures that are infinite become None."""
        return {
            "outputs": [
                {"name": one.name, "sqnr_db": _finite(one.sqnr_db), "top1": one.top1}
                for one in self.outputs
            ],
            "before": _accuracy_dict(self.before),
            "after": _accuracy_dict(self.after),
            "feeds": self.samples,
        }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _accuracy_dict(accuracy: Accuracy | None) -> dict[str, Any] | None:
    if accuracy is None:
        return None
    value = _finite(accuracy.value)
    return {"metric": accuracy.metric, "value": value, "samples": accuracy.samples}


class AgreementMeter:
    """Adds up agreement feed by feed, so that the outputs of one feed are held at a time.

    Args:
        names: names of the outputs, in order.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._signal = [0.0] * len(names)
        self._noise = [0.0] * len(names)
        self._is_float = [False] * len(names)
        self._same = [0] * len(names)
        self._rows = [0] * len(names)

    def add(self, reference: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Takes in what both models answered to one feed, output by output."""
        for index, (one, other) in enumerate(zip(reference, outputs, strict=True)):
            if not isinstance(one, np.ndarray) or one.dtype.kind != "f":
                continue
            other = np.asarray(other)
            if one.shape != other.shape:
                self._noise[index] = math.inf
                continue
            self._add_floats(index, one, other)

    def _add_floats(self, index: int, one: Array, other: Array) -> None:
        self._is_float[index] = True
        wide, changed = one.astype(np.float64), other.astype(np.float64)
        finite = np.isfinite(wide)
        if not finite.all():  # where the original gives NaN or infinity there is nothing to lose
            wide, changed = wide[finite], changed[finite]
        self._signal[index] += float(np.square(wide).sum())
        self._noise[index] += float(np.square(wide - changed).sum())
        if one.ndim == 2 and one.shape[1] > 1:
            self._same[index] += int(np.count_nonzero(one.argmax(1) == other.argmax(1)))
            self._rows[index] += len(one)

    def result(self) -> list[OutputAgreement]:
        """The figures so far."""
        return [
            OutputAgreement(
                name,
                decibel(self._signal[index], self._noise[index]) if self._is_float[index] else None,
                self._same[index] / self._rows[index] if self._rows[index] else None,
            )
            for index, name in enumerate(self._names)
        ]


def decibel(signal: float, noise: float) -> float:
    """Ratio of two energies in dB; infinite without noise, minus infinite without signal."""
    if noise == 0:
        return math.inf
    if signal == 0 or not math.isfinite(noise):
        return -math.inf
    return 10 * math.log10(signal / noise)


def agreement(
    names: Sequence[str], reference: Sequence[Any], outputs: Sequence[Any]
) -> list[OutputAgreement]:
    """Agreement on one feed: what the original answered, and what the other model did."""
    meter = AgreementMeter(names)
    meter.add(reference, outputs)
    return meter.result()


def compare_accuracy(
    original: ir.Model,
    changed: ir.Model,
    *,
    feeds: Iterable[Mapping[str, Any]],
    labels: str | os.PathLike[str] | None = None,
    batch_size: int = 32,
) -> AccuracyReport:
    """Measures what a lossy step cost, both models under the runtime's optimizations.

    Args:
        original: the model before the step.
        changed: the model after it.
        feeds: inputs to compare outputs on.
        labels: npz with the inputs by name and ``labels``; see `accuracy`.
        batch_size: samples at a time with ``labels``, where the model leaves that open.

    Raises:
        RuntimeRefusedError: one of the models cannot be run.
        DataError: the labelled data does not fit.
    """
    first, second = (open_session(model, optimize=True) for model in (original, changed))
    meter = AgreementMeter(first.output_names)
    report = AccuracyReport()
    for feed in feeds:
        meter.add(first.run(feed), second.run(feed))
        report.samples += 1
    report.outputs = meter.result()
    if labels is not None:
        specs = input_specs(original)
        report.before = accuracy(first, labels, specs=specs, batch_size=batch_size)
        report.after = accuracy(second, labels, specs=specs, batch_size=batch_size)
    return report


def accuracy(
    session: Session,
    labels: str | os.PathLike[str],
    *,
    specs: Sequence[Any] | None = None,
    batch_size: int = 32,
) -> Accuracy:
    """Measures an open model on labelled data.

    Args:
        session: the model.
        labels: npz with the inputs by name and one more array, ``labels``: integers give top-1
            accuracy of the first output, whose last axis holds the classes; floats of the first
            output's shape give PSNR.
        specs: the inputs as the graph declares them; the session's own when left out.
        batch_size: samples at a time, where the model leaves that open.

    Raises:
        DataError: no labels, or labels that do not fit the first output.
        RuntimeRefusedError: the model does not run on the data.
    """
    specs = session.inputs if specs is None else specs
    return measure_labelled(session, _labelled(specs, labels, batch_size))


@dataclass(frozen=True)
class Labelled:
    """Labelled data in memory.

    Attributes:
        feeds: inputs by name, in order.
        targets: one label per sample: classes (integers) or outputs (floats).
        source: where it came from, for messages.
    """

    feeds: Sequence[Mapping[str, Any]]
    targets: Array
    source: str


def read_labelled(
    model: ir.Model, labels: str | os.PathLike[str], *, batch_size: int = 32
) -> Labelled:
    """Reads labelled data once, to measure several models with `measure_labelled`.

    Raises:
        DataError: no labels, or inputs that do not fit the model.
    """
    return _labelled(input_specs(model), labels, batch_size)


def measure_labelled(session: Session, labelled: Labelled) -> Accuracy:
    """Measures an open model on labelled data; see `accuracy`.

    Raises:
        DataError: the labels do not fit the first output.
        RuntimeRefusedError: the model does not run on the data.
    """
    meter = _Top1() if labelled.targets.dtype.kind in "iu" else _Psnr()
    done = 0
    for feed in labelled.feeds:
        answer = np.asarray(session.run(feed)[0])
        done += meter.add(answer, labelled.targets[done:], labelled.source)
    return meter.result(done)


def _labelled(specs: Sequence[Any], labels: str | os.PathLike[str], batch_size: int) -> Labelled:
    arrays = load_arrays(labels)
    targets = _targets(arrays, str(labels))
    inputs = {spec.name: arrays[spec.name] for spec in specs if spec.name in arrays}
    lengths = {name: len(array) for name, array in inputs.items() if array.ndim}
    if len(targets) not in lengths.values():
        raise DataError(f"{labels} holds {len(targets)} labels for samples: {lengths}")
    feeds = read_feeds(labels, specs, batch_size=batch_size)
    return Labelled(list(feeds), targets, str(labels))


def _targets(arrays: Mapping[str, Array], source: str) -> Array:
    targets = arrays.get("labels")
    if targets is None:
        raise DataError(f"{source} has no array 'labels' beside the inputs")
    if targets.dtype.kind not in "iuf" or targets.ndim == 0 or not len(targets):
        raise DataError(
            f"{source}: labels are {targets.dtype} of shape {list(targets.shape)}; wanted are "
            "integers (classes) or floats (target outputs), one per sample"
        )
    if targets.dtype.kind in "iu" and targets.ndim == 2 and targets.shape[1] == 1:
        return targets[:, 0]
    return targets


class _Top1:
    def __init__(self) -> None:
        self._right = 0
        self._total = 0

    def add(self, answer: Array, targets: Array, source: str) -> int:
        """Counts one batch; returns the number of samples it took."""
        if answer.ndim == 0 or answer.ndim != targets.ndim + 1:
            raise DataError(
                f"{source}: integer labels of shape {list(targets.shape)} do not fit the first "
                f"output of shape {list(answer.shape)}, whose last axis must hold the classes"
            )
        wanted = targets[: len(answer)]
        if wanted.shape != answer.shape[:-1]:
            raise DataError(f"{source}: there are fewer labels than samples")
        self._right += int(np.count_nonzero(answer.argmax(-1) == wanted))
        self._total += wanted.size
        return len(answer)

    def result(self, samples: int) -> Accuracy:
        return Accuracy("top1", self._right / self._total if self._total else 0.0, samples)


class _Psnr:
    def __init__(self) -> None:
        self._noise = 0.0
        self._count = 0
        self._peak = 0.0

    def add(self, answer: Array, targets: Array, source: str) -> int:
        """Adds one batch; returns the number of samples it took."""
        wanted = targets[: len(answer)] if answer.ndim else targets[:0]
        if wanted.shape != answer.shape:
            raise DataError(
                f"{source}: float labels of shape {list(targets.shape[1:])} per sample do not fit "
                f"a first output of shape {list(answer.shape)}"
            )
        error = wanted.astype(np.float64) - answer.astype(np.float64)
        self._noise += float(np.square(error).sum())
        self._count += error.size
        self._peak = max(self._peak, float(np.abs(wanted).max(initial=0.0)))
        return len(answer)

    def result(self, samples: int) -> Accuracy:
        mean = self._noise / self._count if self._count else 0.0
        return Accuracy("psnr", decibel(self._peak**2, mean), samples)
