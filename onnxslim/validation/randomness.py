"""Which outputs of a model depend on random numbers, so that their values cannot be compared."""

from __future__ import annotations

import onnx_ir as ir

from onnxslim.ir.determinism import RANDOM_OPS, is_deterministic
from onnxslim.ir.schema import ONNX_DOMAINS
from onnxslim.ir.traversal import subgraphs_of


def random_outputs(model: ir.Model) -> frozenset[str]:
    """Names of the graph outputs that a random operator may reach."""
    finder = _Finder(model)
    tainted: set[int] = set()
    for node in model.graph:
        if finder.holds_random(node) or finder.reads(node, tainted):
            tainted.update(id(value) for value in node.outputs)
    return frozenset(value.name or "" for value in model.graph.outputs if id(value) in tainted)


class _Finder:
    def __init__(self, model: ir.Model) -> None:
        self._functions = model.functions
        self._known: dict[ir.OperatorIdentifier, bool] = {}

    def holds_random(self, node: ir.Node) -> bool:
        """True when the node, something in its subgraphs, or the function it calls is random."""
        if node.domain in ONNX_DOMAINS:
            if node.op_type in RANDOM_OPS:
                return True
            if node.op_type == "Dropout" and not is_deterministic(node):
                return True
        function = self._functions.get(node.op_identifier())
        if function is not None and self._function_is_random(function):
            return True
        return any(self.holds_random(inner) for graph in subgraphs_of(node) for inner in graph)

    def _function_is_random(self, function: ir.Function) -> bool:
        key = function.identifier()
        if key not in self._known:
            self._known[key] = False  # functions cannot be recursive; this only ends bad loops
            self._known[key] = any(self.holds_random(node) for node in function)
        return self._known[key]

    def reads(self, node: ir.Node, tainted: set[int]) -> bool:
        """True when the node, or anything in its subgraphs, has a tainted input."""
        if any(id(value) in tainted for value in node.inputs if value is not None):
            return True
        graphs = list(subgraphs_of(node))
        return any(id(value) in tainted for graph in graphs for value in graph.outputs) or any(
            self.reads(inner, tainted) for graph in graphs for inner in graph
        )
