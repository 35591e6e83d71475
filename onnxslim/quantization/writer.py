"""Writes QuantizeLinear and DequantizeLinear into a graph, in time linear in its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim.calibration.ranges import Range
from onnxslim.ir.edit import Names, add_initializer, remove, replace_value
from onnxslim.quantization import grids
from onnxslim.quantization.grids import Grid
from onnxslim.quantization.marks import BOUNDS, Mark, Marks, bounds_of, mark
from onnxslim.quantization.presets import QuantizePreset
from onnxslim.quantization.selection import Selection
from onnxslim.runtime.specs import Array

_WITH_BIAS = ("Conv", "ConvTranspose", "Gemm")


@dataclass
class Written:
    """What was done.

    Attributes:
        active: ids of nodes that work in int8, those included that are gone.
        grids: by tensor name.
    """

    active: set[int] = field(default_factory=set)
    grids: dict[str, Grid] = field(default_factory=dict)


def write_qdq(
    model: ir.Model,
    selection: Selection,
    preset: QuantizePreset,
    ranges: Mapping[str, Range],
    scales: Mapping[str, Array] | None = None,
) -> Written:
    """Puts the chosen nodes between conversions.

    Args:
        model: from `prepare`; it is changed.
        selection: nodes of its main graph.
        preset: the settings.
        ranges: lowest and highest value of the float tensors that the chosen nodes read or write
            and that are no constants, by name; those that are needed are asked for.
        scales: steps for weights instead of those that span them: a number or one per channel.
    """
    return _Writer(model, selection, preset, ranges, scales or {}).run()


class _Writer:
    def __init__(
        self,
        model: ir.Model,
        selection: Selection,
        preset: QuantizePreset,
        ranges: Mapping[str, Range],
        scales: Mapping[str, Array],
    ) -> None:
        self._graph, self._selection, self._preset = model.graph, selection, preset
        self._ranges, self._scales = ranges, scales
        self._names = Names(model)
        self._marks: Marks = mark(selection.chosen, preset)
        self._grids: dict[ir.Value, Grid] = {}
        self._numbers: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._reads = {id(node) for node in selection.chosen} & self._marks.active
        self._touched: set[ir.Value] = set()
        # input and weight of every node with a bias, before conversions stand between
        self._operands: dict[int, tuple[ir.Value, ir.Value]] = {}

    def run(self) -> Written:
        """Writes all of it."""
        for node in self._selection.chosen:
            if node.op_type == "Gemm" and id(node) in self._reads:
                self._fold_factors(node)
        done = Written(set(self._marks.active))
        for node in self._selection.chosen:
            if id(node) in self._reads and node.op_type in BOUNDS:
                self._absorb(node)
        self._make_room_for_biases()
        for value, found in list(self._marks.tensors.items()):
            if value.is_initializer():
                self._write_constant(value, found)
            else:
                self._write_pair(value)
        if self._preset.quantized_bias:
            for node in self._selection.chosen:
                self._write_bias(node)
        self._remove_unread()
        done.grids = {value.name or "": grid for value, grid in self._grids.items()}
        return done

    # ---- grids

    def _grid_of(self, value: ir.Value) -> Grid:
        """The grid of a tensor that shares none; computed when it is asked for."""
        if value not in self._grids:
            self._grids[value] = self._new_grid(value)
        return self._grids[value]

    def _new_grid(self, value: ir.Value) -> Grid:
        found, preset = self._marks.tensors[value], self._preset
        if value.is_initializer():
            return self._constant_grid(value, found)
        return grids.activation_grid(
            self._ranges[found.range_name],
            preset.activations,
            symmetric=preset.symmetric_activations,
            smallest=preset.smallest_range,
        )

    def _constant_grid(self, value: ir.Value, found: Mark) -> Grid:
        preset, values = self._preset, _array(value)
        if not found.is_weight:
            dtype, symmetric = preset.activations, preset.symmetric_activations
            codes = grids.full_codes(dtype)
            if symmetric:
                codes = grids.weight_codes(dtype, symmetric=True, reduced=False)
            return grids.tensor_grid(values, dtype, codes, symmetric=symmetric)
        dtype = preset.weights
        symmetric = dtype == ir.DataType.INT8
        reduced = preset.reduce_range and not (found.is_depthwise and preset.whole_depthwise)
        codes = grids.weight_codes(dtype, symmetric=symmetric, reduced=reduced)
        if found.axis is None:
            made = grids.tensor_grid(values, dtype, codes, symmetric=symmetric)
        else:
            made = grids.channel_grid(values, found.axis, dtype, codes)
        given = self._scales.get(value.name or "")
        if given is None:
            return made
        scale = np.broadcast_to(np.asarray(given, np.float32), made.scale.shape)
        return Grid(np.array(scale), made.zero, dtype, made.axis)

    def _fold_factors(self, node: ir.Node) -> None:
        """Puts alpha and beta of a Gemm into its constants: a bias in int8 knows neither."""
        for key, index in (("alpha", 1), ("beta", 2)):
            factor = node.attributes.get_float(key, 1.0)
            value = node.inputs[index] if index < len(node.inputs) else None
            node.attributes.pop(key, None)
            if factor == 1.0 or value is None:
                continue
            self._touched.add(value)
            scaled = (_array(value) * np.float32(factor)).astype(np.float32)
            twin = add_initializer(self._graph, scaled, self._names.fresh(f"{value.name}_{key}"))
            node.replace_input_with(index, twin)
            found = self._marks.tensors.get(value)
            if found is not None:
                self._marks.tensors[twin] = Mark(twin.name or "", found.is_weight, found.axis)

    def _make_room_for_biases(self) -> None:
        for node in self._selection.chosen:
            bias = self._bias_of(node)
            if bias is None:
                continue
            first, weights = node.inputs[:2]
            assert first is not None
            assert weights is not None
            inputs = self._marks.root(first)
            self._operands[id(node)] = inputs, weights
            grid = self._grid_of(weights)
            if grid.dtype == ir.DataType.INT8:
                values = _flat_bias(bias, grid)
                self._grids[weights] = grids.room_for_bias(grid, self._grid_of(inputs), values)

    def _bias_of(self, node: ir.Node) -> ir.Value | None:
        """The constant bias of a node in int8 that has one."""
        if id(node) not in self._reads or node.op_type not in _WITH_BIAS:
            return None
        return node.inputs[2] if len(node.inputs) > 2 else None

    # ---- edits

    def _absorb(self, node: ir.Node) -> None:
        """Takes out a Relu or Clip when no number on the grid behind it lies outside its bounds."""
        before, after = node.inputs[0], node.outputs[0]
        assert before is not None
        marks = self._marks.tensors
        producer, bounds = before.producer(), bounds_of(node)
        if (
            producer is None
            or id(producer) not in self._reads
            or len(before.uses()) != 1
            or before.is_graph_output()
            or before not in marks
            or marks[before].source is not None
            or bounds is None
        ):
            return
        low, high = self._grid_of(after).limits
        if low < bounds[0] or high > bounds[1]:
            return
        name = after.name
        marks[before] = Mark(marks.pop(after).range_name)
        self._grids[before] = self._grids.pop(after)
        for other in marks.values():
            if other.source is after:
                other.source = before
        replace_value(after, before)
        remove(node)
        after.name, before.name = None, name

    def _write_constant(self, value: ir.Value, found: Mark) -> None:
        uses = [(node, index) for node, index in value.uses() if id(node) in self._reads]
        if not uses:
            return
        self._touched.add(value)
        grid, base = self._grid_of(value), value.name or ""
        scale, zero = self._scale_and_zero(value)
        if self._preset.weight_pairs:
            self._write_pairs_at(value, uses, found)
            return
        codes = grids.encode(_array(value), grid)
        stored = add_initializer(self._graph, codes, self._names.fresh(f"{base}_quantized"))
        node = self._dequantize(stored, scale, zero, base, grid.axis)
        self._graph.insert_before(uses[0][0] if len(uses) == 1 else self._first_node(), node)
        for user, index in uses:
            user.replace_input_with(index, node.outputs[0])

    def _write_pairs_at(
        self, value: ir.Value, uses: Sequence[tuple[ir.Node, int]], found: Mark
    ) -> None:
        scale, zero = self._scale_and_zero(value)
        for user, index in uses:
            pair = self._pair(value, scale, zero, value.name or "", found.axis)
            self._graph.insert_before(user, pair)
            user.replace_input_with(index, pair[1].outputs[0])

    def _write_pair(self, value: ir.Value) -> None:
        """Q and DQ behind a tensor, for those who should read it rounded."""
        producer = value.producer()
        is_made = producer is not None and id(producer) in self._reads
        uses = [
            (node, index) for node, index in value.uses()
            if id(node) in self._reads or (is_made and self._reads_rounded(node))
        ]  # fmt: skip
        is_output = is_made and value.is_graph_output()
        if not uses and not is_output:
            return
        scale, zero = self._scale_and_zero(value)
        base = value.name or ""
        if self._preset.dedicated_pairs and not is_output:
            for user, index in uses:
                pair = self._pair(value, scale, zero, base)
                self._graph.insert_before(user, pair)
                user.replace_input_with(index, pair[1].outputs[0])
            return
        pair = self._pair(value, scale, zero, base)
        self._insert_behind(value, pair)
        for user, index in uses:
            user.replace_input_with(index, pair[1].outputs[0])
        if is_output:
            self._move_output(value, pair[1].outputs[0])

    def _reads_rounded(self, node: ir.Node) -> bool:
        """False for what must go on reading floats: subgraphs, and what leads to them."""
        return node.graph is self._graph and id(node) not in self._selection.captured

    def _insert_behind(self, value: ir.Value, pair: Sequence[ir.Node]) -> None:
        producer = value.producer()
        if producer is not None:
            self._graph.insert_after(producer, pair)
        else:
            self._graph.insert_before(self._first_node(), pair)

    def _first_node(self) -> ir.Node:
        return next(iter(self._graph))

    def _move_output(self, value: ir.Value, last: ir.Value) -> None:
        """The graph gives the rounded tensor, under the name of the tensor."""
        name, outputs = value.name, self._graph.outputs
        for index, output in enumerate(outputs):
            if output is value:
                outputs[index] = last
        value.name = self._names.fresh(f"{name}_QuantizeLinear_Input")
        last.name, last.type, last.shape = name, value.type, value.shape

    def _scale_and_zero(self, value: ir.Value) -> tuple[ir.Value, ir.Value]:
        root = self._marks.root(value)
        if root not in self._numbers:
            grid, base = self._grid_of(root), root.name or ""
            self._numbers[root] = (
                add_initializer(self._graph, grid.scale, self._names.fresh(f"{base}_scale")),
                add_initializer(self._graph, grid.zero, self._names.fresh(f"{base}_zero_point")),
            )
        return self._numbers[root]

    def _pair(
        self, value: ir.Value, scale: ir.Value, zero: ir.Value, base: str, axis: int | None = None
    ) -> list[ir.Node]:
        first = self._node("QuantizeLinear", [value, scale, zero], base, axis)
        return [first, self._dequantize(first.outputs[0], scale, zero, base, axis)]

    def _dequantize(
        self, codes: ir.Value, scale: ir.Value, zero: ir.Value, base: str, axis: int | None
    ) -> ir.Node:
        return self._node("DequantizeLinear", [codes, scale, zero], base, axis)

    def _node(
        self, op_type: str, inputs: Sequence[ir.Value], base: str, axis: int | None
    ) -> ir.Node:
        attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        name = self._names.fresh(f"{base}_{op_type}_Output")
        # no name: some hundred of them would only make the file larger
        return ir.node(op_type, inputs, attributes, outputs=[ir.Value(name=name)])

    def _write_bias(self, node: ir.Node) -> None:
        bias = self._bias_of(node)
        if bias is None:
            return
        inputs, weights = self._operands[id(node)]
        grid = grids.bias_grid(self._grid_of(weights), self._grid_of(inputs))
        values, base = _flat_bias(bias, grid), bias.name or ""
        arrays = {"quantized": grids.encode_bias(values, grid), "scale": grid.scale}
        made = [
            add_initializer(self._graph, content, self._names.fresh(f"{base}_{end}"))
            for end, content in arrays.items()
        ]
        last = self._node("DequantizeLinear", made, base, grid.axis)  # no zero point: it is 0
        self._graph.insert_before(node, last)
        node.replace_input_with(2, last.outputs[0])
        self._touched.add(bias)

    def _remove_unread(self) -> None:
        for value in sorted(self._touched, key=lambda one: one.name or ""):
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                del self._graph.initializers[value.name or ""]


def _array(value: ir.Value) -> Array:
    assert value.const_value is not None
    return value.const_value.numpy()


def _flat_bias(bias: ir.Value, grid: Grid) -> Array:
    """The bias with one number per channel, as the scales are."""
    values = _array(bias).reshape(-1)
    if grid.scale.ndim and values.size == 1:
        return np.full(grid.scale.shape, values[0], np.float32)
    return values
