"""Asks onnxoptimizer, an optimizer in C++, what it makes of a few nodes of a model.

It is never given the model: it is quadratic in the number of nodes, renames initializers, and drops
metadata and fields that it does not know. It sees a skeleton: copies of the nodes in question under
names of our own, with graph inputs for all that they read from elsewhere, weights included. Only
small constants are there with their contents, since its passes look at pads, starts and axes. Its
answer comes back as a description of one node, for the caller to carry out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.errors import RuntimeRefusedError
from onnxslim.ir.constants import array

Array = npt.NDArray[Any]

# Constants up to this many bytes are shown with their contents.
_INLINE_BYTES = 1024

# The first version in which an initializer need not be an input is 4; this one suits every opset.
_IR_VERSION = 8


@dataclass(frozen=True)
class Answer:
    """What the last of the nodes should be instead.

    Attributes:
        op_type: its operator.
        inputs: one item per slot: a value of the asking model, the contents of a new constant, or
            None for an absent one.
        attributes: all of its attributes.
    """

    op_type: str
    inputs: tuple[ir.Value | Array | None, ...]
    attributes: Mapping[str, ir.Attr]


def ask(pass_name: str, nodes: Sequence[ir.Node], opset: int) -> Answer | None:
    """Runs one pass of onnxoptimizer on a skeleton of a few nodes.

    Args:
        pass_name: as onnxoptimizer calls it.
        nodes: standard operators in topological order, without subgraphs and attribute references,
            with one output each; they are not changed. The output of the last one is the result.
        opset: the version of the standard operators.

    Returns:
        The node that now computes the result, or None when the pass left the last node alone.

    Raises:
        RuntimeRefusedError: onnxoptimizer fails, or its answer is more than one node that reads
            what the nodes read and constants.
    """
    known, skeleton = _skeleton(nodes, opset)
    graph = _optimize(skeleton, pass_name).graph
    last = nodes[-1]
    name = known[last.outputs[0]]
    node = graph.outputs[0].producer() if len(graph.outputs) == 1 else None
    if node is None or graph.outputs[0].name != name or len(node.outputs) != 1:
        raise RuntimeRefusedError(f"{pass_name} of onnxoptimizer lost the result")
    if _same(last, node, known):
        return None
    inner = {item.outputs[0] for item in nodes}
    outer = {text: value for value, text in known.items() if value not in inner}
    inputs = tuple(_resolve(value, outer, pass_name) for value in node.inputs)
    return Answer(node.op_type, inputs, dict(node.attributes))


def _skeleton(nodes: Sequence[ir.Node], opset: int) -> tuple[dict[ir.Value, str], ir.Model]:
    """The skeleton, and the name in it of every value of the nodes."""
    copies: dict[ir.Value, ir.Value] = {}
    inputs: list[ir.Value] = []
    initializers: list[ir.Value] = []
    made: list[ir.Node] = []
    for node in nodes:
        for value in node.inputs:
            if value is None or value in copies:
                continue
            copies[value] = _outer(value, f"v{len(copies)}")
            (inputs if copies[value].const_value is None else initializers).append(copies[value])
        output = node.outputs[0]
        copies[output] = ir.Value(name=f"v{len(copies)}", type=output.type, shape=output.shape)
        read = [None if value is None else copies[value] for value in node.inputs]
        while read and read[-1] is None:
            read.pop()
        attributes = list(node.attributes.values())
        made.append(ir.Node("", node.op_type, read, attributes, outputs=[copies[output]]))
    graph = ir.Graph(
        inputs,
        [made[-1].outputs[0]],
        nodes=made,
        initializers=initializers,
        opset_imports={"": opset},
        name="skeleton",
    )
    known = {value: copy.name or "" for value, copy in copies.items()}
    return known, ir.Model(graph, ir_version=_IR_VERSION)


def _outer(value: ir.Value, name: str) -> ir.Value:
    content = array(value, max_bytes=_INLINE_BYTES)
    if content is None or (content.size != 1 and content.dtype.kind != "i"):
        # Types are unknown in function bodies; no pass that is asked for looks at them.
        type_ = value.type or ir.TensorType(ir.DataType.FLOAT)
        return ir.Value(name=name, type=type_, shape=value.shape)
    tensor = ir.tensor(content, name=name)
    shape = ir.Shape(content.shape)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)


def _optimize(model: ir.Model, pass_name: str) -> ir.Model:
    try:
        # Imported here: a model without candidates does not pay for it.
        import onnxoptimizer

        optimized: ir.Model = ir.from_proto(onnxoptimizer.optimize(ir.to_proto(model), [pass_name]))
    except Exception as error:  # it raises whatever its C++ part does, from the import on
        reason = " ".join(str(error).split())[:200]
        raise RuntimeRefusedError(f"{pass_name} of onnxoptimizer fails: {reason}") from error
    return optimized


def _same(old: ir.Node, new: ir.Node, known: Mapping[ir.Value, str]) -> bool:
    """True when the answer is the node as it was."""
    before = [None if value is None else known[value] for value in old.inputs]
    after = [None if value is None else value.name for value in new.inputs]
    while before and before[-1] is None:
        before.pop()
    return (
        old.op_type == new.op_type
        and before == after
        and old.attributes.keys() == new.attributes.keys()
        and all(same_attribute(item, new.attributes[key]) for key, item in old.attributes.items())
    )


def same_attribute(one: ir.Attr, other: ir.Attr) -> bool:
    """True when two attributes that are numbers, texts or lists of them have the same contents."""
    if one.type != other.type:
        return False
    if isinstance(one.value, str | bytes | int | float):
        return bool(one.value == other.value)
    return list(one.value) == list(other.value)


def _resolve(
    value: ir.Value | None, outer: Mapping[str, ir.Value], pass_name: str
) -> ir.Value | Array | None:
    """What an input of the answer is in the asking model, with new Concats computed."""
    if value is None:
        return None
    if value.name is not None and value.name in outer:
        return outer[value.name]
    if value.is_initializer() and value.const_value is not None:
        return np.array(value.const_value.numpy())
    node = value.producer()
    if node is not None and node.op_type == "Concat":
        parts = [_content(_resolve(item, outer, pass_name)) for item in node.inputs]
        arrays = [part for part in parts if part is not None]
        same = len({part.dtype for part in arrays}) == 1 and {part.ndim for part in arrays} == {1}
        if len(arrays) == len(parts) and same:
            return np.concatenate(arrays)
    raise RuntimeRefusedError(f"the answer of {pass_name} of onnxoptimizer is more than one node")


def _content(item: ir.Value | Array | None) -> Array | None:
    return array(item, max_bytes=_INLINE_BYTES) if isinstance(item, ir.Value) else item
