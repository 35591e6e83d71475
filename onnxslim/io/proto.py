"""A model as a protobuf object, for callers that work with protobuf."""

from __future__ import annotations

import io

import onnx
import onnx_ir as ir

from onnxslim.io.writer import save


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The whole model, weights included, as one ``ModelProto``; all of it is in memory then."""
    buffer = io.BytesIO()
    save(model, buffer)
    proto: onnx.ModelProto = onnx.ModelProto.FromString(buffer.getbuffer())
    return proto
