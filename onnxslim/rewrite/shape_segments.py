"""How a computed shape can be put together again from few pieces of other shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxslim.ir.constants import is_constant
from onnxslim.ir.schema import is_op
from onnxslim.rewrite.shape_contents import FOLLOWED, Element, ShapeContents


@dataclass(frozen=True)
class Dims:
    """Consecutive dimensions of a value, as Shape with ``start`` and ``end`` gives them.

    Attributes:
        source: the value.
        start: the first dimension.
        end: the one behind the last.
        rank: how many dimensions the value has.
    """

    source: ir.Value
    start: int
    end: int
    rank: int


@dataclass(frozen=True)
class Input:
    """An input of a Concat of which nothing better is known, by its index."""

    index: int


Segment = Dims | Input | tuple[int, ...]
"""Dimensions, an input as it is, or numbers."""


def segments_of(node: ir.Node, known: ShapeContents) -> list[Segment] | None:
    """The pieces that the output of ``node`` is made of; None when there is no such account.

    Dimensions are looked for in the values whose shapes ``node`` was computed from, and nowhere
    else.

    Args:
        node: a node whose first output has rank 1.
        known: contents of all values above it.
    """
    parts = _parts(node, known)
    if parts is None:
        return None
    sources = [(value, known.dims(value) or ()) for value in shape_sources(node)]
    found: list[Segment] = []
    for part in parts:
        if isinstance(part, Input):
            found.append(part)
            continue
        pieces = _cut(part, sources)
        if pieces is None:
            return None
        found.extend(pieces)
    return _joined(found)


def _parts(node: ir.Node, known: ShapeContents) -> list[Input | tuple[Element, ...]] | None:
    """Known elements, and for a Concat inputs of which not all elements are known."""
    contents = known.of(node.outputs[0])
    if contents is not None and None not in contents.elements:
        return None if contents.scalar else [contents.elements]
    if not is_op(node, "Concat") or node.attributes.get_int("axis") not in (0, -1):
        return None
    parts: list[Input | tuple[Element, ...]] = []
    for index, value in enumerate(node.inputs):
        inner = known.of(value)
        whole = inner is not None and not inner.scalar and None not in inner.elements
        parts.append(inner.elements if inner is not None and whole else Input(index))
    return parts


def shape_sources(node: ir.Node) -> list[ir.Value]:
    """The values whose shapes a node is computed from, nearest first; no shapes themselves."""
    found: dict[ir.Value, None] = {}
    seen: set[ir.Node] = {node}
    stack = [node]
    while stack:
        for value in stack.pop(0).inputs:
            producer = value.producer() if value is not None else None
            if producer is None or producer in seen or not is_op(producer, *FOLLOWED):
                continue
            seen.add(producer)
            if not is_op(producer, "Shape"):
                stack.append(producer)
            elif producer.inputs[0] is not None:
                found.setdefault(producer.inputs[0])
    return [value for value in found if not is_op(value.producer(), *FOLLOWED)]


_Sources = Sequence[tuple[ir.Value, tuple[Element, ...]]]


def _cut(elements: tuple[Element, ...], sources: _Sources) -> list[Segment] | None:
    """The longest piece of a shape first, wherever an element is no number."""
    found: list[Segment] = []
    place = 0
    while place < len(elements):
        element = elements[place]
        if isinstance(element, int):
            found.append((element,))
            place += 1
            continue
        best = max(
            (_run(elements, place, value, dims) for value, dims in sources),
            key=lambda run: run.end - run.start,
            default=None,
        )
        if best is None or best.end == best.start:
            return None
        found.append(best)
        place += best.end - best.start
    return found


def _run(
    elements: tuple[Element, ...], place: int, value: ir.Value, dims: tuple[Element, ...]
) -> Dims:
    """The longest run of dimensions of one value that the elements from ``place`` on repeat."""
    best = Dims(value, 0, 0, len(dims))
    for start in range(len(dims)):
        end = start
        while (
            end < len(dims)
            and place + end - start < len(elements)
            and dims[end] is not None
            and dims[end] == elements[place + end - start]
        ):
            end += 1
        while end > start and isinstance(dims[end - 1], int):
            end -= 1  # numbers at the end are better written down
        if end - start > best.end - best.start:
            best = Dims(value, start, end, len(dims))
    return best


def _joined(found: list[Segment]) -> list[Segment]:
    """Neighbouring numbers become one piece."""
    joined: list[Segment] = []
    for piece in found:
        last = joined[-1] if joined else None
        if isinstance(piece, tuple) and isinstance(last, tuple):
            joined[-1] = last + piece
        else:
            joined.append(piece)
    return joined


def dying_with(roots: Sequence[ir.Node]) -> dict[ir.Node, None]:
    """The nodes that nobody needs any more once the outputs of ``roots`` have been replaced."""
    gone: dict[ir.Node, None] = dict.fromkeys(roots)
    stack = list(roots)
    while stack:
        for value in stack.pop().inputs:
            node = value.producer() if value is not None else None
            if node is None or node in gone or not is_op(node, *FOLLOWED) or is_constant(value):
                continue
            if any(item.is_graph_output() for item in node.outputs):
                continue
            if all(user in gone for item in node.outputs for user in item.consumers()):
                gone[node] = None
                stack.append(node)
    return gone
