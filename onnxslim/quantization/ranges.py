"""Ranges of tensors, chosen from a calibration when they are asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import onnx_ir as ir

from onnxslim.calibration.ranges import Choice, Range, check_method, choose
from onnxslim.calibration.run import make_plan
from onnxslim.calibration.store import Calibration
from onnxslim.errors import DataError, UsageError


class ChosenRanges:
    """The range of every calibrated tensor by one method; every one is chosen once.

    Args:
        calibration: the statistics.
        method: see `onnxslim.calibration.ranges`.
        ranked: tensors that decide a ranking; they keep all of their range.

    Raises:
        UsageError: no such method.
    """

    def __init__(self, calibration: Calibration, method: str, ranked: Collection[str] = ()) -> None:
        check_method(method)
        self.calibration = calibration
        self._method, self._ranked = method, frozenset(ranked)
        self._known: dict[str, Choice] = {}

    def choice(self, name: str) -> Choice:
        """The range of a tensor, and the method that proposed it.

        Raises:
            DataError: there are no statistics of that tensor.
        """
        if name not in self._known:
            found = self.calibration.tensors.get(name)
            if found is None:
                raise DataError(
                    f"the calibration has no statistics of tensor {name!r}; calibrate the prepared "
                    "model and all of its tensors"
                )
            if found.nan or found.inf:
                raise DataError(
                    f"tensor {name!r} held {found.nan + found.inf} NaN or infinite values in the "
                    "calibration data, for which there is no scale; leave out those samples or "
                    "exclude the nodes that use it"
                )
            method = "minmax" if name in self._ranked else self._method
            self._known[name] = choose(found, method)
        return self._known[name]


class PlannedRanges(Mapping[str, Range]):
    """What a writer asks for its ranges: those given first, then those chosen.

    Attributes:
        used: tensors whose chosen range was asked for.
        warnings: what the user should know of them.
    """

    def __init__(self, chosen: ChosenRanges, given: Mapping[str, Range]) -> None:
        self._chosen, self._given = chosen, given
        self.used: set[str] = set()
        self.warnings: list[str] = []

    def __getitem__(self, name: str) -> Range:
        if name in self._given:
            return self._given[name]
        choice = self._chosen.choice(name)
        if choice.method == "empty":
            if name not in self.used:
                self.warnings.append(
                    f"tensor {name!r} was empty in all feeds; its scale is a guess"
                )
            self.used.add(name)
            return 0.0, 1.0
        self.used.add(name)
        return choice.range

    def __iter__(self) -> Iterator[str]:
        return iter(self._chosen.calibration.tensors)

    def __len__(self) -> int:
        return len(self._chosen.calibration.tensors)


def check_calibration(model: ir.Model, calibration: Calibration) -> None:
    """Raises DataError when the statistics are not of this model.

    Args:
        model: as prepared for quantization.
        calibration: from anywhere: a file, a merge of parts.
    """
    axes = {name: one.channel_axis for name, one in calibration.tensors.items()}
    channels = {name: axis for name, axis in axes.items() if axis is not None}
    try:
        plan = make_plan(model, list(calibration.tensors), channels)
    except UsageError as error:
        raise DataError(f"the calibration is of another model: {error}") from error
    if plan.key != calibration.key:
        raise DataError(
            "the calibration is of another model or of other weights; calibrate this model again"
        )
