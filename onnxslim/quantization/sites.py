"""Finds the sites of a model: from what makes channels forward to all that read them."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.schema import ONNX_DOMAINS
from onnxslim.ir.shapes import rank
from onnxslim.quantization.following import RefusedError, axis_labels, own_constant
from onnxslim.quantization.scaling import Kind, Labels, Port, Read, Site
from onnxslim.quantization.site_rules import HOMOGENEOUS, LINEAR, RULES

_NORMS_LAST = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
_NORMS_FIRST = frozenset({"BatchNormalization", "InstanceNormalization"})


@dataclass
class Walk:
    """What is known while the channels of one producer are followed.

    Attributes:
        labels: channels by value, for every value that has been scaled.
        free: as of `Site`.
        shifts, reads, clips, plain: as of `Site`.
        reasons: why channels are not free.
    """

    labels: dict[ir.Value, Labels]
    free: npt.NDArray[np.bool_]
    shifts: list[Port] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    clips: list[ir.Node] = field(default_factory=list)
    plain: bool = True
    reasons: list[str] = field(default_factory=list)

    @property
    def other(self) -> int:
        """The label of elements that are no channels of the site."""
        return len(self.free) - 1

    def channels_of(self, value: ir.Value | None) -> Labels | None:
        """The channels of a value, or None when it is not scaled."""
        return None if value is None else self.labels.get(value)

    def pin(self, labels: Labels, reason: str) -> None:
        """Channels that have to stay as they are."""
        self.free[labels.reshape(-1)] = False
        self.reasons.append(reason)


@dataclass(frozen=True)
class NoSite:
    """A producer whose channels cannot be scaled.

    Attributes:
        name: the tensor.
        kind: as of `Site`.
        reason: why.
    """

    name: str
    kind: Kind
    reason: str


def find_sites(model: ir.Model) -> tuple[list[Site], list[NoSite]]:
    """The sites of the main graph in order, and the producers that make none.

    Args:
        model: with inferred shapes and folded BatchNormalization; it is not changed. Constants
            must be initializers.
    """
    order = {node: index for index, node in enumerate(model.graph)}
    found: list[Site] = []
    refused: list[NoSite] = []
    for node in order:
        start = _producer(node)
        if start is None:
            continue
        name = node.outputs[0].name or ""
        try:
            found.append(_follow(node, *start, order))
        except RefusedError as refusal:
            refused.append(NoSite(name, start[0], str(refusal)))
    return found, refused


@dataclass(frozen=True)
class _Start:
    """Constants of a producer as (input index, labels); the first is the weight."""

    weight: tuple[int, Labels]
    shifts: tuple[tuple[int, Labels], ...]


def _producer(node: ir.Node) -> tuple[Kind, int, Labels, _Start] | None:
    """Kind, number of channels, labels of the output, and constants; None for other nodes."""
    if node.op_type == "SimplifiedLayerNormalization" and node.domain == "com.microsoft":
        return _norm(node)
    if node.domain not in ONNX_DOMAINS or not node.outputs:
        return None
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        return None
    if node.op_type in LINEAR:
        return _linear(node)
    if node.op_type in _NORMS_LAST | _NORMS_FIRST:
        return _norm(node)
    return _gamma(node) if node.op_type == "Mul" else None


def _shape(node: ir.Node, index: int) -> tuple[int, ...] | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    tensor = constant_tensor(value)
    return None if tensor is None else tuple(tensor.shape.numpy())


def _linear(node: ir.Node) -> tuple[Kind, int, Labels, _Start] | None:
    shape = _shape(node, 1)
    out_rank = rank(node.outputs[0])
    if shape is None or out_rank is None or len(shape) < 2:
        return None
    if node.op_type == "MatMul":
        if len(shape) != 2:
            return None
        weight = axis_labels(shape[1], 1, 2)
        return "linear", shape[1], axis_labels(shape[1], -1, out_rank), _Start((1, weight), ())
    channels, weight = _weight_channels(node, shape)
    output = axis_labels(channels, 1, len(shape) if node.op_type != "Gemm" else 2)
    bias = ((2, axis_labels(channels, -1, 1)),) if _is_given(node, 2) else ()
    return "linear", channels, output, _Start((1, weight), bias)


def _weight_channels(node: ir.Node, shape: tuple[int, ...]) -> tuple[int, Labels]:
    """Number of output channels of a weight, and the channel of every element."""
    if node.op_type == "Gemm":
        axis = 0 if node.attributes.get_int("transB", 0) else 1
        return shape[axis], axis_labels(shape[axis], axis, 2)
    if node.op_type == "Conv":
        return shape[0], axis_labels(shape[0], 0, len(shape))
    group = node.attributes.get_int("group", 1) or 1
    channels = shape[1] * group
    # weight (I, O / group, ...): row i belongs to group i // (I / group)
    owner = np.arange(shape[0], dtype=np.int64) // max(shape[0] // group, 1)
    labels = owner[:, None] * shape[1] + np.arange(shape[1], dtype=np.int64)[None, :]
    if group == 1:
        labels = labels[:1]
    return channels, labels.reshape(*labels.shape, *[1] * (len(shape) - 2))


def _norm(node: ir.Node) -> tuple[Kind, int, Labels, _Start] | None:
    shape, out_rank = _shape(node, 1), rank(node.outputs[0])
    if shape is None or out_rank is None or len(shape) != 1:
        return None
    axis = 1
    if node.op_type in _NORMS_LAST:
        axis = node.attributes.get_int("axis", -1) or 0
        if axis % out_rank != out_rank - 1:
            return None
    if node.op_type == "BatchNormalization" and node.attributes.get_int("training_mode", 0) == 1:
        return None
    plain = axis_labels(shape[0], 0, 1)
    shifts = ((2, plain),) if _is_given(node, 2) else ()
    return "norm", shape[0], axis_labels(shape[0], axis, out_rank), _Start((1, plain), shifts)


def _gamma(node: ir.Node) -> tuple[Kind, int, Labels, _Start] | None:
    """A Mul by one number per channel of the last axis, behind a norm of primitive operators."""
    out_rank = rank(node.outputs[0])
    for index in (0, 1):
        shape, other = _shape(node, index), node.inputs[1 - index]
        if shape is None or other is None or not shape or rank(other) != out_rank:
            continue
        maker = other.producer()
        is_followed = maker is None or maker.op_type in LINEAR | HOMOGENEOUS
        if is_followed or int(np.prod(shape)) != shape[-1] or shape[-1] < 2 or out_rank is None:
            return None
        labels = axis_labels(shape[-1], -1, len(shape))
        return "norm", shape[-1], axis_labels(shape[-1], -1, out_rank), _Start((index, labels), ())
    return None


def _is_given(node: ir.Node, index: int) -> bool:
    return index < len(node.inputs) and node.inputs[index] is not None


def _follow(
    node: ir.Node, kind: Kind, channels: int, labels: Labels, start: _Start,
    order: dict[ir.Node, int],
) -> Site:  # fmt: skip
    output = node.outputs[0]
    walk = Walk({output: labels}, np.arange(channels + 1) < channels)
    shifts = [Port(own_constant(node, index), bias) for index, bias in start.shifts]
    writer = Port(own_constant(node, start.weight[0]), start.weight[1])
    for reader in _readers(output, walk, order):
        _visit(reader, walk)
    if not walk.reads or not walk.free.any():
        raise RefusedError(walk.reasons[0] if walk.reasons else "no weight reads it")
    ports = [writer, *shifts, *walk.shifts, *(read.port for read in walk.reads)]
    if len({port.value for port in ports}) != len(ports):
        raise RefusedError("a weight is used twice")
    return Site(
        output.name or "", kind, channels + 1, (writer,), (*shifts, *walk.shifts),
        tuple(walk.reads), tuple(walk.clips), walk.plain, walk.free,
    )  # fmt: skip


def _readers(output: ir.Value, walk: Walk, order: dict[ir.Node, int]) -> Iterator[ir.Node]:
    """Nodes that read a scaled value, in the order of the graph; the list grows on the way."""
    queue: list[int] = []
    by_index: dict[int, ir.Node] = {}
    done: set[ir.Value] = set()

    def push(value: ir.Value) -> None:
        done.add(value)
        if value.is_graph_output():
            walk.pin(walk.labels[value], f"{value.name!r} is an output of the model")
        for user, _ in value.uses():
            if user not in order:
                walk.pin(walk.labels[value], f"a subgraph reads {value.name!r}")
            elif order[user] not in by_index:
                by_index[order[user]] = user
                heapq.heappush(queue, order[user])

    push(output)
    while queue:
        yield by_index[heapq.heappop(queue)]
        for value in [value for value in walk.labels if value not in done]:
            push(value)


def _visit(node: ir.Node, walk: Walk) -> None:
    """Passes the channels on, or pins them: what lies behind then sees them as they were."""
    rule = RULES.get(node.op_type) if node.domain in ONNX_DOMAINS else None
    try:
        if rule is None or any(attribute.is_ref() for attribute in node.attributes.values()):
            raise RefusedError(f"{node.op_type} does not pass a scale on")
        rule(node, walk)
        for output in node.outputs:
            labels = walk.channels_of(output)
            if labels is not None and not labels.size:  # an empty tensor holds no channels
                del walk.labels[output]
    except RefusedError as refusal:
        for value in node.inputs:
            labels = walk.channels_of(value)
            if labels is not None:
                walk.pin(labels, str(refusal))
