"""Weighs groups of constant nodes by the bytes a model stores with and without them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor

# Where `ir.shapes` keeps what the file declared for an inner value.
DECLARED = "onnxslim.declared"
# A shared constant up to this size does not connect its readers: who drops it does not matter.
_CONNECTING_BYTES = 256
# Bytes of a stored tensor beside contents and name, and of a node beside its texts.
_TENSOR_OVERHEAD = 16
_NODE_OVERHEAD = 6
_CONSTANT_NODE_OVERHEAD = 36


def node_bytes(node: ir.Node) -> int:
    """About how many bytes the file spends on a node without tensors and subgraphs."""
    texts = [node.op_type, node.domain, node.name or ""]
    texts += [value.name or "" if value is not None else "" for value in node.inputs]
    texts += [value.name or "" for value in node.outputs]
    total = _NODE_OVERHEAD + sum(len(text) + 2 for text in texts if text)
    total += sum(_declaration_bytes(value) for value in node.outputs)
    for attribute in node.attributes.values():
        total += len(attribute.name) + 8
        if not attribute.is_ref() and attribute.type == ir.AttributeType.TENSOR:
            total += int(attribute.as_tensor().nbytes)
        elif not attribute.is_ref() and isinstance(attribute.value, Sequence):
            total += 2 * len(attribute.value)
    return total


def _declaration_bytes(value: ir.Value) -> int:
    """Bytes of the declared type of an inner value, which goes when the value goes."""
    declared = value.meta.get(DECLARED)
    if declared is None or declared[0] is None:
        return 0
    dims = 0 if declared[1] is None else len(declared[1])
    return len(value.name or "") + 12 + 4 * dims


def tensor_bytes(value: ir.Value, contents: int, *, as_node: bool) -> int:
    """About how many bytes a constant takes, as an initializer or as a Constant node.

    Args:
        value: the constant; its name is stored with it.
        contents: bytes of the contents.
        as_node: True for a Constant node.
    """
    overhead = _CONSTANT_NODE_OVERHEAD if as_node else _TENSOR_OVERHEAD
    return contents + len(value.name or "") + overhead


def edge_of(members: Iterable[ir.Node]) -> list[ir.Value]:
    """The outputs of the nodes that others read, or that are graph outputs, in order."""
    inside = set(members)
    return [
        value
        for node in members
        for value in node.outputs
        if value.is_graph_output() or any(user not in inside for user in value.consumers())
    ]


def freed_constants(members: Iterable[ir.Node]) -> list[ir.Value]:
    """The constants that nobody needs once the nodes are gone, in order of their first reader."""
    # counting is much faster than listing the readers of a constant that thousands share
    reads = Counter(value for node in members for value in node.inputs if value is not None)
    return [
        value
        for value, count in reads.items()
        if constant_tensor(value) is not None
        and not value.is_graph_output()
        and len(value.uses()) == count
    ]


def freed_bytes(value: ir.Value) -> int:
    """Bytes that the file loses with a constant."""
    tensor = constant_tensor(value)
    contents = 0 if tensor is None else int(tensor.nbytes)
    return tensor_bytes(value, contents, as_node=value.producer() is not None)


def growth(
    members: Sequence[ir.Node],
    contents: Callable[[ir.Value], int],
    as_node: Callable[[ir.Value], bool],
) -> int:
    """By how many bytes the file grows when the results are stored in place of the nodes.

    Args:
        members: the nodes.
        contents: bytes of the contents of an output.
        as_node: whether an output has to be stored as a Constant node.
    """
    added = sum(
        tensor_bytes(value, contents(value), as_node=as_node(value)) for value in edge_of(members)
    )
    gone = sum(node_bytes(node) for node in members)
    return added - gone - sum(freed_bytes(value) for value in freed_constants(members))


def growth_at(node: ir.Node, members: Sequence[ir.Node], contents: int) -> int:
    """How much of the growth one node at the edge is to blame for.

    Args:
        node: a member with an output at the edge.
        members: the whole group.
        contents: bytes of the node's outputs at the edge.

    Returns:
        Bytes of its results, less itself and the constants that only it and the members above it
        read.
    """
    cone = cone_of(node, set(members))
    return contents - node_bytes(node) - sum(freed_bytes(value) for value in freed_constants(cone))


def cone_of(node: ir.Node, inside: set[ir.Node]) -> list[ir.Node]:
    """The node and all members that it depends on."""
    found, stack = {node: None}, [node]
    while stack:
        for value in stack.pop().inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and producer in inside and producer not in found:
                found[producer] = None
                stack.append(producer)
    return list(found)


def connected(nodes: Sequence[ir.Node]) -> list[list[ir.Node]]:
    """Splits nodes into groups that share neither values nor constants of more than 256 bytes."""
    parent = {node: node for node in nodes}

    def root(node: ir.Node) -> ir.Node:
        while parent[node] is not node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    readers: dict[ir.Value, ir.Node] = {}
    for node in nodes:
        for value in node.inputs:
            if value is None:
                continue
            other = value.producer()
            if other is None or other not in parent:
                tensor = constant_tensor(value)
                large = tensor is not None and tensor.nbytes > _CONNECTING_BYTES
                other = readers.setdefault(value, node) if large else None
            if other is not None:
                parent[root(node)] = root(other)
    groups: dict[ir.Node, list[ir.Node]] = {}
    for node in nodes:
        groups.setdefault(root(node), []).append(node)
    return list(groups.values())
