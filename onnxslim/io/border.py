"""Graph inputs and outputs are written as they were declared.

The IR keeps one type and shape per value. Inference refines it, an output that is also an input
overwrites it, and some of a declaration has no place in it at all. So the declaration is kept
from load to save as bytes, and given up only where somebody has clearly changed the value.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from onnxslim.io.extras import expressible_type


def write_border(
    proto: onnx.ValueInfoProto,
    current: onnx.ValueInfoProto,
    declared: bytes | None,
    other: bytes | None,
    *,
    refinable: bool,
) -> None:
    """Fill ``proto`` with the declaration if it still holds, else with ``current``.

    Args:
        proto: What to fill.
        current: The value as the IR has it now.
        declared: The declaration that was read, if there was one for this name.
        other: The declaration of the same name at the other end (an input that is an output).
        refinable: Whether a more precise type than the declared one is only something inferred
            (outputs), or a wish (inputs: nothing infers these).
    """
    if declared is not None and _holds(current, declared, other, refinable):
        proto.ParseFromString(declared)
    else:
        proto.CopyFrom(current)


def _holds(
    current: onnx.ValueInfoProto, declared: bytes, other: bytes | None, refinable: bool
) -> bool:
    known = [_as_read(data) for data in (declared, other) if data is not None]
    if any(info is None or info == current.type for info in known):
        return True
    return refinable and known[0] is not None and _covers(known[0], current.type)


def _as_read(declared: bytes) -> onnx.TypeProto | None:
    """Return the type as it comes out of the IR; None if the IR cannot hold it (nor change it)."""
    info = onnx.ValueInfoProto.FromString(declared)
    if not expressible_type(info.type):
        return None
    value = ir.serde.deserialize_value_info_proto(info, None)
    return ir.serde.serialize_value(value, name=info.name or "-").type


def _covers(declared: onnx.TypeProto, current: onnx.TypeProto) -> bool:
    """Whether ``current`` says the same as ``declared`` or more."""
    kind = declared.WhichOneof("value")
    if kind is None:
        return True
    if kind != current.WhichOneof("value"):
        return False
    left, right = getattr(declared, kind), getattr(current, kind)
    if kind in ("sequence_type", "optional_type"):
        return _covers(left.elem_type, right.elem_type)
    if left.elem_type != right.elem_type:
        return False
    if not left.HasField("shape"):
        return True
    if not right.HasField("shape") or len(left.shape.dim) != len(right.shape.dim):
        return False
    pairs = zip(left.shape.dim, right.shape.dim, strict=True)
    return all(
        not one.HasField("dim_value") or one.dim_value == two.dim_value for one, two in pairs
    )
