"""What is known of the contents of small integer tensors that are computed from shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor, int_list
from onnxslim.ir.schema import ONNX_DOMAINS
from onnxslim.ir.traversal import attributes_of, graphs, subgraphs_below

Element = int | str | tuple[ir.Value, int] | None
"""A number, the name of a symbolic dimension, the dimension of a value, or nothing known."""

# Longer tensors are no shapes.
_LONGEST = 64
_INT64 = 2**63
_NOTE = "onnxslim.contents"


@dataclass(frozen=True)
class Contents:
    """The elements of a tensor of rank 0 or 1.

    Attributes:
        elements: one per element.
        scalar: True for rank 0.
    """

    elements: tuple[Element, ...]
    scalar: bool = False

    @property
    def numbers(self) -> list[int] | None:
        """The elements when all of them are numbers."""
        numbers = [item for item in self.elements if isinstance(item, int)]
        return numbers if len(numbers) == len(self.elements) else None


class ShapeContents:
    """Follows dimensions through the operators that exporters compute shapes with.

    Dimensions are believed where they were inferred, or are those of inputs of the main graph. The
    declared shapes of graph outputs are not, nor is anything inside a subgraph with inputs of its
    own: a loop may carry values whose shapes change.
    """

    def __init__(self, model: ir.Model) -> None:
        self._inputs = set(model.graph.inputs)
        self._untrusted = _graphs_with_inputs(model)
        self._known: dict[ir.Value, Contents | None] = {}

    def of(self, value: ir.Value | None) -> Contents | None:
        """Contents of a constant, or of the output of a node that was given to `follow`."""
        if value is None:
            return None
        if value not in self._known:
            self._known[value] = _constant_contents(value)
        return self._known[value]

    def follow(self, node: ir.Node) -> Contents | None:
        """Works out the first output of a node; nodes have to come in topological order."""
        rule = _RULES.get(node.op_type)
        if rule is None or node.domain not in ONNX_DOMAINS:
            return None
        plain = not any(attribute.is_ref() for attribute in attributes_of(node))
        found = rule(self, node) if plain and node.outputs else None
        if found is not None and len(found.elements) > _LONGEST:
            found = None
        if node.outputs:
            self._known[node.outputs[0]] = found
        return found

    def dims(self, value: ir.Value | None) -> tuple[Element, ...] | None:
        """The dimensions of a value that can be believed; None when not even the rank is known."""
        if value is None:
            return None
        tensor = constant_tensor(value)
        if tensor is not None:
            return tuple(int(size) for size in tensor.shape.numpy())
        if value.shape is None or not self._is_trusted(value):
            return None
        return tuple(self._dim(value, axis) for axis in range(len(value.shape)))

    def _dim(self, value: ir.Value, axis: int) -> Element:
        size = value.shape[axis] if value.shape is not None else None
        if isinstance(size, int):
            return size
        name = size.value if size is not None else None
        return name if name is not None else (value, axis)

    def _is_trusted(self, value: ir.Value) -> bool:
        producer = value.producer()
        if producer is None:
            return value in self._inputs
        return not value.is_graph_output() and producer.graph not in self._untrusted


def _graphs_with_inputs(model: ir.Model) -> set[object]:
    found: set[object] = set()
    for graph in graphs(model):
        if graph is not model.graph and graph.inputs:
            found.add(graph)
            found.update(subgraphs_below(graph))
    return found


def _constant_contents(value: ir.Value) -> Contents | None:
    """The contents of a constant, remembered with the value as long as its tensor is the same."""
    tensor = constant_tensor(value)
    if tensor is None:
        return None
    note = value.meta.get(_NOTE)
    if note is not None and note[0] is tensor:
        known: Contents | None = note[1]
        return known
    contents = _read_contents(value, tensor)
    value.meta[_NOTE] = (tensor, contents)
    return contents


def _read_contents(value: ir.Value, tensor: ir.TensorProtocol) -> Contents | None:
    if tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    if len(tensor.shape) > 1 or tensor.size > _LONGEST:
        return None
    numbers = int_list(value)
    return None if numbers is None else Contents(tuple(numbers), len(tensor.shape) == 0)


def _shape(known: ShapeContents, node: ir.Node) -> Contents | None:
    dims = known.dims(node.inputs[0])
    if dims is None:
        return None
    start = node.attributes.get_int("start", 0) or 0
    end = node.attributes.get_int("end", len(dims))
    return Contents(dims[_clamped(start, len(dims)) : _clamped(end, len(dims))])


def _clamped(index: int | None, length: int) -> int:
    """A position as Shape understands it: negative from the end, then cut to [0, length]."""
    index = length if index is None else index
    return min(max(index + length if index < 0 else index, 0), length)


def _size(known: ShapeContents, node: ir.Node) -> Contents | None:
    dims = known.dims(node.inputs[0])
    if dims is None:
        return None
    product = 1
    for size in dims:
        if not isinstance(size, int):
            return None
        product *= size
    return Contents((product,), scalar=True)


def _gather(known: ShapeContents, node: ir.Node) -> Contents | None:
    data, indices = known.of(node.inputs[0]), known.of(node.inputs[1])
    if data is None or data.scalar or indices is None or indices.numbers is None:
        return None
    if node.attributes.get_int("axis", 0) not in (0, -1):
        return None
    length = len(data.elements)
    if not all(-length <= index < length for index in indices.numbers):
        return None
    return Contents(tuple(data.elements[index] for index in indices.numbers), indices.scalar)


def _slice(known: ShapeContents, node: ir.Node) -> Contents | None:
    data = known.of(node.inputs[0])
    bounds = _slice_bounds(known, node)
    if data is None or data.scalar or bounds is None:
        return None
    start, end, step = bounds
    if step <= 0:
        return None
    length = len(data.elements)
    return Contents(data.elements[_clamped(start, length) : _clamped(end, length) : step])


def _slice_bounds(known: ShapeContents, node: ir.Node) -> tuple[int, int, int] | None:
    """Start, end and step along the only axis; attributes before opset 10, inputs since."""
    lists: list[list[int] | None] = []
    for slot, name in ((1, "starts"), (2, "ends"), (3, "axes"), (4, "steps")):
        given = node.inputs[slot] if len(node.inputs) > slot else None
        if given is not None:
            contents = known.of(given)
            if contents is None or contents.numbers is None:
                return None
            lists.append(contents.numbers)
        else:
            attribute = node.attributes.get_ints(name)
            lists.append(None if attribute is None else list(attribute))
    starts, ends, axes, steps = lists
    if starts is None or ends is None or len(starts) != 1 or len(ends) != 1:
        return None
    if (axes or [0]) not in ([0], [-1]) or len(steps or [1]) != 1:
        return None
    return starts[0], ends[0], (steps or [1])[0]


def _concat(known: ShapeContents, node: ir.Node) -> Contents | None:
    if node.attributes.get_int("axis") not in (0, -1):
        return None
    elements: list[Element] = []
    for value in node.inputs:
        part = known.of(value)
        if part is None or part.scalar:
            return None
        elements += part.elements
    return Contents(tuple(elements))


def _axes(known: ShapeContents, node: ir.Node) -> list[int] | None:
    """The axes of Squeeze or Unsqueeze; an attribute before opset 13, an input since."""
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        contents = known.of(node.inputs[1])
        return None if contents is None else contents.numbers
    attribute = node.attributes.get_ints("axes")
    return None if attribute is None else list(attribute)


def _unsqueeze(known: ShapeContents, node: ir.Node) -> Contents | None:
    data = known.of(node.inputs[0])
    if data is None or not data.scalar or _axes(known, node) not in ([0], [-1]):
        return None
    return Contents(data.elements)


def _squeeze(known: ShapeContents, node: ir.Node) -> Contents | None:
    data = known.of(node.inputs[0])
    if data is None or data.scalar or len(data.elements) != 1:
        return None
    given = _axes(known, node)
    absent = "axes" not in node.attributes and (len(node.inputs) < 2 or node.inputs[1] is None)
    return Contents(data.elements, scalar=True) if absent or given in ([0], [-1]) else None


def _cast(known: ShapeContents, node: ir.Node) -> Contents | None:
    data = known.of(node.inputs[0])
    if data is None:
        return None
    to = node.attributes.get_int("to")
    if to == ir.DataType.INT64:
        return data
    if to != ir.DataType.INT32:
        return None
    # a dimension without a known size may not fit, so it is not followed
    fits = tuple(
        item if isinstance(item, int) and -(2**31) <= item < 2**31 else None
        for item in data.elements
    )
    return Contents(fits, data.scalar)


def _identity(known: ShapeContents, node: ir.Node) -> Contents | None:
    return known.of(node.inputs[0])


def _arithmetic(
    operation: Callable[[Element, Element], Element],
) -> Callable[[ShapeContents, ir.Node], Contents | None]:
    def rule(known: ShapeContents, node: ir.Node) -> Contents | None:
        if node.attributes or any(
            value is None or value.dtype != ir.DataType.INT64 for value in node.inputs
        ):
            return None
        first, second = (known.of(value) for value in node.inputs)
        if first is None or second is None:
            return None
        count = _broadcast(len(first.elements), len(second.elements))
        if count is None:
            return None
        pairs = zip(_repeated(first, count), _repeated(second, count), strict=True)
        elements = (_in_range(operation(one, other)) for one, other in pairs)
        return Contents(tuple(elements), first.scalar and second.scalar)

    return rule


def _broadcast(first: int, second: int) -> int | None:
    if first == second or second == 1:
        return first
    return second if first == 1 else None


def _repeated(contents: Contents, count: int) -> Sequence[Element]:
    return contents.elements if len(contents.elements) == count else contents.elements * count


def _in_range(result: Element) -> Element:
    """Overflow wraps at run time; such shapes are nothing to build on."""
    return result if not isinstance(result, int) or -_INT64 <= result < _INT64 else None


def _add(one: Element, other: Element) -> Element:
    if isinstance(one, int) and isinstance(other, int):
        return one + other
    if one == 0:
        return other
    return one if other == 0 else None


def _subtract(one: Element, other: Element) -> Element:
    if isinstance(one, int) and isinstance(other, int):
        return one - other
    return one if other == 0 else None


def _multiply(one: Element, other: Element) -> Element:
    if isinstance(one, int) and isinstance(other, int):
        return one * other
    if one == 1:
        return other
    return one if other == 1 else None


def _divide(one: Element, other: Element) -> Element:
    """Division of what is not negative; there truncating and flooring agree."""
    if isinstance(one, int) and isinstance(other, int):
        return one // other if one >= 0 and other > 0 else None
    return one if other == 1 else None


_RULES: dict[str, Callable[[ShapeContents, ir.Node], Contents | None]] = {
    "Add": _arithmetic(_add),
    "Cast": _cast,
    "Concat": _concat,
    "Div": _arithmetic(_divide),
    "Gather": _gather,
    "Identity": _identity,
    "Mul": _arithmetic(_multiply),
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _arithmetic(_subtract),
    "Unsqueeze": _unsqueeze,
}

FOLLOWED = frozenset(_RULES)
"""The operators that are followed; all of them compute and do nothing else."""
