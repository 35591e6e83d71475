"""Moves a constant per channel that follows a BatchNormalization into its scale and bias.

Before::

    <float[4] s, float[4] b, float[4,1,1] f, float[4,1,1] t>
    n = BatchNormalization (x, s, b, mean, var)
    m = Mul (n, f)
    y = Add (m, t)

After::

    y = BatchNormalization (x, s * f, b * f + t, mean, var)

Old frameworks wrote the two halves of a normalization as two layers. (Where a convolution comes
before, `fuse-conv-batchnorm` takes all of it, unless its weights would take more bytes.)

Holds only if:

1. the node is Add or Mul without attributes (opset 7) with one constant side that broadcasting lays
   along the channels;
2. the BatchNormalization is not in training mode and has one output with no other reader, which is
   no graph output; both stand in the main graph, and its scale and bias are initializers;
3. the new numbers are finite in their element type;
4. no more bytes are stored: a scale or bias that others read as well stays for those.

Exactness: rounding.

Source: BatchNormalization of the ONNX operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxslim.ir.constants import Array, array, is_constant
from onnxslim.ir.edit import add_initializer, bypass
from onnxslim.ir.schema import is_op
from onnxslim.ir.shapes import rank
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.channel_affine import Linear, per_channel
from onnxslim.rewrite.place_constant import discard_unused
from onnxslim.rewrite.stored_bytes import freed_bytes, node_bytes, tensor_bytes

_FREE_IR_VERSION = 4


@dataclass(frozen=True)
class FuseBatchnormAffine(Pass):
    """A change is one Add or Mul less."""

    name: ClassVar[str] = "fuse-batchnorm-affine"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    roots: ClassVar[frozenset[str]] = frozenset({"BatchNormalization"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        changes = 0
        for node in context.nodes_of(model, "Add", "Mul"):
            if node.graph is model.graph and not node.attributes and len(node.inputs) == 2:
                changes += self._fuse(node, model, context)
        return PassResult(changes)

    def _fuse(self, node: ir.Node, model: ir.Model, context: Context) -> int:
        value, constant = node.inputs if is_constant(node.inputs[1]) else node.inputs[::-1]
        norm = _norm_before(value, model)
        if norm is None or constant is None or not is_constant(constant):
            return 0
        fused = _fused(node, norm, constant)
        site = node.outputs[0].name or ""
        if fused is None or not _may_store(norm, fused, model):
            return 0
        if _growth(node, norm, constant, fused) > 0:
            context.refuse(self, site, "kept because scale and bias are shared with other nodes")
            return 0
        if not context.allow(self, site, node.op_type):
            return 0
        for slot, content in fused.items():
            _replace(norm, slot, content, model, context)
        bypass(node, norm.outputs[0])
        discard_unused(constant)
        return 1


def _norm_before(value: ir.Value | None, model: ir.Model) -> ir.Node | None:
    """The BatchNormalization that computes a value for one reader (2)."""
    node = value.producer() if value is not None else None
    if value is None or node is None or not is_op(node, "BatchNormalization"):
        return None
    if node.graph is not model.graph or value.is_graph_output() or len(value.uses()) != 1:
        return None
    if any(item.is_ref() for item in node.attributes.values()):
        return None
    if node.attributes.get_int("training_mode", 0) or len(node.outputs) != 1:
        return None
    initializers = all(
        item is not None and item.is_initializer() and is_constant(item)
        for item in node.inputs[1:3]
    )
    return node if initializers and len(node.inputs) == 5 else None


def _fused(node: ir.Node, norm: ir.Node, constant: ir.Value) -> dict[int, Array] | None:
    """The new scale (1) and bias (2), as far as they change; None where they cannot be."""
    content = array(constant)
    scale, bias = array(norm.inputs[1]), array(norm.inputs[2])
    width = rank(norm.inputs[0])
    if (
        content is None
        or scale is None
        or bias is None
        or width is None
        or content.dtype.kind != "f"
    ):
        return None
    if scale.ndim != 1 or scale.shape != bias.shape or scale.dtype.kind != "f":
        return None
    along = per_channel(content, Linear(norm, scale.shape[0], width))
    if along is None:
        return None
    if node.op_type == "Add":
        exact = {2: bias.astype(np.float64) + along}
    else:
        exact = {1: scale.astype(np.float64) * along, 2: bias.astype(np.float64) * along}
    old = {1: scale, 2: bias}
    with np.errstate(over="ignore"):
        found = {slot: numbers.astype(old[slot].dtype) for slot, numbers in exact.items()}
    return found if all(np.isfinite(numbers).all() for numbers in found.values()) else None


def _may_store(norm: ir.Node, fused: dict[int, Array], model: ir.Model) -> bool:
    """Before IR version 4 new initializers would be new inputs; old ones may change."""
    return (model.ir_version or 0) >= _FREE_IR_VERSION or all(
        value is not None and len(value.uses()) == 1
        for value in map(norm.inputs.__getitem__, fused)
    )


def _growth(node: ir.Node, norm: ir.Node, constant: ir.Value, fused: dict[int, Array]) -> int:
    """Bytes that the file grows by (4)."""
    growth = -node_bytes(node)
    if len(constant.uses()) == 1 and not constant.is_graph_output():
        growth -= freed_bytes(constant)
    for slot, content in fused.items():
        old = norm.inputs[slot]
        assert old is not None  # the match asked for it
        growth += tensor_bytes(old, content.nbytes, as_node=False)
        if len(old.uses()) == 1 and not old.is_graph_output():
            growth -= freed_bytes(old)
    return growth


def _replace(norm: ir.Node, slot: int, content: Array, model: ir.Model, context: Context) -> None:
    """Changes the contents under the old name, or adds a tensor where others read the old one."""
    old = norm.inputs[slot]
    assert old is not None  # the match asked for it
    if len(old.uses()) == 1 and not old.is_graph_output():
        old.const_value = ir.tensor(content, name=old.name)
        return
    new = add_initializer(model.graph, content, context.fresh_name(f"{old.name}_fused"))
    norm.replace_input_with(slot, new)
