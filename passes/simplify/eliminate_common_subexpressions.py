"""Merges nodes that compute the same: the readers of the later read the earlier.

Before::

    a = Relu (x)
    b = Relu (x)
    y = Add (a, b)

After::

    a = Relu (x)
    y = Add (a, a)

Holds only if:

1. the nodes are deterministic (`ir.determinism`), hold no subgraphs and call no model-local
   function;
2. they have the same domain, operator and overload, and as many outputs, with the same ones absent;
3. their attributes are the same bits: NaN equals NaN, 0.0 is not -0.0; tensors by type, shape and
   all bytes, and only up to 64 KiB; references to attributes of a function by name;
4. their inputs are the same values, or constants of up to 1 KiB of the same type, shape and bytes;
5. they stand in the same graph, so that the earlier is computed whenever the later is;
6. no output of the later is a graph output, or the earlier can take over its name. Of two graph
   outputs both stay.

Exactness: exact.

Source: value numbering over single assignment, in topological order.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.determinism import is_deterministic
from onnxslim.ir.edit import replace_value
from onnxslim.ir.schema import ONNX_DOMAINS
from onnxslim.ir.traversal import graphs, subgraphs_of
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.replace_values import replace_values
from onnxslim.rewrite.scopes import Scopes

_MAX_ATTRIBUTE_BYTES = 64 * 1024
_MAX_CONSTANT_BYTES = 1024
_NOTE = "onnxslim.content_key"

Types = ir.AttributeType


@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Merges equal nodes of one graph; main graph, subgraphs and function bodies."""

    name: ClassVar[str] = "eliminate-common-subexpressions"
    exactness: ClassVar[Exactness] = Exactness.EXACT

    def run(self, model: ir.Model, context: Context) -> PassResult:
        scopes = Scopes(model)
        return PassResult(
            sum(_Merge(self, model, context, scopes).run(graph) for graph in graphs(model))
        )


class _Merge:
    """The merges in one graph. Readers move at the end, all at once."""

    def __init__(
        self,
        owner: EliminateCommonSubexpressions,
        model: ir.Model,
        context: Context,
        scopes: Scopes,
    ) -> None:
        self.owner = owner
        self.functions = model.functions
        self.context = context
        self.scopes = scopes
        self.merged: dict[ir.Value, ir.Value] = {}

    def run(self, graph: ir.Graph) -> int:
        first: dict[Hashable, ir.Node] = {}
        gone: list[ir.Node] = []
        for node in list(graph):
            key = self._key(node)
            if key is None:
                continue
            earlier = first.setdefault(key, node)
            if earlier is not node and self._can_merge(node, earlier) and self._allow(node):
                self._merge(node, earlier)
                gone.append(node)
        replace_values(self.merged)
        graph.remove(gone, safe=True)
        return len(gone)

    def _allow(self, node: ir.Node) -> bool:
        site = next((value.name for value in node.outputs if value.name), "")
        return self.context.allow(self.owner, site or "", node.op_type)

    def _can_merge(self, node: ir.Node, earlier: ir.Node) -> bool:
        pairs = zip(node.outputs, earlier.outputs, strict=True)
        return all(self.scopes.can_replace(old, new) for old, new in pairs)

    def _merge(self, node: ir.Node, earlier: ir.Node) -> None:
        for old, new in zip(node.outputs, earlier.outputs, strict=True):
            if old.is_graph_output():
                replace_value(old, new)
            else:
                self.merged[old] = new

    def _key(self, node: ir.Node) -> Hashable:
        """What equal nodes share, or None for a node that is never merged."""
        if not node.outputs or node.op_identifier() in self.functions or not is_deterministic(node):
            return None
        if subgraphs_of(node):  # (1)
            return None
        attributes = []
        for attribute in sorted(node.attributes.values(), key=lambda each: each.name):
            content = _attribute_key(attribute)
            if content is None:
                return None
            attributes.append((attribute.name, attribute.type, content))
        return (
            "" if node.domain in ONNX_DOMAINS else node.domain,
            node.op_type,
            node.overload,
            tuple(bool(value.name) for value in node.outputs),
            tuple(attributes),
            self._input_keys(node),
        )

    def _input_keys(self, node: ir.Node) -> tuple[Hashable, ...]:
        keys = [self._input_key(value) for value in node.inputs]
        while keys and keys[-1] is None:  # absent at the end is the same as not mentioned
            keys.pop()
        return tuple(keys)

    def _input_key(self, value: ir.Value | None) -> Hashable:
        if value is None:
            return None
        tensor = constant_tensor(value)
        content = None if tensor is None else _constant_key(value, tensor)
        return self.merged.get(value, value) if content is None else content


def _constant_key(value: ir.Value, tensor: ir.TensorProtocol) -> Hashable:
    """The content of a constant (4), remembered with the value while its tensor is the same."""
    note = value.meta.get(_NOTE)
    if note is not None and note[0] is tensor:
        known: Hashable = note[1]
        return known
    content = tensor_key(tensor, _MAX_CONSTANT_BYTES)
    value.meta[_NOTE] = (tensor, content)
    return content


def _attribute_key(attribute: ir.Attr) -> Hashable:
    """The exact content of an attribute (3), or None when it is not compared."""
    if attribute.is_ref():
        return ("reference", attribute.ref_attr_name)
    value = attribute.value
    if attribute.type == Types.FLOAT:
        return struct.pack("<d", value)
    if attribute.type == Types.FLOATS:
        return struct.pack(f"<{len(value)}d", *value)
    if attribute.type in (Types.INT, Types.STRING):
        return (value,)
    if attribute.type in (Types.INTS, Types.STRINGS):
        return tuple(value)
    if attribute.type == Types.TENSOR:
        return tensor_key(attribute.as_tensor(), _MAX_ATTRIBUTE_BYTES)
    return None


def tensor_key(tensor: ir.TensorProtocol, max_bytes: int) -> Hashable:
    """Type, shape and all bytes of a tensor; None when there are more than ``max_bytes``."""
    kind = (tensor.dtype, tuple(tensor.shape.numpy()))
    if isinstance(tensor, ir.StringTensor) or tensor.dtype == ir.DataType.STRING:
        texts = tuple(bytes(text) for text in tensor.numpy().reshape(-1))
        return (*kind, texts) if sum(map(len, texts)) <= max_bytes else None
    return (*kind, tensor.tobytes()) if tensor.nbytes <= max_bytes else None
