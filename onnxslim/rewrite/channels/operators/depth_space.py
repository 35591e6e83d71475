"""Channel rules of DepthToSpace and SpaceToDepth, which deal channels out over blocks of space."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxslim.rewrite.channels.atoms import Barrier, Channelled, Channels


def depth_to_space(state: Channelled, node: ir.Node) -> None:
    """DepthToSpace: the channels that become one channel go together, so that blocks stay whole.

    DCR has the positions of a block in front of the channels, CRD behind them.
    """
    channels, area = _blocks(state, node)
    if len(channels.ids) % area:
        raise Barrier("its blocks do not divide the channels")
    shape, places = (area, -1), 0
    if node.attributes.get_string("mode", "DCR") == "CRD":
        shape, places = (-1, area), 1
    ids = np.moveaxis(channels.ids.reshape(shape), places, 0)
    known = np.moveaxis(channels.filled().reshape(shape), places, 0)
    first = np.ascontiguousarray(ids[0])
    for other in ids[1:]:
        state.unite(first, np.ascontiguousarray(other))
    same = (known == known[:1]).all(axis=0)
    state.track(node.outputs[0], 1, first, np.where(same, known[0], np.nan), channels.dtype)


def space_to_depth(state: Channelled, node: ir.Node) -> None:
    """SpaceToDepth: each channel becomes one per position of a block, the positions in front."""
    channels, area = _blocks(state, node)
    ids = np.tile(channels.ids, area)
    state.track(node.outputs[0], 1, ids, np.tile(channels.filled(), area), channels.dtype)


def _blocks(state: Channelled, node: ir.Node) -> tuple[Channels, int]:
    """The channels on axis 1, and how many positions a block has."""
    channels = state.of(node.inputs[0])
    size = node.attributes.get_int("blocksize", 0)
    if channels is None or size < 1:
        raise Barrier("its input is not tracked")
    if channels.axis != 1:
        raise Barrier("it works on axis 1, its input is tracked along another")
    return channels, size * size
