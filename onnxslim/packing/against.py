"""Completes a plan with references and differences to a base version."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from onnxslim.packing.base import Base, BaseReader
from onnxslim.packing.parallel import in_order
from onnxslim.packing.plan import Plan, read_bytes, sample_places
from onnxslim.packing.versions import Delta, best_delta, pair_up


def apply_base(plan: Plan, base: Base, threads: int) -> None:
    """Let the plan refer to the base wherever that is shorter.

    Tensors equal to one of the base become copies of it; others that have a counterpart are
    written as differences if a sample of them packs better so.
    """
    manifest = plan.manifest
    known = [(item.cut, item.tensor) for item in base.items]
    blobs, pairs = pair_up(manifest.blobs, plan.origins, known)
    numbers = sorted(pairs)
    tasks = (_choice(plan, base, number, pairs[number]) for number in numbers)
    for number, delta in zip(numbers, in_order(tasks, threads), strict=True):
        if delta is not None:
            blobs[number] = replace(blobs[number], base=pairs[number])
            plan.deltas[number] = delta
    used = sorted({blob.base for blob in blobs if blob.base is not None})
    places = {number: index for index, number in enumerate(used)}
    manifest.blobs = [
        blob if blob.base is None else replace(blob, base=places[blob.base]) for blob in blobs
    ]
    manifest.bases = [base.items[number].tensor for number in used]
    manifest.base_sha256 = base.sha256 if used else b""
    plan.base = BaseReader(base, [base.items[number].cut for number in used])


def _choice(plan: Plan, base: Base, number: int, other: int) -> Callable[[], Delta | None]:
    cut, counterpart = plan.origins[number], base.items[other].cut

    def task() -> Delta | None:
        if cut.length % cut.width:
            return None
        places = sample_places(cut)
        mine = [read_bytes(plan.sources[cut.file], *place) for place in places]
        others = [base.read(counterpart, start - cut.offset, size) for start, size in places]
        floats = cut.is_float and cut.width > 1
        return best_delta(
            np.concatenate(mine), np.concatenate(others), cut.width, floats, plan.profile
        )

    return task
