"""Constant values: which values are constant, and their contents without needless reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.ir.traversal import attributes_of

Array = npt.NDArray[Any]

# Above this many bytes a constant is a weight: passes that only want shapes and scalars leave it
# on disk.
SMALL_BYTES = 64 * 1024


def is_constant(value: ir.Value | None) -> bool:
    """True for an initializer that no caller can override, or the output of a Constant node.

    An initializer that is also a graph input is a default value, not a constant.
    """
    return constant_tensor(value) is not None


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor behind a constant value, or None when the value is not constant.

    Nothing is read from disk. Constant nodes with ``value``, ``value_float(s)`` and
    ``value_int(s)`` are understood; strings and sparse values are not constants here.
    """
    if value is None:
        return None
    if value.is_initializer():
        return None if value.is_graph_input() else value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    return _constant_node_tensor(node)


def _constant_node_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    attributes = attributes_of(node)
    if len(attributes) != 1:
        return None
    attribute = next(iter(attributes))
    name = attribute.name
    if attribute.is_ref():
        return None
    if name == "value" and attribute.type == ir.AttributeType.TENSOR:
        tensor: ir.TensorProtocol = attribute.value  # as_tensor checks a protocol, which is slow
        return tensor
    if name == "value_float":
        return ir.tensor(np.array(attribute.as_float(), dtype=np.float32))
    if name == "value_floats":
        return ir.tensor(np.array(attribute.as_floats(), dtype=np.float32))
    if name == "value_int":
        return ir.tensor(np.array(attribute.as_int(), dtype=np.int64))
    if name == "value_ints":
        return ir.tensor(np.array(attribute.as_ints(), dtype=np.int64))
    return None


def array(value: ir.Value | None, *, max_bytes: int | None = SMALL_BYTES) -> Array | None:
    """The contents of a constant value, read-only, or None when not constant or too large.

    Args:
        value: the value to read.
        max_bytes: larger tensors are not read; None reads any size.
    """
    tensor = constant_tensor(value)
    if tensor is None or tensor.dtype == ir.DataType.STRING:
        return None
    if max_bytes is not None and tensor.nbytes > max_bytes:
        return None
    return tensor.numpy()


def scalar(value: ir.Value | None) -> Any:
    """The single element of a constant value (any rank), as a Python number, or None."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
        return None
    return tensor.numpy().reshape(-1)[0].item()


def int_list(value: ir.Value | None) -> list[int] | None:
    """A constant integer tensor as a flat list of Python ints, or None."""
    content = array(value)
    if content is None or content.dtype.kind not in "iu":
        return None
    return [int(item) for item in content.reshape(-1)]
