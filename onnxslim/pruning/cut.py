"""Cuts chosen channels out of a model, through the same emission as the exact removal.

Which channels go is decided elsewhere; here a valid model comes out, and the record of what stayed
of every value, so that the cut model can be compared with the original channel by channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxslim.io import load
from onnxslim.ir import shapes
from onnxslim.ir.edit import Names
from onnxslim.ir.verify import verify
from onnxslim.pruning.groups import Mask, axes_emptied, walk_model
from onnxslim.rewrite.channels.atoms import Channelled, Ids
from onnxslim.rewrite.channels.emit import emit
from onnxslim.rewrite.channels.need import Need


class ChosenNeed(Need):
    """A need in which exactly the chosen atoms go, whatever the weights say.

    Args:
        state: the walked graph.
        dead: the atoms that go; none of them pinned.
    """

    def __init__(self, state: Channelled, dead: Ids) -> None:
        super().__init__(state)
        self.live[:] = True
        self.live[dead] = False


@dataclass
class Cut:
    """A cut model.

    Attributes:
        model: the cut copy.
        kept: per value of the original, by name: the axis, and which coordinates of it stayed.
            Values that are not named kept everything.
    """

    model: ir.Model
    kept: dict[str, tuple[int, Mask]]


def cut(model: ir.Model, dead: Ids) -> Cut:
    """Removes atoms from a copy of the model.

    Args:
        model: with inferred shapes; never changed.
        dead: atoms by number, as `groups.analyse` numbers them for this model.

    Raises:
        VerificationError: the result is no valid graph, which is a defect of a channel rule.
    """
    copy = load(model)
    shapes.infer(copy)
    state = walk_model(copy)
    if state is None or not dead.size:
        return Cut(copy, {})
    dead = _without_emptied(state, dead)
    need = ChosenNeed(state, dead)
    kept = {
        value.name: (channels.axis, need.kept(channels.ids))
        for value, channels in state.values.items()
        if value.name
    }
    emit(state, need, Names(copy).fresh)
    _forget_shapes(copy)
    shapes.infer(copy)
    verify(copy)
    return Cut(copy, {name: item for name, item in kept.items() if not item[1].all()})


def _without_emptied(state: Channelled, dead: Ids) -> Ids:
    """The atoms without those that would leave nothing on some axis: its first one stays."""
    roots = state.roots()
    saved = np.array([axis[0] for axis in axes_emptied(state, roots, dead)], dtype=np.int64)
    return np.setdiff1d(dead, saved)


def _forget_shapes(model: ir.Model) -> None:
    """Shapes of inner values are inferred again from what the graph is now."""
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
