"""What a plan costs: MACs and bytes by formula while searching, and measured for what is reported.

A matrix operator's MACs and a weight's bytes shrink with the channels on either side of it, so each
is a product of at most two kept shares, and each share a linear function of how many units of each
group go. The formula leaves out what the exact clean-up afterwards may save.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.cost import macs_of
from onnxslim.ir.schema import is_op
from onnxslim.pruning.allocation import Plan
from onnxslim.pruning.groups import Analysis
from onnxslim.rewrite.channels.atoms import Channelled, Ids
from onnxslim.runtime.session import Session

Values = npt.NDArray[np.float64]

_RECURRENT = ("GRU", "LSTM", "RNN")
_MATRIX = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class CostModel:
    """The cost of every plan, by formula.

    Args:
        analysis: the walked model.
        kind: ``macs`` (a recurrent operator's for one step) or ``size`` (bytes of weights).
    """

    def __init__(self, analysis: Analysis, kind: str) -> None:
        terms = _mac_terms(analysis) if kind == "macs" else _byte_terms(analysis)
        self._base = np.array([base for base, _ in terms], dtype=np.float64)
        count = len(analysis.groups)
        self._shares = [np.zeros((len(terms), count)) for _ in range(2)]
        for row, (_, sides) in enumerate(terms):
            for place, ids in enumerate(sides[:2]):
                self._shares[place][row] = _per_unit(analysis, ids)

    @property
    def total(self) -> float:
        """Of the model as it is."""
        return float(self._base.sum())

    def cost(self, plan: Plan) -> float:
        """Of the model after a plan."""
        gone = np.array(plan, dtype=np.float64)
        kept = [np.maximum(1 - shares @ gone, 0.0) for shares in self._shares]
        return float((self._base * kept[0] * kept[1]).sum())


def _per_unit(analysis: Analysis, ids: Ids) -> Values:
    """The share of an axis that goes with one unit, per group."""
    shares = np.zeros(len(analysis.groups))
    for number, group in enumerate(analysis.groups):
        inside = group.owners(analysis.roots, ids) >= 0
        shares[number] = inside.sum() / (len(ids) * group.size) if len(ids) else 0.0
    return shares


def _mac_terms(analysis: Analysis) -> list[tuple[float, list[Ids]]]:
    state = analysis.state
    sides: dict[ir.Node, list[Ids]] = {}
    terms: list[tuple[float, list[Ids]]] = []
    seen: set[ir.Node] = set()
    for part in state.contractions:
        if part.why:
            continue
        if is_op(part.node, *_MATRIX):
            sides[part.node] = [part.outputs, part.inputs.ids]
        elif is_op(part.node, *_RECURRENT):  # every weight is used once per step
            weight = constant_tensor(part.node.inputs[2 if part.node in seen else 1])
            seen.add(part.node)
            size = weight.size if weight is not None else 0
            terms.append((float(size), [part.outputs, part.inputs.ids]))
    for node in state.graph:
        macs = macs_of(node) if is_op(node, *_MATRIX) else None
        if macs is not None:
            terms.append((float(macs), sides.get(node) or _tracked(state, node.outputs[0])))
    return terms


def _tracked(state: Channelled, value: ir.Value) -> list[Ids]:
    """The atoms along the tracked axis or axes of a value."""
    joint = state.joints.get(value)
    if joint is not None:
        return [joint.ids.reshape(-1)]
    channels = state.of(value)
    return [] if channels is None else [channels.ids]


def _byte_terms(analysis: Analysis) -> list[tuple[float, list[Ids]]]:
    state = analysis.state
    sides: dict[ir.Value, list[Ids]] = {}
    for value, slots in state.slots.items():
        sides[value] = list(slots.values())
    for (node, index), (_, ids) in state.vectors.items():
        vector = node.inputs[index]
        if vector is not None:
            sides.setdefault(vector, [ids])
    seen: set[ir.Node] = set()
    for part in state.contractions:
        place = 2 if is_op(part.node, *_RECURRENT) and part.node in seen else 1
        seen.add(part.node)
        weight = part.node.inputs[place] if place < len(part.node.inputs) else None
        if weight is not None and not part.why:
            sides.setdefault(weight, [part.outputs, part.inputs.ids])
        bias = _bias(part.node)
        if bias is not None:
            sides.setdefault(bias, [part.outputs])
    terms = []
    for value in state.graph.initializers.values():
        if value.const_value is not None and value.uses():
            terms.append((float(value.const_value.nbytes), sides.get(value, [])))
    return terms


def _bias(node: ir.Node) -> ir.Value | None:
    """The bias of a recurrent operator."""
    return node.inputs[3] if is_op(node, *_RECURRENT) and len(node.inputs) > 3 else None


@dataclass(frozen=True)
class Speed:
    """Two models measured in turns.

    Attributes:
        before: milliseconds of a run of the first.
        after: of the second.
    """

    before: float
    after: float

    @property
    def ratio(self) -> float:
        """Time of the second as a share of the first's."""
        return self.after / self.before if self.before > 0 else 1.0


def race(first: Session, second: Session, feed: Any, seconds: float = 0.2) -> Speed:
    """Runs two open models in turns and takes the best time of each, so that noise adds little.

    Args:
        first: one model.
        second: the other.
        feed: inputs of both.
        seconds: about how long to go on; 7 turns are made at least.
    """
    times: list[tuple[float, float]] = []
    runs: Sequence[Callable[[], Any]] = (lambda: first.run(feed), lambda: second.run(feed))
    for run in runs:
        run()
    started = time.perf_counter()
    while len(times) < 7 or time.perf_counter() - started < seconds:
        spent = []
        for run in runs:
            begun = time.perf_counter()
            run()
            spent.append(time.perf_counter() - begun)
        times.append((spent[0], spent[1]))
    best = np.array(times).min(axis=0) * 1000
    return Speed(float(best[0]), float(best[1]))
