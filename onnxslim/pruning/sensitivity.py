"""Small steps towards a target, ordered by how little the outputs drift for what they save."""

from __future__ import annotations

from onnxslim.pruning.allocation import LEVELS, Move, aligned, greedy, most
from onnxslim.pruning.candidates import Candidates
from onnxslim.pruning.costs import CostModel
from onnxslim.validated_run import Progress


class Sensitivity:
    """Orders the steps of one search.

    Args:
        candidates: makes models of plans.
        progress: called with (stage, done, total).

    Attributes:
        costs: models of the costs by name: ``macs`` and ``size``.
    """

    def __init__(self, candidates: Candidates, progress: Progress) -> None:
        self._candidates = candidates
        self._groups = candidates.analysis.groups
        self._align = candidates.request.align
        self._progress = progress
        self.costs = {name: CostModel(candidates.analysis, name) for name in ("macs", "size")}

    def moves(self, cost: str) -> list[Move]:
        """Steps over all groups, those first that save the most of a cost for their drift."""
        model = self.costs.get(cost, self.costs["macs"])
        if not model.total:
            model = self.costs["size"]
        return greedy(
            self._groups,
            [self._drifts(number) for number in range(len(self._groups))],
            lambda plan: model.total - model.cost(plan),
            self._align,
        )

    def _drifts(self, number: int) -> dict[int, float]:
        """How far the outputs drift when so many units of one group go and its readers adapt.

        Without data the drift is the square of the share: the same share of every group goes.
        """
        group, align = self._groups[number], self._align
        total = len(LEVELS) * len(self._groups)
        drifts: dict[int, float] = {}
        for place, level in enumerate(LEVELS):
            self._progress("measuring sensitivity", number * len(LEVELS) + place, total)
            count = aligned(group, min(round(level * group.size), most(group, align)), align)
            if count <= 0 or count in drifts:
                continue
            if not self._candidates.fits:
                drifts[count] = (count / group.size) ** 2
                continue
            plan = [0] * len(self._groups)
            plan[number] = count
            drifts[count] = self._candidates.drift_of(tuple(plan))
        return drifts
