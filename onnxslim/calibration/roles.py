"""Finds out what the values of each graph input are used for, so that made-up ones make sense.

An input is followed through operators that keep or only shift its values, into subgraphs and
function bodies, up to the operators that use it: as an index into a table, a mask, a length, an
axis, a divisor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxslim.ir import shapes
from onnxslim.ir.constants import array, scalar
from onnxslim.ir.schema import ONNX_DOMAINS
from onnxslim.ir.traversal import nodes, subgraphs_of

Size = int | str | None

# First input in, first output out, every value kept (perhaps moved, repeated or dropped).
_KEEPS = frozenset(
    {
        "Identity",
        "Cast",
        "CastLike",
        "Reshape",
        "Unsqueeze",
        "Squeeze",
        "Flatten",
        "Transpose",
        "Expand",
        "Tile",
        "Slice",
        "Split",
        "Gather",
        "GatherElements",
        "GatherND",
        "Dropout",
        "Optional",
        "OptionalGetElement",
        "Trilu",
        "ReverseSequence",
        "Compress",
    }
)
# Every input's values end up in the output.
_MERGES = frozenset({"Concat", "Max", "Min", "SequenceConstruct", "Where"})


@dataclass(frozen=True)
class Bound:
    """Values must lie in ``[low, size + high)``; a size that is a symbol is known per feed."""

    low: int
    size: Size
    high: int = 0


@dataclass
class Role:
    """What an input is used as; several may hold at once.

    Attributes:
        bounds: integer ranges that all must hold.
        hints: integer ranges that would make the values interesting.
        mask: values are 0 or 1.
        axes: values are distinct axes.
        extents: values are sizes, counts or positions that stay small.
        reshapes: the values are the target shape of a Reshape.
        domain: for floats: "positive", "unit" (-0.9 to 0.9) or "above-one".
    """

    bounds: list[Bound] = field(default_factory=list)
    hints: list[Bound] = field(default_factory=list)
    mask: bool = False
    axes: bool = False
    extents: bool = False
    reshapes: bool = False
    domain: str = ""


@dataclass(frozen=True)
class _Step:
    """A value on the way, its values being those of the input plus ``shift``; ``direct`` until
    anything but Identity was passed."""

    value: ir.Value
    shift: int
    direct: bool


def find_roles(model: ir.Model) -> dict[str, Role]:
    """The role of each graph input by name. The model is not changed."""
    copy = model.clone()
    shapes.infer(copy)
    links = _Links(copy)
    return {
        value.name or "": _Tracer(links, value).role
        for value in copy.graph.inputs
        if not value.is_initializer()
    }


class _Links:
    """How values pass the borders of functions and control flow: formal to actual and back."""

    def __init__(self, model: ir.Model) -> None:
        self.onward: dict[int, list[ir.Value]] = defaultdict(list)
        self.actuals: dict[int, list[ir.Value]] = defaultdict(list)
        self.calls: set[int] = set()
        for node in nodes(model):
            function = model.functions.get(node.op_identifier())
            if function is not None:
                self.calls.add(id(node))
                self._join(node.inputs, function.inputs, function.outputs, node.outputs)
            else:
                self._join_control_flow(node)

    def _join_control_flow(self, node: ir.Node) -> None:
        bodies = list(subgraphs_of(node))
        if node.op_type == "Loop" and bodies:
            self._join(node.inputs[2:], bodies[0].inputs[2:], bodies[0].outputs[1:], node.outputs)
        elif node.op_type == "Scan" and bodies:
            self._join(node.inputs, bodies[0].inputs, bodies[0].outputs, node.outputs)
        elif node.op_type == "If":
            for body in bodies:
                self._join([], [], body.outputs, node.outputs)

    def _join(
        self,
        actuals: Sequence[ir.Value | None],
        formals: Sequence[ir.Value],
        results: Sequence[ir.Value],
        outputs: Sequence[ir.Value],
    ) -> None:
        for actual, formal in zip(actuals, formals, strict=False):
            if actual is not None:
                self.onward[id(actual)].append(formal)
                self.actuals[id(formal)].append(actual)
        for result, output in zip(results, outputs, strict=False):
            self.onward[id(result)].append(output)

    def size(self, value: ir.Value | None, axis: int, depth: int = 0) -> Size:
        """The size of a dimension, looked up at the callers for a formal parameter."""
        if value is None or depth > 8:
            return None
        own = shapes.dim(value, axis)
        if own is None and value.const_value is not None:
            dims = value.const_value.shape.numpy()
            own = dims[axis] if -len(dims) <= axis < len(dims) else None
        if own is not None:
            return own
        sizes = [self.size(actual, axis, depth + 1) for actual in self.actuals[id(value)]]
        known = [size for size in sizes if isinstance(size, int)]
        return min(known) if known and len(known) == len(sizes) else None


class _Tracer:
    """Follows one input to its uses."""

    def __init__(self, links: _Links, value: ir.Value) -> None:
        self.role = Role()
        self._links = links
        self._todo = [_Step(value, 0, True)]
        self._seen: set[tuple[int, int]] = set()
        while self._todo:
            step = self._todo.pop()
            key = (id(step.value), step.shift)
            if key in self._seen or len(self._seen) > 10_000:
                continue
            self._seen.add(key)
            for node, position in list(step.value.uses()):
                self._use(node, position, step)
            for inner in links.onward[id(step.value)]:
                self._todo.append(_Step(inner, step.shift, step.direct))

    def _use(self, node: ir.Node, position: int, step: _Step) -> None:
        if id(node) in self._links.calls:
            return
        if node.domain not in ONNX_DOMAINS:
            narrow = step.value.dtype is not None and step.value.dtype.itemsize < 2
            if not narrow:  # 8-bit values are quantized data, not indices
                _contrib_use(self, node, position, step.shift)
            return
        consumer = _CONSUMERS.get(node.op_type)
        if consumer is not None:
            consumer(self, node, position, step.shift)
        if step.direct and position == 0:
            self._domain(node)
        if self._is_mask_use(node, position, step):
            self.role.mask = True
        for value, shift in self._through(node, position, step.shift):
            self._todo.append(_Step(value, shift, step.direct and node.op_type == "Identity"))

    def _domain(self, node: ir.Node) -> None:
        domain = _DOMAINS.get(node.op_type)
        if domain is not None:
            self.role.domain = domain

    def _through(self, node: ir.Node, position: int, shift: int) -> Iterator[tuple[ir.Value, int]]:
        kind = node.op_type
        if (kind in _KEEPS and position == 0) or kind in _MERGES:
            if kind != "Where" or position > 0:
                yield from ((output, shift) for output in node.outputs)
        elif kind in ("Add", "Sub") and len(node.inputs) == 2:
            other = scalar(node.inputs[1 - position])
            if isinstance(other, int) and not (kind == "Sub" and position == 1):
                yield node.outputs[0], shift + (other if kind == "Add" else -other)

    def _is_mask_use(self, node: ir.Node, position: int, step: _Step) -> bool:
        if node.op_type == "Sub" and position == 1 and not step.direct:
            return scalar(node.inputs[0]) == 1 and any(
                use.node.op_type in ("Mul", "Where") for use in node.outputs[0].uses()
            )
        if node.op_type == "Equal":
            return scalar(node.inputs[1 - position]) in (0, 1)
        if node.op_type == "Cast":
            return node.attributes["to"].as_int() == ir.DataType.BOOL
        return False

    def bound(self, low: int, size: Size, shift: int, high: int = 0) -> None:
        """Used values lie in ``[low, size + high)``, so the input's in that minus the shift."""
        if size is None:
            size, high = low + 1, 0
        self.role.bounds.append(Bound(low - shift, size, high - shift))

    def size(self, value: ir.Value | None, axis: int) -> Size:
        return self._links.size(value, axis)


_Consumer = Callable[[_Tracer, ir.Node, int, int], None]


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _attribute(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else attribute.as_int()


def _index_on_axis(tracer: _Tracer, node: ir.Node, position: int, shift: int) -> None:
    if position == 1:
        axis = _attribute(node, "axis", 0)
        tracer.bound(0, tracer.size(node.inputs[0], axis), shift)


def _index_tuple(tracer: _Tracer, node: ir.Node, position: int, shift: int) -> None:
    """GatherND, ScatterND: the last axis of the indices walks over the first axes of the data."""
    if position != 1:
        return
    depth = tracer.size(node.inputs[1], -1)
    first = _attribute(node, "batch_dims", 0)
    if not isinstance(depth, int):
        tracer.bound(0, None, shift)
        return
    for axis in range(first, first + depth):
        tracer.bound(0, tracer.size(node.inputs[0], axis), shift)


def _one_hot(tracer: _Tracer, node: ir.Node, position: int, shift: int) -> None:
    if position == 0:
        depth = scalar(node.inputs[1])
        tracer.bound(0, int(depth) if depth is not None else None, shift)
    elif position == 1:
        tracer.bound(1, 5, shift)


def _lengths(tracer: _Tracer, node: ir.Node, position: int, shift: int) -> None:
    """Lengths of sequences along the time axis of input 0."""
    if node.op_type == "ReverseSequence":
        wanted, time_axis = 1, _attribute(node, "time_axis", 0)
    else:
        wanted, time_axis = 4, _attribute(node, "layout", 0)
    if position == wanted:
        tracer.bound(1, tracer.size(node.inputs[0], time_axis), shift, high=1)


def _extent(*positions: int, low: int = 1, high: int = 4) -> _Consumer:
    def use(tracer: _Tracer, node: ir.Node, position: int, shift: int) -> None:
        if position in positions:
            tracer.role.extents = True
            tracer.bound(low, high, shift)

    return use


def _axes(position_of_axes: int) -> _Consumer:
    def use(tracer: _Tracer, node: ir.Node, position: int, shift: int) -> None:
        if position == position_of_axes:
            tracer.role.axes = True
            tracer.bound(0, shapes.rank(node.inputs[0]), shift)

    return use


def _top_k(tracer: _Tracer, node: ir.Node, position: int, shift: int) -> None:
    if position == 1:
        tracer.bound(1, tracer.size(node.inputs[0], _attribute(node, "axis", -1)), shift, high=1)
        tracer.bound(1, 4, shift)


def _slice(tracer: _Tracer, node: ir.Node, position: int, shift: int) -> None:
    if position == 1:
        tracer.bound(0, 1, shift)
    elif position == 3:
        _axes(3)(tracer, node, position, shift)
    elif position in (2, 4):
        tracer.bound(1, 4 if position == 2 else 2, shift)


def _divisor(tracer: _Tracer, node: ir.Node, position: int, shift: int) -> None:
    """Dividing integers by zero kills the process; floats keep clear of it too."""
    if position == 1:
        tracer.bound(1, 8, shift)
        tracer.role.domain = "positive"


def _reshape(tracer: _Tracer, node: ir.Node, position: int, shift: int) -> None:
    if position == 1:
        tracer.role.reshapes = True


def _positive(position_of_sizes: int) -> _Consumer:
    """Scales of a Resize: floats above zero."""

    def use(tracer: _Tracer, node: ir.Node, position: int, shift: int) -> None:
        if position == position_of_sizes:
            tracer.role.domain = "positive"

    return use


def _resize(tracer: _Tracer, node: ir.Node, position: int, shift: int) -> None:
    if position in (1, 2):
        tracer.role.domain = "positive"
    elif position == 3:
        tracer.bound(1, 9, shift)


def _compared(tracer: _Tracer, node: ir.Node, position: int, shift: int) -> None:
    """An input that is compared with constants takes values on both sides of them."""
    content = array(node.inputs[1 - position]) if len(node.inputs) == 2 else None
    if content is not None and content.dtype.kind in "iu" and 0 < content.size <= 64:
        tracer.role.hints.append(
            Bound(int(np.min(content)) - shift, int(np.max(content)) + 2, -shift)
        )


_REDUCTIONS = (
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceSumSquare",
)

_CONSUMERS: dict[str, _Consumer] = {
    **dict.fromkeys(("Gather", "GatherElements", "ScatterElements", "Scatter"), _index_on_axis),
    **dict.fromkeys(("GatherND", "ScatterND"), _index_tuple),
    **dict.fromkeys(("RNN", "LSTM", "GRU", "ReverseSequence"), _lengths),
    **dict.fromkeys(("Div", "Mod"), _divisor),
    "ConstantOfShape": _extent(0, low=1, high=4),
    "SequenceAt": _extent(1, low=0, high=1),
    "SequenceErase": _extent(1, low=0, high=1),
    "SequenceInsert": _extent(2, low=0, high=1),
    "OneHot": _one_hot,
    "Expand": _extent(1, low=1, high=2),
    "Tile": _extent(1, low=1, high=3),
    "Loop": _extent(0, low=1, high=5),
    "Range": _extent(0, 1, 2, low=1, high=4),
    "Pad": _extent(1, low=0, high=2),
    "EyeLike": _extent(0, low=1, high=4),
    "Trilu": _extent(1, low=-1, high=2),
    "CumSum": _axes(1),
    "Squeeze": _axes(1),
    "Unsqueeze": _axes(1),
    **dict.fromkeys(_REDUCTIONS, _axes(1)),
    "TopK": _top_k,
    "Slice": _slice,
    "Reshape": _reshape,
    "Resize": _resize,
    "Upsample": _positive(1),
    "Equal": _compared,
    "Less": _compared,
    "LessOrEqual": _compared,
    "Greater": _compared,
    "GreaterOrEqual": _compared,
    "CenterCropPad": _extent(1, low=1, high=4),
    "NonMaxSuppression": _extent(2, low=1, high=4),
    "BitShift": _extent(1, low=0, high=4),
}

_DOMAINS = {
    "Log": "positive",
    "Sqrt": "positive",
    "Pow": "positive",
    "Acos": "unit",
    "Asin": "unit",
    "Atanh": "unit",
    "Acosh": "above-one",
}

# Position of the indices -> position of the table they index along axis 0.
_CONTRIB_TABLES = {
    "EmbedLayerNormalization": {0: 2, 1: 4},
    "GatherBlockQuantized": {1: 0},
}
_CONTRIB_MASKS = frozenset({("EmbedLayerNormalization", 7), ("Attention", 3)})


def _contrib_use(tracer: _Tracer, node: ir.Node, position: int, shift: int) -> None:
    """Operators of onnxruntime's own domain; an unknown use keeps the values small."""
    table = _CONTRIB_TABLES.get(node.op_type, {}).get(position)
    if table is not None:
        tracer.bound(0, tracer.size(_input(node, table), 0), shift)
    elif (node.op_type, position) in _CONTRIB_MASKS:
        tracer.role.mask = True
    else:
        tracer.bound(0, 2, shift)
