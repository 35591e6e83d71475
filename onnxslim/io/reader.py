"""Load a model from wherever it is, without copying its weights."""

from __future__ import annotations

import os
import secrets
import stat
import sys
from collections.abc import Mapping
from typing import BinaryIO

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from onnxslim.errors import ModelLoadError
from onnxslim.io.decode import decode
from onnxslim.io.encode import encode
from onnxslim.io.external import DataFiles, GivenFiles
from onnxslim.io.extras import source_path
from onnxslim.io.source import FileSource, MemorySource, Source, SourceTensor
from onnxslim.io.wire import Range, Skeleton, strip

ModelSource = str | os.PathLike[str] | bytes | BinaryIO | onnx.ModelProto | ir.Model


def load(source: ModelSource) -> ir.Model:
    """Load a model; the data of large tensors stays where it is until it is asked for.

    Args:
        source: A path, ``"-"`` for standard input, bytes, an open binary file, a ModelProto
            (which is not modified) or an ``ir.Model`` (which is cloned, tensors shared).

    Returns:
        The model. Tensors of 1 KiB and more are :class:`~onnxslim.io.source.SourceTensor` over
        the one descriptor that stays open as long as any of them lives.

    Raises:
        ModelLoadError: nothing there, not ONNX, cut short, or unsafe or missing external data.
        InvalidModelError: a graph that breaks the rules of ONNX so far that it has no meaning.
    """
    if isinstance(source, ir.Model):
        return _clone(source)
    if isinstance(source, onnx.ModelProto):
        return _from_proto(source)
    return _from_source(open_source(source))


def open_source(source: str | os.PathLike[str] | bytes | BinaryIO) -> Source:
    """Open what ``load`` accepts, short of parsed models.

    Raises:
        ModelLoadError: it does not exist, is no regular file, or cannot be read.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return MemorySource(bytes(source), "the given bytes")
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if path == "-":
            return _open_stream(sys.stdin.buffer, "standard input")
        return FileSource.open(os.path.realpath(path), f"'{path}'")
    return _open_stream(source, f"'{getattr(source, 'name', 'the given file object')}'")


def _open_stream(stream: BinaryIO, label: str) -> Source:
    """Use a stream that is a regular file like a path; read anything else to its end."""
    try:
        fd = stream.fileno()
        regular = stat.S_ISREG(os.fstat(fd).st_mode) and stream.tell() == 0
    except (OSError, AttributeError, ValueError):
        regular = False
    if not regular:
        try:
            return MemorySource(stream.read(), label)
        except OSError as error:
            raise ModelLoadError(f"{label} cannot be read: {error.strerror}") from error
    name = getattr(stream, "name", None)
    path = os.path.realpath(name) if isinstance(name, str) and os.path.exists(name) else None
    opened = FileSource(os.dup(fd), path, label)
    if not opened.still_at_path():
        opened.path = None
    return opened


def _from_source(source: Source) -> ir.Model:
    skeleton, proto = parse(source)
    files = DataFiles(getattr(source, "path", None), source.label)
    return decode(skeleton, proto, files, getattr(source, "path", None))


def load_given(source: Source, files: Mapping[str, Source]) -> ir.Model:
    """Load a model from sources that are open already.

    Args:
        source: The model.
        files: Its data files, by their names in the model (``/`` between parts).

    Raises:
        ModelLoadError: not ONNX, cut short, or a data file that is not given.
        InvalidModelError: a graph that breaks the rules of ONNX so far that it has no meaning.
    """
    skeleton, proto = parse(source)
    return decode(skeleton, proto, GivenFiles(files, source.label), None)


def parse(source: Source) -> tuple[Skeleton, onnx.ModelProto]:
    """Return the skeleton of a source, serialized and parsed.

    Raises:
        ModelLoadError: empty, text, cut short, or without a graph.
    """
    label = source.label
    if source.size == 0:
        raise ModelLoadError(f"{label} is empty; an ONNX model was expected")
    skeleton = strip(source, _token())
    try:
        proto = onnx.ModelProto.FromString(skeleton.data)
    except DecodeError:
        raise ModelLoadError(f"{label} is truncated or not an ONNX model") from None
    if not proto.HasField("graph"):
        raise ModelLoadError(f"{label} is truncated or not an ONNX model: it holds no graph")
    return skeleton, proto


def _token() -> str:
    return f"onnxslim-{secrets.token_hex(12)}-"


def _from_proto(source: onnx.ModelProto) -> ir.Model:
    if not source.HasField("graph"):
        raise ModelLoadError("the given ModelProto is not an ONNX model: it holds no graph")
    proto = onnx.ModelProto()
    proto.CopyFrom(source)
    label = "the given ModelProto"
    skeleton = Skeleton(b"", _token())
    return decode(skeleton, proto, DataFiles(None, label), None)


def _clone(model: ir.Model) -> ir.Model:
    try:
        clone = model.clone()
    except RuntimeError:  # the IR cannot clone a graph whose nodes are not in order
        return _clone_by_way_of_proto(model)
    clone.meta.update(model.meta)
    for key, function in model.functions.items():
        clone.functions[key].metadata_props.update(function.metadata_props)
    return clone


def _clone_by_way_of_proto(model: ir.Model) -> ir.Model:
    """Clone with tensors in files shared; those in memory are copied."""
    skeleton = Skeleton(b"", _token())

    def share(proto: onnx.TensorProto, tensor: ir.TensorProtocol) -> bool:
        if not isinstance(tensor, SourceTensor):
            return False
        proto.data_location = onnx.TensorProto.EXTERNAL
        location = f"{skeleton.token}{len(skeleton.ranges)}"
        proto.external_data.add(key="location", value=location)
        skeleton.ranges.append(Range(tensor.source, tensor.offset, tensor.length))
        return True

    proto = encode(model, share)
    return decode(skeleton, proto, DataFiles(None, "the given model"), source_path(model))
