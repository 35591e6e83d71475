"""Every registered pass alone on random graphs: still valid, still the same outputs.

What a pass promises is what is asked of it: the same bits, or the same within rounding. Of a lossy
pass only validity and the types of the outputs can be asked.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from random_graphs import feeds, random_model
from random_steps import ALL_STEPS
from test_random_graphs import LOST_CAPTURE, run

import onnxslim
from onnxslim import io, passes
from onnxslim.pipeline import Exactness

GRAPHS_PER_RUN = 300
SHARDS = 6
NAMES = sorted(passes.REGISTRY)
CUTTING = ("fold-constants",)


def check(seed: int) -> int:
    """One graph under one pass. Returns the number of changes, to show that passes do fire."""
    name = NAMES[seed % len(NAMES)]
    model = random_model(seed, ALL_STEPS)
    onnx.checker.check_model(model)
    done = onnxslim.optimize(model, passes=[name], validate=False, verify_each=True)
    slim = io.to_proto(done.model)
    onnx.checker.check_model(slim)
    assert list(slim.graph.input) == list(model.graph.input)
    assert [value.name for value in slim.graph.output] == [v.name for v in model.graph.output]
    fixed = model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
    for size in (2,) if fixed else (2, 3):
        inputs = feeds(model, seed, size)
        try:
            reference = run(model, inputs)
        except LOST_CAPTURE:
            continue  # the runtime loses some captures of If branches, with or without us
        for one, other in zip(reference, run(slim, inputs), strict=True):
            compare(promise(name, model), one, other)
    return len(done.report.rewrites)


def promise(name: str, model: onnx.ModelProto) -> Exactness | None:
    """What the pass says of its outputs; None for a network with float16 that is cut elsewhere.

    The runtime keeps a chain of float16 operators in float32, and folding may cut the chain.
    """
    exactness = passes.load(name).exactness
    half = any(
        attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT16
        for node in model.graph.node
        for attribute in node.attribute
    )
    return None if half and name in CUTTING and exactness is Exactness.EXACT else exactness


def compare(exactness: Exactness | None, one: np.ndarray, other: np.ndarray) -> None:
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    if exactness is Exactness.EXACT:
        np.testing.assert_array_equal(other, one)
    elif exactness is None and one.dtype.kind == "f":
        np.testing.assert_allclose(other, one, rtol=2e-3, atol=2e-3)
    elif exactness is Exactness.ROUNDING and one.dtype.kind == "f":
        wide = one.astype(np.float64)
        scale = float(np.abs(wide[np.isfinite(wide)]).max(initial=1e-3))
        np.testing.assert_allclose(other, one, rtol=2e-5, atol=2e-5 * scale)
    elif exactness is Exactness.ROUNDING and one.dtype.kind in "iu":
        distance = np.abs(other.astype(np.float64) - one.astype(np.float64))
        assert distance.max(initial=0) <= 1, "more than one step of the rounding before the cast"


def checked(seeds: range) -> int:
    fired = 0
    for seed in seeds:
        try:
            fired += check(seed) > 0
        except Exception as error:
            raise AssertionError(f"seed {seed}: {NAMES[seed % len(NAMES)]}") from error
    return fired


@pytest.mark.parametrize("shard", range(SHARDS))
def test_each_pass_alone(shard: int) -> None:
    per_shard = GRAPHS_PER_RUN // SHARDS
    assert checked(range(shard * per_shard, (shard + 1) * per_shard)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(20))
def test_each_pass_alone_many(shard: int) -> None:
    assert checked(range(1000 + 500 * shard, 1000 + 500 * (shard + 1))) > 0
