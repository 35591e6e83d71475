"""Reading and writing of models: the only room that knows files and protobuf.

Loading costs time and memory in proportion to the graph, not to the weights: those stay in the
file, behind one open descriptor, until a pass asks for their values or a save copies them.
"""

from onnxslim.io.atomic import check_target
from onnxslim.io.detached import Detached, detach
from onnxslim.io.extras import (
    OpaqueAttribute,
    forget_declared,
    is_opaque_initializer,
    source_path,
)
from onnxslim.io.proto import to_proto
from onnxslim.io.reader import ModelSource, load, load_given
from onnxslim.io.source import SourceTensor
from onnxslim.io.views import runtime_proto, skeleton_proto
from onnxslim.io.writer import ModelTarget, SavedFiles, save, total_bytes

__all__ = [
    "Detached",
    "ModelSource",
    "ModelTarget",
    "OpaqueAttribute",
    "SavedFiles",
    "SourceTensor",
    "check_target",
    "detach",
    "forget_declared",
    "is_opaque_initializer",
    "load",
    "load_given",
    "runtime_proto",
    "save",
    "skeleton_proto",
    "source_path",
    "to_proto",
    "total_bytes",
]
