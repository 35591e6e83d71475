"""Changes the floating-point type of a whole model: every float32 tensor becomes float16, or back.

Inputs and outputs change with it. What an operator takes only in the old type (the scales of a
Resize, the inputs of a Range, everything of an unknown operator or a model-local function) keeps it
behind a Cast, and constants that are read there keep their digits.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim.errors import UsageError
from onnxslim.ir import shapes
from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.edit import Names
from onnxslim.ir.schema import ONNX_DOMAINS, is_op, opset_of, schema
from onnxslim.ir.traversal import graphs, subgraphs_of

# Attributes that say which type an output has.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_datatype", "output_dtype")
_NAMES = {ir.DataType.FLOAT: "float", ir.DataType.FLOAT16: "float16"}
_WRAPPINGS = ("tensor({})", "seq(tensor({}))", "optional(tensor({}))", "optional(seq(tensor({})))")


@dataclass
class FloatChange:
    """What a conversion did.

    Attributes:
        converted: constants that have the new type.
        kept: inputs and outputs of operators that stay in the old type, as ``Op -> 'output'``.
        clamped: constants with numbers outside the range of the new type, which became the largest
            number that it has.
    """

    converted: int = 0
    kept: list[str] = field(default_factory=list)
    clamped: list[str] = field(default_factory=list)


def convert_floats(model: ir.Model, target: ir.DataType) -> FloatChange:
    """Changes float32 to float16 (``target`` FLOAT16), or float16 to float32 (``target`` FLOAT).

    Args:
        model: changed in place; float64 and bfloat16 stay.
        target: the type wanted.

    Raises:
        UsageError: the type of a value is unknown, so that no Cast can be placed with certainty.
    """
    return _Conversion(model, target).run()


class _Conversion:
    def __init__(self, model: ir.Model, target: ir.DataType) -> None:
        self.model = model
        self.target = target
        self.source = ir.DataType.FLOAT if target == ir.DataType.FLOAT16 else ir.DataType.FLOAT16
        self.change = FloatChange()
        self.names = Names(model)
        self.functions = [function.graph for function in model.functions.values()]
        self.casts: dict[tuple[ir.Graph | None, ir.Value], ir.Value] = {}
        self.originals: dict[ir.Value, ir.Value] = {}
        self.unchanged: set[ir.Value] = set()
        self.changed: set[ir.Value] = set()

    def run(self) -> FloatChange:
        declared = {value for graph in self._graphs() for value in _values(graph) if value.type}
        shapes.infer(self.model)
        while self._type_branches():
            shapes.infer(self.model)
        self._check_types()
        work = [node for graph in self._graphs() for node in graph]
        for graph in self._graphs():
            for value in list(graph.initializers.values()):
                self._convert_constant(value)
        for node in work:
            if constant_tensor(node.outputs[0]) is not None:
                self._convert_constant(node.outputs[0])
            else:
                self._convert_node(node)
        for graph in self._graphs():
            for value in (*graph.inputs, *graph.outputs):
                self._retype(value)
            for value in _values(graph):
                if value not in declared and not value.is_graph_output():
                    value.type, value.shape = None, None
        return self.change

    def _graphs(self) -> list[ir.Graph]:
        """The main graph and its subgraphs; function bodies keep their types."""
        inner = {id(graph) for root in self.functions for graph in (root, *root.subgraphs())}
        return [graph for graph in graphs(self.model) if id(graph) not in inner]

    def _type_branches(self) -> bool:
        """Where inference gives up on an If, its outputs have the types of a branch's results."""
        found = False
        for graph in self._graphs():
            for node in graph:
                if not is_op(node, "If"):
                    continue
                for branch in subgraphs_of(node):
                    for value, result in zip(node.outputs, branch.outputs, strict=False):
                        if value.type is None and result.type is not None:
                            value.type, found = result.type, True
        return found

    def _check_types(self) -> None:
        for graph in self._graphs():
            for node in graph:
                if self._schema(node) is None and subgraphs_of(node):
                    raise UsageError(
                        f"cannot convert to {_NAMES[self.target]}: {node.op_type} of domain "
                        f"{node.domain!r} holds a subgraph and its rules are unknown"
                    )
                for index, value in enumerate(node.outputs):
                    self._type_by_schema(node, index)
                    if value.type is None and (value.uses() or value.is_graph_output()):
                        raise UsageError(
                            f"cannot convert to {_NAMES[self.target]}: the type of {value.name!r} "
                            f"(from {node.op_type}) is unknown"
                        )

    def _type_by_schema(self, node: ir.Node, index: int) -> None:
        """Where inference says nothing but the operator can only give float32."""
        found = self._schema(node)
        if node.outputs[index].type is None and found is not None and found.outputs:
            types = found.outputs[min(index, len(found.outputs) - 1)].types
            if set(types) == {"tensor(float)"}:
                node.outputs[index].type = ir.TensorType(ir.DataType.FLOAT)

    # -- constants

    def _convert_constant(self, value: ir.Value) -> None:
        tensor = constant_tensor(value) if value.producer() is not None else value.const_value
        if tensor is None or tensor.dtype != self.source or value.is_graph_input():
            if value.is_graph_input() and tensor is not None and tensor.dtype == self.source:
                value.const_value = self._tensor(tensor, value.name)
            return
        readers = [(node, index) for node, index in value.uses() if not self._takes(node, index)]
        if len(readers) == len(value.uses()) and not value.is_graph_output():
            self._stay(value, readers)
            return
        if readers:
            self._keep_copy(value, readers)
        new = self._tensor(tensor, value.name)
        producer = value.producer()
        if producer is not None:
            producer.attributes.clear()
            producer.attributes["value"] = ir.AttrTensor("value", new)
        else:
            value.const_value = new
        self._retype(value)

    def _keep_copy(self, value: ir.Value, readers: list[tuple[ir.Node, int]]) -> None:
        """Those who want the old type read a constant of their own."""
        name = self.names.fresh(f"{value.name}_{_NAMES[self.source]}")
        tensor = constant_tensor(value) if value.producer() is not None else value.const_value
        if tensor is None:
            raise AssertionError("a constant has a tensor")
        producer = value.producer()
        copy = ir.Value(name=name, type=value.type, shape=value.shape)
        if producer is not None:
            node = ir.node("Constant", [], {"value": tensor})
            copy = node.outputs[0]
            copy.name, copy.type, copy.shape = name, value.type, value.shape
            if producer.graph is not None:
                producer.graph.insert_before(producer, node)
        elif value.graph is not None:
            held = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
            copy.const_value = held
            value.graph.register_initializer(copy)
        for reader, index in readers:
            reader.replace_input_with(index, copy)
        self._stay(copy, readers)

    def _stay(self, value: ir.Value, readers: list[tuple[ir.Node, int]]) -> None:
        """Nobody reads this constant in the new type, so it keeps its own."""
        self.unchanged.add(value)
        for reader, _ in readers:
            self._note(reader)

    def _tensor(self, tensor: ir.TensorProtocol, name: str | None) -> ir.Tensor[Any]:
        self.change.converted += 1
        old = tensor.numpy()
        dtype = np.dtype(self.target.numpy())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            new = np.asarray(old).astype(dtype)
        lost = np.isinf(new) & np.isfinite(old)
        if lost.any():
            self.change.clamped.append(name or "a Constant")
            new = np.where(lost, np.copysign(np.finfo(dtype).max, old), new).astype(dtype)
        if new.size == 1 and self.target == ir.DataType.FLOAT16:
            new = _not_zero(np.asarray(old), new)
        return ir.Tensor(np.ascontiguousarray(new).reshape(old.shape), name=name)

    # -- operators

    def _convert_node(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            if value is None or value in self.unchanged or self._takes(node, index):
                continue
            if self._is_source(value) or value in self.changed or value in self.originals:
                self._note(node)
                node.replace_input_with(index, self._in_old_type(node, value))
        for index, value in enumerate(node.outputs):
            if not self._is_source(value) or not (value.uses() or value.is_graph_output()):
                continue
            if self._gives(node, index):
                self._retype(value)
                self._retype_attributes(node)
            else:
                self._note(node)
                self._cast_output(node, value)

    def _in_old_type(self, node: ir.Node, value: ir.Value) -> ir.Value:
        """The value in the old type: as it was computed, or behind a Cast."""
        if value in self.originals:
            return self.originals[value]
        key = (node.graph, value)
        if key not in self.casts:
            self.casts[key] = self._cast(value, self.source)
            cast = self.casts[key].producer()
            if node.graph is not None and cast is not None:
                node.graph.insert_before(node, cast)
        return self.casts[key]

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        node = ir.node("Cast", [value], {"to": int(dtype)})
        result = node.outputs[0]
        result.name = self.names.fresh(f"{value.name}_{_NAMES[dtype]}")
        result.dtype, result.shape = dtype, value.shape
        return result

    def _cast_output(self, node: ir.Node, value: ir.Value) -> None:
        if not isinstance(value.type, ir.TensorType):
            raise UsageError(
                f"cannot convert to {_NAMES[self.target]}: {value.name!r} (from {node.op_type}) "
                "is a sequence that has to keep its type"
            )
        new = ir.node("Cast", [value], {"to": int(self.target)})
        result = new.outputs[0]
        result.name = self.names.fresh(f"{value.name}_{_NAMES[self.target]}")
        result.dtype, result.shape = self.target, value.shape
        ir.convenience.replace_all_uses_with(value, result, replace_graph_outputs=True)
        new.replace_input_with(0, value)
        if result.is_graph_output():
            result.name, value.name = value.name, result.name
        if node.graph is not None:
            node.graph.insert_after(node, new)
        self.originals[result] = value

    def _retype_attributes(self, node: ir.Node) -> None:
        for name in _TYPE_ATTRIBUTES:
            attribute = node.attributes.get(name)
            if attribute is not None and attribute.value == int(self.source):
                node.attributes[name] = ir.AttrInt64(name, int(self.target))
        held = node.attributes.get("value")
        if node.op_type == "ConstantOfShape":
            zero = ir.Tensor(np.zeros(1, np.dtype(self.source.numpy())))
            tensor = zero if held is None else held.as_tensor()
            node.attributes["value"] = ir.AttrTensor("value", self._tensor(tensor, "value"))

    def _note(self, node: ir.Node) -> None:
        site = f"{node.op_type} -> {node.outputs[0].name!r}"
        if site not in self.change.kept:
            self.change.kept.append(site)

    # -- types

    def _is_source(self, value: ir.Value) -> bool:
        return _element(value.type) == self.source

    def _retype(self, value: ir.Value) -> None:
        if value.type is not None and self._is_source(value):
            value.type = _with_element(value.type, self.target)
            self.changed.add(value)

    def _schema(self, node: ir.Node) -> Any:
        if node.op_identifier() in self.model.functions:
            return None
        version = opset_of(node, self.model)
        return None if version is None else schema(node.op_type, node.domain, version)

    def _takes(self, node: ir.Node, index: int) -> bool:
        """True when the operator may read the new type at that input."""
        found = self._schema(node)
        return found is not None and self._allowed(found.inputs, index)

    def _gives(self, node: ir.Node, index: int) -> bool:
        found = self._schema(node)
        if found is None or not self._allowed(found.outputs, index):
            return False
        return not (node.op_type == "Constant" and node.domain in ONNX_DOMAINS)

    def _allowed(self, parameters: Any, index: int) -> bool:
        if not parameters:
            return False
        types = parameters[min(index, len(parameters) - 1)].types
        name = _NAMES[self.target]
        return any(wrapping.format(name) in types for wrapping in _WRAPPINGS)


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [value for node in graph for value in node.outputs]


def _element(kind: ir.TypeProtocol | None) -> ir.DataType | None:
    return None if kind is None else kind.dtype


def _with_element(kind: ir.TypeProtocol, dtype: ir.DataType) -> ir.TypeProtocol:
    """The same type with another element type."""
    if isinstance(kind, ir.TensorType):
        return ir.TensorType(dtype)
    if isinstance(kind, ir.SequenceType):
        return ir.SequenceType(_with_element(kind.elem_type, dtype))
    if isinstance(kind, ir.OptionalType):
        return ir.OptionalType(_with_element(kind.elem_type, dtype))
    return kind


def _not_zero(old: Any, new: Any) -> Any:
    """A single small number, such as the epsilon before a division, does not become zero."""
    vanished = (new == 0) & (old != 0)
    smallest = np.finfo(new.dtype).smallest_subnormal
    return np.where(vanished, np.copysign(smallest, old), new).astype(new.dtype)
