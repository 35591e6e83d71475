"""Refits the layers of a model whose weights get zeros, in order, each on what is before it.

The input of a layer is that of the current, sparser model; the goal is what the layer answered in
the original. So a layer also makes up for what those before it lost. Layers are taken in stages
that share one pass over the data: one layer a stage in small models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.ir.edit import Names
from onnxslim.pruning.gram import Gram
from onnxslim.pruning.layers import Layer, Rows, layers_of
from onnxslim.pruning.nm import Pattern, blocks_of
from onnxslim.pruning.sampling import positions
from onnxslim.pruning.sweep import damped, refit_masked, refit_pattern
from onnxslim.pruning.taps import Taps
from onnxslim.pruning.weights import Mask

Array = npt.NDArray[Any]
Feeds = Sequence[Mapping[str, Any]]
Step = Callable[[int, int], None]

# Passes over the data at most, times two (original and current model).
_STAGES = 24
# Bytes of normal equations that are held at one time.
_SUMS_BYTES = 1 << 30
# More inputs per output (a matrix of 170 MB) are not solved for.
_LARGEST_FIT = 4608


@dataclass
class Refitted:
    """What came of it.

    Attributes:
        layers: names of the weights that were refitted.
        notes: what could not be, one line each.
    """

    layers: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def refit(
    original: ir.Model,
    model: ir.Model,
    masks: Mapping[str, Mask],
    feeds: Feeds,
    *,
    pattern: Pattern | None = None,
    seed: int = 0,
    step: Step | None = None,
) -> Refitted:
    """Refits, in place, the layers of ``model`` that have masks.

    Args:
        original: the dense model.
        model: its copy in which masked weights are zero already; shapes inferred.
        masks: per weight by name, True where it is zero.
        feeds: calibration feeds.
        pattern: choose the zeros anew, block by block, in place of the masks.
        seed: of the sampled positions.
        step: called with (layers done, layers in all).

    Raises:
        RuntimeRefusedError: one of the models does not run on the feeds.
    """
    result = Refitted()
    dense = {_weight_name(layer): layer for layer in layers_of(original.graph)}
    todo = []
    for layer in layers_of(model.graph):
        name = _weight_name(layer)
        if name not in masks or name not in dense or not masks[name].any():
            continue
        if layer.unknowns > _LARGEST_FIT:
            result.notes.append(f"{name}: {layer.unknowns} inputs are too many to refit")
        else:
            todo.append(_Job(layer, dense[name], masks[name], pattern))
    fresh_name = Names(model).fresh
    done = 0
    for stage in _stages(todo):
        for job, sums in zip(stage, _gather(original, model, stage, feeds, seed), strict=True):
            problem = job.solve(sums, fresh_name)
            if problem:
                result.notes.append(f"{_weight_name(job.layer)}: {problem}")
            else:
                result.layers.append(_weight_name(job.layer))
        done += len(stage)
        if step is not None:
            step(done, len(todo))
    return result


def _weight_name(layer: Layer) -> str:
    value = layer.node.inputs[1]
    return (value.name if value is not None else None) or ""


@dataclass
class _Job:
    """A layer of the current model, the same one of the original, and its zeros."""

    layer: Layer
    dense: Layer
    mask: Mask
    pattern: Pattern | None

    @property
    def bundle(self) -> tuple[str, ...]:
        return self.layer.source.name or "", self.layer.output.name or ""

    def solve(self, sums: Gram, fresh_name: Callable[[str], str]) -> str:
        """Stores new weights and bias; returns why not, or nothing."""
        if sums.count < 2:
            return "the data gave no finite rows to refit on"
        layer = self.layer
        biased = layer.biased is not None
        moments = sums.moments(centred=biased)
        # What is missing was measured on the weights of the current model, zeros and all.
        current, zeros = layer.weights(), self._arranged()
        weights = np.empty_like(current)
        try:
            for group in range(layer.groups):
                system = damped(moments.square[group])
                best = current[group] + np.linalg.solve(system, moments.cross[group]).T
                weights[group] = self._solved(best, system, zeros[group])
        except np.linalg.LinAlgError:
            return "its inputs are too alike to refit on"
        added = (moments.row[:, None, :] @ (weights - current).transpose(0, 2, 1))[:, 0]
        bias = layer.bias() + (moments.missing - added).reshape(-1)
        if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
            return "no finite fit"
        layer.set_weights(_never_vanishing(weights, self.dense))
        if biased:
            layer.set_bias(bias, fresh_name)
        return ""

    def _solved(self, best: Rows, system: Rows, zeros: Mask) -> Rows:
        if self.pattern is None:
            return refit_masked(best, system, zeros)
        layer = self.layer
        order, sizes = blocks_of(layer.unknowns // layer.taps, layer.taps, self.pattern)
        return refit_pattern(best, system, self.pattern, order, sizes, zeros)[0]

    def _arranged(self) -> Mask:
        """The mask as ``(groups, outputs per group, unknowns)``; for a pattern, the zeros that the
        original had."""
        layer, mask = self.layer, self.mask
        if self.pattern is not None:
            return np.asarray(self.dense.weights() == 0)
        if layer.node.op_type == "Conv":
            return mask.reshape(layer.groups, -1, layer.unknowns)
        return (mask if layer.out_axis == 0 else mask.T)[np.newaxis]


def _never_vanishing(weights: Rows, dense: Layer) -> Rows:
    """Weights that stay are kept from becoming zero in a narrow dtype: the number of zeros is what
    was asked for."""
    value = dense.node.inputs[1]
    dtype = value.dtype if value is not None else None
    if dtype is None:
        return weights
    stored = np.dtype(dtype.numpy())
    least = float(np.ones(1, f"u{stored.itemsize}").view(stored)[0]) * abs(dense.scale)
    small = (weights != 0) & (np.abs(weights) < least)
    return np.where(small, np.copysign(least, weights), weights)


def _stages(jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
    """Cuts the layers into stages: not too many, and none with too large sums."""
    length = -(-len(jobs) // _STAGES)
    stage: list[_Job] = []
    for job in jobs:
        held = sum(Gram.bytes_of(other.layer) for other in stage)
        if stage and (len(stage) == length or held + Gram.bytes_of(job.layer) > _SUMS_BYTES):
            yield stage
            stage = []
        stage.append(job)
    if stage:
        yield stage


def _gather(
    original: ir.Model, model: ir.Model, stage: Sequence[_Job], feeds: Feeds, seed: int
) -> list[Gram]:
    """The normal equations of the layers of a stage."""
    found = [Gram.of(job.layer) for job in stage]
    before = Taps(original, [(job.dense.output.name or "",) for job in stage])
    after = Taps(model, [job.bundle for job in stage])
    for number, feed in enumerate(feeds):
        pairs = zip(stage, found, before.run(feed), after.run(feed), strict=True)
        for job, sums, wanted, given in pairs:
            source, output = (given[name] for name in job.bundle)
            places = positions(job.layer, output, number, len(feeds), seed)
            goal = job.layer.targets(wanted[job.dense.output.name or ""], places)
            missing = goal - job.layer.targets(output, places)
            sums.add(job.layer.rows(source, places), missing)
    return found
