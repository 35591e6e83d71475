"""The element types of ONNX tensors, as this room needs them."""

from __future__ import annotations

from typing import Any

import numpy as np

# number in TensorProto.DataType -> (name, bits of an element)
_TYPES = {
    1: ("FLOAT", 32),
    2: ("UINT8", 8),
    3: ("INT8", 8),
    4: ("UINT16", 16),
    5: ("INT16", 16),
    6: ("INT32", 32),
    7: ("INT64", 64),
    8: ("STRING", 8),
    9: ("BOOL", 8),
    10: ("FLOAT16", 16),
    11: ("DOUBLE", 64),
    12: ("UINT32", 32),
    13: ("UINT64", 64),
    14: ("COMPLEX64", 64),
    15: ("COMPLEX128", 128),
    16: ("BFLOAT16", 16),
    17: ("FLOAT8E4M3FN", 8),
    18: ("FLOAT8E4M3FNUZ", 8),
    19: ("FLOAT8E5M2", 8),
    20: ("FLOAT8E5M2FNUZ", 8),
    21: ("UINT4", 4),
    22: ("INT4", 4),
    23: ("FLOAT4E2M1", 4),
    24: ("FLOAT8E8M0", 8),
    25: ("UINT2", 2),
    26: ("INT2", 2),
}
_FLOATS = frozenset(("FLOAT", "FLOAT16", "DOUBLE", "COMPLEX64", "COMPLEX128", "BFLOAT16"))
_SMALL_FLOATS = {
    "BFLOAT16": "bfloat16",
    "FLOAT8E4M3FN": "float8_e4m3fn",
    "FLOAT8E4M3FNUZ": "float8_e4m3fnuz",
    "FLOAT8E5M2": "float8_e5m2",
    "FLOAT8E5M2FNUZ": "float8_e5m2fnuz",
    "FLOAT8E8M0": "float8_e8m0fnu",
}


def name_of(dtype: int) -> str:
    """Return the ONNX name of an element type; unknown numbers are shown as they are."""
    return _TYPES[dtype][0] if dtype in _TYPES else f"TYPE{dtype}"


def bits_of(dtype: int) -> int:
    """Return the bits of an element; unknown types are treated as bytes."""
    return _TYPES[dtype][1] if dtype in _TYPES else 8


def is_float(dtype: int) -> bool:
    """Whether elements (or their halves) are IEEE floats of 2, 4 or 8 bytes, or bfloat16."""
    return name_of(dtype) in _FLOATS


def numpy_dtype(dtype: int) -> np.dtype[Any] | None:
    """Return the little-endian numpy type, or None where a byte is not one element."""
    name = name_of(dtype)
    if name == "STRING" or dtype not in _TYPES or bits_of(dtype) < 8:
        return None
    if name in _SMALL_FLOATS:
        import ml_dtypes

        small: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _SMALL_FLOATS[name]))
        return small
    alias = {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower())
    little: np.dtype[Any] = np.dtype(alias).newbyteorder("<")
    return little
