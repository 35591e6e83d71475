"""Takes the mean error that rounding leaves in every channel out of the biases of an int8 model.

    b -= (Wq - W) * E[x]                        from the means of the float model's activations
    b -= E[y of the int8 model] - E[y of the float model]     measured, layer after layer

The biases stay int32, in the steps they had; a layer without a bias gets one.

Source: M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
ICCV 2019, section 4.2; means are measured here, not derived.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxslim.ir import shapes
from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.edit import Names, add_initializer
from onnxslim.quantization.activations import Activations, product
from onnxslim.quantization.axes import channel_axis
from onnxslim.quantization.scaling import Floats, Note, content, set_content
from onnxslim.runtime.specs import Array, Feed

STEP = "bias"

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_INT32 = np.iinfo(np.int32)

# Every layer that is measured opens the int8 model and runs it up to there.
_MOST_MEASURED = 200


@dataclass(frozen=True)
class _Layer:
    """One layer in both models.

    Attributes:
        node: in the int8 model.
        twin: in the float model.
        weight: the weight as int8 holds it, float32.
        codes: the bias, int32 or float32.
        steps: scale of the bias, shape (channels); ones for float32.
    """

    node: ir.Node
    twin: ir.Node
    weight: Array
    codes: ir.Value
    steps: Floats

    @property
    def name(self) -> str:
        """For notes."""
        return self.node.name or self.node.outputs[0].name or ""

    def move(self, shift: Floats) -> None:
        """Adds to the bias, shape (channels), rounded to its steps."""
        if self.codes.dtype == ir.DataType.FLOAT:
            set_content(self.codes, (content(self.codes) + shift).astype(np.float32))
            return
        codes = content(self.codes).astype(np.float64) + np.round(shift / self.steps)
        set_content(self.codes, np.clip(codes, _INT32.min, _INT32.max).astype(np.int32))


def correct_analytically(model: ir.Model, int8: ir.Model, feeds: Sequence[Feed]) -> list[Note]:
    """Corrects what the rounding of weights does to means, in place.

    Args:
        model: the float model that was quantized; it is not changed.
        int8: what became of it (QuantizeLinear and DequantizeLinear pairs), changed in place.
        feeds: calibration samples.

    Returns:
        A note for each layer.

    Raises:
        RuntimeRefusedError: onnxruntime cannot run the float model.
    """
    layers, notes = _layers(model, int8)
    names = [layer.twin.inputs[0].name or "" for layer in layers if layer.twin.inputs[0]]
    taps = Activations(model, names)
    for layer in layers:
        source = layer.twin.inputs[0]
        assert source is not None
        shift = np.zeros(len(layer.steps))
        weight = content_of(layer.twin.inputs[1])
        total = 0
        for array in taps.each(source.name or "", feeds):
            mean = _mean_input(layer.twin, array)
            output = product(layer.node, mean, layer.weight, int8.graph.opset_imports)
            output -= product(layer.twin, mean, weight, model.graph.opset_imports)
            axis = 1 if output.ndim > 2 or layer.twin.op_type == "Gemm" else output.ndim - 1
            shift -= len(array) * _channel_means(output, axis)
            total += len(array)
        layer.move(shift / max(total, 1))
        notes.append(Note(STEP, layer.name, "mean error of the weights removed", kept=True))
    return notes


def correct_empirically(
    model: ir.Model,
    int8: ir.Model,
    feeds: Sequence[Feed],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[Note]:
    """Corrects what is left, layer after layer, as the int8 kernels compute it, in place.

    Args:
        model: the float model that was quantized; it is not changed.
        int8: what became of it, changed in place.
        feeds: calibration samples; both models run on them once a layer, up to that layer.
        progress: called with layers done and layers in all.

    Returns:
        A note for each layer.

    Raises:
        RuntimeRefusedError: onnxruntime cannot run one of the models.
    """
    layers, notes = _layers(model, int8)
    if len(layers) > _MOST_MEASURED:
        text = f"{len(layers)} layers are too many to measure one by one"
        return [Note(STEP, "model", text, kept=False)]
    known = {value.name for node in model.graph for value in node.outputs}
    ends = {id(layer): _end(layer.node) for layer in layers}
    taps = Activations(model, [ends[id(layer)][0] for layer in layers])
    for done, layer in enumerate(layers, start=1):
        name, tap = ends[id(layer)]
        if name not in known:
            notes.append(Note(STEP, layer.name, f"the float model has no {name!r}", kept=False))
            continue
        channels = len(layer.steps)
        axis = -1 if layer.node.op_type == "Gemm" else 1
        wanted = _mean(taps, name, feeds, axis, channels)
        found = _mean(Activations(int8, [tap], optimize=True), tap, feeds, axis, channels)
        layer.move(wanted - found)
        error = float(np.abs(wanted - found).max(initial=0.0))
        notes.append(Note(STEP, layer.name, f"mean error up to {error:.3g} removed", kept=True))
        if progress is not None:
            progress(done, len(layers))
    return notes


def _mean(taps: Activations, name: str, feeds: Sequence[Feed], axis: int, channels: int) -> Floats:
    total, count = np.zeros(channels), 0
    for array in taps.each(name, feeds):
        moved = np.moveaxis(array, axis, -1).reshape(-1, channels)
        total += moved.sum(axis=0, dtype=np.float64)
        count += len(moved)
    return total / max(count, 1)


def _layers(model: ir.Model, int8: ir.Model) -> tuple[list[_Layer], list[Note]]:
    """The layers with int32 biases in order; notes for those that cannot be corrected."""
    shapes.infer(int8)
    twins = [node for node in model.graph if node.op_type in _PRODUCTS]
    nodes = [node for node in int8.graph if node.op_type in _PRODUCTS]
    if [node.op_type for node in twins] != [node.op_type for node in nodes]:
        return [], [Note(STEP, "model", "the layers of both models do not match", kept=False)]
    fresh = Names(int8).fresh
    found: list[_Layer] = []
    notes: list[Note] = []
    for node, twin in zip(nodes, twins, strict=True):
        layer = _layer(int8.graph, node, twin, fresh)
        if isinstance(layer, str):
            name = node.name or node.outputs[0].name or ""
            notes.append(Note(STEP, name, layer, kept=False))
        else:
            found.append(layer)
    return found, notes


def _layer(
    graph: ir.Graph, node: ir.Node, twin: ir.Node, fresh: Callable[[str], str]
) -> _Layer | str:
    """The layer, or why it cannot be corrected."""
    if node.op_type == "MatMul":
        return "a MatMul has no bias of its own"
    source, weight = (_dequantized(node, index) for index in (0, 1))
    held = _held(weight) if weight is not None else None
    if source is None or weight is None or held is None:
        return "it is not in int8"
    if constant_tensor(twin.inputs[1]) is None:
        return "its weights are no constants"
    scale = content_of(weight.inputs[1]).astype(np.float64)
    step = content_of(source.inputs[1]).astype(np.float64) * scale
    if held.shape != content_of(twin.inputs[1]).shape:
        return "the layers of both models do not match"
    channels = _channel_count(node, held)
    bias = _bias(graph, node, np.broadcast_to(step, (channels,)).copy(), fresh)
    if bias is None:
        return "its bias is no int32 or float32 constant"
    codes, steps = bias
    tensor = constant_tensor(codes)
    if len(codes.uses()) != 1 or tensor is None or tuple(tensor.shape.numpy()) != (channels,):
        return "its bias is shared"
    return _Layer(node, twin, held, codes, steps)


def _bias(
    graph: ir.Graph, node: ir.Node, steps: Floats, fresh: Callable[[str], str]
) -> tuple[ir.Value, Floats] | None:
    """The constant that holds the bias, and its steps; a layer without one gets it."""
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if given is not None and given.dtype == ir.DataType.FLOAT and given.is_initializer():
        return (given, np.ones(len(steps))) if constant_tensor(given) is not None else None
    maker = _dequantized(node, 2)
    if given is None:
        maker = _add_bias(graph, node, steps, fresh)
    codes = maker.inputs[0] if maker is not None else None
    tensor = constant_tensor(codes)
    if maker is None or codes is None or tensor is None or tensor.dtype != ir.DataType.INT32:
        return None
    scale = content_of(maker.inputs[1]).astype(np.float64)
    return codes, np.broadcast_to(scale, (len(steps),))


def _dequantized(node: ir.Node, index: int) -> ir.Node | None:
    """The DequantizeLinear of constant scale that makes an input, or None."""
    value = node.inputs[index] if index < len(node.inputs) else None
    maker = value.producer() if value is not None else None
    if maker is None or maker.op_type != "DequantizeLinear":
        return None
    is_static = all(constant_tensor(one) is not None for one in maker.inputs[1:])
    return maker if is_static else None


def content_of(value: ir.Value | None) -> Array:
    """The numbers of a constant input.

    Raises:
        ValueError: it is none.
    """
    if value is None:
        raise ValueError("a missing input")
    return content(value)


def _held(weight: ir.Node) -> Array | None:
    """What a weight behind a DequantizeLinear is worth, float32; None when it is no constant."""
    scale, source = content_of(weight.inputs[1]), weight.inputs[0]
    zero = (
        content_of(weight.inputs[2]) if len(weight.inputs) > 2 else np.zeros(scale.shape, np.int8)
    )
    coder = source.producer() if source is not None else None
    is_coded = coder is not None and coder.op_type == "QuantizeLinear"
    constant = coder.inputs[0] if coder is not None and is_coded else source
    if constant_tensor(constant) is None:
        return None
    codes = content_of(constant).astype(np.float32)
    if scale.ndim:
        shape = [1] * codes.ndim
        shape[weight.attributes.get_int("axis", 1)] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    middle = zero.astype(np.float32)
    if is_coded:  # weights that the file keeps in float
        limits = np.iinfo(zero.dtype)
        codes = np.clip(np.rint(codes / scale) + middle, limits.min, limits.max)
    worth: Array = (codes - middle) * scale
    return worth


def _channel_count(node: ir.Node, weight: Array) -> int:
    if node.op_type == "ConvTranspose":
        return int(weight.shape[1]) * (node.attributes.get_int("group", 1) or 1)
    axis = channel_axis(node, 1, weight.ndim)
    return int(weight.shape[axis if axis is not None else 0])


def _add_bias(
    graph: ir.Graph, node: ir.Node, steps: Floats, fresh: Callable[[str], str]
) -> ir.Node:
    """Gives a layer a bias of zeros, in steps of both scales."""
    base = node.outputs[0].name or node.op_type
    codes = add_initializer(graph, np.zeros(len(steps), np.int32), fresh(f"{base}_bias"))
    scale = add_initializer(graph, steps.astype(np.float32), fresh(f"{base}_bias_scale"))
    bias = ir.node("DequantizeLinear", [codes, scale], {"axis": 0})
    bias.outputs[0].name = fresh(f"{base}_bias_float")
    bias.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    bias.outputs[0].shape = ir.Shape([len(steps)])
    graph.insert_before(node, bias)
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, bias.outputs[0])
    return bias


def _end(node: ir.Node) -> tuple[str, str]:
    """Names of the layer's result: as the float model knows it, and behind its 8 bits."""
    value = node.outputs[0]
    tap = value
    readers = [user for user, _ in value.uses()]
    if len(readers) == 1 and readers[0].op_type == "QuantizeLinear":
        behind = [user for user, _ in readers[0].outputs[0].uses()]
        if behind and behind[0].op_type == "DequantizeLinear":
            tap = behind[0].outputs[0]
    if tap.is_graph_output():
        value = tap
    return value.name or "", tap.name or ""


def _mean_input(node: ir.Node, array: Array) -> Array:
    """The mean sample of a batch; a product of means is the mean of products."""
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) == 1:
        return array
    mean: Array = array.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)
    return mean


def _channel_means(output: Array, axis: int) -> Floats:
    others = tuple(i for i in range(output.ndim) if i != axis)
    mean: Floats = output.mean(axis=others, dtype=np.float64)
    return mean
