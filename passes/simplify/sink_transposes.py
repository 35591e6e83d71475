"""Moves Transposes below elementwise operators where they meet another Transpose.

Before::

    a = Transpose <perm = [0, 2, 3, 1]> (x)
    b = Relu (a)
    y = Transpose <perm = [0, 3, 1, 2]> (b)

After::

    b = Relu (x)
    a = Transpose <perm = [0, 2, 3, 1]> (b)
    y = Transpose <perm = [0, 3, 1, 2]> (a)

and two Transposes of one permutation that meet in an elementwise operator become one below it::

    a = Transpose <perm = [1, 0]> (x)      # x and z of rank 2
    b = Transpose <perm = [1, 0]> (z)
    y = Add (a, b)

    c = Add (x, z)
    y = Transpose <perm = [1, 0]> (c)

What then stands next to each other is left to ``fuse-consecutive-transposes``.

Holds only if:

1. the operator works element by element and its other inputs are constants of one element, or are
   transposed in the same way and of the same rank (so that broadcasting aligns the same axes);
2. each Transpose above has no other reader, and its result is no graph output;
3. for one transposed input: following single readers through such operators leads to a Transpose,
   or to an operator whose other input comes, in the same way, from a Transpose of the same
   permutation (with two, a node is saved anyway).

The number of nodes never grows.

Exactness: exact; every element sees the same operation.

Source: Transpose, and the operators that the ONNX specification calls elementwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.edit import remove, replace_value
from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import rank
from onnxslim.pipeline import Context, Exactness, Pass, PassResult

UNARY = frozenset(
    {"Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Clip"}
    | {"Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish"}
    | {"LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu"}
    | {"Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Tan", "Tanh"}
    | {"ThresholdedRelu"}
)
BINARY = frozenset({"Add", "Div", "Max", "Min", "Mul", "Pow", "Sub"})

# How far a Transpose is looked for below; longer elementwise chains are not seen in practice.
_REACH = 32


@dataclass(frozen=True)
class SinkTransposes(Pass):
    """Walks in order, so that a Transpose can sink through a whole chain in one run."""

    name: ClassVar[str] = "sink-transposes"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    roots: ClassVar[frozenset[str]] = frozenset({"Transpose"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        changes = 0
        for node in context.nodes_of(model, *UNARY, *BINARY):
            above = _match(node)
            if above and context.allow(self, node.outputs[0].name or "", node.op_type):
                _rewrite(node, above, context)
                changes += 1
        return PassResult(changes)


def _match(node: ir.Node) -> list[ir.Node]:
    """The Transposes above that can sink together; empty when they should not."""
    above = _sinkable(node)
    if len(above) > 1:
        return above
    return above if above and _meets_transpose(node, _perm(above[0])) else []


def _sinkable(node: ir.Node) -> list[ir.Node]:
    """Transposes of one permutation that feed an elementwise node and nobody else: (1), (2)."""
    if not is_op(node, *UNARY, *BINARY) or len(node.outputs) != 1:
        return []
    above: list[ir.Node] = []
    for value in dict.fromkeys(item for item in node.inputs if item is not None):
        if _is_single_element(value):
            continue
        producer = value.producer()
        if producer is None or not is_op(producer, "Transpose") or producer.graph is not node.graph:
            return []
        if value.is_graph_output() or any(user is not node for user in value.consumers()):  # (2)
            return []
        above.append(producer)
    if not above or (is_op(node, *UNARY) and len(above) > 1):
        return []
    perms = {_perm(producer) for producer in above}
    return above if len(perms) == 1 and None not in perms else []


def _is_single_element(value: ir.Value) -> bool:
    """A constant that broadcasts to any shape without adding axes."""
    tensor = constant_tensor(value)
    return tensor is not None and tensor.size == 1 and len(tensor.shape) <= 1


def _perm(node: ir.Node) -> tuple[int, ...] | None:
    """The permutation, of a Transpose whose input has as many axes; None when unknown."""
    attribute = node.attributes.get("perm")
    if attribute is None:
        axes = rank(node.inputs[0])
        return None if axes is None else tuple(reversed(range(axes)))
    return None if attribute.is_ref() else tuple(attribute.as_ints())


def _comes_from(value: ir.Value, perm: tuple[int, ...] | None, reader: ir.Node) -> bool:
    """True when elementwise operators with single readers lead up to a like Transpose."""
    for _ in range(_REACH):
        node = value.producer()
        readers = set(value.consumers())
        if node is None or value.is_graph_output() or readers != {reader}:
            return False
        if node.graph is not reader.graph:
            return False
        if is_op(node, "Transpose"):
            return _perm(node) == perm
        operands = dict.fromkeys(item for item in node.inputs if item is not None)
        moved = [item for item in operands if not _is_single_element(item)]
        if not is_op(node, *UNARY, *BINARY) or len(node.outputs) != 1 or len(moved) != 1:
            return False
        value, reader = moved[0], node
    return False


def _meets_transpose(node: ir.Node, perm: tuple[int, ...] | None) -> bool:
    """True when single readers lead through elementwise operators to a Transpose: (3)."""
    for _ in range(_REACH):
        output = node.outputs[0]
        readers = output.consumers()
        if output.is_graph_output() or len(readers) != 1 or readers[0].graph is not node.graph:
            return False
        reader = readers[0]
        if is_op(reader, "Transpose"):
            return True
        others = [value for value in reader.inputs if value is not None and value is not output]
        if not is_op(reader, *UNARY, *BINARY):
            return False
        if is_op(reader, *BINARY) and len(others) == 1 and _comes_from(others[0], perm, reader):
            return True  # what sinks here meets what sinks there
        if not all(map(_is_single_element, others)):
            return False
        node = reader
    return False


def _rewrite(node: ir.Node, above: list[ir.Node], context: Context) -> None:
    """A copy reads what the Transposes read; a new Transpose below it takes the output's place."""
    perm, graph, output = _perm(above[0]), node.graph, node.outputs[0]
    assert perm is not None  # the match asked for it
    assert graph is not None
    sources = {producer.outputs[0]: producer.inputs[0] for producer in above}
    inputs = [value if value is None else sources.get(value, value) for value in node.inputs]
    name = output.name or ""
    early = ir.Node(
        node.domain,
        node.op_type,
        inputs,
        list(node.attributes.values()),
        outputs=[ir.Value(name=context.fresh_name(f"{name}_untransposed"), type=output.type)],
        name=node.name,
        doc_string=node.doc_string,
        metadata_props=dict(node.metadata_props),
    )
    late = ir.node("Transpose", early.outputs, {"perm": list(perm)})
    if output.shape is not None and not output.is_graph_output():
        early.outputs[0].shape = ir.Shape([output.shape[perm.index(i)] for i in range(len(perm))])
    graph.insert_before(node, [early, late])
    replace_value(output, late.outputs[0])
    output.name = f"{name}__replaced"
    late.outputs[0].name = name
    remove(node)
    for producer in above:
        remove(producer)
