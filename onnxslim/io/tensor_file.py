"""Reads a tensor that stands alone in a file, as the operator tests of ONNX store inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper

from onnxslim.errors import DataError


def read_tensor(path: Path) -> tuple[str, npt.NDArray[Any]]:
    """The name (often empty) and the content of a serialised ``TensorProto``.

    Raises:
        DataError: unreadable, no tensor, or data that lies in another file.
    """
    proto = onnx.TensorProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise DataError(f"{path} is not a tensor as ONNX test data store it") from error
    if proto.data_type == onnx.TensorProto.UNDEFINED:
        raise DataError(f"{path} is not a tensor: it names no element type")
    if proto.data_location == onnx.TensorProto.EXTERNAL:
        raise DataError(
            f"{path} keeps its data in another file, which is not read; store it inside"
        )
    try:
        return proto.name, numpy_helper.to_array(proto)
    except (ValueError, TypeError) as error:
        text = " ".join(str(error).split())
        raise DataError(f"{path} holds a damaged tensor: {text}") from error
