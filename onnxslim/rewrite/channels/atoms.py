"""Channels of a graph as atoms: which coordinates of which tensors can only go together.

A *slot* is one coordinate of the tracked axis of a value (usually a channel). Slots that can only
be removed together share an *atom*: both sides of an Add, a Conv's output channel with the rows of
its weight and its bias, every column of a Flatten that came from one channel. Atoms are united by
union-find while the graph is walked once, in order.

Per slot the walk also keeps what is *known*: the constant that the channel holds at every other
coordinate for every input, or NaN when nothing is known. NaN goes through arithmetic by itself.

What no rule understands is a barrier: the atoms that enter it are pinned, for a reason that the
report can show. An atom is needed when it is pinned, or when a matrix operator reads it for a
needed output; whatever is not needed can go (`channels.need`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.ir.constants import SMALL_BYTES, constant_tensor
from onnxslim.ir.shapes import dim, rank
from onnxslim.rewrite.channels.weight import Weight

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]
Known = npt.NDArray[np.float64]

Evaluate = Callable[[ir.Node, list[Array | None]], Array | None]
"""Runs one node on arrays and returns its first output, or None when that is not possible."""

# Elementwise constants above this many bytes are not read to see whether they are uniform.
_READ_BYTES = 4 * 1024 * 1024


class Barrier(Exception):  # noqa: N818 - control flow inside the analysis, never seen outside
    """A rule does not apply to this node; the message says why."""


@dataclass(frozen=True)
class Channels:
    """The tracked axis of a value.

    Attributes:
        axis: the axis, in ``[0, rank)``.
        ids: the atom of each coordinate; one atom may occur several times.
        known: the constant of each coordinate, NaN when unknown; None when all are unknown.
        dtype: the element type, also where shape inference does not know it.
    """

    axis: int
    ids: Ids
    known: Known | None = None
    dtype: ir.DataType | None = None

    def filled(self) -> Known:
        """``known`` as an array, also when nothing is known."""
        return np.full(len(self.ids), np.nan) if self.known is None else self.known


@dataclass
class Contraction:
    """A matrix operator: each output channel is a weighted sum over the input channels.

    Attributes:
        node: the Conv, ConvTranspose, Gemm or MatMul.
        weight: its weight, out by in.
        inputs: the input channels (axis and atoms, pinned where the input is not tracked).
        outputs: the atoms of the output channels.
        fold: adds constants (float64, one per output channel) to the node's bias; None when a
            nonzero constant channel cannot be folded here.
        no_fold: why not, for the report.
        merge: where nothing can be folded, one constant channel may stand for all of them, since
            the weight has no other reader.
        why: why the operator needs what it reads, for the report; empty for plain weighted sums.
    """

    node: ir.Node
    weight: Weight
    inputs: Channels
    outputs: Ids
    fold: Callable[[Edits, Array], None] | None
    no_fold: str = ""
    merge: bool = False
    why: str = ""


@dataclass(frozen=True)
class Balance:
    """A grouped operator: all groups that stay have equally many inputs, and equally many outputs.

    Attributes:
        node: the grouped operator.
        groups: how many groups the channels of either side are cut into, in order.
        inputs: the channels that enter.
        outputs: the channels that leave.
        may_go: a group of which nothing is needed goes as a whole.
    """

    node: ir.Node
    groups: int
    inputs: Channels
    outputs: Channels
    may_go: bool = True


@dataclass(frozen=True)
class Joint:
    """Several axes of a value that share one array of atoms, as heads and their dimensions do.

    What stays of the array is a block again: `Grid` says so.

    Attributes:
        axes: the axis of the value for each axis of the array.
        ids: the atom of each coordinate, two axes or more.
        lines: for each axis of the array but the last, one atom per index, that stays or goes with
            everything at this index.
        known: the constant of each coordinate, NaN when unknown.
        dtype: the element type, also where shape inference does not know it.
    """

    axes: tuple[int, ...]
    ids: Ids
    lines: tuple[Ids, ...]
    known: Known
    dtype: ir.DataType | None = None


@dataclass(frozen=True)
class Grid:
    """An array of atoms of which a block stays: some rows, with equally many coordinates each.

    Which coordinates of a row stay may differ from row to row. A row is what the indices along all
    axes but the last name; it stays when all its lines stay, and then with one coordinate at least.

    Attributes:
        node: what asks for it, for the report.
        ids: the atom of each coordinate, two axes or more.
        lines: for each axis but the last, one atom per index.
        reads: the coordinates that each row that stays needs; None for no such.
        known: the constant of each coordinate, NaN when unknown.
    """

    node: ir.Node
    ids: Ids
    lines: tuple[Ids, ...]
    reads: npt.NDArray[np.bool_] | None
    known: Known


@dataclass
class Edits:
    """What an emitted fix may use.

    Attributes:
        kept: the mask of coordinates that stay, for an array of atoms.
        initializer: adds a constant to the graph under a fresh name like the given one.
        fresh_name: gives an unused name like the given one, for a new value.
    """

    kept: Callable[[Ids], npt.NDArray[np.bool_]]
    initializer: Callable[[Array, str], ir.Value]
    fresh_name: Callable[[str], str]


@dataclass
class Pin:
    """Atoms that must stay, and why."""

    ids: Ids
    reason: str


@dataclass
class Channelled:
    """The result of the walk over one graph; rules fill it in.

    Some attributes:
        compensate_norms: may a norm over the channels lose zero channels and be corrected for it?
        handled: nodes that the rule of an earlier node has taken care of.
        notes: weights and why what is dead in them stays, where no atom tells.
    """

    graph: ir.Graph
    opset: int
    evaluate: Evaluate
    is_function: bool = False
    compensate_norms: bool = False
    handled: set[ir.Node] = field(default_factory=set)
    notes: list[tuple[str, str]] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    values: dict[ir.Value, Channels] = field(default_factory=dict)
    slots: dict[ir.Value, dict[int, Ids]] = field(default_factory=dict)
    vectors: dict[tuple[ir.Node, int], tuple[int, Ids]] = field(default_factory=dict)
    uses: dict[ir.Value, dict[tuple[ir.Node, int], frozenset[int]]] = field(default_factory=dict)
    pins: list[Pin] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    balances: list[Balance] = field(default_factory=list)
    joints: dict[ir.Value, Joint] = field(default_factory=dict)
    grids: list[Grid] = field(default_factory=list)
    sources: list[tuple[str, ir.Value]] = field(default_factory=list)
    fixes: list[tuple[Ids, Callable[[Edits], None]]] = field(default_factory=list)

    # -- atoms ------------------------------------------------------------------------------------

    def fresh(self, count: int) -> Ids:
        """``count`` new atoms."""
        start = len(self.parents)
        self.parents.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def find(self, atom: int) -> int:
        """The representative of an atom."""
        parents = self.parents
        while parents[atom] != atom:
            parents[atom] = parents[parents[atom]]
            atom = parents[atom]
        return atom

    def unite(self, first: Ids, second: Ids) -> None:
        """Ties the atoms of two arrays together, position by position."""
        if first is second or len(first) == 0:
            return
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            low, high = sorted((self.find(one), self.find(other)))
            self.parents[high] = low

    def roots(self) -> Ids:
        """The representative of every atom, indexed by atom."""
        parents = np.array(self.parents, dtype=np.int64)
        while True:
            above = parents[parents]
            if np.array_equal(above, parents):
                return parents
            parents = above

    def pin(self, ids: Ids, reason: str) -> None:
        """Keeps these atoms."""
        self.pins.append(Pin(ids, reason))

    # -- values -----------------------------------------------------------------------------------

    def of(self, value: ir.Value | None) -> Channels | None:
        """The tracked axis of a value that is computed in this graph, or None."""
        return None if value is None else self.values.get(value)

    def track(
        self,
        value: ir.Value,
        axis: int,
        ids: Ids,
        known: Known | None = None,
        dtype: ir.DataType | None = None,
    ) -> None:
        """Says which axis of an output is tracked; constants are rounded to the output's type.

        Raises:
            Barrier: the inferred shape does not agree, so some assumption was wrong.
        """
        size = dim(value, axis)
        if rank(value) is not None and isinstance(size, int) and size != len(ids):
            raise Barrier("its output has another number of channels than its inputs tell")
        dtype = value.dtype if value.dtype is not None else dtype
        if known is not None:
            known = in_dtype(dtype, known)
            known = np.where(np.isfinite(known), known, np.nan)
            known = None if np.isnan(known).all() else known
        self.values[value] = Channels(axis, ids, known, dtype)

    def on_axis(self, value: ir.Value | None, axis: int, size: int) -> Channels:
        """The channels of an input on the axis a rule needs; pinned ones where another is tracked.

        An input that is tracked elsewhere (or not at all) keeps all its coordinates.
        """
        found = self.of(value)
        if found is not None and found.axis == axis and len(found.ids) == size:
            return found
        if found is not None:
            self.pin(found.ids, f"{label(value)} is read along another axis")
        ids = self.fresh(size)
        self.pin(ids, f"{label(value)} is not computed from prunable weights")
        return Channels(axis, ids)

    def record(
        self, node: ir.Node, index: int, axes: Mapping[int, Ids], *, tied: bool = False
    ) -> None:
        """Says that input ``index``, a constant, may be cut along these axes with these atoms.

        A small constant with one such axis (a bias) is copied where its readers need different
        cuts. Any other, or one that is ``tied``, is one tensor for all its readers, which ties
        their atoms.
        """
        value = node.inputs[index]
        tensor = constant_tensor(value)
        assert value is not None
        assert tensor is not None
        if not tied and len(axes) == 1 and tensor.nbytes <= SMALL_BYTES:
            self.vectors[(node, index)] = next(iter(axes.items()))
            return
        slots = self.slots.setdefault(value, {})
        for axis, ids in axes.items():
            if axis in slots:
                self.unite(slots[axis], ids)
            else:
                slots[axis] = ids
        self.uses.setdefault(value, {})[(node, index)] = frozenset(axes)

    def constant(self, node: ir.Node, index: int, axis: int, ids: Ids) -> Known:
        """Records a constant operand that varies along ``axis`` alone, and returns what it holds.

        Args:
            node: the reader.
            index: which input; a constant with ``len(ids)`` coordinates on ``axis``.
            axis: the axis inside the constant.
            ids: atoms of that axis.
        """
        tracked = self.of(node.inputs[index])
        if tracked is not None:  # behind a DequantizeLinear
            self.unite(tracked.ids, ids)
            return tracked.filled()
        if constant_tensor(node.inputs[index]) is None:
            raise Barrier(f"{label(node.inputs[index])} is not constant")
        known = uniform(node.inputs[index], axis)
        self.record(node, index, {axis: ids})
        return np.full(len(ids), np.nan) if known is None else known

    def barrier(self, node: ir.Node, reason: str) -> None:
        """Pins everything that enters the node; its outputs are not tracked."""
        for index, value in enumerate(node.inputs):
            if value is None:
                continue
            found = self.values.get(value)
            if found is not None:
                self.pin(found.ids, f"{node_label(node)}: {reason}")
            joint = self.joints.get(value)
            if joint is not None:
                self.pin(joint.ids.reshape(-1), f"{node_label(node)}: {reason}")
            self.uses.get(value, {}).pop((node, index), None)
            self.vectors.pop((node, index), None)
        for output in node.outputs:
            self.values.pop(output, None)
            self.joints.pop(output, None)


def label(value: ir.Value | None) -> str:
    """A value by name, for messages."""
    return "(none)" if value is None else f"'{value.name}'"


def node_label(node: ir.Node) -> str:
    """A node by operator and first output, for messages."""
    return f"{node.op_type} -> {label(node.outputs[0] if node.outputs else None)}"


def constant_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of a constant, None when the value is not constant."""
    tensor = constant_tensor(value)
    return None if tensor is None else tuple(tensor.shape.numpy())


def uniform(value: ir.Value | None, axis: int) -> Known | None:
    """What a constant holds at each coordinate of ``axis``, NaN where it varies over the others.

    None when the value is not a constant of numbers or too large to be looked at.
    """
    tensor = constant_tensor(value)
    if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes > _READ_BYTES:
        return None
    content = np.moveaxis(tensor.numpy(), axis, 0)
    flat = content.reshape(content.shape[0], -1)
    if flat.shape[1] == 0:
        return None
    first = flat[:, 0].astype(np.float64)
    same = (flat == flat[:, :1]).all(axis=1)
    return np.where(same, first, np.nan)


def in_dtype(dtype: ir.DataType | None, known: Known) -> Known:
    """Rounds constants to a float type; other types leave them as they are."""
    if dtype is None or not dtype.is_floating_point():
        return known
    with np.errstate(all="ignore"):
        return known.astype(dtype.numpy()).astype(np.float64)
