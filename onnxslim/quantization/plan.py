"""A prepared model, and the plan by which it is quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import onnx_ir as ir

from onnxslim.calibration.ranges import Range
from onnxslim.calibration.store import Calibration
from onnxslim.errors import UsageError
from onnxslim.io import load
from onnxslim.quantization.dynamic import OPERATORS as DYNAMIC_OPERATORS
from onnxslim.quantization.prepare import is_quantized, prepare, wanted_tensors
from onnxslim.quantization.presets import QuantizePreset
from onnxslim.quantization.ranges import ChosenRanges
from onnxslim.quantization.selection import Selection, select
from onnxslim.quantization.strip import to_float
from onnxslim.runtime.ranges import ranked_tensors
from onnxslim.runtime.specs import Array

Form = Literal["qdq", "qoperator"]


@dataclass(frozen=True)
class QuantPlan:
    """How a prepared model is quantized.

    Attributes:
        preset: the settings, from `find_preset`.
        form: pairs of QuantizeLinear and DequantizeLinear, or operators that take integers.
        float_nodes: stable names of nodes that stay in float (`Prepared.names`).
        op_types: the only operators that are quantized; None for all.
        ranges: ranges instead of those from the calibration, by tensor name.
        weight_scales: steps instead of those that span the weights, by the name of the weight: a
            number, or one per output channel.
        method: how ranges are chosen, see `onnxslim.calibration.ranges`.
        dynamic: activations are quantized at run time: matrix products only, no ranges needed.
        only: when given, all nodes but these stay in float.
        engine: ``onnxslim``, or ``onnxruntime`` for that of ``onnxruntime.quantization``.
    """

    preset: QuantizePreset
    form: Form = "qdq"
    float_nodes: frozenset[str] = frozenset()
    op_types: tuple[str, ...] | None = None
    ranges: Mapping[str, Range] = field(default_factory=dict)
    weight_scales: Mapping[str, Array] = field(default_factory=dict)
    method: str = "auto"
    dynamic: bool = False
    only: frozenset[str] | None = None
    engine: Literal["onnxslim", "onnxruntime"] = "onnxslim"


@dataclass
class Prepared:
    """A float model that is fit for static int8.

    Attributes:
        model: tensors are called as in the original, every node has a name.
        notes: what was changed, one line each.
        names: the nodes of the main graph by their stable names, in order.
        original: as it was given; names, types and notes come from it.
        given_names: the original name of nodes that had none or shared one, by stable name.
    """

    model: ir.Model
    notes: list[str]
    names: dict[str, ir.Node]
    original: ir.Model
    given_names: dict[str, str] = field(default_factory=dict)
    _ranges: dict[tuple[int, str], ChosenRanges] = field(default_factory=dict, repr=False)

    def ranges_of(self, calibration: Calibration, method: str = "auto") -> ChosenRanges:
        """The ranges by a method; every one is chosen once, however often it is asked for."""
        key = id(calibration), method
        if key not in self._ranges:  # it holds the calibration, so that its id stays its own
            self._ranges[key] = ChosenRanges(calibration, method, ranked_tensors(self.model))
        return self._ranges[key]


def prepare_float(
    model: ir.Model, *, preset: QuantizePreset | None = None, requantize: bool = False
) -> Prepared:
    """Makes a copy of a model fit for static int8; the model stays as it is.

    Args:
        model: a float model.
        preset: settings that may need a newer opset.
        requantize: take the numbers of a quantized model back to float first, exactly.

    Raises:
        InvalidModelError: already quantized, or an opset that cannot be raised.
        RuntimeRefusedError: onnxruntime cannot open the model.
    """
    needs_21 = preset is not None and preset.needs_opset_21
    taken_back = []
    if requantize and is_quantized(model):
        model = load(model)
        taken_back.append(f"the model was quantized: {to_float(model)} constants were taken back")
    work, notes, given = prepare(model, needs_opset_21=needs_21)
    notes = taken_back + notes
    return Prepared(work, notes, {node.name or "": node for node in work.graph}, model, given)


def tensors_to_calibrate(prepared: Prepared, plan: QuantPlan) -> list[str]:
    """The tensors whose ranges `quantize_once` may ask for under this plan, and under any that has
    other nodes or settings."""
    settings = replace(plan.preset, constant_matmul_only=False, device=True)
    every = QuantPlan(settings)
    return wanted_tensors(select_nodes(prepared.model, every).chosen)


def candidates(prepared: Prepared, plan: QuantPlan) -> list[str]:
    """Stable names of the nodes that the plan would quantize, in the order of the graph.

    Raises:
        InvalidModelError: there are none.
    """
    return [node.name or "" for node in select_nodes(prepared.model, plan).chosen]


def select_nodes(model: ir.Model, plan: QuantPlan) -> Selection:
    """What of a prepared model a plan quantizes, and the reasons of the rest.

    Raises:
        UsageError: the plan names a node that is not there.
        InvalidModelError: nothing is left to quantize.
    """
    names = {node.name for node in model.graph}
    for name in sorted(plan.float_nodes | (plan.only or frozenset())):
        if name not in names:
            raise UsageError(f"the plan names a node {name!r} that the model has not")
    op_types = plan.op_types
    if plan.dynamic and op_types is None:
        op_types = DYNAMIC_OPERATORS
    return select(
        model, plan.preset, op_types=op_types, float_nodes=plan.float_nodes, only=plan.only
    )
