"""Takes a quantized model back to float: the numbers of its weights, and no rounding between.

Weights and biases become exactly the numbers that their codes stand for. Where a conversion cut off
all numbers below (or above) zero, which is how an absorbed Relu looks, a Relu (or Clip) goes in;
where it also ended at 6, a Clip from 0 to 6. Other upper ends are those of the calibration data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxslim.errors import InvalidModelError
from onnxslim.ir.edit import Names, add_initializer, remove, replace_value
from onnxslim.quantization import grids
from onnxslim.quantization.grids import Grid
from onnxslim.quantization.marks import MOVES
from onnxslim.runtime.specs import Array

# Operators that give nothing below zero.
_POSITIVE = frozenset({"Abs", "Clip", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Softplus"})

# Where the inputs of an operator on integers stand: of its tensors, each with scale and zero point.
_TENSORS = {
    "QLinearConv": (0, 3), "QLinearMatMul": (0, 3), "QGemm": (0, 3), "QLinearAdd": (0, 3),
    "QLinearMul": (0, 3), "QLinearSigmoid": (0,), "QLinearLeakyRelu": (0,), "QLinearSoftmax": (0,),
    "QLinearAveragePool": (0,), "QLinearGlobalAveragePool": (0,), "QLinearWhere": (1, 4),
}  # fmt: skip
# Room for the rounding of a scale that ends at 6.
_NEAR_6 = 0.01

_FLOAT_NAMES = {"QGemm": "Gemm"}
_BIAS = {"QLinearConv": 8, "QGemm": 6}
_GRID_AT = {"QLinearConv": 6, "QLinearMatMul": 6, "QLinearAdd": 6, "QLinearMul": 6, "QGemm": 7,
            "QLinearWhere": 7}  # fmt: skip
_CODES = frozenset({
    ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT32,
    ir.DataType.INT4, ir.DataType.UINT4,
})  # fmt: skip


def to_float(model: ir.Model) -> int:
    """Rewrites the main graph in float.

    Args:
        model: changed in place.

    Returns:
        How many weights were taken back.

    Raises:
        InvalidModelError: an operator on integers that is not known here; the model is half
            rewritten then.
    """
    return _Stripper(model).run()


class _Stripper:
    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._names = Names(model)
        self._floats: dict[ir.Value, ir.Value] = {}  # by tensor of codes
        self._weights = 0

    def run(self) -> int:
        self._graph.sort()
        for node in list(self._graph):
            rule = self._rule(node)
            if rule is not None:
                rule(node)
        self._clean()
        return self._weights

    def _rule(self, node: ir.Node) -> Callable[[ir.Node], None] | None:
        match node.op_type:
            case "QuantizeLinear":
                return self._quantize
            case "DequantizeLinear":
                return self._dequantize
            case "QLinearConcat":
                return self._concat
            case _ if node.op_type in _TENSORS:
                return self._operator
        first = node.inputs[0] if node.inputs else None
        return self._move if first in self._floats and node.op_type in MOVES else None

    def _quantize(self, node: ir.Node) -> None:
        value, scale, zero = self._three(node)
        if value.is_initializer():
            self._floats[node.outputs[0]] = value
            return
        self._floats[node.outputs[0]] = self._bounded(value, node, scale, zero)

    def _bounded(self, value: ir.Value, node: ir.Node, scale: Array, zero: Array) -> ir.Value:
        """The tensor, behind a Relu or Clip where the conversion cuts off at zero."""
        producer = value.producer()
        dtype = ir.DataType.from_numpy(zero.dtype)
        if zero.size != 1 or producer is None or producer.op_type in _POSITIVE | MOVES:
            return value
        if producer.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return value
        codes, at = grids.full_codes(dtype), int(zero.reshape(-1)[0])
        if at not in codes:
            return value
        highest = float((codes[1] - at) * scale.reshape(-1)[0])
        ends = (None, 0.0) if at == codes[1] else (0.0, 6.0 if abs(highest - 6) < _NEAR_6 else None)
        made = self._activation(value, *ends)
        self._graph.insert_before(node, made)
        return made.outputs[0]

    def _activation(self, value: ir.Value, low: float | None, high: float | None) -> ir.Node:
        name = self._names.fresh(f"{value.name}_{'relu' if high is None else 'clip'}")
        output = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
        if high is None:
            return ir.node(
                "Relu", [value], outputs=[output], name=self._names.fresh(f"Relu_{name}")
            )
        limits = [
            None if limit is None else add_initializer(
                self._graph, np.array(limit, np.float32), self._names.fresh(f"{name}_limit")
            )
            for limit in (low, high)
        ]  # fmt: skip
        label = self._names.fresh(f"Clip_{name}")
        return ir.node("Clip", [value, *limits], outputs=[output], name=label)

    def _dequantize(self, node: ir.Node) -> None:
        codes, scale, zero = self._three(node)
        if node.attributes.get_int("block_size", 0):
            raise self._unknown(node, "scales by block")
        if codes in self._floats:
            found = self._floats[codes]
        elif codes.is_initializer() and not codes.is_graph_input():
            axis = node.attributes.get_int("axis", 1)
            found = self._decoded(codes, scale, zero, axis)
        else:
            raise self._unknown(node, "codes from elsewhere")
        self._replace(node, found)

    def _decoded(
        self, codes: ir.Value, scale: Array, zero: Array, axis: int, name: str | None = None
    ) -> ir.Value:
        assert codes.const_value is not None
        values = codes.const_value.numpy()
        where = axis % values.ndim if scale.size > 1 else None
        if where is None:
            scale, zero = scale.reshape(()), zero.reshape(())
        grid = Grid(scale, zero, codes.const_value.dtype, where)
        self._weights += 1
        base = (codes.name or "").removesuffix("_quantized")
        return add_initializer(
            self._graph, grids.decode(values, grid), self._names.fresh(name or base)
        )

    def _operator(self, node: ir.Node) -> None:
        """An operator on integers: the same in float."""
        op_type = _FLOAT_NAMES.get(node.op_type, node.op_type.removeprefix("QLinear"))
        inputs: list[ir.Value | None] = [
            self._float_of(node, at, is_matrix=op_type == "MatMul") for at in _TENSORS[node.op_type]
        ]
        if op_type == "Where":
            inputs.insert(0, node.inputs[0])
        at = _BIAS.get(node.op_type)
        bias = node.inputs[at] if at is not None and at < len(node.inputs) else None
        if bias is not None:
            step = (self._array(node, 1) * self._array(node, 4)).astype(np.float32)
            axis_zero = np.zeros(step.shape, np.int32)
            inputs.append(self._decoded(bias, step, axis_zero, 0))
        self._rebuild(node, op_type, inputs, _GRID_AT.get(node.op_type, 3))

    def _float_of(self, node: ir.Node, at: int, *, is_matrix: bool) -> ir.Value:
        codes = node.inputs[at]
        if codes in self._floats:
            return self._floats[codes]
        if codes is None or not codes.is_initializer() or codes.is_graph_input():
            raise self._unknown(node, "codes from elsewhere")
        axis = 0
        if is_matrix:
            axis = -1
        elif node.op_type == "QGemm":
            axis = 0 if node.attributes.get_int("transB", 0) else 1
        return self._decoded(codes, self._array(node, at + 1), self._array(node, at + 2), axis)

    def _concat(self, node: ir.Node) -> None:
        inputs: list[ir.Value | None] = [
            self._float_of(node, at, is_matrix=False) for at in range(2, len(node.inputs), 3)
        ]
        self._rebuild(node, "Concat", inputs, 0)

    def _rebuild(
        self, node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], grid_at: int
    ) -> None:
        attributes = {
            key: item
            for key, item in node.attributes.items()
            if key not in ("opset", "channels_last")
        }
        if node.attributes.get_int("channels_last", 0):
            raise self._unknown(node, "channels last")
        base = (node.outputs[0].name or "").removesuffix("_QuantizeLinear_Output")
        made = ir.node(
            op_type, inputs, attributes=attributes, outputs=[self._value(base)],
            name=node.name, doc_string=node.doc_string,
        )  # fmt: skip
        self._graph.insert_before(node, made)
        scale, zero = self._array(node, grid_at), self._array(node, grid_at + 1)
        self._floats[node.outputs[0]] = self._bounded(made.outputs[0], node, scale, zero)

    def _move(self, node: ir.Node) -> None:
        """Reads floats instead of codes; a Pad with codes adds zeros."""
        first = node.inputs[0]
        assert first is not None
        node.replace_input_with(0, self._floats[first])
        if node.op_type == "Pad" and len(node.inputs) > 2:
            node.replace_input_with(2, None)
        for value in node.outputs:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            self._floats[value] = value

    def _replace(self, node: ir.Node, found: ir.Value) -> None:
        old = node.outputs[0]
        needs_node = old.is_graph_output() and (found.producer() is None or found.is_graph_output())
        if needs_node:
            made = ir.node("Identity", [found], outputs=[self._value(old.name or "")])
            self._graph.insert_before(node, made)
            found = made.outputs[0]
        name, was_output = old.name, old.is_graph_output()
        replace_value(old, found)
        remove(node)
        if was_output:
            old.name, found.name = None, name

    def _three(self, node: ir.Node) -> tuple[ir.Value, Array, Array]:
        first = node.inputs[0]
        if first is None:
            raise self._unknown(node, "no input")
        scale = self._array(node, 1)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            return first, scale, self._array(node, 2)
        dtype = ir.DataType.UINT8 if first.dtype not in _CODES else first.dtype
        assert dtype is not None
        return first, scale, np.zeros(scale.shape, dtype.numpy())

    def _array(self, node: ir.Node, at: int) -> Array:
        value = node.inputs[at] if at < len(node.inputs) else None
        if value is None or value.const_value is None:
            raise self._unknown(node, "scales that are not constant")
        return value.const_value.numpy()

    def _value(self, base: str) -> ir.Value:
        return ir.Value(name=self._names.fresh(base), type=ir.TensorType(ir.DataType.FLOAT))

    def _unknown(self, node: ir.Node, what: str) -> InvalidModelError:
        return InvalidModelError(
            f"node {node.name or node.op_type!r} ({node.op_type}) cannot be taken back to float: "
            f"{what}; give the float model"
        )

    def _clean(self) -> None:
        """Removes what only codes needed."""
        for node in reversed(list(self._graph)):
            is_code = node.op_type == "QuantizeLinear" or node.op_type.startswith(("QLinear", "QG"))
            if is_code and not any(v.uses() or v.is_graph_output() for v in node.outputs):
                remove(node)
        for name, value in list(self._graph.initializers.items()):
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                del self._graph.initializers[name]
