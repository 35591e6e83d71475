"""Puts the stored form of a weight and the nodes that give it back in the weight's place.

onnxruntime computes those nodes once, when it opens the model, so that the speed of a run stays
that of the plain weight. The last node's output takes the weight's name: readers, those in
subgraphs too, notice nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim.ir.edit import remove
from onnxslim.pipeline import Context, Pass
from onnxslim.rewrite.place_constant import needs_node
from onnxslim.rewrite.stored_weights.find import Array, Weight, find_weights, is_finite

META_KEY = "onnxslim.stored"
"""Under this key of a value's ``meta`` stands the `Record` of the weight that it gives back."""

# Bytes in the file for one more node and one more tensor with their names, roughly.
_OVERHEAD = 160


@dataclass(frozen=True)
class Record:
    """What became of a weight.

    Attributes:
        name: of the weight.
        form: how it is stored: ``int8``, ``fp16`` ...
        shape: of the weight.
        error: Frobenius norm of the difference relative to that of the weight; 0 is exact.
        bytes_before: stored bytes of the weight.
        bytes_after: stored bytes of what replaces it, scales and tables included.
        nodes: names of the nodes that give the weight back.
    """

    name: str
    form: str
    shape: tuple[int, ...]
    error: float
    bytes_before: int
    bytes_after: int
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One node of the way back: ``op(previous, operand)``.

    Attributes:
        op_type: a standard operator.
        dtype: element type of what it gives.
        operand: the other input, a constant; None for an operator with one input.
        operand_first: the constant is the first input.
        attributes: of the node.
    """

    op_type: str
    dtype: ir.DataType
    operand: Array | None = None
    operand_first: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stored:
    """A weight in another form.

    Attributes:
        form: its name in reports.
        codes: what is stored in place of the weight; or the value for all elements and ``None``.
        steps: how the weight comes back.
        error: relative to the weight, as in `Record`.
    """

    form: str
    codes: Array
    steps: Sequence[Step]
    error: float

    @property
    def nbytes(self) -> int:
        """Bytes of codes and operands in the file."""
        operands = [step.operand for step in self.steps if step.operand is not None]
        return sum(int(ir.tensor(each).nbytes) for each in (self.codes, *operands))


Encode = Callable[[Weight, Array], Stored | str]
"""Codes one weight, or says why it cannot."""


def store_weights(
    owner: Pass,
    model: ir.Model,
    context: Context,
    encode: Encode,
    *,
    max_error: float,
    min_bytes: int,
    dtypes: tuple[ir.DataType, ...] = (ir.DataType.FLOAT,),
) -> int:
    """Stores every weight that ``encode`` can code well enough. They are read one at a time.

    Args:
        owner: the pass.
        model: edited in place.
        context: of the run.
        encode: codes a weight, given as float32.
        max_error: a weight whose relative error is larger stays as it is.
        min_bytes: smaller weights stay as they are.
        dtypes: element types of weights to store.

    Returns:
        The number of weights that were stored anew.
    """
    weights = find_weights(owner, model, context, dtypes=dtypes, min_bytes=min_bytes)
    changes = 0
    for weight in weights:
        stored = _coded(weight, encode)
        if not isinstance(stored, str):
            stored = _within(stored, weight, max_error)
        if isinstance(stored, str):
            context.refuse(owner, weight.name, stored)
            continue
        before, after = weight.tensor.nbytes, stored.nbytes
        detail = f"{stored.form}, relative error {stored.error:.2g}, {before} -> {after} bytes"
        if context.allow(owner, weight.name, detail):
            replace_weight(model, context, weight, stored)
            changes += 1
    return changes


def _coded(weight: Weight, encode: Encode) -> Stored | str:
    """The weight in its new form; the way back ends in the weight's own type."""
    array = weight.array()
    if not is_finite(array):
        return "it holds NaN or infinity"
    stored = encode(weight, array.astype(np.float32, copy=False))
    dtype = weight.tensor.dtype
    if isinstance(stored, str) or stored.steps[-1].dtype == dtype:
        return stored
    return replace(
        stored, steps=(*stored.steps, Step("Cast", dtype, attributes={"to": int(dtype)}))
    )


def _within(stored: Stored, weight: Weight, max_error: float) -> Stored | str:
    """The stored form itself, or why it is not taken."""
    if stored.error > max_error:
        return f"as {stored.form} its relative error is {stored.error:.2g}, above {max_error:g}"
    if stored.nbytes + _OVERHEAD >= weight.tensor.nbytes:
        return f"as {stored.form} it would not be smaller"
    return stored


def replace_weight(model: ir.Model, context: Context, weight: Weight, stored: Stored) -> None:
    """Puts the stored form and its nodes in the place of the weight."""
    value, tensor = weight.value, weight.tensor
    name, producer = weight.name, value.producer()
    if producer is None:
        del weight.graph.initializers[name]
    value.name = f"{name}__replaced"
    chain = _Chain(model, context, weight.graph, producer or weight.graph[0], name)
    new = chain.build(stored, value, tuple(tensor.shape.numpy()))
    ir.convenience.replace_all_uses_with(value, new)
    new.name = name
    new.meta[META_KEY] = Record(
        name,
        stored.form,
        tuple(tensor.shape.numpy()),
        stored.error,
        int(tensor.nbytes),
        stored.nbytes,
        tuple(chain.made),
    )
    if producer is not None:
        remove(producer)


class _Chain:
    """Builds the nodes for one weight before ``anchor``."""

    def __init__(
        self, model: ir.Model, context: Context, graph: ir.Graph, anchor: ir.Node, base: str
    ) -> None:
        self._model, self._context = model, context
        self._graph, self._anchor, self._base = graph, anchor, base
        self.made: list[str] = []

    def build(self, stored: Stored, old: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """The nodes; the output of the last one, of the old value's shape."""
        current = self.constant(stored.codes, stored.form.split()[0])
        for step in stored.steps:
            inputs = [current]
            if step.operand is not None:
                operand = self._widened(step.operand, step)
                inputs = [operand, current] if step.operand_first else [current, operand]
            current = self.node(step.op_type, inputs, step.dtype, step.attributes)
        current.shape = old.shape if old.shape is not None else ir.Shape(shape)
        return current

    def _widened(self, operand: Array, step: Step) -> ir.Value:
        """The operand as a value; one in half precision is cast to what the node computes in."""
        kind = "shape" if operand.dtype == np.int64 else "scale" if operand.ndim != 1 else "table"
        value = self.constant(operand, kind)
        if operand.dtype != np.float16:
            return value
        return self.node("Cast", [value], step.dtype, {"to": int(step.dtype)})

    def constant(self, array: Array, suffix: str) -> ir.Value:
        """A constant of the graph: an initializer, or a Constant node where it has to be one."""
        name = self._context.fresh_name(f"{self._base}_{suffix}")
        tensor = ir.tensor(array, name=name)
        if needs_node(self._model, self._graph):
            value = self.node("Constant", [], tensor.dtype, {"value": tensor}, counted=False)
            value.name = name
            return value
        made = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
            const_value=tensor,
        )
        self._graph.register_initializer(made)
        return made

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        dtype: ir.DataType,
        attributes: dict[str, Any],
        *,
        counted: bool = True,
    ) -> ir.Value:
        """A node before the anchor; its one output."""
        name = self._context.fresh_name(f"{self._base}_{op_type.lower()}")
        made = ir.node(op_type, list(inputs), attributes=attributes, name=name)
        made.outputs[0].name = name
        made.outputs[0].type = ir.TensorType(dtype)
        self._graph.insert_before(self._anchor, made)
        if counted:
            self.made.append(name)
        return made.outputs[0]


def relative_error(array: Array, other: Array) -> float:
    """Frobenius norm of the difference relative to that of ``array``; 0 where both are zero."""
    noise = signal = 0.0
    first, second = array.reshape(-1), other.reshape(-1)
    for start in range(0, first.size, 1 << 20):
        one = first[start : start + (1 << 20)].astype(np.float64)
        signal += float(np.dot(one, one))
        one -= second[start : start + (1 << 20)].astype(np.float64)
        noise += float(np.dot(one, one))
    if noise == 0:
        return 0.0
    return float(np.sqrt(noise / signal)) if signal else float("inf")
