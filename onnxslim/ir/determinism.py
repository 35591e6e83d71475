"""The one predicate that says whether a node may be evaluated, merged or dropped.

Constant folding, common-subexpression elimination and deduplication all ask here, so that no two
passes disagree about what is random.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxslim.ir.constants import scalar
from onnxslim.ir.schema import ONNX_DOMAINS, schema
from onnxslim.ir.traversal import subgraphs_of

RANDOM_OPS = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)

KNOWN_DOMAINS = frozenset({*ONNX_DOMAINS, "ai.onnx.ml"})


def is_deterministic(node: ir.Node) -> bool:
    """True when equal inputs always give equal outputs and nothing else happens.

    Unknown domains, unknown operators, calls of model-local functions, random operators, Dropout
    that may be in training mode, and control flow that holds any of them are not deterministic.
    """
    if node.domain not in KNOWN_DOMAINS or node.op_type in RANDOM_OPS or node.overload:
        return False
    if schema(node.op_type, node.domain, 100_000) is None:
        return False
    if node.op_type == "Dropout" and not _dropout_is_inference(node):
        return False
    return all(is_deterministic(inner) for graph in subgraphs_of(node) for inner in graph)


def _dropout_is_inference(node: ir.Node) -> bool:
    """Opset 12 on: third input ``training_mode`` (default false). Before 7: attribute is_test."""
    if "is_test" in node.attributes:
        return node.attributes["is_test"].as_int() != 0
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    mode = scalar(node.inputs[2])
    return mode is not None and not bool(mode)
