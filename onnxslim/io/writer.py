"""Save a model by streaming: the graph from memory, the weights from where they are."""

from __future__ import annotations

import os
import secrets
import sys
from dataclasses import dataclass, field
from typing import BinaryIO

import onnx
import onnx_ir as ir

from onnxslim.errors import ModelLoadError, ModelSaveError
from onnxslim.io import wire
from onnxslim.io.atomic import AtomicFile, check_target, is_device
from onnxslim.io.copying import FileSink, Sink, StreamSink, write_tensor
from onnxslim.io.encode import encode, large
from onnxslim.io.extras import META_KEY, ModelExtras
from onnxslim.io.reader import parse
from onnxslim.io.source import FileSource, SourceTensor
from onnxslim.io.splice import Piece, splice

INLINE_LIMIT = wire.MAX_MESSAGE_BYTES
"""A model file longer than this cannot be parsed by anyone: its weights go to a data file."""

PAGE = 4096
"""Alignment, in bytes, of large tensors in a data file: they can be mapped."""

_PAGE_FROM = 64 << 10
_SMALL_ALIGNMENT = 64

ModelTarget = str | os.PathLike[str] | BinaryIO


@dataclass(frozen=True)
class SavedFiles:
    """What a save wrote: the paths (empty for a stream) and the bytes of all files together."""

    paths: tuple[str, ...]
    bytes: int


@dataclass
class Plan:
    """Everything about a file before a byte is written."""

    pieces: list[Piece]
    length: int
    tensors: list[ir.TensorProtocol]
    data: list[tuple[int, ir.TensorProtocol]] = field(default_factory=list)
    """Offset and tensor, in order, of the data file if there is one."""
    data_length: int = 0

    def check_sources(self) -> None:
        """Refuse if a file that weights come from has changed since it was opened.

        Raises:
            ModelSaveError: it has.
        """
        tensors = [*self.tensors, *(tensor for _, tensor in self.data)]
        sources = {
            id(tensor.source): tensor.source
            for tensor in tensors
            if isinstance(tensor, SourceTensor)
        }
        for source in sources.values():
            try:
                source.check_unchanged()
            except ModelLoadError as error:
                raise ModelSaveError(f"{error}; nothing was written") from error


def save(model: ir.Model, target: ModelTarget, *, external_data: bool = False) -> SavedFiles:
    """Write ``model`` to ``target``; the file appears complete or not at all.

    Args:
        model: Stays as it is. The file it was loaded from may be the target.
        target: A path, ``"-"`` for standard output, or a binary file object.
        external_data: Put tensors of 1 KiB and more into one file beside the model, called like
            the model with ``.data`` appended. Done anyway when one file would pass 2 GiB.

    Returns:
        The files and their size in bytes.

    Raises:
        ModelSaveError: the target cannot be written, or the source changed meanwhile.
    """
    if not isinstance(target, (str, os.PathLike)):
        return _save_stream(model, target, external_data)
    if os.fspath(target) == "-":
        return _save_stream(model, sys.stdout.buffer, external_data)
    path = check_target(target)
    if is_device(path):
        with open(path, "wb", buffering=0) as device:
            return _save_stream(model, device, external_data)
    plan = _inline_plan(model)
    try:
        if external_data or plan.length > INLINE_LIMIT:
            return _save_two(model, path)
        _write_file(path, plan)
    except OSError as error:
        raise ModelSaveError(f"'{path}' cannot be written: {error.strerror}") from error
    return SavedFiles((path,), plan.length)


def total_bytes(model: ir.Model) -> int:
    """Return the bytes that the model takes as one file; no weight is read."""
    return _inline_plan(model).length


def _inline_plan(model: ir.Model) -> Plan:
    """Serialize with placeholders and find out where the weights go."""
    token = secrets.token_bytes(16)
    tensors: list[ir.TensorProtocol] = []

    def placeholder(proto: onnx.TensorProto, tensor: ir.TensorProtocol) -> bool:
        if not _streamable(tensor):
            return False
        proto.raw_data = token + len(tensors).to_bytes(4, "big")
        tensors.append(tensor)
        return True

    data = encode(model, placeholder).SerializeToString()
    pieces, length = splice(data, token, lambda index: tensors[index].nbytes)
    return Plan(pieces, length, tensors)


def _streamable(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor has raw data worth streaming; typed fields stay as they are."""
    if not large(tensor, wire.MIN_TENSOR_BYTES):
        return False
    if not isinstance(tensor, ir.TensorProtoTensor):
        return True
    return tensor.raw.HasField("raw_data") and not tensor.raw.HasField("segment")


def _external_plan(model: ir.Model, location: str) -> Plan:
    """Give each large tensor a place in a data file; equal objects share one."""
    placed: dict[int, int] = {}
    data: list[tuple[int, ir.TensorProtocol]] = []
    end = 0

    def place(proto: onnx.TensorProto, tensor: ir.TensorProtocol) -> bool:
        nonlocal end
        if not large(tensor, wire.MIN_TENSOR_BYTES):
            return False
        offset = placed.get(id(tensor))
        if offset is None:
            alignment = PAGE if tensor.nbytes >= _PAGE_FROM else _SMALL_ALIGNMENT
            offset = placed[id(tensor)] = -(-end // alignment) * alignment
            data.append((offset, tensor))
            end = offset + tensor.nbytes
        refer(proto, location, offset, tensor.nbytes)
        return True

    serialized = encode(model, place).SerializeToString()
    return Plan([serialized], len(serialized), [], data, end)


def refer(proto: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Make ``proto`` an external tensor."""
    proto.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        proto.external_data.add(key=key, value=str(value))


def _emit(plan: Plan, sink: Sink) -> None:
    for piece in plan.pieces:
        if isinstance(piece, int):
            tensor = plan.tensors[piece]
            write_tensor(sink, tensor, tensor.nbytes)
        else:
            sink.write(piece)


def _write_file(path: str, plan: Plan) -> None:
    plan.check_sources()
    with AtomicFile(path) as file:
        sink = FileSink(file.fd)
        _emit(plan, sink)
        sink.flush()
        file.flush()
        plan.check_sources()
        file.commit()


def _save_two(model: ir.Model, path: str) -> SavedFiles:
    """Write data file and model. The model's rename is the one moment at which both count."""
    old = _old_data_files(path)
    data_path = _fresh_data_path(path, old | _source_paths(model))
    plan = _external_plan(model, os.path.basename(data_path))
    if plan.length > INLINE_LIMIT:
        raise ModelSaveError(f"'{path}': the graph without its weights passes 2 GiB")
    plan.check_sources()
    with AtomicFile(data_path) as data_file, AtomicFile(path) as model_file:
        sink = FileSink(data_file.fd)
        position = 0
        for offset, tensor in plan.data:
            sink.write(bytes(offset - position))
            write_tensor(sink, tensor, tensor.nbytes)
            position = offset + tensor.nbytes
        sink.flush()
        data_file.flush()
        model_sink = FileSink(model_file.fd)
        _emit(plan, model_sink)
        model_sink.flush()
        model_file.flush()
        plan.check_sources()
        data_file.commit()
        model_file.commit()
    for orphan in old - {data_path}:  # only the model just replaced referred to it
        os.unlink(orphan)
    return SavedFiles((path, data_path), plan.length + plan.data_length)


def _old_data_files(path: str) -> set[str]:
    """Return the data files of ours that the model now at ``path`` refers to."""
    if not os.path.exists(path):
        return set()
    folder, name = os.path.split(path)
    try:
        _, proto = parse(FileSource.open(path, path))
    except ModelLoadError:
        return set()
    candidates = {_data_name(name, number) for number in range(10)}
    found = {
        entry.value
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    names = found & candidates
    return {
        os.path.join(folder, item) for item in names if os.path.isfile(os.path.join(folder, item))
    }


def _data_name(name: str, number: int) -> str:
    return f"{name}.data" if number == 0 else f"{name}.{number}.data"


def _source_paths(model: ir.Model) -> set[str]:
    kept = model.graph.meta.get(META_KEY)
    sources = kept.sources if isinstance(kept, ModelExtras) else ()
    files = [source for source in sources if isinstance(source, FileSource)]
    return {file.path for file in files if file.path is not None}


def _fresh_data_path(path: str, used: set[str]) -> str:
    """Return a data file name that no model which has to stay whole refers to.

    Those are the model that is replaced (valid until the last moment) and the source.
    """
    folder, name = os.path.split(path)
    number = 0
    while os.path.join(folder, _data_name(name, number)) in used:
        number += 1
    return os.path.join(folder, _data_name(name, number))


def _save_stream(model: ir.Model, stream: BinaryIO, external_data: bool) -> SavedFiles:
    if external_data:
        raise ModelSaveError("external data needs a path to lie beside; a stream holds one file")
    plan = _inline_plan(model)
    if plan.length > INLINE_LIMIT:
        raise ModelSaveError(
            "the model passes 2 GiB and needs a data file; save it to a path, not to a stream"
        )
    plan.check_sources()
    try:
        _emit(plan, StreamSink(stream))
        stream.flush()
    except OSError as error:
        raise ModelSaveError(f"the output cannot be written: {error.strerror}") from error
    return SavedFiles((), plan.length)
