"""Decides which nodes of a prepared model get int8."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxslim.errors import InvalidModelError, UsageError
from onnxslim.io import is_opaque_initializer
from onnxslim.ir.constants import scalar
from onnxslim.ir.schema import ONNX_DOMAINS
from onnxslim.ir.traversal import subgraphs_of
from onnxslim.quantization.between import among_floats
from onnxslim.quantization.presets import QuantizePreset

MATRIX_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

# Operators with int8 kernels, or that move int8 numbers about. Norms, TopK and the like would only
# be wrapped in conversions.
INT8_OPS = MATRIX_OPS | {
    "Add", "AveragePool", "Clip", "Concat", "Flatten", "Gather", "GlobalAveragePool", "LeakyRelu",
    "MaxPool", "Mul", "Pad", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Softmax", "Split",
    "Squeeze", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip

# Operators that move numbers about and leave them as they are.
_MOVES = frozenset({
    "Cast", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "MaxPool",
    "Pad", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze",
})  # fmt: skip

# Nodes between a weight and its use that are looked through.
_LONGEST_WAY = 8


@dataclass
class Selection:
    """Nodes of the main graph for int8, in order, and the reasons of all others.

    ``captured`` holds the ids of nodes that move a tensor about on its way to a subgraph.
    """

    chosen: list[ir.Node] = field(default_factory=list)
    refused: list[tuple[ir.Node, str]] = field(default_factory=list)
    captured: set[int] = field(default_factory=set)


def select(
    model: ir.Model,
    preset: QuantizePreset,
    *,
    op_types: Collection[str] | None = None,
    float_nodes: Collection[str] = (),
    only: Collection[str] | None = None,
) -> Selection:
    """Decides node by node of the main graph.

    Args:
        model: from `prepare`.
        preset: the settings.
        op_types: operators to quantize; None for all.
        float_nodes: names of nodes to leave in float.
        only: names of the only nodes that may be quantized; None for all.

    Raises:
        InvalidModelError: no product of matrices is left for int8, with the commonest reason.
    """
    result = Selection(captured=_on_the_way_to_subgraphs(model.graph))
    for node in model.graph:
        left_out = node.name in float_nodes or (only is not None and node.name not in only)
        reason = "excluded" if left_out else _reason_against(node, preset)
        if reason is None and op_types is not None and node.op_type not in op_types:
            reason = "operator left out"
        if reason is None and id(node) in result.captured:
            reason = "a subgraph reads its output"
        if reason is None:
            result.chosen.append(node)
        else:
            result.refused.append((node, reason))
    against = among_floats(result.chosen)
    result.refused.extend((n, against[id(n)]) for n in result.chosen if id(n) in against)
    result.chosen = [node for node in result.chosen if id(node) not in against]
    _drop_islands(result)
    if not result.chosen:
        reasons = [f"{n.op_type}: {why}" for n, why in result.refused if n.op_type in MATRIX_OPS]
        why = f" ({max(reasons, key=reasons.count)})" if reasons else ""
        raise InvalidModelError(
            f"the main graph holds no Conv, Gemm or MatMul that int8 could run{why}; "
            "keep the float model"
        )
    return result


def find_nodes(graph: ir.Graph, wanted: Sequence[str]) -> set[str]:
    """Names of the nodes that patterns or names mean.

    Args:
        graph: whose nodes all have names.
        wanted: names of nodes or of their outputs, or patterns of such with ``*``, ``?``, ``[]``.

    Raises:
        UsageError: one that no node fits, with near names.
    """
    owners: dict[str, list[str]] = {}
    for node in graph:
        for name in {node.name, *(value.name for value in node.outputs)}:
            if name:
                owners.setdefault(name, []).append(node.name or "")
    found: set[str] = set()
    for text in wanted:
        names = [text] if text in owners else fnmatch.filter(owners, text)
        if not names:
            raise UsageError(f"no node is called {text!r} and none makes it{_near(text, owners)}")
        for name in names:
            found.update(owners[name])
    return found


def _near(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _reason_against(node: ir.Node, preset: QuantizePreset) -> str | None:
    if node.domain not in ONNX_DOMAINS:
        return "operator of another domain"
    if any(True for _ in subgraphs_of(node)):
        return "subgraphs stay in float"
    if node.op_type not in INT8_OPS:
        return "no int8 kernel"
    return _type_reason(node) or _input_reason(node) or _operator_reason(node, preset)


def _type_reason(node: ir.Node) -> str | None:
    dtypes = [value.dtype for value in (*node.inputs, *node.outputs) if value is not None]
    if any(dtype is None for dtype in dtypes):
        return "unknown type"
    for dtype in dtypes:
        if dtype != ir.DataType.FLOAT and dtype is not None and dtype.is_floating_point():
            return f"{dtype.name.lower()} numbers"
    return None if node.outputs[0].dtype == ir.DataType.FLOAT else "no float numbers"


def _input_reason(node: ir.Node) -> str | None:
    for value in node.inputs:
        if value is None or not value.is_initializer():
            continue
        if value.is_graph_input():
            return "a caller can override its constants"
        if is_opaque_initializer(value) or value.const_value is None:
            return "sparse weights"
        if value.const_value.size == 0 and value.dtype == ir.DataType.FLOAT:
            return "empty weights"
    return None


def _operator_reason(node: ir.Node, preset: QuantizePreset) -> str | None:
    constant = [value is None or value.is_initializer() for value in node.inputs]
    match node.op_type:
        case "Conv" | "ConvTranspose" | "Gemm" if not all(constant[1:]) or constant[0]:
            return "weights are not constant"
        case "Gemm" if not _is_bias_per_column(node):
            return "its bias differs by row"
        case "MatMul" if all(constant):
            return "constant"
        case "Softmax" if not preset.device:
            return "its int8 kernel is slower and coarser than float"
        case "Pad" if not _pads_zeros(node):
            return "it pads with other numbers than zero"
        case "MatMul" if preset.constant_matmul_only and not any(map(_is_fixed, node.inputs)):
            return "a product of two activations"
        case "Relu" | "Clip" if _read_elsewhere(node):
            return "its input is wanted as it is"  # the engine would give both one range
    return None


def _is_bias_per_column(node: ir.Node) -> bool:
    """False for a bias of a Gemm that int8 kernels do not know."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    shape = bias.const_value.shape.numpy() if bias is not None and bias.const_value else ()
    return all(length == 1 for length in shape[:-1])


def _pads_zeros(node: ir.Node) -> bool:
    """True when a Pad repeats numbers or adds zeros."""
    if node.attributes.get_string("mode", "constant") != "constant":
        return True
    value = node.inputs[2] if len(node.inputs) > 2 else None
    return value is None or scalar(value) == 0


def _is_fixed(value: ir.Value | None) -> bool:
    """True for a weight, also when it is transposed or reshaped on the way."""
    for _ in range(_LONGEST_WAY):
        if value is None or value.is_initializer():
            return value is not None
        node = value.producer()
        if node is None or node.op_type not in ("Transpose", "Reshape", "Squeeze", "Unsqueeze"):
            return False
        value = node.inputs[0]
    return False


def _read_elsewhere(node: ir.Node) -> bool:
    """True when the input of an activation is an output of the model or read by a subgraph."""
    source = node.inputs[0]
    return source is not None and (
        source.is_graph_output() or any(user.graph is not node.graph for user, _ in source.uses())
    )


def _on_the_way_to_subgraphs(graph: ir.Graph) -> set[int]:
    """Nodes that only move data, from which a subgraph reads directly or through other such nodes.

    onnxruntime moves a DequantizeLinear before them past them, and dies where it arrives at a
    subgraph (an implicit input has no place in its node's list of inputs).
    """
    found: set[int] = set()
    stack = [
        node
        for node in graph
        if any(user.graph is not graph for value in node.outputs for user, _ in value.uses())
    ]
    while stack:
        node = stack.pop()
        if node.op_type not in _MOVES or id(node) in found:
            continue
        found.add(id(node))
        source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if source is not None and source.graph is graph:
            stack.append(source)
    return found


def _drop_islands(selection: Selection) -> None:
    """Takes out what is connected with no chosen operator that has weights: it would only lose."""
    chosen = {id(node): node for node in selection.chosen}
    reached: set[int] = set()
    stack = [node for node in selection.chosen if _has_gain(node)]
    while stack:
        node = stack.pop()
        if id(node) in reached:
            continue
        reached.add(id(node))
        stack.extend(other for other in _neighbours(node) if id(other) in chosen)
    island = [node for node in selection.chosen if id(node) not in reached]
    selection.refused.extend((node, "no int8 weights or products beside it") for node in island)
    selection.chosen = [node for node in selection.chosen if id(node) in reached]


def _has_gain(node: ir.Node) -> bool:
    """True for products of matrices, which get faster, and embeddings, which get smaller."""
    table = node.inputs[0] if node.op_type == "Gather" else None
    return node.op_type in MATRIX_OPS or (table is not None and table.is_initializer())


def _neighbours(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None and value is not None and value.dtype == ir.DataType.FLOAT:
            yield producer
    for value in node.outputs:
        if value.dtype == ir.DataType.FLOAT:
            yield from (user for user, _ in value.uses())
