"""A model in two parts for onnxruntime: a message without weights, and the weights in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx

from onnxslim.errors import ModelLoadError
from onnxslim.io.decode import expected_bytes
from onnxslim.io.external import GivenFiles
from onnxslim.io.extras import graphs_of, tensors_of
from onnxslim.io.reader import parse
from onnxslim.io.source import Source
from onnxslim.io.wire import MAX_MESSAGE_BYTES, Range, Skeleton
from onnxslim.io.writer import refer

_LEAST = 4096
"""Bytes from which handing over a tensor costs less than a copy of it in the message."""


@dataclass(frozen=True)
class Detached:
    """A serialized model, and the weights it refers to as external data.

    ``weights`` maps the location that stands in the model to the bytes that belong there, from
    offset 0. Only dense initializers of the main graph are detached: nothing else can be handed
    over apart. All other tensors stand in ``data``.
    """

    data: bytes
    weights: dict[str, Range]


def detach(source: Source, files: Mapping[str, Source], *, least: int = _LEAST) -> Detached:
    """Split a model into its graph and its weights. No weight of ``least`` bytes or more is read.

    Args:
        source: The model.
        files: Its data files, by their names in the model.
        least: Smaller weights, in bytes, stay in the graph.

    Raises:
        ModelLoadError: not ONNX, a data file that is not given, or over 2 GiB that cannot be
            detached.
    """
    skeleton, proto = parse(source)
    return _Detacher(skeleton, GivenFiles(files, source.label), least, source.label).run(proto)


class _Detacher:
    def __init__(self, skeleton: Skeleton, files: GivenFiles, least: int, label: str) -> None:
        self._skeleton = skeleton
        self._files = files
        self._least = least
        self._label = label
        self._inline = 0
        self._weights: dict[str, Range] = {}

    def run(self, proto: onnx.ModelProto) -> Detached:
        proto.ClearField("training_info")  # not for inference, and may refer to data files
        for tensor in proto.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                self._detach(tensor)
        for graph in graphs_of(proto):
            for tensor in (*tensors_of(graph), *_sparse_parts(graph)):
                if tensor.data_location == onnx.TensorProto.EXTERNAL:
                    self._bring_in(tensor)
        return Detached(proto.SerializeToString(), self._weights)

    def _detach(self, tensor: onnx.TensorProto) -> None:
        place = self._range(tensor)
        if place.length < self._least:
            return
        del tensor.external_data[:]
        location = f"{self._skeleton.token}w{len(self._weights)}"
        refer(tensor, location, 0, place.length)
        self._weights[location] = place

    def _bring_in(self, tensor: onnx.TensorProto) -> None:
        location = _location(tensor)
        if location in self._weights:
            return
        place = self._range(tensor)
        self._inline += place.length
        if self._inline > MAX_MESSAGE_BYTES:
            raise ModelLoadError(
                f"{self._label}: over 2 GiB of weights are in subgraphs, attributes or sparse "
                "tensors, which cannot be handed over in memory; unpack the model and open the file"
            )
        tensor.raw_data = place.source.read(place.offset, place.length)
        del tensor.external_data[:]
        tensor.ClearField("data_location")

    def _range(self, tensor: onnx.TensorProto) -> Range:
        expected = expected_bytes(tensor, tensor.name or "(unnamed)")
        location = _location(tensor)
        if not location.startswith(self._skeleton.token):
            return self._files.locate(tensor, expected)
        place = self._skeleton.ranges[int(location[len(self._skeleton.token) :])]
        if place.length != expected:
            raise ModelLoadError(
                f"tensor '{tensor.name}' holds {place.length} bytes, but its shape and type need "
                f"{expected}"
            )
        return place


def _location(tensor: onnx.TensorProto) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _sparse_parts(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    sparse = list(graph.sparse_initializer) if isinstance(graph, onnx.GraphProto) else []
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor"):
                sparse.append(attribute.sparse_tensor)
            sparse.extend(attribute.sparse_tensors)
    for item in sparse:
        yield item.values
        yield item.indices
