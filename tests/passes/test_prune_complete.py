"""After the pass no further channel can be deleted without changing an output: by brute force.

Every input and output channel of every matrix operator that is left is cut from its weight in turn,
by zeros. Where that changes nothing, the channel has to be one that cannot go for a reason that the
analysis gives itself: it is tied to a channel that is read, or it is the last one of its axis.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from graph_check import as_written, make_feeds
from prune_models import Pruned
from prune_networks import Builder

from onnxslim.passes.prune.eliminate_zeroed_channels import _evaluator
from onnxslim.passes.simplify.eliminate_dead_nodes import EliminateDeadNodes
from onnxslim.pipeline import Context
from onnxslim.rewrite.channels.atoms import Channelled, Contraction
from onnxslim.rewrite.channels.need import Need
from onnxslim.rewrite.channels.rules import walk

GRAPHS = 100
# As many networks may be left out, for a Relu that passes nothing of what is tried.
MORE = 15


class Trials:
    """Runs a model with other weights without building another session.

    Args:
        model: its weights become inputs.
        watched: more values to look at.
    """

    def __init__(self, model: ir.Model, watched: set[str]) -> None:
        proto = ir.to_proto(as_written(model))
        names = [value.name for value in model.graph.outputs]
        self.outputs = len(names)
        names += sorted(watched - set(names) - {value.name for value in model.graph.inputs})
        for name in names[self.outputs :]:
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
        self.weights = {}
        kept = []
        for tensor in proto.graph.initializer:
            content = model.graph.initializers[tensor.name].const_value.numpy()
            if content.dtype == np.float32 and content.ndim > 1:
                self.weights[tensor.name] = np.array(content)
                dims = list(content.shape)
                info = ir.Value(
                    name=tensor.name, shape=ir.Shape(dims), type=ir.TensorType(ir.DataType.FLOAT)
                )
                proto.graph.input.append(ir.to_proto(info))
            else:
                kept.append(tensor)
        tensors = [type(tensor).FromString(tensor.SerializeToString()) for tensor in kept]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(tensors)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
        self.feeds = [
            {name: (content * size).astype(content.dtype) for name, content in feeds.items()}
            for size in (1, 4, 40)
            for feeds in [make_feeds(model, size, 12)]
        ]
        runs = [self.session.run(None, {**self.weights, **feed}) for feed in self.feeds]
        self.whole = [results[: self.outputs] for results in runs]
        self.seen = dict(zip(names, zip(*runs, strict=True), strict=True))

    def run(self, feeds: dict[str, np.ndarray], changed: dict[str, np.ndarray]) -> list:
        wanted = [output.name for output in self.session.get_outputs()[: self.outputs]]
        return self.session.run(wanted, {**self.weights, **feeds, **changed})

    def is_zero(self, name: str, axis: int, place: int) -> bool:
        """Is a channel zero for all inputs that are tried?"""
        runs = self.seen.get(name, ())
        return bool(runs) and not any(np.take(run, place, axis).any() for run in runs)

    def changes(self, name: str, axis: int, place: int) -> bool:
        """Does an output change when this slice of a weight is zero?"""
        weight = self.weights[name].copy()
        np.moveaxis(weight, axis, 0)[place] = 0
        for feed, whole in zip(self.feeds, self.whole, strict=True):
            outputs = self.run(feed, {name: weight})
            if any(not np.array_equal(*pair) for pair in zip(outputs, whole, strict=True)):
                return True
        return False


def slices(part: Contraction, need: Need) -> Iterator[tuple[int, int, int, bool]]:
    """Weight axis, coordinate, atom, and does the slice read? Of each channel that is left."""
    out_axis = part.weight.out_axis
    for axis, ids in ((out_axis, part.outputs), (1 - out_axis, part.inputs.ids)):
        for place, root in enumerate(need.roots[ids].tolist()):
            yield axis, place, root, axis != out_axis


@dataclass
class Found:
    """What brute force found.

    Attributes:
        silent: slices whose cut changes nothing: weight, axis, coordinate and atom.
        proven: atoms that some weight reads with effect.
        effective: reader and output coordinate of the slices of outputs that have an effect.
    """

    silent: list[tuple[str, int, int, int]] = field(default_factory=list)
    proven: set[int] = field(default_factory=set)
    effective: set[tuple[int, int]] = field(default_factory=set)


def search(state: Channelled, need: Need, trials: Trials, counts: dict[str, int]) -> Found:
    """Cuts every channel of every weight in turn."""
    found = Found()
    for number, part in enumerate(state.contractions):
        name = part.node.inputs[1].name
        if name not in trials.weights or part.node.attributes.get_int("group", 1) != 1:
            found.effective |= {(number, place) for place in range(len(part.outputs))}
            found.proven |= set(need.roots[part.inputs.ids].tolist())
            continue
        for axis, place, root, reads in slices(part, need):
            if not trials.changes(name, axis, place):
                found.silent.append((name, axis, place, root))
                continue
            counts["needed"] += 1
            if reads:
                found.proven.add(root)
            else:
                found.effective.add((number, place))
    return found


def excuse(state: Channelled, need: Need, found: Found, root: int) -> str:
    """Why the analysis keeps an atom whose cut does not show in one place; empty: no reason."""
    reason = need.reason(root)
    if any(root in need.roots[pin.ids] for pin in state.pins):
        return "pinned"  # a graph input or output, or mixed with others: it cannot be cut
    if "one channel has to stay" in reason:
        return "last of its axis"
    if "equally many channels" in reason:
        return "group count"
    if root in found.proven:
        return "tied to a channel that is read"
    if reason.startswith("constant"):
        return "constant that stands for others"
    return "read for another silent one" if not effective_readers(state, need, found, root) else ""


def algebra(model: ir.Model) -> str:
    """The mean along the axis of a Softmax is the same for every input; no zero tells that."""
    operators = [node.op_type for node in model.graph]
    if "Softmax" in operators and "ReduceMean" in operators[operators.index("Softmax") :]:
        return "mean of a Softmax"
    return ""


def is_passed(model: ir.Model, state: Channelled, trials: Trials) -> bool:
    """Does every Relu pass something of each channel, unless that is known to be constant?

    Zeros tell nothing of what is never positive for other reasons.
    """
    for node in model.graph:
        channels = state.of(node.outputs[0]) if node.op_type == "Relu" else None
        if channels is not None:
            for place in np.flatnonzero(np.isnan(channels.filled())).tolist():
                if trials.is_zero(node.outputs[0].name, channels.axis, place):
                    return False
    return True


def effective_readers(state: Channelled, need: Need, found: Found, root: int) -> bool:
    """Does an output that has an effect read it?"""
    return any(
        (number, output) in found.effective
        for number, part in enumerate(state.contractions)
        for place in np.flatnonzero(need.roots[part.inputs.ids] == root)
        for output in np.flatnonzero(part.weight.matrix()[:, place]).tolist()
    )


def check(seed: int, counts: dict[str, int]) -> None:
    builder = Builder(seed, steps=(8, 20), plain=True)
    model = builder.net.model(*builder.build())
    EliminateDeadNodes()(model, Context(model))
    model = Pruned(model).after
    EliminateDeadNodes()(model, Context(model))
    imports = model.graph.opset_imports
    state = walk(model.graph, imports[""], _evaluator(imports))
    need = Need(state)
    relus = {node.outputs[0].name for node in model.graph if node.op_type == "Relu"}
    trials = Trials(model, relus)
    if not is_passed(model, state, trials):
        counts["left out"] += 1
        return
    found = search(state, need, trials, counts)
    for name, axis, place, root in found.silent:
        why = excuse(state, need, found, root) or algebra(model)
        assert why, (seed, name, axis, place, need.reason(root))
        counts[why] = counts.get(why, 0) + 1


def complete(seeds: range) -> dict[str, int]:
    counts = {"needed": 0, "left out": 0}
    for seed in seeds:
        check(seed, counts)
    return counts


def test_no_single_channel_is_left_to_delete():
    counts = complete(range(GRAPHS + MORE))
    excused = sum(counts.values()) - counts["needed"]
    assert counts["needed"] > 6 * excused, counts
    assert counts["needed"] > 80 * GRAPHS, counts
    assert counts["left out"] <= MORE, counts


@pytest.mark.slow
def test_no_single_channel_is_left_to_delete_in_many_networks():
    complete(range(GRAPHS, 10 * GRAPHS))
