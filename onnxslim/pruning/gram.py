"""Second moments of a linear layer's input, accumulated batch by batch in float64.

What is here: ``Gram(groups, unknowns, outputs)`` with ``add(rows, missing)``, where rows are
``(n, groups, unknowns)`` of the unfolded input (see `onnxslim.pruning.layers`) and missing is
``(n, outputs)``, what the layer's output lacks; ``moments(centred)`` gives the means that normal
equations are made of. Memory does not grow with the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxslim.pruning.layers import Layer, Rows


@dataclass(frozen=True)
class Moments:
    """Means over rows x and what is missing, m, per group; around their means where centred.

    Attributes:
        square: ``(g, u, u)``, of x xᵀ.
        cross: ``(g, u, o)``, of x mᵀ.
        row: ``(g, u)``, of x.
        missing: ``(g, o)``, of m.
    """

    square: Rows
    cross: Rows
    row: Rows
    missing: Rows


class Gram:
    """Sums over the rows of a layer.

    Args:
        groups: groups of the layer.
        unknowns: inputs that one output is summed over.
        outputs: outputs of all groups.

    Attributes:
        count: rows so far.
    """

    def __init__(self, groups: int, unknowns: int, outputs: int) -> None:
        self.count = 0
        self._square = np.zeros((groups, unknowns, unknowns))
        self._cross = np.zeros((groups, unknowns, outputs // groups))
        self._row = np.zeros((groups, unknowns))
        self._missing = np.zeros((groups, outputs // groups))

    @classmethod
    def of(cls, layer: Layer) -> Gram:
        """An empty one for a layer."""
        return cls(layer.groups, layer.unknowns, layer.outputs)

    @staticmethod
    def bytes_of(layer: Layer) -> int:
        """What the one of a layer takes, moments included."""
        return 16 * layer.unknowns * (layer.groups * layer.unknowns + layer.outputs)

    def add(self, rows: Rows, missing: Rows) -> None:
        """Takes in rows ``(n, groups, unknowns)`` and what is missing ``(n, outputs)``.

        Rows with NaN or infinity in either are left out.
        """
        finite = np.isfinite(missing).all(axis=1) & np.isfinite(rows).all(axis=(1, 2))
        by_group = np.ascontiguousarray(rows[finite].transpose(1, 0, 2))
        lacking = missing[finite].reshape(by_group.shape[1], len(by_group), -1).transpose(1, 0, 2)
        turned = by_group.transpose(0, 2, 1)
        self.count += by_group.shape[1]
        for total, part in zip(self._square, by_group, strict=True):
            total += part.T @ part  # a symmetric product: numpy computes one half of it
        self._cross += turned @ lacking
        self._row += by_group.sum(axis=1)
        self._missing += lacking.sum(axis=1)

    def moments(self, *, centred: bool) -> Moments:
        """The means; ``centred`` where the layer has a bias that adapts as well."""
        size = max(self.count, 1)
        row, missing = self._row / size, self._missing / size
        square, cross = self._square / size, self._cross / size
        if centred:
            square -= row[:, :, None] * row[:, None, :]
            cross -= row[:, :, None] * missing[:, None, :]
        return Moments(square, cross, row, missing)
