"""Which units of a group matter least: criteria over all weights that a unit takes with it.

* ``l1``, ``l2``: sums of magnitudes, roots of sums of squares.
* ``bn``: the scale of the BatchNormalization behind (``l2`` where there is none).
* ``fpgm``: distance to all other filters: what lies close to them can be replaced by them.
* ``wanda``: magnitudes of the readers' weights times the root mean square of what they read.
* ``flap``: squares of the readers' weights times the variance of what they read.
* ``obs``: error of the readers' outputs after the best possible refit without the unit, one unit
  after the other, from the Gram matrix of what they read.
* ``random``: a seeded shuffle.

Sums over several weights count each weight relative to its mean over the group, so that none
decides alone because of its size. ``wanda``, ``flap`` and ``obs`` need calibration data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.schema import is_op
from onnxslim.pruning.groups import Analysis, Group
from onnxslim.pruning.layers import Layer, layer_of
from onnxslim.pruning.sampling import Feeds, positions, run_tapped
from onnxslim.pruning.surgery import Surgery
from onnxslim.pruning.tokens import positions_read
from onnxslim.rewrite.channels.atoms import Contraction, Ids

Values = npt.NDArray[np.float64]

CRITERIA = ("l1", "l2", "bn", "fpgm", "wanda", "flap", "obs", "random")
NEEDS_DATA = ("wanda", "flap", "obs")

# Larger Gram matrices are not inverted; the variance criterion stands in.
_LARGEST_GRAM = 4608
# Units are deleted one by one in groups up to this size, several at a time in larger ones.
_OBS_STEPS = 128


@dataclass
class Ranking:
    """Orders the units of groups.

    Args:
        analysis: the walked model.
        feeds: calibration feeds; may be empty for criteria that need none.
        seed: for ``random`` and for sampled positions.
        gammas: scales of normalisations by the name of a value, for ``bn``.

    Attributes:
        notes: where another criterion stood in, one line each.
    """

    analysis: Analysis
    feeds: Feeds = ()
    seed: int = 0
    gammas: Mapping[str, Values] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def order(self, group: Group, criterion: str) -> Ids:
        """Unit numbers, the least important first; equal ones in the order of the graph."""
        if criterion == "random":
            number = self.analysis.groups.index(group)
            return np.random.default_rng([self.seed, number]).permutation(group.size)
        if criterion == "obs":
            found = self._obs(group)
            if found is not None:
                return found
            self._stand_in(group, "obs", "flap")
            criterion = "flap"
        scores = self._scores(group, criterion)
        if not scores.any() and criterion != "l2":
            self._stand_in(group, criterion, "l2")
            scores = self._scores(group, "l2")
        return np.argsort(scores, kind="stable")

    def _stand_in(self, group: Group, wanted: str, used: str) -> None:
        self.notes.append(f"{group.name}: {wanted} cannot be had there, {used} was used")

    def _scores(self, group: Group, criterion: str) -> Values:
        by_name: dict[str, Callable[[Group], Values]] = {
            "l1": lambda one: self._magnitude(one, 1),
            "l2": lambda one: self._magnitude(one, 2),
            "bn": self._gamma,
            "fpgm": self._median_distance,
            "wanda": lambda one: self._activation(one, variance=False),
            "flap": lambda one: self._activation(one, variance=True),
        }
        return by_name[criterion](group)

    # -- weights ----------------------------------------------------------------------------------

    def _magnitude(self, group: Group, power: int) -> Values:
        total = np.zeros(group.size)
        for index in group.producers:
            weights = weights_of(self.analysis, index)
            if weights is not None:
                rows = (np.abs(weights) ** power).sum(axis=(2, 3)).reshape(-1)
                part = self.analysis.state.contractions[index]
                total += self._gathered(group, part.outputs, rows, power)
        for index in group.consumers:
            weights = weights_of(self.analysis, index)
            if weights is not None:
                columns = (np.abs(weights) ** power).sum(axis=(1, 3)).reshape(-1)
                part = self.analysis.state.contractions[index]
                total += self._gathered(group, part.inputs.ids, columns, power)
        return total

    def _gathered(self, group: Group, ids: Ids, values: Values, power: int = 1) -> Values:
        """Sums per unit of values per coordinate, relative to their mean over the group."""
        sums = np.zeros(group.size)
        owners = group.owners(self.analysis.roots, ids)
        if len(values) != len(owners):
            return sums
        np.add.at(sums, owners[owners >= 0], values[owners >= 0])
        sums = sums ** (1 / power)
        mean = float(sums.mean())
        return sums / mean if mean > 0 else sums

    def _gamma(self, group: Group) -> Values:
        total = np.zeros(group.size)
        for index in group.producers:
            part = self.analysis.state.contractions[index]
            scale = self.gammas.get(part.node.outputs[0].name or "")
            if scale is not None:
                total += self._gathered(group, part.outputs, np.abs(scale))
        return total

    def _median_distance(self, group: Group) -> Values:
        total = np.zeros(group.size)
        for index in group.producers:
            weights = weights_of(self.analysis, index)
            part = self.analysis.state.contractions[index]
            if weights is None:
                continue
            owners = group.owners(self.analysis.roots, part.outputs)
            mine = np.flatnonzero(owners >= 0)
            rows = weights.reshape(len(part.outputs), -1)[mine]
            squares = np.square(rows).sum(axis=1)
            gaps = squares[:, np.newaxis] + squares - 2 * rows @ rows.T
            distances = np.zeros(len(part.outputs))
            distances[mine] = np.sqrt(np.maximum(gaps, 0)).sum(axis=1)
            total += self._gathered(group, part.outputs, distances)
        return total

    # -- activations ------------------------------------------------------------------------------

    def _activation(self, group: Group, *, variance: bool) -> Values:
        total = np.zeros(group.size)
        for index in group.consumers:
            weights = weights_of(self.analysis, index)
            part = self.analysis.state.contractions[index]
            moments = self._moments(index) if weights is not None else None
            if weights is None or moments is None:
                continue
            mean, square = moments
            power = 2 if variance else 1
            columns = (np.abs(weights) ** power).sum(axis=(1, 3)).reshape(-1)
            factor = np.maximum(square - np.square(mean), 0) if variance else np.sqrt(square)
            if len(factor) == len(columns):
                total += self._gathered(group, part.inputs.ids, columns * factor)
        return total

    def _moments(self, index: int) -> tuple[Values, Values] | None:
        """Mean and mean square of each input channel of a contraction."""
        part = self.analysis.state.contractions[index]
        source = part.node.inputs[0]
        if source is None or not source.name or _is_recurrence(self.analysis, index):
            return None
        count, total, squares = 0, 0.0, 0.0
        for values in run_tapped(self.analysis.model, [source.name], self.feeds):
            rows = np.moveaxis(values[source.name], part.inputs.axis, -1)
            flat = rows.reshape(-1, rows.shape[-1]).astype(np.float64)
            flat = flat[np.isfinite(flat).all(axis=1)]
            count += len(flat)
            total = total + flat.sum(axis=0)
            squares = squares + np.square(flat).sum(axis=0)
        if not count:
            return None
        return np.asarray(total / count), np.asarray(squares / count)

    # -- optimal brain surgeon --------------------------------------------------------------------

    def _obs(self, group: Group) -> Ids | None:
        parts = [self._surgery(group, index) for index in group.consumers]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts) or not found:
            return None
        order: list[int] = []
        alive = np.arange(group.size)
        each = -(-group.size // _OBS_STEPS)
        while len(alive) > 1:
            costs = np.sum([part.costs(alive) for part in found], axis=0)
            gone = alive[np.argsort(costs, kind="stable")[: min(each, len(alive) - 1)]]
            for part in found:
                part.delete(gone)
            order.extend(gone.tolist())
            alive = np.setdiff1d(alive, gone)
        return np.array([*order, *alive.tolist()], dtype=np.int64)

    def _surgery(self, group: Group, index: int) -> Surgery | None:
        part = self.analysis.state.contractions[index]
        layer = layer_of(part.node)
        if layer is not None and layer.channel_axis == -1:
            layer.tokens = positions_read(layer.output)
        if layer is None or layer.groups != 1 or layer.unknowns > _LARGEST_GRAM:
            return None
        gram = self._gram(layer)
        if gram is None:
            return None
        owners = np.repeat(group.owners(self.analysis.roots, part.inputs.ids), layer.taps)
        return Surgery(gram, layer.weights()[0], owners, group.size)

    def _gram(self, layer: Layer) -> Values | None:
        """The mean Gram matrix of the rows that a layer reads, around their mean."""
        source, output = layer.source.name or "", layer.output.name or ""
        products = np.zeros((layer.unknowns, layer.unknowns))
        total, count = np.zeros(layer.unknowns), 0
        taps = run_tapped(self.analysis.model, [source, output], self.feeds)
        for number, values in enumerate(taps):
            places = positions(layer, values[output], number, len(self.feeds), self.seed)
            rows = layer.rows(values[source], places)[:, 0, :]
            rows = rows[np.isfinite(rows).all(axis=1)]
            products += rows.T @ rows
            total += rows.sum(axis=0)
            count += len(rows)
        if count < 2:
            return None
        mean = total / count
        return products / count - np.outer(mean, mean)


def weights_of(analysis: Analysis, index: int) -> npt.NDArray[Any] | None:
    """``(groups, outputs per group, inputs per group, others)`` of a contraction's weight.

    None where the stored weight does not tell (a quantized one, a table).
    """
    part = analysis.state.contractions[index]
    if is_op(part.node, "LSTM", "GRU", "RNN"):
        return _recurrent_weights(analysis, index, part)
    if not is_op(part.node, "Conv", "ConvTranspose", "Gemm", "MatMul"):
        return None
    content = part.weight.tensor.numpy().astype(np.float64)
    shape = content.shape
    if is_op(part.node, "Conv"):
        groups = part.node.attributes.get_int("group", 1)
        return content.reshape(groups, shape[0] // groups, shape[1], -1)
    if part.weight.out_axis == 1:
        content = np.swapaxes(content, 0, 1)
    return content.reshape(1, content.shape[0], content.shape[1], -1)


def _recurrent_weights(
    analysis: Analysis, index: int, part: Contraction
) -> npt.NDArray[Any] | None:
    own = 2 if _is_recurrence(analysis, index) else 1
    tensor = constant_tensor(part.node.inputs[own])
    if tensor is None:
        return None
    content = tensor.numpy().astype(np.float64)
    directions, _, read = content.shape
    units = len(part.outputs) // directions
    blocks = content.reshape(directions, -1, units, read).transpose(0, 2, 3, 1)
    return blocks if own == 2 else blocks.reshape(1, directions * units, read, -1)


def _is_recurrence(analysis: Analysis, index: int) -> bool:
    """The second contraction of a recurrent operator, from its units to its units."""
    parts = analysis.state.contractions
    own = is_op(parts[index].node, "LSTM", "GRU", "RNN")
    return own and index > 0 and parts[index - 1].node is parts[index].node
