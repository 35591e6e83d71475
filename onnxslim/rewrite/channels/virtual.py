"""Zero channels that a layer norm lets its readers see: one of them can stand for all.

Channel j of a LayerNormalization that enters as zero leaves as ``s * gamma[j] + beta[j]``, where
``s = -mean / deviation`` is the same for all such channels. With one of them, v, kept, a reader
with weights ``w`` does not need the others once ``w[v]`` is ``w[v] + sum(gamma[j] / gamma[v] *
w[j])`` and its bias has ``sum((beta[j] - gamma[j] / gamma[v] * beta[v]) * w[j])`` more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor, is_constant
from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import rank
from onnxslim.rewrite.channels.atoms import Array, Channelled, Channels, Contraction, Edits, Ids
from onnxslim.rewrite.channels.emit import new_constant, store
from onnxslim.rewrite.channels.need import Need
from onnxslim.rewrite.channels.operators.norm_compensation import only_reader

# The weights that one channel gets for the others are at most this much larger.
_RATIO = 4.0


@dataclass(frozen=True)
class Virtual:
    """A layer norm of which one zero channel can stand for others.

    Attributes:
        site: its gamma, for the report.
        channels: what enters it.
        scale: its gamma, one per channel, in float64.
        shift: its beta.
        stands: the position of the channel that stays.
        others: the positions of those that it stands for.
        readers: all that reads the norm.
    """

    site: ir.Value | None
    channels: Channels
    scale: Array
    shift: Array
    stands: int
    others: Ids
    readers: tuple[Contraction, ...]


def virtual_channels(state: Channelled) -> list[Virtual]:
    """The layer norms where this lets channels go that would stay otherwise."""
    if not state.compensate_norms:
        return []
    found, chosen = [], set[int]()
    roots = state.roots()
    for norm in _norms(state):
        candidate = _candidate(state, norm, roots, chosen)
        if candidate is not None:
            found.append(candidate)
            chosen.add(int(roots[candidate.channels.ids[candidate.stands]]))
    while found:
        need = Need(_supposing(state, found))
        useful = [_removed(candidate, need) for candidate in found]
        settled = [one for one in useful if one.others.size]
        if len(settled) == len(found):
            return settled
        found = [one for one, left in zip(found, useful, strict=True) if left.others.size]
    return []


@dataclass(frozen=True)
class _Norm:
    """A layer norm, as one operator or as several; scale and shift with one number per channel."""

    channels: Channels
    scale: ir.Value | None
    shift: ir.Value | None
    output: ir.Value


def _norms(state: Channelled) -> Iterator[_Norm]:
    for node in state.graph:
        channels = state.of(node.inputs[0]) if is_op(node, "LayerNormalization") else None
        if channels is not None:
            shift = node.inputs[2] if len(node.inputs) > 2 else None
            yield _Norm(channels, node.inputs[1], shift, node.outputs[0])
    for part in state.contractions:
        if is_op(part.node, "Div") and part.inputs.known is not None:
            yield from _primitive(part.node, part.inputs)


def _primitive(divide: ir.Node, channels: Channels) -> Iterator[_Norm]:
    """The norm that ends with a Div, Mul by a scale and perhaps Add of a shift."""
    scaler = only_reader(divide, "Mul")
    scale = _constant_of(scaler)
    if scaler is None or scale is None:
        return
    adder = only_reader(scaler, "Add")
    shift = _constant_of(adder)
    last = adder if adder is not None and shift is not None else scaler
    yield _Norm(channels, scaler.inputs[scale], _input_of(adder, shift), last.outputs[0])


def _constant_of(node: ir.Node | None) -> int | None:
    inputs = () if node is None else node.inputs
    return next((place for place, value in enumerate(inputs) if is_constant(value)), None)


def _input_of(node: ir.Node | None, index: int | None) -> ir.Value | None:
    return None if node is None or index is None else node.inputs[index]


def _candidate(state: Channelled, norm: _Norm, roots: Ids, chosen: set[int]) -> Virtual | None:
    channels, size = norm.channels, len(norm.channels.ids)
    if channels.known is None or norm.output.is_graph_output():
        return None
    if rank(norm.output) != channels.axis + 1:  # scale and shift belong to the last axis
        return None
    gamma, beta = _vector(norm.scale, size), np.zeros(size)
    given = _vector(norm.shift, size)
    if gamma is None or (norm.shift is not None and given is None):
        return None
    beta = beta if given is None else given
    readers = _readers(state, norm.output, needs_bias=bool(beta.any()))
    zeros = np.flatnonzero((channels.known == 0) & (gamma != 0))
    if readers is None or zeros.size < 2:
        return None
    read = np.any([part.weight.in_any()[zeros] for part in readers], axis=0)
    zeros = zeros[read]
    if zeros.size < 2:
        return None
    stands = _standing(zeros, np.abs(gamma), roots[channels.ids], chosen)
    others = zeros[zeros != stands]
    return Virtual(norm.scale, channels, gamma, beta, stands, others, readers)


def _vector(value: ir.Value | None, size: int) -> Array | None:
    """A constant with one number per channel, in float64."""
    tensor = constant_tensor(value)
    if tensor is None or tuple(tensor.shape.numpy()) != (size,):
        return None
    return np.asarray(tensor.numpy().astype(np.float64))


def _standing(zeros: Ids, sizes: Array, roots: Ids, chosen: set[int]) -> int:
    """A channel with a large scale; one that stays for another norm is better than a new one."""
    largest = sizes[zeros].max()
    for position in zeros.tolist():
        if int(roots[position]) in chosen and sizes[position] * _RATIO >= largest:
            return int(position)
    return int(zeros[sizes[zeros].argmax()])


def _readers(
    state: Channelled, output: ir.Value, *, needs_bias: bool
) -> tuple[Contraction, ...] | None:
    """The matrix operators that read a norm, if they are all that does and can be changed."""
    parts = {part.node: part for part in state.contractions}
    found = []
    for use in output.uses():
        part = parts.get(use.node)
        if part is None or use.idx != 0 or not is_op(use.node, "MatMul", "Gemm"):
            return None
        value = use.node.inputs[1]
        if value is None or not is_constant(value) or len(value.uses()) != 1:
            return None
        if value.is_graph_output() or (needs_bias and part.fold is None):
            return None
        found.append(part)
    return tuple(found) or None


def _supposing(state: Channelled, found: Sequence[Virtual]) -> Channelled:
    """The walk as if the readers did not need the channels that another one stands for."""
    supposed = {}
    for one in found:
        for part in one.readers:
            known = part.inputs.filled().copy()
            known[one.others] = 0.0
            supposed[part.node] = replace(part, inputs=replace(part.inputs, known=known))
    parts = [supposed.get(part.node, part) for part in state.contractions]
    return replace(state, contractions=parts)


def _removed(one: Virtual, need: Need) -> Virtual:
    gone = ~need.kept(one.channels.ids[one.others])
    return replace(one, others=one.others[gone])


def concentrate(state: Channelled, one: Virtual, fresh_name: Callable[[str], str]) -> None:
    """Lets one channel stand for the others in all readers. The walk is stale afterwards."""

    def initializer(content: Array, base: str) -> ir.Value:
        return new_constant(state, content, fresh_name(base))

    edits = Edits(lambda ids: np.ones(len(ids), dtype=np.bool_), initializer, fresh_name)
    ratio = one.scale[one.others] / one.scale[one.stands]
    shifts = one.shift[one.others] - ratio * one.shift[one.stands]
    for part in one.readers:
        value, tensor = part.node.inputs[1], part.weight.tensor
        content = np.array(tensor.numpy())
        rows = np.moveaxis(content, 1 - part.weight.out_axis, 0)
        taken = rows[one.others].astype(np.float64)
        rows[one.stands] = (rows[one.stands] + np.tensordot(ratio, taken, axes=1)).astype(
            rows.dtype
        )
        rows[one.others] = 0
        assert value is not None
        store(value, ir.tensor(content, dtype=tensor.dtype, name=value.name))
        added = shifts @ taken
        if part.fold is not None and added.any():
            part.fold(edits, added)
