"""Removes nodes, initializers and model-local functions that no output depends on.

Before::

    a = Relu (x)
    b = Exp (a)
    y = Neg (x)

After::

    y = Neg (x)

Optional outputs of a node that stays are left out too when nobody reads them.

Holds only if:

1. no output of the node is read by a node of any graph, or is a graph output;
2. running the node does nothing else: its operator has a schema in the imported opset, or it calls
   a model-local function of such nodes; the same for all nodes in its subgraphs. Random operators
   do nothing else either. A node of an unknown operator stays, with a refusal;
3. an initializer is neither a graph input, a graph output nor named by a quantization annotation
   or by training information;
4. an output is left out only where the schema calls it optional. BatchNormalization, whose mode
   depends on the number of outputs before opset 14, and the attention operators, whose present
   key and value go together, keep theirs.

Opset imports stay, used or not: they belong to the interface.

Exactness: exact.

Source: the operator schemas of ONNX; liveness by one walk against the topological order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxslim.ir.schema import ONNX_DOMAINS, schema
from onnxslim.ir.traversal import subgraphs_of
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.replace_values import release_inputs
from onnxslim.rewrite.scopes import OutsideNames


@dataclass(frozen=True)
class EliminateDeadNodes(Pass):
    """Removes what no output depends on, in main graph, subgraphs and function bodies."""

    name: ClassVar[str] = "eliminate-dead-nodes"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def run(self, model: ir.Model, context: Context) -> PassResult:
        return PassResult(_Sweep(self, model, context).run())


class _Sweep:
    """One run over one model."""

    def __init__(self, owner: EliminateDeadNodes, model: ir.Model, context: Context) -> None:
        self.owner = owner
        self.model = model
        self.context = context
        self.outside = OutsideNames(model)
        self.pure_functions: dict[ir.OperatorIdentifier, bool] = {}

    def run(self) -> int:
        changes = self.sweep(self.model.graph, self.model.graph.opset_imports)
        changes += self.drop_functions()
        for function in self.model.functions.values():
            changes += self.sweep(function.graph, function.opset_imports)
        return changes + self.drop_functions()

    def sweep(self, graph: ir.Graph, imports: Mapping[str, int]) -> int:
        """Walks against the topological order, so that one walk finds chains of dead nodes.

        The subgraphs of a node are swept when the walk meets the node: what they no longer read
        may be dead further up.
        """
        changes = 0
        for node in reversed(graph):
            if self._is_dead(node, imports) and self._allow_node(node):
                _detach(node)
                graph.remove(node, safe=True)
                changes += 1
                continue
            for inner in subgraphs_of(node):
                changes += self.sweep(inner, imports)
            changes += self._drop_outputs(node, imports)
        return changes + self._drop_initializers(graph)

    def _allow_node(self, node: ir.Node) -> bool:
        return self.context.allow(self.owner, _site(node), node.op_type)

    def _is_dead(self, node: ir.Node, imports: Mapping[str, int]) -> bool:
        if any(self._is_used(value) for value in node.outputs):  # (1)
            return False
        if self._is_pure(node, imports):
            return True
        self.context.refuse(
            self.owner,
            _site(node),
            f"no output of {node.domain or 'ai.onnx'}.{node.op_type} is used, but what else an "
            "operator without a schema does is unknown",
        )
        return False

    def _is_used(self, value: ir.Value) -> bool:
        return value.is_graph_output() or bool(value.uses()) or value.name in self.outside

    def _is_pure(self, node: ir.Node, imports: Mapping[str, int]) -> bool:
        """True when the node does nothing but compute its outputs (2)."""
        identifier = node.op_identifier()
        if identifier in self.model.functions:
            return self._is_pure_function(identifier)
        version = _version(imports, node.domain)
        if version is None or schema(node.op_type, node.domain, version) is None:
            return False
        return all(self._is_pure(each, imports) for inner in subgraphs_of(node) for each in inner)

    def _is_pure_function(self, identifier: ir.OperatorIdentifier) -> bool:
        if identifier not in self.pure_functions:
            self.pure_functions[identifier] = False  # a function that calls itself is left alone
            function = self.model.functions[identifier]
            self.pure_functions[identifier] = all(
                self._is_pure(node, function.opset_imports) for node in function.graph
            )
        return self.pure_functions[identifier]

    def _drop_outputs(self, node: ir.Node, imports: Mapping[str, int]) -> int:
        """Leaves out unread outputs at the end of the list (4)."""
        count = len(node.outputs)
        if count < 2 or node.op_type == "BatchNormalization" or "Attention" in node.op_type:
            return 0
        version = _version(imports, node.domain)
        known = None if version is None else schema(node.op_type, node.domain, version)
        if known is None or node.op_identifier() in self.model.functions:
            return 0
        while (
            1 < count <= len(known.outputs)
            and known.outputs[count - 1].option == type(known.outputs[0].option).Optional
            and not self._is_used(node.outputs[count - 1])
        ):
            count -= 1
        site = next((value.name for value in node.outputs[count:] if value.name), None)
        if site is None or not self.context.allow(self.owner, site, f"output of {node.op_type}"):
            return 0
        node.resize_outputs(count)
        return 1

    def _drop_initializers(self, graph: ir.Graph) -> int:
        """Removes unread initializers (3)."""
        changes = 0
        for name, value in list(graph.initializers.items()):
            if value.is_graph_input() or self._is_used(value):
                continue
            if self.context.allow(self.owner, name, "initializer"):
                del graph.initializers[name]
                changes += 1
        return changes

    def drop_functions(self) -> int:
        """Removes functions that no node calls, directly or through other functions."""
        if not self.model.functions:
            return 0
        called = set()
        waiting = [self.model.graph]
        while waiting:
            for node in waiting.pop().all_nodes():
                identifier = node.op_identifier()
                if identifier in self.model.functions and identifier not in called:
                    called.add(identifier)
                    waiting.append(self.model.functions[identifier].graph)
        changes = 0
        for identifier in [key for key in self.model.functions if key not in called]:
            if identifier[1] in self.outside:
                continue
            if self.context.allow(self.owner, ".".join(identifier), "function"):
                del self.model.functions[identifier]
                changes += 1
        return changes


def _version(imports: Mapping[str, int], domain: str) -> int | None:
    if domain in ONNX_DOMAINS:
        return next((imports[each] for each in ONNX_DOMAINS if each in imports), None)
    return imports.get(domain)


def _site(node: ir.Node) -> str:
    return next((value.name for value in node.outputs if value.name), "") or node.name or ""


def _detach(node: ir.Node) -> None:
    """Ends every use of values by a dead node, also of outer values inside its subgraphs."""
    for graph in subgraphs_of(node):
        for inner in graph:
            _detach(inner)
    release_inputs(node)
