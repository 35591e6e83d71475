"""What a layer costs by its channel counts: a measured table by target.

Two facts, measured with ``tests/bench/measure_channel_costs.py`` on one thread of an x86-64
processor with AVX-512, decide:

* onnxruntime computes a float 2-d Conv in blocks of 16 channels (8 without AVX-512): 33 outputs
  cost as much as 48.
* It does so only where the input channels are a multiple of 4 (a depthwise Conv: all of them;
  a grouped one: each group a multiple of the block). Anything else is up to 12 times slower.

Everything else (Gemm, MatMul, ConvTranspose, other ranks and types) grows evenly with its counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Cost = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rate:
    """Nanoseconds per multiplication in blocks (``fast``) and outside of them (``slow``)."""

    fast: float
    slow: float


@dataclass(frozen=True)
class Target:
    """Where a model will run.

    Attributes:
        blocks: the block sizes of the processors that are meant; their costs are averaged, so that
            a choice is good for all of them.
        lane: input channels have to be a multiple of it for the blocked kernels.
        direct_below: fewer input channels than this are read as they are, at any count.
        rates: by class of kernel.
        plain: nanoseconds per multiplication of operators without steps.
        noise: gains below this share are not worth a channel.
        floor: nor are gains below this many nanoseconds.
    """

    blocks: tuple[int, ...]
    lane: int
    direct_below: int
    rates: dict[str, Rate] = field(hash=False)
    plain: float
    noise: float = 0.02
    floor: float = 500.0


TARGETS: dict[str, Target] = {
    "cpu": Target(
        blocks=(8, 16),
        lane=4,
        direct_below=8,
        rates={
            "pointwise": Rate(0.0139, 0.0162),
            "spatial": Rate(0.0113, 0.0200),
            "depthwise": Rate(0.0559, 0.2968),
            "grouped": Rate(0.0169, 0.0384),
        },
        plain=0.0150,
    )
}


def cost(
    target: Target, kind: str, taps: float, inputs: Counts, outputs: Counts, groups: int = 1
) -> Cost:
    """Nanoseconds of a layer.

    Args:
        target: an entry of `TARGETS`.
        kind: ``pointwise``, ``spatial``, ``depthwise``, ``grouped``, or ``plain`` for no steps.
        taps: output positions times kernel positions.
        inputs: input channels of all groups, any shape.
        outputs: output channels of all groups, of the same shape.
        groups: groups of a grouped Conv.
    """
    if kind == "plain":
        return np.asarray(taps * inputs * outputs / groups * target.plain, dtype=np.float64)
    rate = target.rates[kind]
    several = [_blocked(kind, block, inputs, outputs, groups, target) for block in target.blocks]
    total = np.zeros(np.shape(inputs))
    slow = _true(kind, inputs, outputs, groups) * rate.slow
    for fits, padded in several:
        total += np.where(fits, padded * rate.fast, slow)
    return np.asarray(taps * total / len(several), dtype=np.float64)


def _true(kind: str, inputs: Counts, outputs: Counts, groups: int) -> Cost:
    """Multiplications per tap."""
    if kind == "depthwise":
        return outputs.astype(np.float64)
    return np.asarray(inputs * outputs / groups, dtype=np.float64)


def _blocked(
    kind: str, block: int, inputs: Counts, outputs: Counts, groups: int, target: Target
) -> tuple[npt.NDArray[np.bool_], Cost]:
    """Do the blocked kernels take these counts, and how many multiplications per tap do they do?"""
    if kind == "depthwise":
        return outputs % target.lane == 0, _up(outputs, block)
    if kind == "grouped":
        unit = groups * block
        return (inputs % unit == 0) & (outputs % unit == 0), inputs * outputs / groups
    direct = inputs < target.direct_below
    read = np.where(direct, inputs, _up(inputs, block))
    return direct | (inputs % target.lane == 0), read * _up(outputs, block)


def _up(counts: Counts, block: int) -> Cost:
    return np.asarray(-(-counts // block) * block, dtype=np.float64)
