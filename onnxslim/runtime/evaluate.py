"""Runs single nodes, or a few together, on constant inputs: what constant folding needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.errors import RuntimeRefusedError
from onnxslim.runtime.session import open_session

Array = npt.NDArray[Any]

# New enough for every element type, old enough for every supported onnxruntime.
_IR_VERSION = 10


def evaluate(
    node: ir.Node, inputs: Sequence[Array | None], opset_imports: Mapping[str, int]
) -> list[Array | None]:
    """Runs one node in onnxruntime with graph optimizations off, on one thread.

    Args:
        node: a node without subgraphs and without attribute references; it is not changed.
        inputs: one array per input slot, None for an absent one.
        opset_imports: the imports of the graph that the node lives in.

    Returns:
        One array per output slot, None for an absent one.

    Raises:
        RuntimeRefusedError: onnxruntime has no kernel for it, the kernel fails, an input is of a
            type that cannot be handed over, or the integer division has no defined result.
    """
    given = [value for value in node.inputs if value is not None]
    arrays = [array for array in inputs if array is not None]
    if len(given) != len(arrays):
        raise RuntimeRefusedError(f"{_label(node)}: {len(given)} inputs, {len(arrays)} given")
    feeds = dict(zip(given, arrays, strict=True))
    wanted = [value for value in node.outputs if value.name]
    results = iter(evaluate_many([node], feeds, wanted, opset_imports))
    return [next(results) if value.name else None for value in node.outputs]


def evaluate_many(
    nodes: Sequence[ir.Node],
    feeds: Mapping[ir.Value, Array],
    wanted: Sequence[ir.Value],
    opset_imports: Mapping[str, int],
) -> list[Array]:
    """Runs nodes together in one session, which costs hardly more than one node does.

    Args:
        nodes: in topological order, as in `evaluate`.
        feeds: the contents of every value that the nodes read and none of them computes.
        wanted: the outputs of the nodes to return, in this order.
        opset_imports: the imports of the graph that the nodes live in.

    Raises:
        RuntimeRefusedError: as in `evaluate`, for any of the nodes. Integer divisions are checked
            only where both sides are in ``feeds``; others are refused unseen.
    """
    for node in nodes:
        _check_node(node)
        _check_division(node, feeds)
    names = {value: f"i{index}" for index, value in enumerate(feeds)}
    inputs = [_input(names[value], array) for value, array in feeds.items()]
    known = dict(zip(feeds, inputs, strict=True))
    copies = [_copy(node, known, index) for index, node in enumerate(nodes)]
    model = ir.Model(
        ir.Graph(
            inputs,
            [known[value] for value in wanted],
            nodes=copies,
            opset_imports=dict(opset_imports),
            name="evaluate",
        ),
        ir_version=_IR_VERSION,
    )
    session = open_session(ir.to_proto(model).SerializeToString(), optimize=False, threads=1)
    named = {names[value]: np.asarray(array) for value, array in feeds.items()}
    results = session.run(named)
    for value, result in zip(wanted, results, strict=True):
        if not isinstance(result, np.ndarray) or result.dtype == object:
            raise RuntimeRefusedError(f"{value.name}: the result is not a tensor of numbers")
    return results


def _label(node: ir.Node) -> str:
    names = ", ".join(value.name or "" for value in node.outputs)
    return f"{node.op_type} ({names})"


def _check_node(node: ir.Node) -> None:
    for attribute in node.attributes.values():
        if attribute.is_ref():
            raise RuntimeRefusedError(f"{_label(node)}: attribute {attribute.name} is a reference")
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            raise RuntimeRefusedError(f"{_label(node)}: the node holds a subgraph")


def _check_division(node: ir.Node, feeds: Mapping[ir.Value, Array]) -> None:
    """Integer division by zero ends the whole process on some machines, so it is never tried."""
    if node.op_type not in ("Div", "Mod") or len(node.inputs) != 2:
        return
    top, bottom = (
        feeds.get(value) if value is not None else None  # None: computed by another node here
        for value in node.inputs
    )
    if top is None or bottom is None:
        dtypes = [value.dtype for value in node.inputs if value is not None]
        if not any(dtype is not None and dtype.is_floating_point() for dtype in dtypes):
            raise RuntimeRefusedError(f"{_label(node)}: the divisor is not known beforehand")
    elif bottom.dtype.kind in "iu" and bool((bottom == 0).any()):
        raise RuntimeRefusedError(f"{_label(node)}: division by zero")
    elif bottom.dtype.kind == "i":
        lowest = np.iinfo(top.dtype).min
        if bool((top == lowest).any()) and bool((bottom == -1).any()):
            raise RuntimeRefusedError(f"{_label(node)}: the quotient overflows")


def _input(name: str, array: Array) -> ir.Value:
    try:
        dtype = ir.DataType.from_numpy(array.dtype)
    except TypeError as error:
        raise RuntimeRefusedError(f"arrays of {array.dtype} cannot be evaluated") from error
    if dtype == ir.DataType.STRING or dtype.bitwidth < 8:
        raise RuntimeRefusedError(f"arrays of {array.dtype} cannot be evaluated")
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(array.shape))


def _copy(node: ir.Node, known: dict[ir.Value, ir.Value], index: int) -> ir.Node:
    """A copy under names of its own, so that equal names of two scopes do not meet."""
    inputs = []
    for value in node.inputs:
        if value is not None and value not in known:
            raise RuntimeRefusedError(f"{_label(node)}: {value.name} is not given")
        inputs.append(known[value] if value is not None else None)
    outputs = []
    for slot, value in enumerate(node.outputs):
        outputs.append(ir.Value(name=f"o{index}_{slot}" if value.name else ""))
        known[value] = outputs[-1]
    return ir.Node(
        node.domain,
        node.op_type,
        inputs,
        list(node.attributes.values()),
        outputs=outputs,
        name=f"n{index}",
    )
