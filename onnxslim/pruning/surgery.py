"""What it costs a reader to lose channels, after the best refit of the channels that stay.

Source: the optimal brain surgeon (Hassibi and Stork, 1993), for blocks of inputs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxslim.rewrite.channels.atoms import Ids

Values = npt.NDArray[np.float64]

# Added to the diagonal of the Gram matrix, relative to its mean.
_RIDGE = 1e-3


class Surgery:
    """One reader of a group: the error of its outputs without a unit, after the best refit.

    Args:
        gram: ``(unknowns, unknowns)`` of what it reads.
        weights: ``(outputs, unknowns)``.
        owners: the unit of each unknown, -1 for none.
        size: number of units, each with equally many unknowns.
    """

    def __init__(self, gram: Values, weights: Values, owners: Ids, size: int) -> None:
        self._weights = np.array(weights)
        energy = float(np.sum((weights @ gram) * weights))
        self._scale = 1 / energy if energy > 0 else 0.0
        ridge = max(_RIDGE * float(np.trace(gram)) / len(gram), np.finfo(np.float64).tiny)
        self._inverse = np.linalg.inv(gram + ridge * np.eye(len(gram)))
        self._columns = np.argsort(owners, kind="stable")[(owners < 0).sum() :].reshape(size, -1)

    def costs(self, units: Ids) -> Values:
        """``trace(W_S (H^-1_SS)^-1 W_S^T)`` per unit, relative to the energy of the outputs."""
        columns = self._columns[units]
        blocks = self._inverse[columns[:, :, np.newaxis], columns[:, np.newaxis, :]]
        own = self._weights[:, columns].transpose(1, 2, 0)
        solved = np.linalg.solve(blocks, own)
        return np.asarray((own * solved).sum(axis=(1, 2)) * self._scale)

    def delete(self, units: Ids) -> None:
        """Takes units out and refits the others."""
        columns = self._columns[units].reshape(-1)
        block = self._inverse[np.ix_(columns, columns)]
        across = np.linalg.solve(block, self._inverse[columns])
        self._weights -= self._weights[:, columns] @ across
        self._inverse -= self._inverse[:, columns] @ across
        # What is gone stays out of the later updates, also in the last bits.
        self._weights[:, columns] = 0
        self._inverse[columns, :] = 0
        self._inverse[:, columns] = 0
