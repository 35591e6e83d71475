"""Protobuf views of a model for other libraries: weights by reference, never copied."""

from __future__ import annotations

import os

import onnx
import onnx_ir as ir

from onnxslim.errors import ModelLoadError
from onnxslim.io import wire
from onnxslim.io.encode import encode, large
from onnxslim.io.source import FileSource, SourceTensor
from onnxslim.io.writer import refer

_NOWHERE = "onnxslim-not-stored"  # location of data that a structural view leaves out


def runtime_proto(model: ir.Model) -> tuple[bytes, str | None]:
    """Serialize for onnxruntime, with large tensors read by it straight from the source files.

    Returns:
        The bytes, and the folder for the session option
        ``session.model_external_initializers_file_folder_path`` (None: nothing is external).

    Raises:
        ModelLoadError: what must be inline passes 2 GiB, which protobuf cannot hold.
    """
    usable: dict[int, bool] = {}  # by id of the source: one look at the disk each
    held: list[tuple[onnx.TensorProto, SourceTensor, str]] = []
    inline = 0

    def hook(proto: onnx.TensorProto, tensor: ir.TensorProtocol) -> bool:
        nonlocal inline
        if not large(tensor, wire.MIN_TENSOR_BYTES):
            return False
        path = _path_of(tensor, usable)
        if isinstance(tensor, SourceTensor) and path is not None:
            held.append((proto, tensor, path))
            return True
        inline += tensor.nbytes
        if inline > wire.MAX_MESSAGE_BYTES:
            raise ModelLoadError(
                "the weights in memory are too many for one message of 2 GiB; save the model with "
                "external data and use that file"
            )
        return False

    proto = encode(model, hook)
    if not held:
        return proto.SerializeToString(), None
    folder = os.path.commonpath([os.path.dirname(path) for _, _, path in held])
    locations = {path: os.path.relpath(path, folder) for _, _, path in held}
    for tensor_proto, tensor, path in held:
        refer(tensor_proto, locations[path], tensor.offset, tensor.length)
    return proto.SerializeToString(), folder


def _path_of(tensor: ir.TensorProtocol, usable: dict[int, bool]) -> str | None:
    """Return the file behind a tensor, if others who open that path get the same file."""
    source = tensor.source if isinstance(tensor, SourceTensor) else None
    if not isinstance(source, FileSource) or source.path is None:
        return None
    if id(source) not in usable:
        usable[id(source)] = source.still_at_path()
    return source.path if usable[id(source)] else None


def skeleton_proto(model: ir.Model, *, max_tensor_bytes: int = 1024) -> onnx.ModelProto:
    """Return a proto without weights, for shape inference and other structural work.

    Main-graph initializers of more than ``max_tensor_bytes`` become graph inputs of their type;
    large tensors elsewhere become external references that lead nowhere.
    """

    def stand_in(value: ir.Value) -> bool:
        tensor = value.const_value
        return tensor is not None and large(tensor, max_tensor_bytes + 1)

    def hook(proto: onnx.TensorProto, tensor: ir.TensorProtocol) -> bool:
        if not large(tensor, max_tensor_bytes + 1):
            return False
        refer(proto, _NOWHERE, 0, tensor.nbytes)
        return True

    return encode(model, hook, stand_in)
