"""Protobuf views of a model for other libraries: weights by reference, never copied."""

from __future__ import annotations

import os
from collections.abc import Iterator

import onnx
import onnx_ir as ir

from onnxslim.errors import ModelLoadError
from onnxslim.io import wire
from onnxslim.io.encode import encode, large
from onnxslim.io.extras import META_KEY, ModelExtras
from onnxslim.io.source import FileSource, SourceTensor
from onnxslim.io.writer import refer

_NOWHERE = "onnxslim-not-stored"  # location of data that a structural view leaves out


def source_path(model: ir.Model) -> str | None:
    """Return the real path of the file the model was loaded from, if it came from one."""
    kept = model.graph.meta.get(META_KEY)
    return kept.path if isinstance(kept, ModelExtras) else None


def runtime_proto(model: ir.Model) -> tuple[bytes, str | None]:
    """Serialize for onnxruntime, with large tensors read by it straight from the source files.

    Returns:
        The bytes, and the folder for the session option
        ``session.model_external_initializers_file_folder_path`` (None: nothing is external).

    Raises:
        ModelLoadError: what must be inline passes 2 GiB, which protobuf cannot hold.
    """
    tensors = list(_large_tensors(model))
    folder = _common_folder(tensors)
    inline = sum(tensor.nbytes for tensor in tensors if _file_of(tensor, folder) is None)
    if inline > wire.MAX_MESSAGE_BYTES:
        raise ModelLoadError(
            f"the model holds {inline} bytes of weights in memory, too many for one message of "
            "2 GiB; save it with external data and use that file"
        )
    used = False

    def hook(proto: onnx.TensorProto, tensor: ir.TensorProtocol) -> bool:
        nonlocal used
        file = _file_of(tensor, folder)
        if file is None or folder is None or not large(tensor, wire.MIN_TENSOR_BYTES):
            return False
        assert isinstance(tensor, SourceTensor)
        refer(proto, os.path.relpath(file, folder), tensor.offset, tensor.length)
        used = True
        return True

    data = encode(model, hook).SerializeToString()
    return data, folder if used else None


def _file_of(tensor: ir.TensorProtocol, folder: str | None) -> str | None:
    """Return the path of the file behind a tensor, if it can be opened there by others."""
    if folder is None or not isinstance(tensor, SourceTensor):
        return None
    source = tensor.source
    return source.path if isinstance(source, FileSource) and source.still_at_path() else None


def _common_folder(tensors: list[ir.TensorProtocol]) -> str | None:
    paths = {
        tensor.source.path
        for tensor in tensors
        if isinstance(tensor, SourceTensor) and isinstance(tensor.source, FileSource)
    }
    folders = [os.path.dirname(path) for path in paths if path is not None]
    return os.path.commonpath(folders) if folders else None


def _large_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    found: list[ir.TensorProtocol] = []

    def hook(proto: onnx.TensorProto, tensor: ir.TensorProtocol) -> bool:
        if not large(tensor, wire.MIN_TENSOR_BYTES):
            return False
        found.append(tensor)
        return True

    encode(model, hook)
    return iter(found)


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
