"""Carries out a removal: folds constants, cuts weights, and corrects what spells channel counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.edit import add_initializer
from onnxslim.rewrite.channels.atoms import (
    Array,
    Channelled,
    Channels,
    Contraction,
    Edits,
    Ids,
)
from onnxslim.rewrite.channels.joint import lengths_in
from onnxslim.rewrite.channels.need import Mask, Need


def emit(state: Channelled, need: Need, fresh_name: Callable[[str], str]) -> None:
    """Removes every atom that is not needed. The walk and the need are stale afterwards.

    Args:
        state: the walked graph, unchanged since the walk.
        need: what stays.
        fresh_name: gives unused names.
    """

    def initializer(content: Array, base: str) -> ir.Value:
        return new_constant(state, content, fresh_name(base))

    edits = Edits(need.kept, initializer, fresh_name)
    used = [value for value in state.graph.initializers.values() if value.uses()]
    folds = [(part, _folded(part, need)) for part in state.contractions if part.fold is not None]
    for part in state.contractions:
        if part.merge and part.fold is None:
            _merge_constants(part, need)
    _cut_vectors(state, edits)
    for value, slots in state.slots.items():
        _cut_constant(value, slots, need)
    for part, added in folds:
        if added is not None and part.fold is not None:
            part.fold(edits, added)
    for ids, fix in state.fixes:
        if not need.kept(ids).all():
            fix(edits)
    _cut_shapes(state, need)
    for value in used:
        if not value.uses() and not value.is_graph_output() and value.name is not None:
            del state.graph.initializers[value.name]


def new_constant(state: Channelled, content: Array, name: str) -> ir.Value:
    """A new constant: an initializer, or a Constant node where a function body cannot hold one."""
    if not state.is_function:
        return add_initializer(state.graph, content, name)
    tensor = ir.tensor(content, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(content.shape))
    attribute = ir.AttrTensor("value", tensor)
    node = ir.Node("", "Constant", [], attributes=[attribute], outputs=[value])
    state.graph.insert_before(state.graph[0], node)
    return value


def _folded(part: Contraction, need: Need) -> Array | None:
    """What removed constant channels add to each output that stays; None for nothing."""
    known = part.inputs.known
    if known is None:
        return None
    gone = np.flatnonzero(~need.kept(part.inputs.ids) & ~np.isnan(known) & (known != 0))
    if not gone.size:
        return None
    added = part.weight.sums(gone) @ known[gone]
    added = added[need.kept(part.outputs)]
    return added if added.any() else None


def _merge_constants(part: Contraction, need: Need) -> None:
    """Gives the weights of removed constant channels to one that stays.

    A constant k with weights w does the same as a constant j with weights k / j * w, also at the
    borders, where both are missing at the same places.
    """
    known = part.inputs.known
    if known is None:
        return
    constants = ~np.isnan(known) & (known != 0)
    kept = need.kept(part.inputs.ids)
    gone = np.flatnonzero(constants & ~kept)
    looked_at = need.kept(part.outputs) & ~need.held(part.outputs)
    gone = gone[part.weight.matrix()[looked_at][:, gone].any(axis=0)]
    value = part.node.inputs[1]
    if not gone.size or value is None:
        return
    stands = int(np.where(constants & kept, np.abs(known), 0.0).argmax())
    tensor = part.weight.tensor
    content = np.array(tensor.numpy())
    channels = np.moveaxis(content, 1 - part.weight.out_axis, 0)
    added = np.tensordot(known[gone] / known[stands], channels[gone].astype(np.float64), axes=1)
    channels[stands] = (channels[stands].astype(np.float64) + added).astype(content.dtype)
    store(value, ir.tensor(content, dtype=tensor.dtype, name=value.name))


def _cut_vectors(state: Channelled, edits: Edits) -> None:
    """Cuts small constants, in place where all their readers agree and as copies elsewhere."""
    cuts: dict[ir.Value, dict[tuple[ir.Node, int], tuple[int, bytes]]] = {}
    for (node, index), (axis, ids) in state.vectors.items():
        value = node.inputs[index]
        if value is not None:
            cuts.setdefault(value, {})[(node, index)] = (axis, edits.kept(ids).tobytes())
    for value, wanted in cuts.items():
        readers = {(use.node, use.idx) for use in value.uses()}
        forms = set(wanted.values())
        in_place = len(forms) == 1 and readers == set(wanted) and not value.is_graph_output()
        for axis, mask in sorted(forms):
            places = [place for place, form in wanted.items() if form == (axis, mask)]
            _cut_vector(value, axis, np.frombuffer(mask, dtype=np.bool_), places, in_place, edits)


def _cut_vector(
    value: ir.Value,
    axis: int,
    kept: Mask,
    places: list[tuple[ir.Node, int]],
    in_place: bool,
    edits: Edits,
) -> None:
    tensor = constant_tensor(value)
    if kept.all() or tensor is None:
        return
    content = np.ascontiguousarray(np.compress(kept, tensor.numpy(), axis=axis))
    if in_place:
        store(value, ir.tensor(content, dtype=tensor.dtype, name=value.name))
        return
    copy = edits.initializer(content, f"{value.name}_cut")
    for node, index in places:
        node.replace_input_with(index, copy)


def _cut_constant(value: ir.Value, slots: dict[int, Ids], need: Need) -> None:
    cuts = {axis: kept for axis, ids in slots.items() if not (kept := need.kept(ids)).all()}
    tensor = constant_tensor(value)
    if not cuts or tensor is None:
        return
    content = tensor.numpy()
    for axis, kept in sorted(cuts.items()):
        content = np.compress(kept, content, axis=axis)
    new = ir.tensor(np.ascontiguousarray(content), dtype=tensor.dtype, name=value.name)
    store(value, new)


def store(value: ir.Value, new: ir.TensorProtocol) -> None:
    """Gives a constant, for all its readers, another content."""
    value.shape = ir.Shape(new.shape.numpy())
    producer = value.producer()
    if producer is None:
        value.const_value = new
        return
    producer.attributes.clear()
    producer.attributes["value"] = ir.AttrTensor("value", new)


def _cut_shapes(state: Channelled, need: Need) -> None:
    """Tells every value how long its axes are now."""
    for value, channels in state.values.items():
        _cut_shape(value, channels, need)
    for value, joint in state.joints.items():
        if value.shape is None or need.kept(joint.ids).all():
            continue
        dims = list(value.shape)
        for axis, length in lengths_in(joint, need.kept).items():
            dims[axis] = length
        value.shape = ir.Shape(dims)


def _cut_shape(value: ir.Value, channels: Channels, need: Need) -> None:
    kept = need.kept(channels.ids)
    if value.shape is None or kept.all():
        return
    dims = list(value.shape)
    dims[channels.axis] = int(kept.sum())
    value.shape = ir.Shape(dims)
