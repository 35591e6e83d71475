"""Moves outliers of activations into the weights that read them.

    y = W * x   becomes   y = (W * S) * (x / S),   s = max|x|**alpha / max|W|**(1 - alpha)

per channel; the division goes into what makes ``x``: scale and shift of a normalization, or the
weights of a layer (values before an output projection, the linear branch of a gated network). For
each site the alpha is chosen that errs least on calibration samples when both sides are rounded to
8 bits, and none where that does not gain. The factors are powers of two: the model computes the
same bits.

Source: G. Xiao et al., "SmoothQuant", ICML 2023, section 4; the choice of alpha per site by local
error, the rounding and the sites beyond normalizations are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxslim.calibration.run import calibrate
from onnxslim.ir import shapes
from onnxslim.quantization import grids
from onnxslim.quantization.activations import Activations, product
from onnxslim.quantization.axes import channel_axis
from onnxslim.quantization.marks import is_depthwise
from onnxslim.quantization.presets import QuantizePreset
from onnxslim.quantization.scaling import (
    Floats,
    Kind,
    Note,
    Read,
    Site,
    apply,
    content,
    powers_of_two,
    read_range,
)
from onnxslim.quantization.sites import find_sites
from onnxslim.runtime.specs import Array, Feed

STEP = "smooth"

ALPHAS = (0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
"""What is tried; 1 suits depthwise weights, which have a scale for every channel anyway."""

# The local error must fall to this part of what it was.
_WORTH = 0.9

# Samples for the local error: feeds, and elements taken of each.
_FEEDS, _ELEMENTS = 4, 1 << 18


def smooth_activations(
    model: ir.Model,
    feeds: Sequence[Feed],
    preset: QuantizePreset,
    *,
    kinds: Collection[Kind] = ("linear", "norm"),
    alphas: Sequence[float] = ALPHAS,
    progress: Callable[[int, int], None] | None = None,
) -> list[Note]:
    """Scales all sites of the main graph that gain, in place.

    Args:
        model: a float32 model with constants as initializers and folded BatchNormalization.
        feeds: calibration samples; all are run once, the first few again for each site.
        preset: how numbers will be rounded.
        kinds: of sites, as of `Site`.
        alphas: in (0, 1]; the exponents to choose from.
        progress: called with sites done and sites in all.

    Returns:
        A note for each site, with its alpha, or why there is none.

    Raises:
        DataError: a feed does not fit.
        RuntimeRefusedError: onnxruntime cannot open the model.
    """
    shapes.infer(model)
    sites, refused = find_sites(model)
    notes = [Note(STEP, one.name, one.reason, kept=False) for one in refused if one.kind in kinds]
    sites = [site for site in sites if site.kind in kinds and not site.clips]
    if not sites:
        return notes
    maxima = _channel_maxima(model, sites, feeds)
    names = [read.source.name or "" for site in sites for read in site.reads]
    taps = Activations(model, names)
    judge = _Judge(taps, feeds[:_FEEDS], preset, model.graph.opset_imports)
    chosen = []
    for done, site in enumerate(sites, start=1):
        chosen.append(judge.choose(site, maxima[site.name], alphas))
        if progress is not None:
            progress(done, len(sites))
    for site, choice in zip(sites, chosen, strict=True):
        notes.append(_scaled(site, choice))
    return notes


@dataclass(frozen=True)
class _Choice:
    """The best exponent at a site.

    Attributes:
        alpha: None for leaving it alone.
        factors: shape (channels).
        before, after: local error in relation to the signal.
    """

    alpha: float | None
    factors: Floats
    before: float
    after: float


def _scaled(site: Site, choice: _Choice) -> Note:
    if choice.alpha is None:
        return Note(STEP, site.name, "no alpha gains", kept=False)
    if not apply(site, choice.factors):
        return Note(STEP, site.name, "the numbers would leave the range of float32", kept=False)
    gain = 10 * np.log10(choice.before / max(choice.after, 1e-30))
    text = f"alpha {choice.alpha:g}, local error {gain:.1f} dB lower"
    return Note(STEP, site.name, text, kept=True)


def _channel_maxima(
    model: ir.Model, sites: Sequence[Site], feeds: Sequence[Feed]
) -> dict[str, Floats]:
    """Largest magnitude per channel of what is read at each site, shape (channels)."""
    axes = {read.source.name or "": _axis(read) for site in sites for read in site.reads}
    found = calibrate(model, feeds, tensors=list(axes), channels=axes).tensors
    maxima = {}
    for site in sites:
        largest = np.zeros(site.channels)
        for read in site.reads:
            seen = found[read.source.name or ""].channel_max
            if seen is not None:
                np.maximum.at(largest, read.labels.reshape(-1), seen.astype(np.float64))
        maxima[site.name] = largest
    return maxima


def _axis(read: Read) -> int:
    """The axis of channels of what a weight reads; readers know channels along one axis only."""
    sizes = read.labels.shape
    return sizes.index(max(sizes)) if max(sizes) > 1 else (1 if "Conv" in read.node.op_type else -1)


class _Judge:
    """Measures what 8 bits cost at a site.

    Args:
        taps: the model, open.
        feeds: a few samples.
        preset: how to round.
        opsets: of the model.
    """

    def __init__(
        self,
        taps: Activations,
        feeds: Sequence[Feed],
        preset: QuantizePreset,
        opsets: Mapping[str, int],
    ) -> None:
        self._taps, self._feeds, self._preset, self._opsets = taps, feeds, preset, opsets

    def choose(self, site: Site, maxima: Floats, alphas: Sequence[float]) -> _Choice:
        """The alpha of least local error."""
        sources = {read.source.name or "": read.source for read in site.reads}
        samples = {name: _joined(list(self._taps.each(name, self._feeds))) for name in sources}
        plain = np.ones(site.channels)
        exact = [
            [self._output(read, x, content(read.port.value)) for x in samples[_name(read)]]
            for read in site.reads
        ]
        before = self._error(site, plain, samples, exact)
        best = _Choice(None, plain, before, before * _WORTH)
        read = read_range(site)
        for alpha in alphas:
            factors = _factors(site, maxima, read, alpha)
            error = self._error(site, factors, samples, exact)
            if error < best.after:
                best = _Choice(alpha, factors, before, error)
        return best

    def _error(
        self,
        site: Site,
        factors: Floats,
        samples: Mapping[str, Sequence[Array]],
        exact: Sequence[Sequence[Array]],
    ) -> float:
        """Energy of the error over that of the signal, summed over the readers."""
        total = 0.0
        for read, wanted in zip(site.reads, exact, strict=True):
            weight = self._round_weight(read, content(read.port.value), factors)
            scaled = [array / factors[read.labels] for array in samples[_name(read)]]
            limits = (min(float(x.min()) for x in scaled), max(float(x.max()) for x in scaled))
            grid = grids.activation_grid(
                limits,
                self._preset.activations,
                symmetric=self._preset.symmetric_activations,
                smallest=self._preset.smallest_range,
            )
            noise = signal = 0.0
            for array, true in zip(scaled, wanted, strict=True):
                coarse = grids.decode(grids.encode(array.astype(np.float32), grid), grid)
                error = self._output(read, coarse, weight) - true
                noise += float(np.square(error, dtype=np.float64).sum())
                signal += float(np.square(true, dtype=np.float64).sum())
            total += noise / signal if signal else 0.0
        return total

    def _round_weight(self, read: Read, weight: Array, factors: Floats) -> Array:
        preset, scaled = self._preset, (weight * factors[read.port.labels]).astype(np.float32)
        dtype, symmetric = preset.weights, preset.weights == ir.DataType.INT8
        spared = preset.whole_depthwise and is_depthwise(read.node, read.port.value)
        reduced = preset.reduce_range and not spared
        codes = grids.weight_codes(dtype, symmetric=symmetric, reduced=reduced)
        axis = channel_axis(read.node, 1, scaled.ndim)
        if axis is None or not preset.per_channel:
            grid = grids.tensor_grid(scaled, dtype, codes, symmetric=symmetric)
        else:
            grid = grids.channel_grid(scaled, axis, dtype, codes)
        return grids.decode(grids.encode(scaled, grid), grid)

    def _output(self, read: Read, source: Array, weight: Array) -> Array:
        """What the node computes, without its bias, which is not rounded to 8 bits."""
        return product(read.node, source, weight, self._opsets)


def _name(read: Read) -> str:
    return read.source.name or ""


def _joined(arrays: list[Array]) -> list[Array]:
    """A few rows of each; one array where the shapes allow."""
    parts = [_head(array) for array in arrays if array.size]
    if len({part.shape[1:] for part in parts}) == 1:
        return [np.concatenate(parts)]
    return parts


def _head(array: Array) -> Array:
    """The first rows, as many as fit into the limit of elements, at least one."""
    if not array.ndim or array.size <= _ELEMENTS:
        return array
    rows = max(_ELEMENTS * len(array) // array.size, 1)
    return array[:rows]


def _factors(site: Site, maxima: Floats, read: Floats, alpha: float) -> Floats:
    """Powers of two, most of them near 1; 1 for channels that hold or meet nothing but zeros.

    Beside channels that cannot be scaled, the others must not grow above what they were: one scale
    serves all of them together.
    """
    used = site.free & (maxima > 0) & (read > 0)
    exponents = np.zeros(len(maxima))
    if used.any():
        largest = np.log2(maxima[used])
        found = alpha * largest - (1 - alpha) * np.log2(read[used])
        found = np.round(found - np.median(found))
        if site.size < site.channels - 1:
            found += max(np.ceil((largest - found).max() - largest.max()), 0.0)
        exponents[used] = found
    return powers_of_two(np.exp2(exponents))
