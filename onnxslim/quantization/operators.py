"""From pairs of conversions to operators that take integers: the QOperator form.

A node whose inputs come from DequantizeLinear and whose outputs go to QuantizeLinear alone becomes
the operator that does all three at once. Its numbers are those of the pairs, which onnxruntime
fuses in the same way when it loads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxslim.ir.edit import remove
from onnxslim.ir.schema import default_opset, is_op
from onnxslim.quantization.marks import MOVES

_MS = "com.microsoft"

# Operators with one input, one output and a grid for each.
_UNARY = frozenset({"AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax"})
_BINARY = frozenset({"Add", "Mul"})


@dataclass(frozen=True)
class _Codes:
    """A tensor of integers and the grid that they are on."""

    codes: ir.Value
    scale: ir.Value
    zero: ir.Value

    @property
    def grid(self) -> tuple[ir.Value, ir.Value]:
        return self.scale, self.zero

    @property
    def all(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        return self.codes, self.scale, self.zero


def to_operators(model: ir.Model) -> int:
    """Rewrites what can be rewritten in the main graph.

    Args:
        model: with pairs of conversions; it is changed.

    Returns:
        How many nodes were rewritten.
    """
    return _Converter(model).run()


class _Converter:
    def __init__(self, model: ir.Model) -> None:
        self._model, self._graph = model, model.graph
        self._opset = default_opset(model)

    def run(self) -> int:
        done = 0
        for node in list(self._graph):
            build = self._rule(node)
            if build is None or node.domain != "":
                continue
            ends = [self._rounded(value) for value in node.outputs]
            if not ends or any(end is None for end in ends):
                continue
            made = build(node, [end for end in ends if end is not None])
            if made is not None:
                self._put(node, made, [end for end in ends if end is not None])
                done += 1
        self._clean()
        if any(node.domain == _MS for node in self._graph):
            self._model.graph.opset_imports.setdefault(_MS, 1)
        return done

    def _rule(self, node: ir.Node) -> Callable[[ir.Node, list[ir.Node]], ir.Node | None] | None:
        match node.op_type:
            case "Conv" | "MatMul" | "Gemm":
                return self._product
            case "Concat":
                return self._concat
            case "Where":
                return self._where
        if node.op_type in _BINARY:
            return self._binary
        if node.op_type in _UNARY:
            return self._unary
        return self._move if node.op_type in MOVES else None

    # ---- what surrounds a node

    def _read(self, value: ir.Value | None) -> _Codes | None:
        """What stands before DequantizeLinear."""
        node = value.producer() if value is not None else None
        if node is None or node.op_type != "DequantizeLinear":
            return None
        codes, scale, zero = (*node.inputs, None)[:3]
        if codes is None or scale is None or zero is None:
            return None
        return _Codes(codes, scale, zero)

    def _rounded(self, value: ir.Value) -> ir.Node | None:
        """The QuantizeLinear that is the only reader of a value."""
        uses = list(value.uses())
        if len(uses) != 1 or value.is_graph_output():
            return None
        node = uses[0].node
        is_near = node.op_type == "QuantizeLinear" and node.graph is self._graph
        return node if is_near and len(node.inputs) == 3 else None

    @staticmethod
    def _grid(end: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
        return end.inputs[1], end.inputs[2]

    # ---- rules

    def _product(self, node: ir.Node, ends: list[ir.Node]) -> ir.Node | None:
        first, second = self._read(node.inputs[0]), self._read(node.inputs[1])
        if first is None or second is None:
            return None
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        maker = bias.producer() if bias is not None else None
        is_stored = maker is not None and is_op(maker, "DequantizeLinear")
        third = maker.inputs[0] if maker is not None and is_stored else None
        if bias is not None and (third is None or third.dtype != ir.DataType.INT32):
            return None
        grid = self._grid(ends[0])
        operands: list[ir.Value | None] = [*first.all, *second.all]
        match node.op_type:
            case "Gemm":
                return self._made(node, "QGemm", [*operands, third, *grid], _MS)
            case "Conv":
                return self._made(node, "QLinearConv", [*operands, *grid, third])
        return self._made(node, "QLinearMatMul", [*operands, *grid])

    def _binary(self, node: ir.Node, ends: list[ir.Node]) -> ir.Node | None:
        read = [self._read(value) for value in node.inputs]
        if len(read) != 2 or read[0] is None or read[1] is None:
            return None
        inputs = [*read[0].all, *read[1].all, *self._grid(ends[0])]
        return self._made(node, f"QLinear{node.op_type}", inputs, _MS)

    def _unary(self, node: ir.Node, ends: list[ir.Node]) -> ir.Node | None:
        read = self._read(node.inputs[0])
        if read is None:
            return None
        made = self._made(node, f"QLinear{node.op_type}", [*read.all, *self._grid(ends[0])], _MS)
        if node.op_type == "Softmax":
            made.attributes.add(ir.AttrInt64("opset", self._opset))
        return made

    def _concat(self, node: ir.Node, ends: list[ir.Node]) -> ir.Node | None:
        inputs: list[ir.Value | None] = list(self._grid(ends[0]))
        for value in node.inputs:
            read = self._read(value)
            if read is None:
                return None
            inputs.extend(read.all)
        return self._made(node, "QLinearConcat", inputs, _MS)

    def _where(self, node: ir.Node, ends: list[ir.Node]) -> ir.Node | None:
        first, second = self._read(node.inputs[1]), self._read(node.inputs[2])
        if first is None or second is None:
            return None
        inputs = [node.inputs[0], *first.all, *second.all, *self._grid(ends[0])]
        return self._made(node, "QLinearWhere", inputs, _MS)

    def _move(self, node: ir.Node, ends: list[ir.Node]) -> ir.Node | None:
        """Operators that take integers as they are, on one grid before and behind."""
        read = self._read(node.inputs[0])
        if read is None or any(self._grid(end) != read.grid for end in ends):
            return None
        inputs = [read.codes, *node.inputs[1:]]
        mode = node.attributes.get_string("mode", "constant")
        if node.op_type == "Pad" and mode == "constant":
            inputs[2:3] = [read.zero]  # the code of the number 0
        return self._made(node, node.op_type, inputs)

    # ---- edits

    def _made(
        self, node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], domain: str = ""
    ) -> ir.Node:
        kept = list(inputs)
        while kept and kept[-1] is None:
            kept.pop()
        return ir.node(
            op_type, kept, domain=domain, name=node.name, doc_string=node.doc_string,
            outputs=[ir.Value() for _ in node.outputs],
            attributes={key: item for key, item in node.attributes.items() if key != "beta"},
        )  # fmt: skip

    def _put(self, node: ir.Node, made: ir.Node, ends: Sequence[ir.Node]) -> None:
        self._graph.insert_before(node, made)
        for value, end in zip(made.outputs, ends, strict=True):
            old = end.outputs[0]
            name, value.type, value.shape = old.name, old.type, old.shape
            ir.convenience.replace_all_uses_with(old, value)
            remove(end)
            old.name, value.name = None, name
        remove(node)

    def _clean(self) -> None:
        """Removes conversions that nobody reads any more, and their numbers."""
        loose: list[ir.Value] = []
        for node in reversed(list(self._graph)):
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                continue
            if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
                loose.extend(value for value in node.inputs if value is not None)
                remove(node)
        for value in loose:
            name = value.name or ""
            is_wanted = value.uses() or value.is_graph_input() or value.is_graph_output()
            if self._graph.initializers.get(name) is value and not is_wanted:
                del self._graph.initializers[name]
