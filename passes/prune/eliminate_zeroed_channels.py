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
   mix channels (Softmax, normalisation over channels) have none.
3. Tensors that join (Add, Mul, Concat along another axis) lose the same channels.
4. Every reader of a weight can follow the cut; weights that a caller can override are no constants.
5. One channel at least stays on every axis.
6. A grouped Conv keeps equally many inputs and equally many outputs in each group that stays; which
   ones may differ. A group goes when none of its inputs and outputs is needed.

Hidden units of LSTM, GRU and RNN are channels too, which needed units may need; those of the two
directions of one operator go together.

Where no bias can take up constants (a padded Conv), one of them stays and stands for all the others
that enter the same operator. A channel shuffle of which channels went becomes a Gather.

Where every channel of an operand of Add, Sub, Mul, Div, Max or Min is constant, the vector of these
constants takes its place, if the other operand has the shape of the result by itself.

Formula: a constant channel k folds as ``b[o] + k * sum(w[o, c])``; a channel j that stands for it
gets ``w[o, j] + k[c] / k[j] * w[o, c]``; both in float64.

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
from onnxslim.rewrite.channels.atoms import Array, Channelled, Channels, Evaluate, Ids
from onnxslim.rewrite.channels.constant import constant_operands, replace
from onnxslim.rewrite.channels.emit import emit
from onnxslim.rewrite.channels.need import Need
from onnxslim.rewrite.channels.rules import MINIMUM_OPSET, walk


@dataclass(frozen=True)
class EliminateZeroedChannels(Pass):
    """Cuts zeroed and unread channels out of weights; dead nodes are left to another pass."""

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
        state = walk(graph, max(versions), _evaluator(imports), is_function=is_function)
        if not state.contractions:
            return 0
        return self._replace_constants(state, context) or self._prune(state, context)

    def _replace_constants(self, state: Channelled, context: Context) -> int:
        changes = 0
        for operand in list(constant_operands(state)):
            value = operand.node.inputs[operand.index]
            site = (value.name if value is not None else None) or ""
            if context.allow(self, site, "the same constant in every place of a channel"):
                replace(state, operand, context.fresh_name)
                changes += 1
        return changes

    def _prune(self, state: Channelled, context: Context) -> int:
        need = Need(state)
        changes = 0
        # Backward: what a refusal keeps alive lies further up and has not been asked for yet.
        for site, ids, channels in reversed(list(_sites(state, need))):
            if need.kept(ids).all():
                continue
            if context.allow(self, site, _detail(need, channels)):
                changes += 1
            else:
                need.keep(ids, "its removal was not allowed")
        for site, reason in _kept_candidates(state, need):
            context.refuse(self, site, reason)
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
        contents = [None if item is None else (item.dtype.name, item.tobytes()) for item in inputs]
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
    candidate = np.zeros(len(need.roots), dtype=np.bool_)
    for channels in state.values.values():
        if channels.known is not None:
            candidate[need.roots[channels.ids[~np.isnan(channels.known)]]] = True
    for part in state.contractions:
        unread = ~part.weight.in_any() if need.kept(part.outputs).any() else slice(0)
        candidate[need.roots[part.inputs.ids[unread]]] = True
    for site, value in state.sources:
        made = state.of(value)
        if made is None:
            continue
        roots = need.roots[made.ids[need.kept(made.ids)]]
        held = roots[candidate[roots]]
        if held.size:
            what = (
                "1 zeroed channel stays" if len(held) == 1 else f"{len(held)} zeroed channels stay"
            )
            yield site, f"{what}: {need.reason(int(held[0]))}"
