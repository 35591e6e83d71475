"""Removes channels that are constant or that nobody reads, from every tensor they run through.

Before::

    c = Conv (x, w1, b1)         # w1 float[32,16,3,3]; filters 16..31 and their biases are zero
    r = Relu (c)
    y = Conv (r, w2)             # w2 float[8,32,1,1]

After::

    c = Conv (x, w1_16, b1_16)   # w1_16 float[16,16,3,3]
    r = Relu (c)
    y = Conv (r, w2_16)          # w2_16 float[8,16,1,1]

Holds only if:

1. Every matrix operator (Conv, ConvTranspose, Gemm, MatMul with constant weights) that reads the
   channel does not need it: the channel is exactly zero there, or a constant that the operator's
   bias can take up (no padding), or all its weights for outputs that are themselves needed are
   zero.
2. The channel enters no graph output, no subgraph, and no operator without a rule; operators that
   mix channels (Softmax, ReduceMax over channels) have none.
3. Tensors that join (Add, Mul, Concat along another axis) lose the same channels.
4. Every reader of a weight can follow the cut; weights that a caller can override are no constants.
5. One channel at least stays on every axis.
6. A grouped Conv keeps equally many inputs and equally many outputs in each group that stays; which
   ones may differ. A group goes when none of its inputs and outputs is needed.
7. Where a Reshape makes heads of channels, the heads that stay keep equally many channels each;
   which ones may differ. A head goes when none of its values is needed, with its queries and keys;
   a channel of queries and keys goes when it is zero on either side, or its head goes. Heads that
   share keys and values go together. Numbers that spell heads or channels in target shapes are
   rewritten, as constants or as pieces of a Concat; no scale is touched.
8. A quantized weight is a constant behind a DequantizeLinear that the operator alone reads, without
   blocks. Between quantized values nothing is folded: only zero and unread channels go there.

Hidden units of LSTM, GRU and RNN are channels too, which needed units may need; the two directions
of one operator lose equally many, other ones where what follows keeps the directions apart. So are
the columns of a table that is gathered from (an embedding), together with those of an output layer
that reads the same table.

A group of a GroupNormalization goes as a whole. A norm over all channels keeps them all, unless
``compensate_norms`` is set: then channels that enter as zeros may go, an RMS norm gets other
constants (epsilon times D / M, scale times sqrt(D / M) for M of D channels), and a layer norm is
written in primitive operators with ``mean_M((x - mean)^2) * M / D + mean^2 * (D - M) / D`` for its
variance. As such a channel leaves a layer norm as ``-mean / deviation * gamma + beta``, one of them
stands for all where readers need them.

Where no bias can take up constants (a padded Conv), one of them stays and stands for all the others
that enter the same operator. A channel shuffle of which channels went becomes a Gather.

Equal channels (the same filters, biases and other constants up to matrix operators) are read from
the first of them only.

Where every channel of an operand of Add, Sub, Mul, Div, Max or Min is constant, the vector of these
constants takes its place, if the other operand has the shape of the result by itself.

Formula: a constant channel k folds as ``b[o] + k * sum(w[o, c])``; a channel j that stands for it
gets ``w[o, j] + k[c] / k[j] * w[o, c]``, and one that stands for an equal one c gets
``w[o, j] + w[o, c]``; all in float64.

Exactness: the same function of finite inputs; sums are formed in another order.

Source: the definition of the operators; reachability from the outputs over nonzero weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxslim.errors import RuntimeRefusedError
from onnxslim.ir.schema import ONNX_DOMAINS
from onnxslim.pipeline import Context, Exactness, Pass, PassResult
from onnxslim.rewrite.channels.align import hold_back
from onnxslim.rewrite.channels.atoms import Array, Channelled, Channels, Evaluate, Ids
from onnxslim.rewrite.channels.constant import constant_operands, replace
from onnxslim.rewrite.channels.duplicates import find_duplicates, merge_duplicates
from onnxslim.rewrite.channels.emit import emit
from onnxslim.rewrite.channels.explain import candidates, explain
from onnxslim.rewrite.channels.need import Need
from onnxslim.rewrite.channels.operators.quantized import integer_operators
from onnxslim.rewrite.channels.rules import MINIMUM_OPSET, walk
from onnxslim.rewrite.channels.virtual import concentrate, virtual_channels


@dataclass(frozen=True)
class EliminateZeroedChannels(Pass):
    """Cuts zeroed and unread channels out of weights; dead nodes are left to another pass.

    Args:
        align: 1 removes all that can go; N leaves multiples of N channels; None holds back as many
            as it takes for no layer to get slower than it was.
        explain: put an account of every group of tied channels into the context.
        compensate_norms: let norms over the channels lose zero channels, with the constants (RMS
            norm) or in the form (layer norm) that make up for them.
    """

    align: int | None = 1
    explain: bool = False
    compensate_norms: bool = False

    name: ClassVar[str] = "eliminate-zeroed-channels"
    exactness: ClassVar[Exactness] = Exactness.ROUNDING

    def run(self, model: ir.Model, context: Context) -> PassResult:
        result = PassResult()
        functions = [function.graph for function in model.functions.values()]
        for graph, imports in _graphs(model):
            inside = any(graph is body for body in functions)
            # Again after every change: what is left of a depthwise Conv may be a plain one.
            while changes := self._once(graph, imports, inside, context):
                result.changes += changes
        return result

    def _once(
        self, graph: ir.Graph, imports: dict[str, int], is_function: bool, context: Context
    ) -> int:
        versions = [imports[domain] for domain in ONNX_DOMAINS if domain in imports]
        if not versions or max(versions) < MINIMUM_OPSET:
            return 0
        state = walk(
            graph,
            max(versions),
            _evaluator(imports),
            is_function=is_function,
            compensate_norms=self.compensate_norms,
        )
        for site, reason in integer_operators(graph):
            context.refuse(self, site, reason)
        if not state.contractions:
            return 0
        return (
            self._replace_constants(state, context)
            or self._concentrate(state, context)
            or self._merge_equal(state, context)
            or self._prune(state, context)
        )

    def _replace_constants(self, state: Channelled, context: Context) -> int:
        changes = 0
        for operand in list(constant_operands(state)):
            value = operand.node.inputs[operand.index]
            site = (value.name if value is not None else None) or ""
            if context.allow(self, site, "the same constant in every place of a channel"):
                replace(state, operand, context.fresh_name)
                changes += 1
        return changes

    def _merge_equal(self, state: Channelled, context: Context) -> int:
        allowed = []
        for found in find_duplicates(state):
            detail = f"{len(found.roots)} equal channels become one"
            if context.allow(self, found.part.node.outputs[0].name or "", detail):
                allowed.append(found)
        merge_duplicates(state, allowed)
        return len(allowed)

    def _concentrate(self, state: Channelled, context: Context) -> int:
        found = virtual_channels(state)
        for one in found:
            site = (one.site.name if one.site is not None else None) or ""
            if not context.allow(self, site, f"{len(one.others)} zero channels stand in another"):
                return 0
        for one in found:
            concentrate(state, one, context.fresh_name)
        return len(found)

    def _prune(self, state: Channelled, context: Context) -> int:
        need = Need(state)
        hold_back(state, need, self.align)
        changes = 0
        # Backward: what a refusal keeps alive lies further up and has not been asked for yet.
        for site, ids, channels in reversed(list(_sites(state, need))):
            if need.kept(ids).all():
                continue
            if context.allow(self, site, _detail(need, channels)):
                changes += 1
            else:
                need.keep(ids, "its removal was not allowed")
        for site, reason in (*state.notes, *_kept_candidates(state, need)):
            context.refuse(self, site, reason)
        if self.explain:
            for group in explain(state, need):
                context.explain(group)
        if not changes or not need.any_removed():
            return 0
        emit(state, need, context.fresh_name)
        return changes


def _graphs(model: ir.Model) -> Iterator[tuple[ir.Graph, dict[str, int]]]:
    """Every graph with the opsets that hold inside it."""
    for graph in (model.graph, *model.graph.subgraphs()):
        yield graph, model.graph.opset_imports
    for function in model.functions.values():
        for graph in (function.graph, *function.graph.subgraphs()):
            yield graph, function.opset_imports


def _evaluator(imports: dict[str, int]) -> Evaluate:
    """Runs the operator itself in onnxruntime; equal questions are asked once."""
    answers: dict[tuple[object, ...], Array | None] = {}

    def run(node: ir.Node, inputs: list[Array | None]) -> Array | None:
        from onnxslim.runtime.evaluate import evaluate

        attributes = sorted((name, str(item.value)) for name, item in node.attributes.items())
        contents = [
            None if item is None else (item.dtype.name, item.shape, item.tobytes())
            for item in inputs
        ]
        question = (node.op_type, tuple(attributes), tuple(contents))
        if question not in answers:
            try:
                answers[question] = evaluate(node, inputs, imports)[0]
            except RuntimeRefusedError:
                answers[question] = None
        return answers[question]

    return run


def _sites(state: Channelled, need: Need) -> Iterator[tuple[str, Ids, Channels]]:
    """Removed atoms by the weight that makes them; tied atoms count for the first such weight."""
    taken = np.zeros(len(need.roots), dtype=np.bool_)
    for site, value in state.sources:
        channels = state.of(value)
        if channels is None:
            continue
        own = channels.ids[~need.kept(channels.ids)]
        own = own[~taken[need.roots[own]]]
        if own.size:
            taken[need.roots[own]] = True
            yield site, own, channels


def _detail(need: Need, channels: Channels) -> str:
    kept = need.kept(channels.ids)
    known = channels.filled()[~kept]
    kinds = [
        ("zero filter", (known == 0).any()),
        ("constant", (~np.isnan(known) & (known != 0)).any()),
        ("constant or unread further on", np.isnan(known).any()),
    ]
    named = ", ".join(kind for kind, found in kinds if found)
    return f"{len(kept)} -> {int(kept.sum())} channels ({named})"


def _kept_candidates(state: Channelled, need: Need) -> Iterator[tuple[str, str]]:
    """Per weight, why its constant or somewhere unread channels stay after all."""
    candidate = candidates(state, need)
    for site, value in state.sources:
        made = state.of(value)
        if made is None:
            continue
        roots = need.roots[made.ids[need.kept(made.ids)]]
        held = roots[candidate[roots]]
        reasons = [_stays(need, part) for part in _held_or_not(need, held)]
        if reasons:
            yield site, "; ".join(reasons)


def _held_or_not(need: Need, roots: Ids) -> Iterator[Ids]:
    """The roots that are only held back, and those that really have to stay."""
    only_held = need.held(roots)
    yield from (part for part in (roots[~only_held], roots[only_held]) if part.size)


def _stays(need: Need, roots: Ids) -> str:
    count = "1 channel" if len(roots) == 1 else f"{len(roots)} channels"
    reason = need.reason(int(roots[0]))
    if need.held(roots[:1]).any():
        return f"holds {count} back: {reason}"
    plural = "1 zeroed channel stays" if len(roots) == 1 else f"{len(roots)} zeroed channels stay"
    return f"{plural}: {reason}"
