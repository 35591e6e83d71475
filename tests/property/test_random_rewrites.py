"""The passes that rewrite shapes, slices, masks and states, alone and all together."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from random_graphs import STEPS, feeds, random_model
from random_rewrites import REWRITES
from test_random_graphs import LOST_CAPTURE, run
from test_random_graphs_each_pass import compare, promise

import onnxslim
from onnxslim import io
from onnxslim.pipeline import Exactness

NAMES = (
    "eliminate-expand-before-broadcast",
    "eliminate-transpose-before-shape",
    "eliminate-transpose-of-ones",
    "eliminate-zero-bias",
    "eliminate-zero-state",
    "fold-shape-arithmetic",
    "fuse-batchnorm-affine",
    "fuse-shared-slices",
    "fuse-transpose-reduce",
    "rebuild-shapes",
    "simplify-where",
    "split-from-slices",
)
GRAPHS, MANY = 8, 300  # of each pass


def check(seed: int, *names: str) -> int:
    """One graph; no name means the whole pipeline. Returns the number of changes."""
    model = random_model(seed, (*STEPS, *REWRITES, *REWRITES))
    onnx.checker.check_model(model)
    done = onnxslim.optimize(model, passes=list(names), validate=False, verify_each=True)
    slim = io.to_proto(done.model)
    onnx.checker.check_model(slim)
    for size in (2, 3):
        inputs = feeds(model, seed, size)
        try:
            reference = run(model, inputs)
        except LOST_CAPTURE:
            continue  # the runtime loses some captures of If branches, with or without us
        exactness = promise(names[0], model) if names else Exactness.ROUNDING
        for one, other in zip(reference, run(slim, inputs), strict=True):
            compare(exactness, np.asarray(one), np.asarray(other))
    return len(done.report.rewrites)


def checked(name: str, seeds: range) -> int:
    fired = 0
    for seed in seeds:
        try:
            fired += check(seed, *([name] if name else [])) > 0
        except Exception as error:
            raise AssertionError(f"seed {seed}: {name or 'all passes'}") from error
    return fired


@pytest.mark.parametrize("name", NAMES)
def test_alone(name: str) -> None:
    start = 1000 * NAMES.index(name)
    assert checked(name, range(start, start + GRAPHS)) >= 0


def test_together() -> None:
    assert checked("", range(20)) > 10


@pytest.mark.slow
def test_many_and_all_of_them_fire() -> None:
    fired: Counter[str] = Counter()
    for index, name in enumerate(NAMES):
        fired[name] += checked(name, range(1000 * index, 1000 * index + MANY))
    checked("", range(50_000, 50_000 + MANY))
    # names are short here, and new lists would take more bytes than a Slice
    assert [name for name in NAMES if not fired[name]] == ["fuse-shared-slices"]
