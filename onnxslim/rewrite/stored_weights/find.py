"""Finds the weights of layers: large constants that a layer multiplies with or looks up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.schema import ONNX_DOMAINS, is_op
from onnxslim.ir.traversal import graphs
from onnxslim.pipeline import Context, Pass

Array = npt.NDArray[Any]

MIN_BYTES = 1024

# These only move elements: the weight behind them stays a weight.
_LAYOUTS = ("Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
# These need some inputs as initializers, so nothing that they read becomes a computed value.
_LITERAL = frozenset(
    (
        "ConvInteger",
        "DequantizeLinear",
        "MatMulInteger",
        "MatMulNBits",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
        "Resize",
        "Upsample",
    )
)
_MAX_DEPTH = 4


@dataclass(frozen=True)
class Weight:
    """One weight.

    Attributes:
        value: the initializer, or the output of a Constant node.
        graph: where it is defined.
        kept: axes along which magnitudes differ most: output channels, rows of a table.
    """

    value: ir.Value
    graph: ir.Graph
    kept: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.value.name or ""

    @property
    def tensor(self) -> ir.TensorProtocol:
        tensor = constant_tensor(self.value)
        if tensor is None:
            raise ValueError(f"{self.name!r} is no constant")
        return tensor

    def array(self) -> Array:
        """The contents; reads them."""
        return self.tensor.numpy()


def find_weights(
    owner: Pass,
    model: ir.Model,
    context: Context,
    *,
    dtypes: tuple[ir.DataType, ...],
    min_bytes: int = MIN_BYTES,
) -> list[Weight]:
    """The weights of these types from ``min_bytes`` up, in the order of the model.

    A large constant that is left out gets a refusal with the reason.
    """
    bodies = {id(function.graph) for function in model.functions.values()}
    for function in model.functions.values():
        bodies.update(id(graph) for graph in function.graph.subgraphs())
    found = []
    for graph in graphs(model):
        for value in list(_constants(graph)):
            tensor = constant_tensor(value)
            if tensor is None or tensor.dtype not in dtypes or tensor.nbytes < min_bytes:
                continue
            judged = _judge(value, graph, id(graph) in bodies)
            if isinstance(judged, str):
                context.refuse(owner, value.name or "", judged)
            elif judged is not None:
                found.append(judged)
    return found


def _constants(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.initializers.values()
    for node in graph:
        if is_op(node, "Constant"):
            yield node.outputs[0]


def _judge(value: ir.Value, graph: ir.Graph, in_function: bool) -> Weight | str | None:
    """The weight, why it cannot be one, or None where nobody would expect one."""
    if value.is_graph_output():
        return "it is an output of the graph"
    uses = list(_uses(value, 0))
    kept = next((axes for node, index in uses if (axes := _kept(value, node, index))), None)
    if kept is None:
        return None
    if in_function:
        return "it is in the body of a function, which calls share"
    literal = next((node.op_type for node, _ in uses if node.op_type in _LITERAL), None)
    if literal is not None:
        return f"{literal} reads it too and needs an initializer"
    return Weight(value, graph, kept[0])


def _uses(value: ir.Value, depth: int) -> Iterator[tuple[ir.Node, int]]:
    """Who reads the value, directly or through another layout of it."""
    for node, index in value.uses():
        yield node, index
        moved = is_op(node, "Concat") or (is_op(node, *_LAYOUTS) and index == 0)
        if moved and depth < _MAX_DEPTH:
            for output in node.outputs:
                yield from _uses(output, depth + 1)


def _kept(value: ir.Value, node: ir.Node, index: int) -> tuple[tuple[int, ...]] | None:
    """The axes of output channels in a tuple, or None where the node has no weight there."""
    tensor = constant_tensor(value)
    rank = 0 if tensor is None else len(tensor.shape)
    if node.domain not in ONNX_DOMAINS or not _is_weight_input(node, index):
        return None
    direct = node.inputs[index] is value
    if not direct or rank < 2:
        return (tuple(range(max(rank - 1, 0))),)
    if node.op_type == "MatMul" and index == 1:
        return ((*range(rank - 2), rank - 1),)
    if node.op_type == "Gemm":
        transposed = node.attributes.get("transB")
        is_transposed = transposed is not None and transposed.as_int() == 1
        return ((0 if is_transposed or index == 0 else 1,),)
    if node.op_type in ("Conv", "ConvTranspose"):
        return ((0 if node.op_type == "Conv" else 1,),)
    return (tuple(range(rank - 1)),)


def _is_weight_input(node: ir.Node, index: int) -> bool:
    if node.op_type in ("Conv", "ConvTranspose"):
        return index == 1
    if node.op_type in ("MatMul", "Gemm"):
        return index in (0, 1)
    if node.op_type in ("LSTM", "GRU", "RNN"):
        return index in (1, 2)
    # a table of which constant rows are taken is folded when the model is opened: no embedding
    return node.op_type == "Gather" and index == 0 and not _computed_from_constants(node.inputs[1])


def _computed_from_constants(value: ir.Value | None) -> bool:
    while value is not None and is_op(value.producer(), "Cast", *_LAYOUTS):
        value = value.producer().inputs[0]  # type: ignore[union-attr]
    return constant_tensor(value) is not None


def needs_initializer(value: ir.Value) -> bool:
    """True when some reader takes it as an initializer only."""
    return any(node.op_type in _LITERAL for node, _ in _uses(value, 0))


def is_finite(array: Array) -> bool:
    """True when there is neither NaN nor infinity."""
    return bool(np.isfinite(array).all())
