"""Sums and products that stand among float operators: int8 would only add conversions there."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxslim.ir.schema import is_op

_REASON = "it stands among float operators"
_GELU = "part of a Gelu, which runs as one float operator"

_ARITHMETIC = frozenset({"Add", "Mul"})

# A Gelu goes on for this many sums and products after its Erf.
_GELU_LENGTH = 3


def among_floats(chosen: Sequence[ir.Node]) -> dict[int, str]:
    """Reasons against chosen nodes, by id.

    Args:
        chosen: in the order of the graph; only Add and Mul are looked at.
    """
    known = {id(node) for node in chosen}
    found = {id(node): _GELU for node in _gelus(chosen) if id(node) in known}
    for node in chosen:
        if node.op_type in _ARITHMETIC and id(node) not in found:
            makers = [value.producer() for value in node.inputs if value is not None]
            floats = [one for one in makers if one is not None]
            if floats and all(id(one) not in known or id(one) in found for one in floats):
                found[id(node)] = _REASON
    for node in reversed(chosen):
        if node.op_type not in _ARITHMETIC or id(node) in found:
            continue
        value = node.outputs[0]
        readers = [user for user, _ in value.uses()]
        is_float = all(id(one) not in known or id(one) in found for one in readers)
        if readers and is_float and not value.is_graph_output():
            found[id(node)] = _REASON
    return found


def _gelus(chosen: Sequence[ir.Node]) -> list[ir.Node]:
    """The sums and products behind every Erf, as far as each is read by the next alone."""
    starts: dict[int, ir.Node] = {}
    for node in chosen:
        for value in node.inputs:
            maker = value.producer() if value is not None else None
            if is_op(maker, "Erf") and node.op_type in _ARITHMETIC:
                starts[id(node)] = node
    found: list[ir.Node] = []
    for start in starts.values():
        last: ir.Node | None = start
        for _ in range(_GELU_LENGTH):
            if last is None or last.op_type not in _ARITHMETIC:
                break
            found.append(last)
            users = {id(user): user for user, _ in last.outputs[0].uses()}
            last = next(iter(users.values())) if len(users) == 1 else None
    return found
