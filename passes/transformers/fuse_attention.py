"""Makes one Attention of scaled products, a Softmax and a product with the values.

Before::

    q = Transpose <perm=[0,2,1,3]> (Reshape (x, [0,0,heads,size]))
    k = Transpose <perm=[0,2,3,1]> (Reshape (y, [0,0,heads,size]))
    v = Transpose <perm=[0,2,1,3]> (Reshape (z, [0,0,heads,size]))
    s = MatMul (q, k)
    d = Div (s, 4.0)
    a = Add (d, mask)             # may be missing
    p = Softmax (a)
    o = MatMul (p, v)
    t = Transpose <perm=[0,2,1,3]> (o)
    r = Reshape (t, [0,0,features])

After::

    r = Attention <q_num_heads=heads, kv_num_heads=heads, scale=0.25> (x, y, z, mask)

Where heads are not split and joined like this, the operator reads q, k and v as they are, in four
dimensions. Constants may scale the products, q or k, anywhere on the way.

Holds only if:

1. the opset is 23 or later;
2. q, k and v are float or float16, have four dimensions, and provably the same batch and as many
   heads; k and v the same sequence;
3. a mask has the type of q, two or four dimensions, and provably one number for every pair of query
   and key: onnxruntime does not broadcast these two; what is before them is 1, or batch and heads;
4. Softmax runs over the last axis;
5. no step has another reader or is a graph output;
6. nothing in the model is quantized: there a last bit may become a step of the grid.

Exactness: rounding. (A row of a mask that is minus infinity everywhere has no defined answer.)

Source: the definition of Attention among the ONNX operators; Vaswani and others, Attention Is All
You Need, 2017.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import onnx_ir as ir

from onnxslim.ir.schema import is_op, opset_of
from onnxslim.ir.shapes import dim, rank
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.attention_heads import (
    KEYS,
    SWAPPED,
    TO_HEADS,
    join_heads,
    permuted,
    split_features,
    split_heads,
    unscaled,
)
from onnxslim.rewrite.patterns import is_closed, maker, pairs, replace_group, rounding_matters

OPSET = 23
_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})


@dataclass
class _Core:
    """The part from q and k to the product with the values."""

    root: ir.Node
    q: ir.Value
    k: ir.Value  # as the product reads it: (batch, heads, size, sequence)
    v: ir.Value
    factor: float
    mask: ir.Value | None
    nodes: list[ir.Node] = field(default_factory=list)


@dataclass
class _Form:
    """What the new node reads, and what it takes the place of."""

    inputs: list[ir.Value]
    heads: int | None
    factor: float
    root: ir.Node
    nodes: list[ir.Node]
    turned: bool = False  # the second input still has to be brought into the order of heads


@dataclass(frozen=True)
class FuseAttention(Pass):
    """A change is one Attention."""

    name: ClassVar[str] = "fuse-attention"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING
    roots: ClassVar[frozenset[str]] = frozenset({"Softmax"})

    def run(self, model: ir.Model, context: Context) -> PassResult:
        changes = 0
        general = rounding_matters(model, context)
        for node in context.nodes_of(model, "Softmax"):
            core = _match(node)
            if core is None or (opset_of(node, model) or 0) < OPSET:  # (1)
                continue
            site = core.root.outputs[0].name or ""
            reason = general or _reason(core)
            form = _best_form(core) if reason is None else None
            if form is None:
                context.refuse(self, site, reason or "kept because a step of it is read elsewhere")
            elif context.allow(self, site):
                _rewrite(form, core.mask, context)
                changes += 1
        return PassResult(changes)


def _match(softmax: ir.Node) -> _Core | None:
    """The core around a Softmax (4)."""
    home = softmax.graph
    axis = softmax.attributes.get_int("axis", -1)
    if axis != -1 and axis + 1 != (rank(softmax.inputs[0]) or 0):
        return None
    uses = list(softmax.outputs[0].uses())
    root = uses[0][0] if len(uses) == 1 else None
    if root is None or root.graph is not home or not is_op(root, "MatMul") or uses[0][1] != 0:
        return None
    value, v = softmax.inputs[0], root.inputs[1]
    if value is None or v is None:
        return None
    for scores, mask, extra in _sums(value, home):
        found = _products(scores, home)
        if found is not None:
            nodes = [*found.nodes, *extra, softmax, root]
            return replace(found, root=root, v=v, mask=mask, nodes=nodes)
    return None


def _sums(value: ir.Value, home: object) -> list[tuple[ir.Value, ir.Value | None, list[ir.Node]]]:
    """The ways to read a value as scores plus a mask."""
    total = maker(value, home, "Add")
    if total is None:
        return [(value, None, [])]
    return [(scores, mask, [total]) for scores, mask in pairs(total)]


def _products(value: ir.Value, home: object) -> _Core | None:
    scores = unscaled(value, home)
    product = maker(scores.value, home, "MatMul")
    if product is None or product.inputs[0] is None or product.inputs[1] is None:
        return None
    q, k = unscaled(product.inputs[0], home), unscaled(product.inputs[1], home)
    factor = scores.factor * q.factor * k.factor
    nodes = [*q.nodes, *k.nodes, product, *scores.nodes]
    return _Core(product, q.value, k.value, q.value, factor, None, nodes)


def _reason(core: _Core) -> str | None:
    """Why a match is left alone, or None."""
    if len({value.dtype for value in (core.q, core.k, core.v)} | {core.q.dtype}) != 1:
        return "kept because q, k and v have different types"
    if core.q.dtype not in _TYPES or not core.factor > 0 or not math.isfinite(core.factor):
        return "kept because of its element type or scale"
    if any(rank(value) != 4 for value in (core.q, core.k, core.v)):
        return "kept because q, k and v do not have four dimensions"
    for axis in (0, 1):
        sizes = {dim(value, axis) for value in (core.q, core.k, core.v)}
        if len(sizes) != 1 or None in sizes:  # (2)
            return "kept because batch and heads are not known to be the same"
    if dim(core.k, 3) is None or dim(core.k, 3) != dim(core.v, 2):
        return "kept because keys and values are not known to be as many"
    return None if core.mask is None else _mask_reason(core, core.mask)


def _mask_reason(core: _Core, mask: ir.Value) -> str | None:
    """Why a mask cannot be an input of the operator (3)."""
    if mask.dtype != core.q.dtype or rank(mask) not in (2, 4):
        return "kept because the mask has another type or number of dimensions"
    wanted = [dim(core.q, 0), dim(core.q, 1), dim(core.q, 2), dim(core.k, 3)]
    for axis in (-2, -1):
        if dim(mask, axis) is None or dim(mask, axis) != wanted[axis]:
            return "kept because the mask is the same for all queries"
    for axis in (0, 1) if rank(mask) == 4 else ():
        if dim(mask, axis) != 1 and dim(mask, axis) != wanted[axis]:
            return "kept because the mask has another batch"
    return None


def _best_form(core: _Core) -> _Form | None:
    """The form that takes most nodes and is closed (5)."""
    for form in (_joined(core), _split(core)):
        if form is not None and is_closed(form.nodes, form.root):
            return form
    return None


def _joined(core: _Core) -> _Form | None:
    """The form that reads features and writes features."""
    home = core.root.graph
    join = join_heads(core.root.outputs[0], home)
    q, v = split_heads(core.q, home), split_heads(core.v, home)
    turn = permuted(core.k, home, KEYS)
    k, last = None, turn
    if turn is not None and turn.inputs[0] is not None:
        k = split_features(turn.inputs[0], home)
    else:
        last = permuted(core.k, home, SWAPPED)
        plain = unscaled(last.inputs[0], home) if last is not None and last.inputs[0] else None
        k = split_heads(plain.value, home) if plain is not None else None
        if k is not None and plain is not None:
            k = replace(k, factor=k.factor * plain.factor, nodes=[*k.nodes, *plain.nodes])
    if join is None or q is None or k is None or v is None or last is None or v.factor != 1.0:
        return None
    if len({q.count, k.count, v.count}) != 1:
        return None
    nodes = [*q.nodes, *k.nodes, last, *v.nodes, *core.nodes, *join]
    factor = core.factor * q.factor * k.factor
    inputs = [q.features, k.features, v.features]
    return _Form(inputs, q.count, factor, join[-1], nodes)


def _split(core: _Core) -> _Form | None:
    """The form that reads heads and writes heads."""
    home = core.root.graph
    swap = permuted(core.k, home, SWAPPED)
    turn = swap or permuted(core.k, home, KEYS)
    if turn is None or turn.inputs[0] is None:
        return None
    inputs = [core.q, turn.inputs[0], core.v]
    nodes = [turn, *core.nodes]
    return _Form(inputs, None, core.factor, core.root, nodes, turned=swap is None)


def _rewrite(form: _Form, mask: ir.Value | None, context: Context) -> None:
    inputs = list(form.inputs)
    graph = form.root.graph
    if form.turned and graph is not None:
        turn = ir.Node("", "Transpose", [inputs[1]], [ir.AttrInt64s("perm", TO_HEADS)])
        turn.outputs[0].name = context.fresh_name(f"{inputs[1].name}_heads")
        turn.outputs[0].type = inputs[1].type
        graph.insert_before(form.root, turn)
        inputs[1] = turn.outputs[0]
    if mask is not None:
        inputs.append(mask)
    attributes = [ir.AttrFloat32("scale", form.factor)]
    if form.heads is not None:
        attributes.append(ir.AttrInt64("kv_num_heads", form.heads))
        attributes.append(ir.AttrInt64("q_num_heads", form.heads))
    new = ir.Node("", "Attention", inputs, attributes, name=form.root.name)
    replace_group(form.nodes, form.root, new)
