"""Finds out what the values of each graph input are used for, so that made-up ones make sense.

An input is followed through operators that keep or only shift its values, into subgraphs and
function bodies, up to the operators that use it: as an index into a table, a mask, a length, an
axis, a divisor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxslim.calibration.roles import Role, RoleBuilder, Size
from onnxslim.calibration.uses import CONSUMERS, DOMAINS, contrib_use
from onnxslim.ir import shapes
from onnxslim.ir.constants import scalar
from onnxslim.ir.schema import ONNX_DOMAINS
from onnxslim.ir.traversal import nodes, subgraphs_of

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
_INDEX_TYPES = frozenset({ir.DataType.INT32, ir.DataType.INT64, None})
# Every input's values end up in the output.
_MERGES = frozenset({"Concat", "Max", "Min", "SequenceConstruct", "Where"})


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
        self._builder = RoleBuilder(links.size)
        self.role = self._builder.role
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
            if step.value.dtype in _INDEX_TYPES:  # 8-bit values are quantized data, not indices
                contrib_use(self._builder, node, position, step.shift)
            return
        consumer = CONSUMERS.get(node.op_type)
        if consumer is not None:
            consumer(self._builder, node, position, step.shift)
        if step.direct and position == 0:
            self._domain(node)
        if self._is_mask_use(node, position, step):
            self.role.mask = True
        for value, shift in self._through(node, position, step.shift):
            self._todo.append(_Step(value, shift, step.direct and node.op_type == "Identity"))

    def _domain(self, node: ir.Node) -> None:
        domain = DOMAINS.get(node.op_type)
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
