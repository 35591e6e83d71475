"""onnxslim: makes ONNX models smaller and faster, and proves that they still give the same answers.

Public names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

_here = _Path(__file__).resolve().parent
if not (_here / "passes").is_dir():  # a source checkout: passes/ lies beside the package
    __path__.append(str(_here.parent))

if TYPE_CHECKING:
    from onnxslim.api import (
        compress,
        inspect,
        optimize,
        prune,
        quantize,
        session,
        validate,
    )
    from onnxslim.compat import slim
    from onnxslim.compression import Compression
    from onnxslim.errors import OnnxSlimError
    from onnxslim.io import load, save
    from onnxslim.packing import PackedModel, open_packed, pack, unpack
    from onnxslim.pruning.request import Pruning
    from onnxslim.quantization.request import Quantization

__version__ = "1.0.0"

_PUBLIC = {
    "Compression": "onnxslim.compression",
    "OnnxSlimError": "onnxslim.errors",
    "PackedModel": "onnxslim.packing",
    "Pruning": "onnxslim.pruning.request",
    "Quantization": "onnxslim.quantization.request",
    "Store": "onnxslim.store",
    "compress": "onnxslim.api",
    "inspect": "onnxslim.api",
    "load": "onnxslim.io",
    "optimize": "onnxslim.api",
    "open_packed": "onnxslim.packing",
    "pack": "onnxslim.packing",
    "prune": "onnxslim.api",
    "quantize": "onnxslim.api",
    "save": "onnxslim.io",
    "session": "onnxslim.api",
    "slim": "onnxslim.compat",
    "unpack": "onnxslim.packing",
    "validate": "onnxslim.api",
}

__all__ = [
    "Compression",
    "OnnxSlimError",
    "PackedModel",
    "Pruning",
    "Quantization",
    "Store",
    "__version__",
    "compress",
    "inspect",
    "load",
    "open_packed",
    "optimize",
    "pack",
    "prune",
    "quantize",
    "save",
    "session",
    "slim",
    "unpack",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        _import_module("onnxslim.startup").import_graph_library()
        return getattr(_import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'onnxslim' has no attribute {name!r}")
