"""Lets a Cast read the value from before a Cast that loses nothing.

Before::

    a = Cast <to = 1> (x)
    b = Cast <to = 10> (a)

After (x is float16)::

    b = x

Holds only if:

1. the type of x is known, and the first Cast is exact: every number of that type is one of the type
   in the middle. So never through a narrower type: float to int and back truncates;
2. the second Cast of the same number gives the same from both types. It does not where the result
   of a conversion is undefined (floats outside the range of an integer), where integers wrap around
   but floats do not, and where an integer of 32 bits would be rounded twice on the way to 16 bits;
3. all three types are plain integers, floats of 16 bits or more, or bool; no 8-bit floats, strings.

Where x has the type of the result, readers of the result read x.

Exactness: exact.

Source: Cast of the ONNX operators; ranges and significands of the types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxslim.ir.edit import bypass, remove
from onnxslim.ir.schema import is_op
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.scopes import Scopes

_T = ir.DataType
# Significant bits of the magnitude, the implicit one included.
_FLOATS = {_T.BFLOAT16: 8, _T.FLOAT16: 11, _T.FLOAT: 24, _T.DOUBLE: 53}
_WIDER = {
    _T.FLOAT16: {_T.FLOAT16, _T.FLOAT, _T.DOUBLE},
    _T.BFLOAT16: {_T.BFLOAT16, _T.FLOAT, _T.DOUBLE},
    _T.FLOAT: {_T.FLOAT, _T.DOUBLE},
    _T.DOUBLE: {_T.DOUBLE},
}
# Lowest and highest value.
_INTEGERS = {
    _T.BOOL: (0, 1),
    _T.INT8: (-(2**7), 2**7 - 1),
    _T.INT16: (-(2**15), 2**15 - 1),
    _T.INT32: (-(2**31), 2**31 - 1),
    _T.INT64: (-(2**63), 2**63 - 1),
    _T.UINT8: (0, 2**8 - 1),
    _T.UINT16: (0, 2**16 - 1),
    _T.UINT32: (0, 2**32 - 1),
    _T.UINT64: (0, 2**64 - 1),
}


@dataclass(frozen=True)
class FuseConsecutiveCasts(Pass):
    """Skips exact casts, in main graph, subgraphs and function bodies."""

    name: ClassVar[str] = "fuse-consecutive-casts"
    exactness: ClassVar[Exactness] = Exactness.EXACT
    roots: ClassVar[frozenset[str]] = frozenset({"Cast"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        scopes = Scopes(model)
        changes = 0
        for node in context.nodes_of(model, "Cast"):
            while node.graph is not None and self._fuse(node, scopes, context):
                changes += 1
        return PassResult(changes)

    def _fuse(self, node: ir.Node, scopes: Scopes, context: Context) -> bool:
        first = _match(node)
        source = None if first is None else first.inputs[0]
        if first is None or source is None or source.dtype is None:
            return False
        site = node.outputs[0].name or ""
        detail = " ".join(str(each) for each in (source.dtype, _target(first), _target(node)))
        if source.dtype == _target(node) and scopes.can_replace(node.outputs[0], source):
            if not context.allow(self, site, detail):
                return False
            bypass(node, source)
        else:
            if first.graph is not node.graph or not context.allow(self, site, detail):
                return False
            node.replace_input_with(0, source)
        middle = first.outputs[0]
        if not middle.uses() and not middle.is_graph_output():
            remove(first)
        return True


def _match(node: ir.Node) -> ir.Node | None:
    """The Cast before a Cast that may be skipped."""
    if not is_op(node, "Cast") or node.inputs[0] is None:
        return None
    first = node.inputs[0].producer()
    if first is None or not is_op(first, "Cast") or first.inputs[0] is None:
        return None
    start, middle, end = first.inputs[0].dtype, _target(first), _target(node)
    if start is None or middle is None or end is None or not _is_exact(start, middle):
        return None
    return first if _same_result(start, middle, end) else None


def _target(node: ir.Node) -> ir.DataType | None:
    """The type that a Cast gives; None when not known or when other attributes have a say."""
    found = node.attributes.get("to")
    if found is None or found.is_ref() or found.type != ir.AttributeType.INT:
        return None
    return ir.DataType(found.as_int()) if set(node.attributes) <= {"to", "saturate"} else None


def _is_exact(start: ir.DataType, middle: ir.DataType) -> bool:
    """True when every number of the first type is one of the second (1)."""
    if start in _FLOATS:
        return middle in _WIDER[start]
    if start not in _INTEGERS:
        return False
    low, high = _INTEGERS[start]
    if middle in _FLOATS:
        return bool(max(-low, high + 1) <= 2 ** _FLOATS[middle])
    return _contains(middle, start)


def _contains(wide: ir.DataType, narrow: ir.DataType) -> bool:
    if wide not in _INTEGERS or narrow not in _INTEGERS:
        return False
    (low, high), (least, most) = _INTEGERS[wide], _INTEGERS[narrow]
    return low <= least and most <= high


def _same_result(start: ir.DataType, middle: ir.DataType, end: ir.DataType) -> bool:
    """True when both types cast to the last one alike, given equal numbers (2)."""
    if end == _T.BOOL:
        return True  # not equal to zero
    if end in _INTEGERS:
        if start in _FLOATS:
            return False
        return middle in _INTEGERS or _contains(end, start)
    if end not in _FLOATS:
        return False
    narrow = _FLOATS[end] < _FLOATS[_T.FLOAT]
    return not (narrow and middle == _T.DOUBLE and start in (_T.INT32, _T.UINT32))
