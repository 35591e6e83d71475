"""Replaces computed shapes by constants, where the dimensions that they are made of are known.

Before::

    s = Shape (x)                # float[N,4,6] x
    n = Gather (s, <0>)
    u = Unsqueeze (n, <0>)
    t = Concat <axis = 0> (u, <24>)
    y = Reshape (x, t)

After::

    y = Reshape (x, <0, 24>)

Holds only if:

1. the dimensions are trusted: inferred, or those of main graph inputs; not those that are declared
   for graph outputs, nor anything inside a subgraph with inputs, whose shapes may change from turn
   to turn;
2. every element of the replaced value is a number after Shape (with ``start`` and ``end``), Size,
   Gather, Slice, Concat, Squeeze, Unsqueeze, Cast, Identity and integer arithmetic;
3. for the shape of a Reshape some elements may stay unknown: one that is provably dimension i of
   the reshaped value, at position i, becomes 0; a single other one becomes -1;
4. 0 means a copy only where ``allowzero`` is 0; it becomes 0 where the shape holds no 0 so far (a
   dimension that is 0 at run time is copied, which gives the same);
5. -1 needs all other elements to be positive numbers: next to a dimension that may be 0 (an empty
   batch) it would be undefined;
6. the constant takes at most ``slack`` bytes more than the nodes that go with it.

Exactness: exact.

Source: Shape, Size and Reshape of the ONNX operators, opsets 1 to 25; the standard says that one
symbol means one number in the whole graph.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import is_constant
from onnxslim.ir.edit import remove
from onnxslim.ir.schema import is_op
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.place_constant import (
    add_constant,
    becomes_node,
    discard_unused,
    needs_node,
    replace_by_constant,
)
from onnxslim.rewrite.shape_contents import FOLLOWED, Contents, Element, ShapeContents
from onnxslim.rewrite.stored_bytes import freed_bytes, node_bytes, tensor_bytes

_INTEGERS = {ir.DataType.INT64: np.int64, ir.DataType.INT32: np.int32}


@dataclass(frozen=True)
class FoldShapeArithmetic(Pass):
    """Folds values computed from known dimensions; a change is one value or one Reshape.

    Attributes:
        slack: bytes by which one constant may exceed what is dropped for it.
    """

    slack: int = 0
    name: ClassVar[str] = "fold-shape-arithmetic"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def run(self, model: ir.Model, context: Context) -> PassResult:
        known = ShapeContents(model)
        followed = context.nodes_of(model, *FOLLOWED, "Reshape")
        found = {node: known.follow(node) for node in followed}
        changes = 0
        for node, contents in found.items():
            if contents is not None and self._fold(node, contents, known, model, context):
                changes += 1
        for node in found:
            if node.graph is not None and is_op(node, "Reshape"):
                changes += self._reshape(node, known, model, context)
        return PassResult(changes)

    def _fold(
        self,
        node: ir.Node,
        contents: Contents,
        known: ShapeContents,
        model: ir.Model,
        context: Context,
    ) -> bool:
        value, numbers = node.outputs[0], contents.numbers
        if node.graph is None or numbers is None or value.dtype not in _INTEGERS:
            return False
        if all(is_constant(item) for item in node.inputs if item is not None):
            return False  # constant folding does that
        if not _is_wanted(value, known):
            return False
        array = np.array(numbers, dtype=_INTEGERS[value.dtype])
        if contents.scalar:
            array = array.reshape(())
        as_node = becomes_node(model, value)
        more = tensor_bytes(value, array.nbytes, as_node=as_node) - _freed(value)
        if more > self.slack:
            context.refuse(self, value.name or "", f"kept because it would add {more} bytes")
            return False
        if not context.allow(self, value.name or "", str(numbers)):
            return False
        replace_by_constant(model, value, ir.tensor(array))
        _remove_unused(node)
        return True

    def _reshape(
        self, node: ir.Node, known: ShapeContents, model: ir.Model, context: Context
    ) -> int:
        shape = node.inputs[1] if len(node.inputs) > 1 else None
        target = _target(node, known)
        if shape is None or target is None:
            return 0
        group = _alike(node, shape, target, known)
        as_node = needs_node(model, node.graph)
        freed = _freed(shape) if len(shape.uses()) == len(group) else 0
        more = tensor_bytes(shape, 8 * len(target), as_node=as_node) - freed
        site = node.outputs[0].name or ""
        if more > self.slack:
            context.refuse(self, site, f"kept because it would add {more} bytes")
            return 0
        if not context.allow(self, site, f"{len(group)} Reshapes to {target}"):
            return 0
        content = ir.tensor(np.array(target, dtype=np.int64))
        constant = add_constant(model, node, content, context.fresh_name(f"{shape.name}_folded"))
        for user in group:
            user.replace_input_with(1, constant)
            if 0 in target:
                user.attributes.pop("allowzero", None)
        producer = shape.producer()
        if producer is not None and not shape.uses():
            _remove_unused(producer)
        return len(group)


def _alike(
    node: ir.Node, shape: ir.Value, target: list[int], known: ShapeContents
) -> list[ir.Node]:
    """The Reshapes that read the same shape and may read the same constant; ``node`` is first."""
    others = [
        user
        for user in shape.consumers()
        if user is not node
        and user.graph is node.graph
        and is_op(user, "Reshape")
        and user.inputs[1] is shape
        and user.inputs[0] is not shape
        and _target(user, known) == target
    ]
    return [node, *others]


def _is_wanted(value: ir.Value, known: ShapeContents) -> bool:
    """True for a graph output, or when a reader is left that is not folded itself."""
    if value.is_graph_output():
        return True
    for user in value.consumers():
        contents = known.of(user.outputs[0]) if is_op(user, *FOLLOWED) else None
        if contents is None or contents.numbers is None:
            return True
    return False


def _target(node: ir.Node, known: ShapeContents) -> list[int] | None:
    """The shape to write into a Reshape whose shape is computed (3), or None."""
    shape, data = node.inputs[1], node.inputs[0]
    allow_zero = node.attributes.get("allowzero")
    if shape is None or is_constant(shape) or (allow_zero is not None and allow_zero.is_ref()):
        return None
    contents, dims = known.of(shape), known.dims(data)
    if contents is None or contents.scalar or contents.numbers is not None:
        return None
    if 0 in contents.elements and allow_zero is not None and allow_zero.as_int() != 0:
        return None  # (4)
    target = [_entry(element, dims, axis) for axis, element in enumerate(contents.elements)]
    unknown = [axis for axis, size in enumerate(target) if size is None]
    if not unknown:
        return [size for size in target if size is not None]
    if len(unknown) > 1 or any(size is not None and size <= 0 for size in target):
        return None  # (5)
    return [-1 if size is None else size for size in target]


def _entry(element: Element, dims: tuple[Element, ...] | None, axis: int) -> int | None:
    """A number as it is, 0 for the same dimension of the reshaped value, else None."""
    if isinstance(element, int):
        return element
    same = dims is not None and axis < len(dims) and element is not None and dims[axis] == element
    return 0 if same else None


def _freed(value: ir.Value) -> int:
    """Bytes of the nodes, and of the constants they alone read, that go when the value goes."""
    gone: set[ir.Node] = set()
    reads: Counter[ir.Value] = Counter()
    stack = [value.producer()]
    total = 0
    while stack:
        node = stack.pop()
        if node is None or node in gone or not is_op(node, *FOLLOWED):
            continue
        gone.add(node)
        total += node_bytes(node)
        for item in node.inputs:
            if item is None or item.is_graph_output():
                continue
            reads[item] += 1
            if len(item.uses()) == reads[item]:
                total += freed_bytes(item) if is_constant(item) else 0
                stack.append(item.producer())
    return total


def _remove_unused(node: ir.Node) -> None:
    """Removes a node of followed operators that nobody reads, and what hung on it alone."""
    stack = [node]
    while stack:
        node = stack.pop()
        outputs = node.outputs
        if node.graph is None or not is_op(node, *FOLLOWED):
            continue
        if any(value.uses() or value.is_graph_output() for value in outputs):
            continue
        inputs = [value for value in node.inputs if value is not None]
        remove(node)
        for value in inputs:
            producer = value.producer()
            if is_constant(value):
                discard_unused(value)
            elif producer is not None:
                stack.append(producer)
