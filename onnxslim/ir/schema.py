"""What the operator schemas of the installed onnx say; the only place that asks them."""

from __future__ import annotations

from functools import lru_cache

import onnx.defs
import onnx_ir as ir

ONNX_DOMAINS = ("", "ai.onnx")
# Above every opset version: asks for the latest schema.
NEWEST = 100_000


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """True when the node is a standard (``ai.onnx``) operator of one of these types."""
    return node is not None and node.domain in ONNX_DOMAINS and node.op_type in op_types


def opset_of(node: ir.Node, model: ir.Model) -> int | None:
    """The opset version that the node's domain is imported with, or None when it is not imported.

    A node inside a function body follows the imports of the function.
    """
    imports = model.graph.opset_imports
    for function in model.functions.values():
        if _belongs(node.graph, function.graph):
            imports = function.opset_imports
            break
    if node.domain in ONNX_DOMAINS:
        return next((imports[domain] for domain in ONNX_DOMAINS if domain in imports), None)
    return imports.get(node.domain)


def _belongs(graph: object, root: ir.Graph) -> bool:
    return graph is root or any(graph is inner for inner in root.subgraphs())


def default_opset(model: ir.Model) -> int:
    """The version of the standard operators in the main graph; 1 when none is imported."""
    imports = model.graph.opset_imports
    return max((imports[domain] for domain in ONNX_DOMAINS if domain in imports), default=1)


def newest_opset() -> int:
    """The newest version of the standard operators that the installed onnx knows."""
    return int(onnx.defs.onnx_opset_version())


@lru_cache(maxsize=4096)
def schema(op_type: str, domain: str, version: int) -> onnx.defs.OpSchema | None:
    """The schema in force at that opset version, or None for an operator onnx does not know."""
    domain = "" if domain in ONNX_DOMAINS else domain
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None


def fixed_type(value: ir.Value | None) -> ir.DataType | None:
    """The element type of an output of ``ai.onnx.ml`` for which the schema allows only one.

    onnx infers nothing for these operators.
    """
    node = value.producer() if value is not None else None
    if value is None or node is None or node.domain != "ai.onnx.ml":
        return None
    known = schema(node.op_type, node.domain, 100_000)
    place = value.index()
    if known is None or place is None or place >= len(known.outputs):
        return None
    return _TYPES.get(known.outputs[place].type_str)


_TYPES = {
    "tensor(float)": ir.DataType.FLOAT,
    "tensor(int64)": ir.DataType.INT64,
}
