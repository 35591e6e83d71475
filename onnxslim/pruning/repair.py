"""Refits what reads cut channels, so that the cut model answers as the original did.

All of it ends in weights and biases that are there anyway, so it costs nothing at run time. The
ladder, from the cheapest rung to the strongest:

* ``none``: the cut alone.
* ``bias``: each bias makes up for the mean that its layer lost.
* ``affine``: each output channel gets its mean and its variance back.
* ``least-squares``: the weights of each layer are solved for again, from its input in the cut model
  and its output in the original, with an intercept, and drawn to the weights that were.
* ``residual``: the same, but where a layer adds into a residual stream the sum is the goal, so that
  it also makes up for what the shortcut lost.
* ``second-sweep``: the better of the two once more, from the start.
* ``descent``: from the bare cut all weights of the layers that were cut, what attention computes
  included, follow the gradient of the error at values that nothing was cut from (see `descent`).

Layers are taken in order, each on what the layers before it, repaired already, give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxslim.io import load
from onnxslim.ir import shapes
from onnxslim.ir.constants import is_constant
from onnxslim.ir.edit import Names
from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import rank
from onnxslim.pruning.cut import Cut
from onnxslim.pruning.fitting import Problem
from onnxslim.pruning.layers import Layer, Rows, layers_of
from onnxslim.pruning.sampling import Teacher, positions, run_tapped
from onnxslim.pruning.tokens import positions_read

RUNGS = ("none", "bias", "affine", "least-squares", "residual", "second-sweep", "descent")

# Above so many unknowns per output (a Gram matrix of 170 MB) only some of them are solved for.
LARGEST_FIT = 4608
# A channel that all but died is not blown up by more than this.
_LARGEST_GAIN = 4.0

Step = Callable[[int, int], None]


@dataclass
class Repaired:
    """A repaired model.

    Attributes:
        model: a copy of the cut model with other weights.
        rung: what was done.
        layers: how many layers were refitted.
        notes: what could not be repaired, one line each.
    """

    model: ir.Model
    rung: str
    layers: int = 0
    notes: list[str] = field(default_factory=list)


def repair(
    teacher: Teacher, cut: Cut, rung: str, step: Step | None = None, *, nearest: bool = False
) -> Repaired:
    """Repairs a copy of a cut model.

    Args:
        teacher: the original and the calibration feeds.
        cut: what was cut; not changed.
        rung: one of `RUNGS`.
        step: called with (layers done, layers in all).
        nearest: refit only the layers that read what was cut, not those behind them.

    Raises:
        RuntimeRefusedError: one of the models does not run on the feeds.
    """
    model = load(cut.model)
    shapes.infer(model)
    result = Repaired(model, rung)
    if rung == "none" or not cut.kept:
        return result
    fit = _Fit(teacher, cut, model, result)
    layers = list(_affected(model, cut, nearest=nearest))
    for number, layer in enumerate(layers):
        fit.one(layer, rung)
        if step is not None:
            step(number + 1, len(layers))
    return result


def sweep_again(teacher: Teacher, cut: Cut, first: Repaired) -> Repaired:
    """One more sweep over a model that was repaired."""
    second = repair(teacher, Cut(first.model, cut.kept), first.rung)
    second.rung = "second-sweep"
    return second


def _affected(model: ir.Model, cut: Cut, *, nearest: bool) -> Iterator[Layer]:
    """The layers behind a cut, in order: what they read is not what it was."""
    changed: set[ir.Value] = set()
    layers = {layer.node: layer for layer in layers_of(model.graph)}
    for node in model.graph:
        read = [value for value in node.inputs if value is not None]
        layer = layers.get(node)
        if layer is not None and layer.source.name in cut.kept:
            changed.add(layer.source)
        if any(value in changed for value in read):
            changed.update(node.outputs)
            if layer is not None and (not nearest or layer.source.name in cut.kept):
                yield layer


def adds_into_sums(model: ir.Model) -> bool:
    """Is there a layer whose output is added to something computed?"""
    return any(_sum_behind(layer) is not None for layer in layers_of(model.graph))


class _Fit:
    """Repairs layers of one model in place."""

    def __init__(self, teacher: Teacher, cut: Cut, model: ir.Model, result: Repaired) -> None:
        self.teacher = teacher
        self.cut = cut
        self.model = model
        self.result = result
        self.fresh_name = Names(model).fresh

    def one(self, layer: Layer, rung: str) -> None:
        """Repairs one layer as the rung says."""
        if layer.channel_axis == -1:
            layer.tokens = positions_read(layer.output)
        if rung in ("bias", "affine"):
            self._moments(layer, affine=rung == "affine")
            return
        goal = (_sum_behind(layer) if rung == "residual" else None) or layer.output
        taps = _taps(layer)
        if taps is None:
            self.result.notes.append(
                f"{layer.output.name}: {layer.unknowns} inputs are too many to solve for; "
                "mean and variance were matched"
            )
            self._moments(layer, affine=True)
            return
        problem = self._problem(layer, goal, taps)
        solved = problem.solve(rectified=_is_rectified(goal))
        if solved is None:
            return
        change, shift = solved
        weights = layer.weights()
        weights[:, :, taps] += change
        self._store(layer, weights, layer.bias() + shift)

    def _problem(self, layer: Layer, goal: ir.Value, taps: Sequence[int]) -> Problem:
        """Unfolded inputs of the cut model, its answers, and those of the original."""
        name, source = goal.name or "", layer.source.name or ""
        teacher, feeds = self.teacher, self.teacher.feeds
        problem = Problem(layer.biased is not None)
        current = run_tapped(self.model, [source, name], feeds)
        for number, (values, wanted) in enumerate(
            zip(current, teacher.targets(layer, name), strict=True)
        ):
            places = positions(layer, values[name], number, len(feeds), teacher.seed)
            rows = layer.rows(values[source], places)[:, :, taps]
            given = layer.targets(values[name], places)
            problem.add(rows, given, self._kept(name, wanted))
        return problem

    def _kept(self, name: str, rows: Rows) -> Rows:
        """The channels of a value of the original that the cut model still has."""
        found = self.cut.kept.get(name)
        return rows if found is None else rows[:, found[1]]

    def _moments(self, layer: Layer, *, affine: bool) -> None:
        """Gives every output channel its mean back, and with ``affine`` its variance."""
        if layer.biased is None:
            return
        name = layer.output.name or ""
        before, after = _Moments(layer.outputs), _Moments(layer.outputs)
        feeds, teacher = self.teacher.feeds, self.teacher
        current = run_tapped(self.model, [name], feeds)
        for number, (values, wanted) in enumerate(
            zip(current, teacher.targets(layer, name), strict=True)
        ):
            places = positions(layer, values[name], number, len(feeds), teacher.seed)
            before.add(self._kept(name, wanted))
            after.add(layer.targets(values[name], places))
        if not before.count or not after.count:
            return
        gain = np.ones(layer.outputs)
        if affine:
            with np.errstate(all="ignore"):
                gain = np.where(after.deviation > 0, before.deviation / after.deviation, 1.0)
            gain = np.clip(gain, 1 / _LARGEST_GAIN, _LARGEST_GAIN)
        # A MatMul is measured before its bias is added, a Conv and a Gemm after.
        own = np.zeros(layer.outputs) if is_op(layer.node, "MatMul") else layer.bias()
        shift = before.mean - gain * (after.mean - own) - own
        weights = layer.weights()
        scaled = weights * gain.reshape(layer.groups, -1, 1)
        self._store(layer, scaled, layer.bias() + shift)

    def _store(self, layer: Layer, weights: Rows, bias: Rows) -> None:
        if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
            self.result.notes.append(f"{layer.output.name}: no finite fit; left as it was cut")
            return
        layer.set_weights(weights)
        layer.set_bias(bias, self.fresh_name)
        self.result.layers += 1


def _taps(layer: Layer) -> Sequence[int] | None:
    """The unknowns that are solved for: all, or the middle of each kernel, or None."""
    if layer.unknowns <= LARGEST_FIT:
        return range(layer.unknowns)
    middle = range(layer.taps // 2, layer.unknowns, layer.taps)
    return middle if len(middle) <= LARGEST_FIT else None


def _sum_behind(layer: Layer) -> ir.Value | None:
    """The sum of a layer and a computed shortcut, or None when it adds into nothing."""
    value: ir.Value = layer.output
    while True:
        uses = list(value.uses())
        if len(uses) != 1 or value.is_graph_output():
            return None
        node, index = uses[0].node, uses[0].idx
        if not is_op(node, "Add") or node.graph is not layer.node.graph:
            return None
        other = node.inputs[1 - index]
        if is_constant(other):
            value = node.outputs[0]
            continue
        same = rank(other) is not None and rank(other) == rank(value)
        return node.outputs[0] if same else None


def _is_rectified(value: ir.Value) -> bool:
    """Does a Relu alone read it?"""
    uses = list(value.uses())
    return len(uses) == 1 and is_op(uses[0].node, "Relu") and not value.is_graph_output()


class _Moments:
    """Mean and deviation per channel, of finite rows."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self._sum = np.zeros(channels)
        self._squares = np.zeros(channels)

    def add(self, rows: Rows) -> None:
        rows = rows[np.isfinite(rows).all(axis=1)]
        self.count += len(rows)
        self._sum += rows.sum(axis=0)
        self._squares += np.square(rows).sum(axis=0)

    @property
    def mean(self) -> Rows:
        return self._sum / self.count

    @property
    def deviation(self) -> Rows:
        return np.sqrt(np.maximum(self._squares / self.count - np.square(self.mean), 0.0))
