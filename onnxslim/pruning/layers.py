"""Matrix operators as linear maps that can be refitted: weights, bias, and rows of their input.

A Conv of any number of groups, a Gemm or a MatMul computes, at every position of its output,
``y = W x + b`` for a row ``x`` unfolded from its input. Refitting it means solving for ``W`` and
``b`` from sampled rows; this module reads and writes them and does the unfolding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.edit import add_initializer
from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import rank
from onnxslim.rewrite.channels.emit import store

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
FreshName = Callable[[str], str]

_OPERATORS = ("Conv", "Gemm", "MatMul")


@dataclass
class Layer:
    """One matrix operator with a constant weight that nothing else reads.

    Attributes:
        node: the operator.
        groups: groups of a Conv, 1 for the others.
        shape: the stored shape of the weight.
        out_axis: 0 where axis 0 of the weight counts outputs, 1 where axis 1 does.
        channel_axis: the axis of input and output that counts channels: 1 or -1.
        scale: Gemm's alpha.
        biased: the reader and input that hold the bias (a MatMul's is in the Add behind it), or
            None where there is no place for one.
        tokens: the positions of its output that anything depends on; None for all.
    """

    node: ir.Node
    groups: int
    shape: tuple[int, ...]
    out_axis: int
    channel_axis: int
    scale: float
    biased: tuple[ir.Node, int] | None
    tokens: frozenset[int] | None = None

    @property
    def source(self) -> ir.Value:
        """What is unfolded."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        """The sum, without the bias where the bias is in an Add."""
        return self.node.outputs[0]

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        return self.shape[self.out_axis]

    @property
    def unknowns(self) -> int:
        """Regressors of one output channel."""
        if self.node.op_type == "Conv":
            return math.prod(self.shape[1:])
        return self.shape[1 - self.out_axis]

    @property
    def taps(self) -> int:
        """Kernel positions: regressors per input channel."""
        return math.prod(self.shape[2:]) if self.node.op_type == "Conv" else 1

    # -- weights ----------------------------------------------------------------------------------

    def weights(self) -> Rows:
        """``(groups, outputs per group, unknowns)`` in float64, alpha included."""
        tensor = constant_tensor(self.node.inputs[1])
        assert tensor is not None
        content = tensor.numpy().astype(np.float64) * self.scale
        if self.node.op_type == "Conv":
            return content.reshape(self.groups, -1, self.unknowns)
        return (content if self.out_axis == 0 else content.T)[np.newaxis]

    def set_weights(self, weights: Rows) -> None:
        """Stores weights of the shape that `weights` gives."""
        value = self.node.inputs[1]
        tensor = constant_tensor(value)
        assert value is not None
        assert tensor is not None
        content = weights / self.scale
        if self.node.op_type == "Conv":
            content = content.reshape(self.shape)
        else:
            content = content[0] if self.out_axis == 0 else content[0].T
        new = np.ascontiguousarray(content.astype(tensor.dtype.numpy()))
        store(value, ir.tensor(new, dtype=tensor.dtype, name=value.name))

    def bias(self) -> Rows:
        """``(outputs,)`` in float64; zeros where there is none."""
        if self.biased is None:
            return np.zeros(self.outputs)
        node, index = self.biased
        tensor = constant_tensor(node.inputs[index]) if index < len(node.inputs) else None
        if tensor is None:
            return np.zeros(self.outputs)
        content = tensor.numpy().astype(np.float64).reshape(-1)
        beta = self.node.attributes.get_float("beta", 1.0) if is_op(self.node, "Gemm") else 1.0
        return np.array(np.broadcast_to(content * beta, (self.outputs,)))

    def set_bias(self, bias: Rows, fresh_name: FreshName) -> None:
        """Stores a bias, which need not have been there; nothing happens where there is no place.

        Args:
            bias: ``(outputs,)``.
            fresh_name: gives unused value names.
        """
        if self.biased is None:
            return
        node, index = self.biased
        weight = constant_tensor(self.node.inputs[1])
        graph = node.graph
        assert weight is not None
        assert graph is not None
        content = bias.astype(weight.dtype.numpy())
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        old = node.inputs[index]
        if is_op(node, "Gemm"):
            node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
        if old is not None and len(old.uses()) == 1 and not old.is_graph_output():
            store(old, ir.tensor(content, dtype=weight.dtype, name=old.name))
            return
        base = old.name if old is not None else f"{self.output.name}_bias"
        node.replace_input_with(index, add_initializer(graph, content, fresh_name(base or "bias")))

    # -- rows -------------------------------------------------------------------------------------

    def rows(self, source: Array, positions: Ids) -> Rows:
        """Unfolds the input at some positions of the output.

        Args:
            source: an input of the node.
            positions: flat positions: of one sample of a Conv's output, of the batch otherwise.

        Returns:
            ``(rows, groups, unknowns)`` in float64.
        """
        if self.node.op_type != "Conv":
            flat = source.reshape(-1, source.shape[-1])[positions]
            return flat[:, np.newaxis, :].astype(np.float64)
        windows = _windows(self.node, source, self.shape[2:])
        spatial = windows.ndim - 2 - (len(self.shape) - 2)
        places = np.unravel_index(positions, windows.shape[2 : 2 + spatial])
        index: tuple[Any, ...] = (slice(None), slice(None), *places)
        picked = np.moveaxis(windows[index], 2, 1)
        unfolded = picked.reshape(-1, self.groups, self.unknowns)
        return np.asarray(unfolded, dtype=np.float64)

    def targets(self, output: Array, positions: Ids) -> Rows:
        """The same positions of a value of the output's shape, as ``(rows, channels)`` float64."""
        if self.channel_axis == -1:
            return output.reshape(-1, output.shape[-1])[positions].astype(np.float64)
        flat = output.reshape(*output.shape[:2], -1)[:, :, positions]
        return np.moveaxis(flat, 1, 2).reshape(-1, output.shape[1]).astype(np.float64)

    def places(self, output: Array) -> int:
        """How many positions there are to choose from, and how many rows each gives."""
        if self.channel_axis == -1:
            return int(output.size // output.shape[-1])
        return math.prod(output.shape[2:])

    def rows_per_place(self, output: Array) -> int:
        """Rows that one position gives: the samples of a Conv's batch, 1 otherwise."""
        return 1 if self.channel_axis == -1 else output.shape[0]


def layers_of(graph: ir.Graph) -> list[Layer]:
    """The layers of a graph that can be refitted, in order."""
    found = [layer_of(node) for node in graph]
    return [layer for layer in found if layer is not None]


def layer_of(node: ir.Node) -> Layer | None:
    """A node as a layer; None for other operators, computed or shared weights."""
    if not is_op(node, *_OPERATORS) or node.inputs[0] is None or len(node.inputs) < 2:
        return None
    value = node.inputs[1]
    tensor = constant_tensor(value)
    if tensor is None or value is None or len(value.uses()) != 1 or value.is_graph_output():
        return None
    shape = tuple(tensor.shape.numpy())
    if not tensor.dtype.is_floating_point() or tensor.dtype.bitwidth < 16 or 0 in shape:
        return None
    return {"Conv": _conv, "Gemm": _gemm, "MatMul": _matmul}[node.op_type](node, shape)


def _conv(node: ir.Node, shape: tuple[int, ...]) -> Layer | None:
    groups = node.attributes.get_int("group", 1)
    if len(shape) < 3 or not _constant_or_absent(node, 2):
        return None
    return Layer(node, groups, shape, 0, 1, 1.0, (node, 2))


def _gemm(node: ir.Node, shape: tuple[int, ...]) -> Layer | None:
    alpha = node.attributes.get_float("alpha", 1.0)
    if node.attributes.get_int("transA", 0) or not alpha or not _constant_or_absent(node, 2):
        return None
    out_axis = 0 if node.attributes.get_int("transB", 0) else 1
    bias = constant_tensor(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None and bias.size not in (1, shape[out_axis]):
        return None
    return Layer(node, 1, shape, out_axis, -1, alpha, (node, 2))


def _matmul(node: ir.Node, shape: tuple[int, ...]) -> Layer | None:
    if len(shape) != 2 or (rank(node.inputs[0]) or 0) < 2:
        return None
    return Layer(node, 1, shape, 1, -1, 1.0, _adder(node, shape[1]))


def _adder(node: ir.Node, size: int) -> tuple[ir.Node, int] | None:
    """The Add of a bias that alone reads a MatMul, and its constant input."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None
    adder, index = uses[0].node, 1 - uses[0].idx
    tensor = constant_tensor(adder.inputs[index]) if is_op(adder, "Add") else None
    if tensor is None or tuple(tensor.shape.numpy()) != (size,) or adder.graph is not node.graph:
        return None
    return adder, index


def _constant_or_absent(node: ir.Node, index: int) -> bool:
    value = node.inputs[index] if index < len(node.inputs) else None
    return value is None or constant_tensor(value) is not None


def _windows(node: ir.Node, source: Array, kernel: tuple[int, ...]) -> Array:
    """``(samples, channels, *output positions, *kernel)``, a view of the padded input."""
    axes = len(kernel)
    strides = list(node.attributes.get_ints("strides", ())) or [1] * axes
    dilations = list(node.attributes.get_ints("dilations", ())) or [1] * axes
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    pads = _pads(node, source.shape[2:], reach, strides)
    padded = np.pad(source, ((0, 0), (0, 0), *pads)) if any(map(any, pads)) else source
    view = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + axes)))
    steps = tuple(slice(None, None, step) for step in strides)
    inner = tuple(slice(None, None, step) for step in dilations)
    return np.asarray(view[(slice(None), slice(None), *steps, *inner)])


def _pads(
    node: ir.Node, sizes: tuple[int, ...], reach: list[int], strides: list[int]
) -> list[tuple[int, int]]:
    """Zeros before and after, per axis."""
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID"):
        given = list(node.attributes.get_ints("pads", ())) if auto == "NOTSET" else []
        given = given or [0] * (2 * len(sizes))
        return list(zip(given[: len(sizes)], given[len(sizes) :], strict=True))
    pads = []
    for size, length, stride in zip(sizes, reach, strides, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + length - size)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if auto == "SAME_UPPER" else (large, small))
    return pads
