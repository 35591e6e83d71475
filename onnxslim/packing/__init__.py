"""Packs models without loss (``.onnxz``) and restores them byte for byte.

``docs/format.md`` specifies the file. Reading one never trusts it: every size is checked before
memory is taken, and nothing appears on disk before all hashes agree.
"""

from onnxslim.packing.layout import TOTAL_LIMIT
from onnxslim.packing.listing import PackedTensor
from onnxslim.packing.opened import PackedModel, list_tensors, open_packed, read_tensor
from onnxslim.packing.reader import is_packed
from onnxslim.packing.restore import unpack
from onnxslim.packing.writer import PackReport, pack

__all__ = [
    "TOTAL_LIMIT",
    "PackReport",
    "PackedModel",
    "PackedTensor",
    "is_packed",
    "list_tensors",
    "open_packed",
    "pack",
    "read_tensor",
    "unpack",
]
