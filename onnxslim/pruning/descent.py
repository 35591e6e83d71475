"""Refits what an attention computes, not only what reads it: stretch by stretch, by descent.

Least squares can solve for the layers behind cut channels. What a head looks at is not linear in
its weights: queries and keys go through a softmax. So from the bare cut on, all weights of a
stretch (see `stretches`) follow the gradient of the squared error at its goals, the values of the
original being the targets. No labels and no loss of a task take part, and nothing outside of the
stretch does. At last all stretches are adapted to each other in the same way. Every weight moves,
so a few samples would be learned by heart: `mixtures` makes more of them.

The steps are those of Adam (Kingma and Ba, 2015), their rate falls to zero along half a cosine.
onnxruntime computes the values, `derivatives` the gradients; everything is seeded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim.io import load
from onnxslim.ir import shapes
from onnxslim.ir.constants import constant_tensor
from onnxslim.pruning.cut import Cut
from onnxslim.pruning.sampling import Teacher, first_samples, run_tapped
from onnxslim.pruning.stretches import Stretch, first_stretch, joined, stretches_of
from onnxslim.pruning.tape import Array, Tape
from onnxslim.pruning.tokens import positions_read
from onnxslim.rewrite.channels.emit import store

# Stretches that are refitted together at first: an attention and the network behind it.
_TOGETHER = 2
# Steps of one refit, and the rate they begin with, relative to the size of its weights.
_STEPS = 300
_RATE = 0.035
_LAST_STEPS = 1400
_LAST_RATE = 0.02
# Steps of a trial: enough to tell which heads are worth more.
_TRIAL_STEPS = 60
# Feeds of a trial are as many as hold so many samples.
_TRIAL_SAMPLES = 1024
_DECAYS = (0.9, 0.999)
# Samples of one step, where the feeds can be taken apart.
_BATCH = 64
# What flows into a stretch, and what is to come out, is held up to so many bytes.
_HELD_BYTES = 512 << 20
# Weights of one refit; larger networks are only adapted stretch by stretch.
_MOST_WEIGHTS = 64_000_000

Step = Callable[[int, int], None]


def can_descend(original: ir.Model, cut: Cut) -> bool:
    """Is there a softmax behind the cut, and are the derivatives of all stretches known?

    Args:
        original: what the cut was made in, with inferred shapes.
        cut: what was cut.
    """
    stretches = stretches_of(original, cut.model, cut)
    looks = any(node.op_type == "Softmax" for one in stretches for node in one.nodes)
    return looks and all(Tape.of(cut.model, one) is not None for one in stretches)


def descend(
    teacher: Teacher, cut: Cut, start: ir.Model | None = None, step: Step | None = None
) -> ir.Model:
    """A copy of a cut model whose stretches are closer to the original.

    Args:
        teacher: the original and the calibration feeds.
        cut: what was cut.
        start: a repaired model, whose stretches are only adapted to each other where there are
            several; None for the cut one. Not changed.
        step: called with (refits done, refits in all).

    Raises:
        RuntimeRefusedError: one of the models does not run on the feeds.
    """
    model = load(cut.model if start is None else start)
    shapes.infer(model)
    stretches = stretches_of(teacher.model, model, cut)
    groups = [
        joined(part, part[-1].goals)
        for place in range(0, len(stretches), _TOGETHER)
        for part in [stretches[place : place + _TOGETHER]]
    ]
    jobs = [(group, _STEPS, _RATE) for group in groups]
    if groups:
        goals = [goal for group in groups for goal in group.goals]
        jobs.append((joined(groups, goals), _LAST_STEPS, _LAST_RATE))
    if start is not None:
        jobs = jobs[-1:]
    for number, (stretch, steps, rate) in enumerate(jobs):
        _Refit(teacher, model, stretch).run(steps, rate)
        if step is not None:
            step(number + 1, len(jobs))
    return model


def trial(teacher: Teacher, cut: Cut) -> float | None:
    """The error that a short descent leaves in the first layers behind a cut.

    Args:
        teacher: the original and the calibration feeds.
        cut: what was cut.

    Returns:
        Squared error over variance, 0 and up; None where `descend` would not apply.

    Raises:
        RuntimeRefusedError: one of the models does not run on the feeds.
    """
    model = load(cut.model)
    shapes.infer(model)
    stretch = first_stretch(teacher.model, model, cut, _TOGETHER)
    if stretch is None or Tape.of(model, stretch) is None:
        return None
    few = first_samples(teacher.feeds, _TRIAL_SAMPLES)
    return _Refit(Teacher(teacher.model, few, teacher.seed), model, stretch).run(
        _TRIAL_STEPS, _RATE
    )


Batch = tuple[dict[str, Array], dict[str, Array]]


class _Refit:
    """The refit of one stretch of a model, in place."""

    def __init__(self, teacher: Teacher, model: ir.Model, stretch: Stretch) -> None:
        self._teacher = teacher
        self._model = model
        self._tape = Tape.of(model, stretch)
        self._goals = [value.name or "" for value in stretch.goals]
        self._tokens = [positions_read(value) for value in stretch.goals]

    def run(self, steps: int, rate: float) -> float | None:
        """Takes the steps, and stores the weights where the error is smaller for it.

        Returns:
            The error that is left, over the variance of the goals; None where nothing was tried.
        """
        tape = self._tape
        if tape is None or not 0 < sum(w.size for w in tape.weights.values()) <= _MOST_WEIGHTS:
            return None
        batches = self._batches(tape)
        if not batches:
            return None
        energies = self._energies(batches)
        weights = {name: content.copy() for name, content in tape.weights.items()}
        before = self._error(tape, weights, batches, energies)
        adam = _Adam(weights)
        draw = _Draw(batches, self._teacher.seed)
        for number in range(steps):
            given, wanted = draw.next()
            values = tape.values(given, weights)
            slopes = {}
            for place, (name, energy) in enumerate(zip(self._goals, energies, strict=True)):
                apart = self._missing(place, values[name], wanted[name])
                slopes[name] = apart * np.array(1 / (energy * apart.size), apart.dtype)
            gradients = tape.gradients(values, slopes)
            adam.step(gradients, rate * 0.5 * (1 + math.cos(math.pi * number / steps)))
        after = self._error(tape, weights, batches, energies)
        if after < before:
            self._store(weights)
        return min(after, before)

    def _batches(self, tape: Tape) -> list[Batch]:
        """What flows into the stretch now, and what the original has at its goals, by feed."""
        teacher = self._teacher
        held = 0
        batches: list[Batch] = []
        inputs = run_tapped(self._model, tape.sources, teacher.feeds)
        targets = run_tapped(teacher.model, self._goals, teacher.feeds)
        for given, wanted in zip(inputs, targets, strict=True):
            held += sum(a.nbytes for part in (given, wanted) for a in part.values())
            if held > _HELD_BYTES and batches:
                break
            if all(np.isfinite(content).all() for content in wanted.values()):
                batches.append((given, wanted))
        return batches

    def _energies(self, batches: Sequence[Batch]) -> list[float]:
        """The variance of each goal, by which its error is divided, so that all count alike."""
        found = []
        for place, name in enumerate(self._goals):
            parts = [self._read(place, wanted[name]) for _, wanted in batches]
            spread = np.mean([np.var(part, dtype=np.float64) for part in parts])
            found.append(max(float(spread), 1e-12))
        return found

    def _read(self, place: int, content: Array) -> Array:
        """The positions of a goal that anything depends on."""
        tokens = self._tokens[place]
        return content if tokens is None else content[:, sorted(tokens)]

    def _missing(self, place: int, now: Array, wanted: Array) -> Array:
        """How far a goal is off, zero at positions that nothing depends on."""
        tokens = self._tokens[place]
        apart: Array = now - wanted
        if tokens is not None:
            apart[:, [number for number in range(now.shape[1]) if number not in tokens]] = 0
        return apart

    def _error(
        self,
        tape: Tape,
        weights: dict[str, Array],
        batches: Sequence[Batch],
        energies: Sequence[float],
    ) -> float:
        total = 0.0
        for given, wanted in batches:
            values = tape.values(given, weights)
            for place, (name, energy) in enumerate(zip(self._goals, energies, strict=True)):
                apart = self._missing(place, values[name], wanted[name]).astype(np.float64)
                total += float(np.square(apart).mean()) / energy / len(batches)
        return total if math.isfinite(total) else math.inf

    def _store(self, weights: dict[str, Array]) -> None:
        for name, content in weights.items():
            value = self._model.graph.initializers[name]
            tensor = constant_tensor(value)
            assert tensor is not None
            store(value, ir.tensor(np.ascontiguousarray(content), dtype=tensor.dtype, name=name))


class _Draw:
    """Batches in a seeded random order: samples from all feeds, or feeds where those stay whole."""

    def __init__(self, batches: Sequence[Batch], seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._order: list[Any] = []
        self._feeds = batches
        self._pool = _pooled(batches)

    def next(self) -> Batch:
        """The next one."""
        if not self._order:
            if self._pool is None:
                self._order = list(self._rng.permutation(len(self._feeds)))
            else:
                count = len(next(iter(self._pool[1].values())))
                order = self._rng.permutation(count)
                whole = max(1, count // _BATCH)
                self._order = np.array_split(order, whole)
        chosen = self._order.pop()
        if self._pool is None:
            return self._feeds[int(chosen)]
        given, wanted = self._pool
        return _rows(given, chosen), _rows(wanted, chosen)


def _rows(arrays: dict[str, Array], chosen: Array) -> dict[str, Array]:
    return {name: content[chosen] for name, content in arrays.items()}


def _pooled(batches: Sequence[Batch]) -> Batch | None:
    """All samples in one, where the first axis of every array counts them; None otherwise."""
    whole: list[dict[str, Array]] = []
    for given, wanted in batches:
        sizes = {content.shape[:1] for part in (given, wanted) for content in part.values()}
        if len(sizes) != 1 or () in sizes:
            return None
    for side in (0, 1):
        names = list(batches[0][side])
        parts = {name: [batch[side][name] for batch in batches] for name in names}
        if any(len({part.shape[1:] for part in found}) > 1 for found in parts.values()):
            return None
        whole.append({name: np.concatenate(found) for name, found in parts.items()})
    # With one feed there is nothing to tell a first axis of samples from another one.
    return (whole[0], whole[1]) if len(batches) > 1 else None


class _Adam:
    """Steps along averaged gradients, each weight's divided by their own size."""

    def __init__(self, weights: dict[str, Array]) -> None:
        self._weights = weights
        self._means = {name: np.zeros_like(content) for name, content in weights.items()}
        self._squares = {name: np.zeros_like(content) for name, content in weights.items()}
        # A step is relative to how large the matrices' weights are.
        matrices = [content for content in weights.values() if content.ndim > 1]
        sizes = [float(np.sqrt(np.square(one).mean())) for one in matrices or weights.values()]
        self._size = max(float(np.median(sizes)), 1e-6)
        self._count = 0

    def step(self, gradients: dict[str, Array], rate: float) -> None:
        """Moves the weights, in place."""
        self._count += 1
        first, second = _DECAYS
        for name, gradient in gradients.items():
            mean, square = self._means[name], self._squares[name]
            mean += (1 - first) * (gradient - mean)
            square += (1 - second) * (np.square(gradient) - square)
            length = rate * self._size / (1 - first**self._count)
            spread = np.sqrt(square / (1 - second**self._count))
            self._weights[name] -= length * mean / (spread + 1e-12)
