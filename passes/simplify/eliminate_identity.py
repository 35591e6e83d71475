"""Removes Identity nodes: readers of the copy read the original.

Before::

    a = Relu (x)
    b = Identity (a)
    y = Neg (b)

After::

    a = Relu (x)
    y = Neg (a)

Tensors, sequences and optionals alike. What was known about the type of the copy alone is kept on
the original.

Holds only if:

1. the copy is no graph output; or it is one, and the original can take over its name: it is
   computed by a node of the same graph, and is neither graph input, initializer nor graph output
   itself. So a copy of an input to an output stays, and a subgraph that returns an outer value;
2. readers in subgraphs still find the original by its name: no graph between defines it again.

Exactness: exact.

Source: Identity of the ONNX operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxslim.ir.schema import is_op
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.replace_values import Bypasses
from onnxslim.rewrite.scopes import Scopes


@dataclass(frozen=True)
class EliminateIdentity(Pass):
    """Bypasses Identity nodes in main graph, subgraphs and function bodies."""

    name: ClassVar[str] = "eliminate-identity"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    roots: ClassVar[frozenset[str]] = frozenset({"Identity"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        changes = 0
        scopes = Scopes(model)
        bypasses = Bypasses()
        for node in context.nodes_of(model, "Identity"):
            original = _match(node, scopes, bypasses)
            if original is None or not context.allow(self, node.outputs[0].name or ""):
                continue
            bypasses.bypass(node, original)
            changes += 1
        bypasses.finish()
        return PassResult(changes)


def _match(node: ir.Node, scopes: Scopes, bypasses: Bypasses) -> ir.Value | None:
    if not is_op(node, "Identity") or node.inputs[0] is None:
        return None
    original = bypasses.resolve(node.inputs[0])
    return original if scopes.can_replace(node.outputs[0], original) else None
