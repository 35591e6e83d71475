"""Dynamic int8: weights stored in 8 bits, activations quantized while the model runs.

Needs no calibration. Products of matrices only: for convolutions it is slower than float.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxslim.ir.edit import Names, add_initializer, remove, replace_value
from onnxslim.quantization import grids
from onnxslim.quantization.grids import Grid
from onnxslim.quantization.presets import QuantizePreset
from onnxslim.quantization.selection import Selection
from onnxslim.runtime.specs import Array

OPERATORS = ("Gather", "Gemm", "MatMul")


def write_dynamic(
    model: ir.Model,
    selection: Selection,
    preset: QuantizePreset,
    scales: Mapping[str, Array] | None = None,
) -> set[int]:
    """Rewrites the chosen MatMul, Gemm and Gather with constant matrices.

    Args:
        model: from `prepare`; it is changed.
        selection: nodes of its main graph.
        preset: the settings.
        scales: steps for weights instead of those that span them.

    Returns:
        Ids of the nodes that were rewritten; they are gone.
    """
    return _Dynamic(model, preset, scales or {}).run(selection)


class _Dynamic:
    def __init__(
        self, model: ir.Model, preset: QuantizePreset, scales: Mapping[str, Array]
    ) -> None:
        self._graph, self._preset, self._scales = model.graph, preset, scales
        self._names = Names(model)
        self._inputs: dict[ir.Value, ir.Node] = {}
        self._stored: dict[tuple[ir.Value, bool, float], tuple[ir.Value, ir.Value, ir.Value]] = {}

    def run(self, selection: Selection) -> set[int]:
        done: set[int] = set()
        touched: list[ir.Value] = []
        for node in selection.chosen:
            constants = [value for value in node.inputs if value and value.is_initializer()]
            if self._rewrite(node):
                done.add(id(node))
                touched.extend(constants)
        for value in touched:
            name = value.name or ""
            if not (
                value.uses() or value.is_graph_output() or name not in self._graph.initializers
            ):
                del self._graph.initializers[name]
        return done

    def _rewrite(self, node: ir.Node) -> bool:
        match node.op_type:
            case "MatMul" if _is_matrix(node.inputs[1]) and not _is_constant(node.inputs[0]):
                self._product(node, is_transposed=False)
            case "Gemm" if _is_matrix(node.inputs[1]) and not node.attributes.get_int("transA", 0):
                transposed = bool(node.attributes.get_int("transB", 0))
                self._product(node, is_transposed=transposed)
            case "Gather" if _is_matrix(node.inputs[0]):
                self._lookup(node)
            case _:
                return False
        return True

    def _product(self, node: ir.Node, *, is_transposed: bool) -> None:
        left, weight = node.inputs[0], node.inputs[1]
        assert left is not None
        assert weight is not None
        is_gemm = node.op_type == "Gemm"
        alpha = node.attributes.get_float("alpha", 1.0) if is_gemm else 1.0
        codes, scale, zero = self._weights(weight, alpha, is_transposed=is_transposed)
        rounded = self._rounded(left)
        base = node.outputs[0].name or ""
        product = self._add(
            node, "MatMulInteger", [rounded.outputs[0], codes, rounded.outputs[2], zero], base
        )
        number = self._add(node, "Cast", [product], base, {"to": int(ir.DataType.FLOAT)})
        step = self._add(node, "Mul", [rounded.outputs[1], scale], f"{base}_scales")
        result = self._add(node, "Mul", [number, step], base)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            result = self._add(node, "Add", [result, self._bias(node, bias)], base)
        self._replace(node, result)

    def _bias(self, node: ir.Node, bias: ir.Value) -> ir.Value:
        beta = node.attributes.get_float("beta", 1.0)
        if beta == 1.0:
            return bias
        scaled = (_array(bias) * np.float32(beta)).astype(np.float32)
        return add_initializer(self._graph, scaled, self._names.fresh(f"{bias.name}_beta"))

    def _rounded(self, left: ir.Value) -> ir.Node:
        if left not in self._inputs:
            base = left.name or ""
            names = [self._names.fresh(f"{base}_{end}") for end in ("int8", "step", "zero")]
            node = ir.node(
                "DynamicQuantizeLinear", [left], name=self._names.fresh(f"{base}_quantize"),
                outputs=[ir.Value(name=name) for name in names],
            )  # fmt: skip
            producer = left.producer()
            if producer is not None:
                self._graph.insert_after(producer, node)
            else:
                self._graph.insert_before(next(iter(self._graph)), node)
            self._inputs[left] = node
        return self._inputs[left]

    def _weights(
        self, weight: ir.Value, alpha: float, *, is_transposed: bool
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Codes, with the output channels along the last axis, steps, and zero points."""
        key = weight, is_transposed, alpha
        if key not in self._stored:
            values = _array(weight).T if is_transposed else _array(weight)
            values = np.ascontiguousarray(values * np.float32(alpha))
            codes = grids.weight_codes(
                ir.DataType.INT8, symmetric=True, reduced=self._preset.reduce_range
            )
            if self._preset.per_channel:
                grid = grids.channel_grid(values, 1, ir.DataType.INT8, codes)
            else:
                grid = grids.tensor_grid(values, ir.DataType.INT8, codes, symmetric=True)
            given = self._scales.get(weight.name or "")
            if given is not None:
                steps = np.broadcast_to(np.asarray(given, np.float32), grid.scale.shape)
                grid = Grid(np.array(steps), grid.zero, grid.dtype, grid.axis)
            self._stored[key] = self._store(weight.name or "", values, grid)
        return self._stored[key]

    def _store(self, base: str, values: Array, grid: Grid) -> tuple[ir.Value, ir.Value, ir.Value]:
        arrays = (grids.encode(values, grid), grid.scale, grid.zero)
        made = [
            add_initializer(self._graph, content, self._names.fresh(f"{base}_{end}"))
            for content, end in zip(arrays, ("quantized", "scale", "zero_point"), strict=True)
        ]
        return made[0], made[1], made[2]

    def _lookup(self, node: ir.Node) -> None:
        """A table in 8 bits; rows become floats after they are picked."""
        table = node.inputs[0]
        assert table is not None
        key = table, False, 0.0
        if key not in self._stored:
            values = _array(table)
            codes = grids.full_codes(ir.DataType.UINT8)
            grid = grids.tensor_grid(values, ir.DataType.UINT8, codes, symmetric=False)
            self._stored[key] = self._store(table.name or "", values, grid)
        codes_, scale, zero = self._stored[key]
        attributes = {"axis": node.attributes.get_int("axis", 0)}
        base = node.outputs[0].name or ""
        rows = self._add(node, "Gather", [codes_, *node.inputs[1:]], f"{base}_int8", attributes)
        result = self._add(node, "DequantizeLinear", [rows, scale, zero], base)
        self._replace(node, result)

    def _add(
        self,
        node: ir.Node,
        op_type: str,
        inputs: list[ir.Value | None] | list[ir.Value],
        base: str,
        attributes: Mapping[str, int] | None = None,
    ) -> ir.Value:
        made = ir.node(
            op_type, inputs, dict(attributes or {}),
            outputs=[ir.Value(name=self._names.fresh(f"{base}_{op_type}"))],
            name=self._names.fresh(f"{node.name}_{op_type}"),
        )  # fmt: skip
        self._graph.insert_before(node, made)
        return made.outputs[0]

    def _replace(self, node: ir.Node, result: ir.Value) -> None:
        old = node.outputs[0]
        name = old.name
        last = result.producer()
        replace_value(old, result)
        remove(node)
        old.name, result.name = None, name
        if last is not None:
            last.name = node.name


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer()


def _is_matrix(value: ir.Value | None) -> bool:
    return (
        value is not None
        and value.is_initializer()
        and value.const_value is not None
        and len(value.const_value.shape) == 2
        and value.const_value.dtype == ir.DataType.FLOAT
    )


def _array(value: ir.Value) -> Array:
    assert value.const_value is not None
    return value.const_value.numpy()
