"""Random networks with random zeros: outputs never change, and a second run does nothing.

Wrong removal is the worst that this pass could do; `prune_networks` builds what invites it.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graph_check import make_feeds, run
from prune_models import Net, Pruned, count_parameters
from prune_networks import Builder, Quantizer

GRAPHS = 300
# One step of float16, relative.
HALF_STEP = 2.0**-10
KINDS = ("float", "float", "float", "half", "int8")


def build(seed: int) -> tuple[str, Net, list[str]]:
    kind = KINDS[seed % len(KINDS)]
    builder = Builder(seed, np.float16 if kind == "half" else np.float32)
    outputs = builder.build()
    if kind == "int8":
        Quantizer(builder.net, seed).run()
    return kind, builder.net, outputs


def in_float32(net: Net, outputs: list[str]) -> ir.Model:
    """The same network in float32, with the weights as they are."""
    exact = Net(0, np.float32, net.opset)
    exact.channels = net.channels
    exact.nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in net.nodes]
    for node in exact.nodes:
        if node.op_type == "Cast":
            node.attribute[0].i = onnx.TensorProto.FLOAT
    half = net.dtype
    exact.weights = {
        name: content.astype(np.float32) if content.dtype == half else content
        for name, content in net.weights.items()
    }
    for value in net.inputs:
        dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if value.name == "ids":
            exact.inputs.append(value)
        else:
            exact.input(value.name, dims)
    exact.outputs = net.outputs
    return exact.model(*outputs)


def assert_as_exact(pruned: Pruned, exact: ir.Model) -> None:
    """A half float network is as near to the exact one after the pass as it was before."""
    feeds = make_feeds(pruned.before, 0, 2)
    wide = {name: x.astype(np.float32) if x.dtype == np.float16 else x for name, x in feeds.items()}
    before, after = run(pruned.before, feeds), run(pruned.after, feeds)
    for one, other, reference in zip(before, after, run(exact, wide), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        if not np.isfinite(one).all():
            continue
        noise = np.abs(one - reference).max(initial=0)
        scale = np.abs(reference).max(initial=0)
        assert np.abs(other - reference).max(initial=0) <= 3 * noise + 4e-3 * scale + 1e-6


def prune(seed: int) -> Pruned:
    kind, net, outputs = build(seed)
    pruned = Pruned(net.model(*outputs))
    if kind == "half":
        assert_as_exact(pruned, in_float32(net, outputs))
    else:
        pruned.assert_equal(size=2, seeds=1, tolerance=HALF_STEP if passes_half(pruned) else 1e-5)
    return pruned


def passes_half(pruned: Pruned) -> bool:
    """A Cast to float16 on the way turns the last bit of a sum into a step of float16."""
    casts = (node for node in pruned.before.graph if node.op_type == "Cast")
    return any(node.attributes.get_int("to") == ir.DataType.FLOAT16 for node in casts)


def test_random_networks_keep_their_outputs():
    cut = dict.fromkeys(KINDS, 0)
    for seed in range(GRAPHS):
        pruned = prune(seed)
        smaller = pruned.parameters() < count_parameters(pruned.before)
        assert pruned.changes > 0 or not smaller, seed
        cut[KINDS[seed % len(KINDS)]] += smaller
    for kind, count in cut.items():
        total = GRAPHS * KINDS.count(kind) // len(KINDS)
        assert count > 0.4 * total, f"{kind} networks do not exercise the pass"


@pytest.mark.slow
def test_many_more_random_networks_keep_their_outputs():
    for seed in range(GRAPHS, 10_000):
        prune(seed)
