"""Puts the branch that is taken in the place of an If with a constant condition.

Before::

    <bool c = {1}>
    y = If (c) <
        then_branch = t () => (float[N] p) { a = Abs (x) p = Neg (a) },
        else_branch = e () => (float[N] q) { q = Exp (x) }
    >

After::

    a = Abs (x)
    y = Neg (a)

Holds only if:

1. the condition is constant (an initializer that is also an input is not);
2. the branch has as many outputs as the If;
3. a branch with initializers of its own is not inside a function, which can hold none, and none of
   them is one that only the file understands (sparse);
4. an output of the branch that is no output of one of its nodes, or is returned twice, or would
   have to carry the names of two graph outputs, is passed on by an Identity.

Inner values get fresh names where theirs mean something elsewhere in the model, since two branches
may use the same names.

Exactness: exact; the same nodes run.

Source: If, opset 1 on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxslim.ir.constants import scalar
from onnxslim.ir.edit import can_replace, remove, replace_value
from onnxslim.ir.schema import is_op
from onnxslim.ir.traversal import nodes
from onnxslim.pipeline import Context, Exactness, Pass, PassResult


@dataclass(frozen=True)
class InlineConstantIf(Pass):
    """Outer Ifs first, so that an If in a branch that goes is not looked at."""

    name: ClassVar[str] = "inline-constant-if"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    roots: ClassVar[frozenset[str]] = frozenset({"If"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        bodies = [function.graph for function in model.functions.values()]
        in_functions = {id(graph) for body in bodies for graph in (body, *body.subgraphs())}
        changes = 0
        for start in nodes(model):
            queue = [start] if start.graph is not None else []
            while queue:
                node = queue.pop()
                branch = _match(node, id(node.graph) in in_functions)
                if branch is None:
                    continue
                detail = f"{len(branch)} nodes of {branch.name}"
                if context.allow(self, node.outputs[0].name or "", detail):
                    queue.extend(reversed(_inline(node, branch, context)))
                    changes += 1
        return PassResult(changes)


def _match(node: ir.Node, in_function: bool) -> ir.Graph | None:
    if not is_op(node, "If") or not isinstance(node.graph, ir.Graph):
        return None
    condition = scalar(node.inputs[0])  # (1)
    if condition is None:
        return None
    attribute = node.attributes.get("then_branch" if condition else "else_branch")
    if attribute is None or attribute.is_ref():
        return None
    branch = attribute.as_graph()
    if len(branch.outputs) != len(node.outputs):  # (2)
        return None
    if branch.initializers and in_function:  # (3)
        return None
    if any(value.const_value is None for value in branch.initializers.values()):
        return None
    return branch


def _inline(node: ir.Node, branch: ir.Graph, context: Context) -> list[ir.Node]:
    """Moves the branch's nodes before the node, removes the node, and returns what was moved."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)  # checked by the match
    returned = list(branch.outputs)
    branch.outputs.clear()
    for value in list(branch.initializers.values()):
        del branch.initializers[value.name or ""]
        value.name = context.fresh_name(value.name or "")
        graph.register_initializer(value)
    moved = list(branch)
    branch.remove(moved)
    for inner in moved:
        for value in inner.outputs:
            if value.name:
                value.name = context.fresh_name(value.name)
    graph.insert_before(node, moved)
    own = {id(value) for inner in moved for value in inner.outputs}
    for output, value in zip(node.outputs, returned, strict=True):
        if id(value) not in own or not can_replace(output, value):  # (4)
            value = _identity_before(node, value, context)
        own.discard(id(value))
        if output.uses() or output.is_graph_output():
            replace_value(output, value)
    remove(node)
    return moved


def _identity_before(node: ir.Node, value: ir.Value, context: Context) -> ir.Value:
    name = context.fresh_name(f"{value.name}_passed_on")
    identity = ir.node("Identity", [value], outputs=[ir.Value(name=name)])
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    graph.insert_before(node, identity)
    identity.outputs[0].type, identity.outputs[0].shape = value.type, value.shape
    return identity.outputs[0]
