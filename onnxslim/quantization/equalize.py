"""Equalization before int8, step by step, each kept only where the int8 model gets better by it.

`equalize` moves scales between constants: the float model goes on computing the same bits.
`correct_biases` works on the int8 model. Both are judged by the signal to noise ratio of the
outputs of the int8 model, as its kernels compute them here, against the float model, on samples
that were not used for calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim.calibration.run import calibrate
from onnxslim.calibration.store import Calibration
from onnxslim.errors import DataError
from onnxslim.io import load
from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.edit import Names, add_initializer, replace_value
from onnxslim.quantization.bias_correction import correct_analytically, correct_empirically
from onnxslim.quantization.cross_layer import STEP as CROSS_LAYER
from onnxslim.quantization.cross_layer import clip_inputs, equalize_layers
from onnxslim.quantization.engine import (
    Prepared,
    QuantPlan,
    quantize_once,
    tensors_to_calibrate,
)
from onnxslim.quantization.scaling import Kind, Note
from onnxslim.quantization.smooth import STEP as SMOOTH
from onnxslim.quantization.smooth import smooth_activations
from onnxslim.runtime.session import open_session
from onnxslim.runtime.specs import Feed
from onnxslim.validation.accuracy import AgreementMeter

NORMS, LAYERS = f"{SMOOTH}-norms", f"{SMOOTH}-layers"

CLIPS = f"{CROSS_LAYER}-clips"

STEPS = (CROSS_LAYER, CLIPS, NORMS, LAYERS)
"""The steps of `equalize`, in order: weights of neighbouring layers, the same across bounds that
the data does not reach, outliers of activations behind normalizations, then those elsewhere."""

_WORTH_DB = 0.1  # a step has to gain more than this
_WORTH_CLIPS_DB = 3.0  # and more where the model changes for data beyond what was seen
_MOST_DB = 150.0  # stands for equal outputs
_HELD_OUT = 4  # every so many-th feed judges
_BIAS_FEEDS = 8

# Relative, in the Euclidean norm: what another order of the same sums can differ by.
_SAME = 1e-5

Progress = Callable[[int, int], None]


@dataclass
class Equalized:
    """Outcome of `equalize`.

    Attributes:
        prepared: for `quantize_once`; the one given when no step was kept.
        calibration: of that model, for `quantize_once`.
        notes: by step and site; those with ``kept`` changed the model.
        before_db: signal to noise ratio of the int8 outputs without the steps, in dB.
        after_db: the same with the steps that were kept.
    """

    prepared: Prepared
    calibration: Calibration
    notes: list[Note]
    before_db: float
    after_db: float


def equalize(
    prepared: Prepared,
    feeds: Sequence[Feed],
    plan: QuantPlan,
    *,
    steps: Sequence[str] = STEPS,
    progress: Progress | None = None,
) -> Equalized:
    """Prepares the float model for 8 bits without changing what it computes.

    One step does change it, for data beyond what was seen: a Clip whose bound is out of reach may
    become a Relu, where that gains more than 3 dB; the note says so.

    Args:
        prepared: from `prepare_float`; it stays as it is.
        feeds: calibration samples. Every fourth feed judges and is not used otherwise; of fewer
            than four, all do both, which a note says.
        plan: how the result will be quantized: ranges, weights and nodes.
        steps: those to try, from `STEPS`.
        progress: called with steps done and steps in all.

    Raises:
        DataError: no feeds, or feeds that do not fit.
        InvalidModelError: there is nothing to quantize.
        RuntimeRefusedError: onnxruntime cannot run the model.
    """
    trial = _Trial(prepared, feeds, plan)
    notes = list(trial.notes)
    best = before = trial.measure(prepared)
    for done, step in enumerate(steps, start=1):
        candidate = _copy(best.prepared)
        found = _run(step, candidate, best.calibration, trial)
        if not any(note.kept for note in found):
            notes.extend(found)
        else:
            best, verdict = trial.better(step, candidate, best)
            notes.append(verdict)
            notes.extend(found if verdict.kept else map(_dropped, found))
        if progress is not None:
            progress(done, len(steps))
    return Equalized(best.prepared, best.calibration, notes, before.sqnr_db, best.sqnr_db)


def correct_biases(
    model: ir.Model,
    int8: ir.Model,
    feeds: Sequence[Feed],
    *,
    progress: Progress | None = None,
) -> tuple[ir.Model, list[Note]]:
    """Takes mean errors out of the biases of an int8 model, as far as that makes it better.

    Args:
        model: the float model that was quantized (`Prepared.model`); it is not changed.
        int8: what became of it, with QuantizeLinear and DequantizeLinear; it is not changed.
        feeds: calibration samples; every fourth judges, as in `equalize`.
        progress: called with layers done and layers in all.

    Returns:
        The better of the int8 model and its corrected copy, and notes.

    Raises:
        DataError: no feeds.
        RuntimeRefusedError: onnxruntime cannot run one of the models.
    """
    used, judging, notes = _split(feeds)
    used = used[:_BIAS_FEEDS]
    reference = Reference(model, judging)
    best, best_db = int8, reference.sqnr_db(int8)
    for name in ("from the weights", "as measured"):
        candidate = load(best)
        if name == "from the weights":
            found = correct_analytically(model, candidate, used)
        else:
            found = correct_empirically(model, candidate, used, progress=progress)
        if not any(note.kept for note in found):
            notes.extend(note for note in found if note not in notes)
            continue
        reached = reference.sqnr_db(candidate)
        is_better = reached > best_db + _WORTH_DB
        text = f"mean errors {name}: {reached:.1f} dB instead of {best_db:.1f} dB"
        notes.append(Note("bias", "model", text, kept=is_better))
        found = found if is_better else [_dropped(note) for note in found]
        notes.extend(note for note in found if note not in notes)
        if is_better:
            best, best_db = candidate, reached
    return best, notes


@dataclass
class _Measured:
    """A float model with what its int8 form is worth."""

    prepared: Prepared
    calibration: Calibration
    sqnr_db: float


class Reference:
    """What the float model answers to the judging feeds.

    Where an output is a Softmax or Sigmoid, the scores before it are compared: squashed numbers
    hardly move on sure samples, whatever 8 bits do to them.
    """

    def __init__(self, model: ir.Model, feeds: Sequence[Feed]) -> None:
        self._feeds = feeds
        self._names, self._answers = _answers(model, feeds, optimize=False)

    def sqnr_db(self, model: ir.Model, *, optimize: bool = True) -> float:
        """Mean over the outputs of floating point, each limited to 150 dB."""
        meter = AgreementMeter(self._names)
        _, found = _answers(model, self._feeds, optimize=optimize)
        for wanted, got in zip(self._answers, found, strict=True):
            meter.add(wanted, got)
        ratios = [one.sqnr_db for one in meter.result() if one.sqnr_db is not None]
        return float(np.mean(np.clip(ratios, -_MOST_DB, _MOST_DB))) if ratios else _MOST_DB


def _answers(
    model: ir.Model, feeds: Sequence[Feed], *, optimize: bool
) -> tuple[list[str], list[list[Any]]]:
    """Names of the outputs, or of the scores behind them, and what they are on each feed."""
    copy = load(model)
    graph = copy.graph
    judged = [_scores(value) for value in graph.outputs]
    for value in judged:
        if not value.is_graph_output():
            graph.outputs.append(value)
    names = [value.name or "" for value in judged]
    session = open_session(copy, optimize=optimize)
    return names, [session.run(feed, names) for feed in feeds]


def _scores(output: ir.Value) -> ir.Value:
    """What a last Softmax or Sigmoid squashes; other outputs themselves."""
    node = output.producer()
    while node is not None and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        source = node.inputs[0]
        node = source.producer() if source is not None else None
    if node is None or node.op_type not in ("LogSoftmax", "Sigmoid", "Softmax"):
        return output
    source = node.inputs[0]
    is_made = source is not None and source.producer() is not None and source.graph is output.graph
    return source if source is not None and is_made else output


class _Trial:
    """Quantizes candidates and measures them."""

    def __init__(self, prepared: Prepared, feeds: Sequence[Feed], plan: QuantPlan) -> None:
        self.feeds, judging, self.notes = _split(feeds)
        self.plan = replace(plan, dynamic=False, form="qdq")  # the same numbers, for all forms
        self._reference = Reference(prepared.model, judging)

    def measure(self, candidate: Prepared) -> _Measured:
        """Calibrates and quantizes; runs the result with the kernels of a deployment."""
        wanted = dict.fromkeys(tensors_to_calibrate(candidate, self.plan))
        known = {
            value.name: value for node in candidate.model.graph for value in node.inputs if value
        }
        wanted.update(dict.fromkeys(n for n in clip_inputs(candidate.model) if n in known))
        found = calibrate(candidate.model, self.feeds, tensors=list(wanted), strict=True)
        int8, _ = quantize_once(candidate, found, self.plan)
        return _Measured(candidate, found, self._reference.sqnr_db(int8))

    def better(self, step: str, candidate: Prepared, best: _Measured) -> tuple[_Measured, Note]:
        """The candidate when it computes the same and its int8 form is better, else the best."""
        exact = self._reference.sqnr_db(candidate.model, optimize=False)
        if exact < -20 * np.log10(_SAME):
            text = f"changes the float model by {exact:.0f} dB, which it must not"
            return best, Note(step, "model", text, kept=False)
        found = self.measure(candidate)
        worth = _WORTH_CLIPS_DB if step == CLIPS else _WORTH_DB
        is_better = found.sqnr_db > best.sqnr_db + worth
        text = f"{found.sqnr_db:.1f} dB instead of {best.sqnr_db:.1f} dB"
        return found if is_better else best, Note(step, "model", text, kept=is_better)


def _run(step: str, candidate: Prepared, calibration: Calibration, trial: _Trial) -> list[Note]:
    if step == CROSS_LAYER:
        return equalize_layers(candidate.model)
    if step == CLIPS:
        if not clip_inputs(candidate.model):
            return []
        maxima = {name: one.high for name, one in calibration.tensors.items()}
        return equalize_layers(candidate.model, input_maxima=maxima)
    kinds: tuple[Kind, ...] = ("norm",) if step == NORMS else ("linear",)
    return smooth_activations(candidate.model, trial.feeds, trial.plan.preset, kinds=kinds)


def _dropped(note: Note) -> Note:
    """The note of a site whose step was not kept."""
    return replace(note, text=f"{note.text}; not kept", kept=False) if note.kept else note


def _split(feeds: Sequence[Feed]) -> tuple[list[Feed], list[Feed], list[Note]]:
    """Feeds for calibration, feeds that judge, and what to say about it."""
    if not feeds:
        raise DataError("there are no calibration samples; equalization is judged on some")
    if len(feeds) < _HELD_OUT:
        text = "too few feeds to keep some back: the steps were judged on calibration samples"
        return list(feeds), list(feeds), [Note("equalize", "model", text, kept=False)]
    judging = list(feeds[_HELD_OUT - 1 :: _HELD_OUT])
    return [f for i, f in enumerate(feeds) if i % _HELD_OUT != _HELD_OUT - 1], judging, []


def _copy(prepared: Prepared) -> Prepared:
    """A copy that may be changed, with transposed weights as weights, and vectors unshared."""
    model = load(prepared.model)
    _fold_transposed_weights(model)
    _separate_vectors(model)
    names = {node.name or "": node for node in model.graph}
    return Prepared(model, list(prepared.notes), names, prepared.original, prepared.given_names)


def _fold_transposed_weights(model: ir.Model) -> None:
    """Stores weights the way they are read; some exporters leave a Transpose behind each."""
    graph = model.graph
    for node in list(graph):
        output = node.outputs[0]
        source = node.inputs[0] if node.op_type == "Transpose" else None
        tensor = constant_tensor(source)
        if source is None or tensor is None or output.is_graph_output():
            continue
        if tensor.dtype != ir.DataType.FLOAT or len(source.uses()) != 1:
            continue
        order = node.attributes.get_ints("perm", None)
        name = output.name or ""
        array = np.ascontiguousarray(tensor.numpy().transpose(order))
        output.name = f"{name}__transposed"
        replace_value(output, add_initializer(graph, array, name))
        graph.remove(node, safe=True)
        if not source.uses() and not source.is_graph_output() and source.name is not None:
            del graph.initializers[source.name]


def _separate_vectors(model: ir.Model) -> None:
    """Gives every reader of a vector its own: equal biases and norms may be stored once."""
    fresh = Names(model).fresh
    for value in list(model.graph.initializers.values()):
        tensor = constant_tensor(value)
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 1:
            continue
        for node, index in list(value.uses())[1:]:
            if node.graph is model.graph and tensor.size > 1:
                name = fresh(f"{value.name}_own")
                node.replace_input_with(index, add_initializer(model.graph, tensor.numpy(), name))
