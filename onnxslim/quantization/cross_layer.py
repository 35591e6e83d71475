"""Cross-layer equalization: channels of neighbouring layers get ranges alike.

    y = W2 * f(W1 * x)   becomes   y = (W2 * S) * f((W1 / S) * x),   s = sqrt(max|W1| / max|W2|)

per channel, for every ``f`` with ``f(x / s) * s = f(x)``. One scale for a whole tensor then fits
all of its channels. Needs no data. The factors are powers of two: the model computes the same bits.

Source: M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
ICCV 2019, section 4.1. The rounding, the treatment of bounds and of branches are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxslim.ir import shapes
from onnxslim.ir.edit import replace_node
from onnxslim.quantization.scaling import (
    Floats,
    Note,
    Port,
    Site,
    apply,
    content,
    largest_per_channel,
    powers_of_two,
)
from onnxslim.quantization.site_rules import clip_bounds
from onnxslim.quantization.sites import find_sites

STEP = "cross-layer"

_ROUNDS = 200
_CONVERGED = 1e-3  # in octaves

# A bound is out of reach when the largest value seen is below this part of it.
_MARGIN = 0.8


def equalize_layers(
    model: ir.Model, *, input_maxima: Mapping[str, float] | None = None
) -> list[Note]:
    """Equalizes all chains of the main graph in place.

    A Clip with an upper bound stands in the way, except where calibration stayed well below the
    bound (`input_maxima`): there it becomes a Relu, which the note says.

    Args:
        model: a float32 model with constants as initializers and folded BatchNormalization.
        input_maxima: largest value on calibration data by the name of a Clip's input.

    Returns:
        A note for each chain that was scaled or that could not be.
    """
    shapes.infer(model)
    sites, refused = find_sites(model)
    notes = [
        Note(STEP, one.name, one.reason, kept=False) for one in refused if one.kind == "linear"
    ]
    usable: list[Site] = []
    for site in sites:
        if site.kind != "linear" or not site.plain:
            continue
        reason = _bound_in_reach(site, input_maxima or {})
        if reason is None:
            usable.append(site)
        else:
            notes.append(Note(STEP, site.name, reason, kept=False))
    for site, exponents in zip(usable, _balance(usable), strict=True):
        notes.extend(_scaled(site, np.exp2(exponents)))
    return notes


def _scaled(site: Site, factors: Floats) -> list[Note]:
    if (factors == 1).all():
        return []
    if not apply(site, factors):
        return [Note(STEP, site.name, "the numbers would leave the range of float32", kept=False)]
    clips = [node for node in site.clips if node.graph is not None]  # two sites may share one
    replaced = [node.name or node.op_type for node in clips]
    for node in clips:
        replace_node(node, ir.node("Relu", [node.inputs[0]], name=node.name))
    span = f"2**{np.log2(factors.min()):.0f} to 2**{np.log2(factors.max()):.0f}"
    changed = int((factors != 1).sum())
    text = f"{changed} of {site.channels - 1} channels scaled by {span}"
    if replaced:
        text += f"; {', '.join(replaced)} became Relu: its bound was out of reach on the data"
    return [Note(STEP, site.name, text, kept=True)]


def _bound_in_reach(site: Site, input_maxima: Mapping[str, float]) -> str | None:
    """Why a Clip on the way forbids scaling, or None."""
    for node in site.clips:
        source, (low, high) = node.inputs[0], clip_bounds(node)
        seen = input_maxima.get(source.name or "") if source is not None else None
        if high is None:
            continue
        if low != 0.0 or seen is None:
            return f"Clip has the bound {high:g}, which is the same for all channels"
        if seen > _MARGIN * high:
            return f"Clip has the bound {high:g}, and the data reaches {seen:.3g}"
    return None


def clip_inputs(model: ir.Model) -> list[str]:
    """Inputs of Clips in the way of sites, whose largest values `equalize_layers` can use."""
    inputs = [node.inputs[0] for site in find_sites(model)[0] for node in site.clips]
    return list(dict.fromkeys(value.name or "" for value in inputs if value is not None))


class _Weight:
    """Largest magnitudes of a weight by the channels that it makes and that it reads.

    Only the axes of channels are kept: scaling commutes with the maximum over the others.
    """

    def __init__(self, value: ir.Value) -> None:
        self.value = value
        self.ports: list[tuple[int, Port]] = []

    def add(self, site: int, port: Port) -> None:
        """Notes that the weight belongs to a site."""
        self.ports.append((site, port))

    def reduce(self) -> None:
        """Computes the magnitudes; labels are shortened along with them."""
        array = np.abs(content(self.value))
        rank = max([array.ndim, *(port.labels.ndim for _, port in self.ports)])
        labels = [
            port.labels.reshape([1] * (rank - port.labels.ndim) + list(port.labels.shape))
            for _, port in self.ports
        ]
        array = array.reshape([1] * (rank - array.ndim) + list(array.shape))
        idle = tuple(axis for axis in range(rank) if all(one.shape[axis] == 1 for one in labels))
        self.magnitude = array.max(axis=idle, keepdims=True).astype(np.float64)
        self.labels = {site: one for (site, _), one in zip(self.ports, labels, strict=True)}

    def range_of(
        self, site: int, exponents: Sequence[Floats], signs: Mapping[tuple[int, int], int]
    ) -> Floats:
        """Largest magnitude by channel of a site, with all factors so far applied."""
        scaled = self.magnitude
        for other, labels in self.labels.items():
            sign = signs[other, id(self.value)]
            scaled = scaled * np.exp2(sign * exponents[other][labels])
        return largest_per_channel(scaled, self.labels[site], len(exponents[site]))


def _balance(sites: Sequence[Site]) -> list[Floats]:
    """Exponents of the factors by site, whole numbers, after going round until nothing moves."""
    weights: dict[int, _Weight] = {}
    signs: dict[tuple[int, int], int] = {}
    for number, site in enumerate(sites):
        for sign, ports in ((-1, site.writers), (1, [read.port for read in site.reads])):
            for port in ports:
                key = id(port.value)
                weights.setdefault(key, _Weight(port.value)).add(number, port)
                signs[number, key] = sign
    for weight in weights.values():
        weight.reduce()
    exponents = [np.zeros(site.channels) for site in sites]
    for _ in range(_ROUNDS):
        moved = 0.0
        for number, site in enumerate(sites):
            ends = [
                np.maximum.reduce([
                    weights[id(port.value)].range_of(number, exponents, signs) for port in ports
                ])
                for ports in (site.writers, [read.port for read in site.reads])
            ]  # fmt: skip
            step = np.where(site.free, _step(*ends), 0.0)
            exponents[number] = exponents[number] + step
            moved = max(moved, float(np.abs(step).max(initial=0.0)))
        if moved < _CONVERGED:
            break
    return [np.log2(powers_of_two(np.exp2(one))) for one in exponents]


def _step(written: Floats, read: Floats) -> Floats:
    """Octaves by which each channel moves; 0 for a channel that one side does not use."""
    used = (written > 0) & (read > 0)
    ratio = np.where(used, written, 1.0) / np.where(used, read, 1.0)
    return np.where(used, 0.5 * np.log2(ratio), 0.0)
