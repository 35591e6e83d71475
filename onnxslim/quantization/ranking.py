"""Which parts of a model int8 hurts most: each is quantized alone, with ranges that are known.

Parts are regions: a product with what follows it up to the next product or sum, since a lone float
operator among int8 ones costs conversions. A region without a product is quantized with the
products beside it, and their own share is taken off. Leaving one region out of a full int8 model
would say less: where many are bad, taking one away hardly shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from onnxslim.calibration.store import Calibration
from onnxslim.errors import InvalidModelError, RuntimeRefusedError
from onnxslim.quantization.engine import Prepared, QuantPlan, candidates, quantize_once
from onnxslim.quantization.equalize import Reference
from onnxslim.quantization.selection import MATRIX_OPS
from onnxslim.runtime.specs import Feed

MOST_REGIONS = 48
"""Longer lists are joined: neighbours of a deep model are alike, and each costs a session."""

_FEEDS = 4


@dataclass(frozen=True)
class Region:
    """Nodes that get int8 or stay float together.

    Attributes:
        nodes: stable names, in order.
        noise: energy of the error at the outputs relative to the signal, with int8 here alone.
    """

    nodes: tuple[str, ...]
    noise: float = 0.0

    @property
    def sqnr_db(self) -> float:
        """Signal to noise in dB, at most 150."""
        return 150.0 if self.noise <= 0 else min(150.0, -10 * math.log10(self.noise))

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"nodes": list(self.nodes), "sqnr_db": round(self.sqnr_db, 3)}


def regions(prepared: Prepared, plan: QuantPlan) -> list[Region]:
    """The nodes that a plan quantizes, in regions, in the order of the graph.

    Raises:
        InvalidModelError: it quantizes none.
    """
    names = candidates(prepared, plan)
    chosen = {id(prepared.names[name]): name for name in names}
    owner: dict[str, int] = {}
    found: list[list[str]] = []
    for name in names:
        node = prepared.names[name]
        before = _only_producer(node)
        joined = owner.get(chosen.get(id(before), "")) if before is not None else None
        if node.op_type in MATRIX_OPS or joined is None:
            joined = len(found)
            found.append([])
        owner[name] = joined
        found[joined].append(name)
    size = -(-len(found) // MOST_REGIONS)
    joined_lists = [found[at : at + size] for at in range(0, len(found), size)]
    return [Region(tuple(name for part in parts for name in part)) for parts in joined_lists]


def _only_producer(node: ir.Node) -> ir.Node | None:
    """What makes the only float input of a node that is no constant."""
    inputs = [
        value
        for value in node.inputs
        if value is not None and not value.is_initializer() and value.dtype == ir.DataType.FLOAT
    ]
    return inputs[0].producer() if len(inputs) == 1 else None


def rank(
    prepared: Prepared,
    calibration: Calibration,
    plan: QuantPlan,
    feeds: Sequence[Feed],
    progress: Callable[[int, int], None] | None = None,
) -> list[Region]:
    """Regions with their noise, the worst first; equal ones in the order of the graph.

    Args:
        prepared: the float model.
        calibration: for `quantize_once`.
        plan: what would be quantized.
        feeds: the first few are run.
        progress: called with regions done and regions in all.

    Raises:
        InvalidModelError: the plan quantizes nothing.
        RuntimeRefusedError: onnxruntime cannot run the model.
    """
    measure = _Solo(prepared, calibration, plan, feeds[:_FEEDS])
    parts = regions(prepared, plan)
    found: dict[int, Region] = {}
    whole = [index for index, part in enumerate(parts) if _has_product(prepared, part.nodes)]
    rest = [index for index in range(len(parts)) if index not in set(whole)]
    of_product: dict[str, float] = {}
    for done, index in enumerate([*whole, *rest], start=1):
        names = parts[index].nodes
        if index in whole:
            noise = measure.noise(names)
            of_product.update(dict.fromkeys(names, noise))
        else:
            noise = measure.beside(names, parts, of_product)
        found[index] = replace(parts[index], noise=noise)
        if progress is not None:
            progress(done, len(parts))
    return [found[index] for index in sorted(found, key=lambda one: (-found[one].noise, one))]


def _has_product(prepared: Prepared, names: Sequence[str]) -> bool:
    return any(prepared.names[name].op_type in MATRIX_OPS for name in names)


class _Solo:
    def __init__(
        self,
        prepared: Prepared,
        calibration: Calibration,
        plan: QuantPlan,
        feeds: Sequence[Feed],
    ) -> None:
        self._prepared, self._calibration = prepared, calibration
        self._plan = replace(plan, form="qdq")
        self._reference = Reference(prepared.model, feeds)

    def noise(self, names: Sequence[str]) -> float:
        """Of the model with int8 at these nodes alone; infinite where that does not run."""
        only = frozenset(names)
        plan = replace(self._plan, only=only, float_nodes=self._plan.float_nodes - only)
        try:
            model, _ = quantize_once(self._prepared, self._calibration, plan)
            return float(10 ** (-self._reference.sqnr_db(model) / 10))
        except InvalidModelError:  # nothing is left to quantize: no error either
            return 0.0
        except RuntimeRefusedError:
            return math.inf

    def beside(
        self, names: Sequence[str], parts: Sequence[Region], of_product: dict[str, float]
    ) -> float:
        """Of nodes without a product: with those beside them, less what these make alone."""
        near = self._near(names)
        added = [part.nodes for part in parts if near & set(part.nodes) & set(of_product)]
        if not added:
            return 0.0
        together = self.noise([*names, *(name for part in added for name in part)])
        return max(0.0, together - sum(of_product[part[0]] for part in added))

    def _near(self, names: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for name in names:
            node = self._prepared.names[name]
            before = [value.producer() for value in node.inputs if value is not None]
            after = [user for value in node.outputs for user, _ in value.uses()]
            found.update(one.name or "" for one in (*before, *after) if one is not None)
        return found - set(names)
