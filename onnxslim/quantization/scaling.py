"""Factors per channel that move between constants without changing what a model computes.

A `Site` is a set of channels: constants that make them (a factor divides those) and constants that
read them (the factor multiplies those). Everything between is linear or positively homogeneous in
every channel, so ``f(x / s) * s = f(x)``. With factors that are powers of two the results are the
same bits, short of numbers below the smallest normal one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxslim.ir.constants import constant_tensor
from onnxslim.runtime.specs import Array

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
"""The channel of every element: rank of the tensor, length 1 along axes without influence."""

Kind = Literal["linear", "norm"]

_LARGEST_EXPONENT = 40
_SMALLEST = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Note:
    """What a step did at a site, or why it did nothing.

    Attributes:
        step: ``cross-layer``, ``smooth``, ``bias`` or ``equalize``.
        site: the tensor that was scaled, or the node.
        text: one line for the report.
        kept: True when the model was changed there and stayed so.
    """

    step: str
    site: str
    text: str
    kept: bool

    def __str__(self) -> str:
        return f"{self.step}: {self.site}: {self.text}"


@dataclass(frozen=True)
class Port:
    """A constant that takes factors: element ``i`` that of channel ``labels[i]`` (broadcast)."""

    value: ir.Value
    labels: Labels


@dataclass(frozen=True)
class Read:
    """A weight that reads the channels, the node it belongs to, and what that node reads.

    Attributes:
        port: the weight.
        node: a Conv, ConvTranspose, Gemm or MatMul.
        source: the activation.
        labels: the channels of the activation.
    """

    port: Port
    node: ir.Node
    source: ir.Value
    labels: Labels


@dataclass(frozen=True)
class Site:
    """Channels that can be scaled.

    Attributes:
        name: the tensor that holds them first.
        kind: made by a product of matrices (``linear``) or by a normalization (``norm``).
        channels: their number, and one more (the last) for elements that are no channels of this
            site but lie beside them in a tensor.
        writers: weights that make them.
        shifts: constants that are added to them on the way, biases included.
        reads: weights that read them.
        clips: Clip nodes with an upper bound on the way; with one of them the site is no site,
            unless the bound is never reached.
        plain: no attention and no gate lies on the way.
        free: which channels may get a factor other than 1; False for those that also go where no
            scale may; shape (channels).
    """

    name: str
    kind: Kind
    channels: int
    writers: tuple[Port, ...]
    shifts: tuple[Port, ...]
    reads: tuple[Read, ...]
    clips: tuple[ir.Node, ...]
    plain: bool
    free: npt.NDArray[np.bool_]

    @property
    def size(self) -> int:
        """Channels that may get a factor."""
        return int(self.free.sum())


def content(value: ir.Value) -> Array:
    """The numbers of a constant, of any size.

    Raises:
        ValueError: it is none.
    """
    tensor = constant_tensor(value)
    if tensor is None:
        raise ValueError(f"{value.name!r} is no constant")
    return tensor.numpy()


def largest_per_channel(array: Array, labels: Labels, channels: int) -> Floats:
    """Largest magnitude per channel, shape (channels); 0 for channels that do not occur."""
    shape = np.broadcast_shapes(array.shape, labels.shape)
    varying = tuple(axis for axis, size in enumerate(labels.shape) if size > 1)
    others = tuple(axis for axis in range(len(shape)) if axis not in varying)
    magnitude = np.abs(np.broadcast_to(array, shape)).max(axis=others, keepdims=True)
    found = np.zeros(channels)
    np.maximum.at(found, labels.reshape(-1), magnitude.reshape(-1).astype(np.float64))
    return found


def write_range(site: Site) -> Floats:
    """Largest weight that makes each channel, shape (channels)."""
    return _largest(site.writers, site.channels)


def read_range(site: Site) -> Floats:
    """Largest weight that reads each channel, shape (channels)."""
    return _largest([read.port for read in site.reads], site.channels)


def _largest(ports: Sequence[Port], channels: int) -> Floats:
    each = [largest_per_channel(content(p.value), p.labels, channels) for p in ports]
    largest: Floats = np.maximum.reduce(each)
    return largest


def powers_of_two(factors: Floats) -> Floats:
    """The nearest powers of two on the logarithmic scale, limited to 2**-40 ... 2**40."""
    exponents = np.clip(np.round(np.log2(factors)), -_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    return np.exp2(exponents)


def apply(site: Site, factors: Floats) -> bool:
    """Divides what makes the channels by the factors and multiplies what reads them.

    Args:
        site: of a model that may be changed.
        factors: positive, shape (channels); those that are not free are taken as 1.

    Returns:
        False, with nothing changed, when a number would leave the normal range of its type.
    """
    factors = np.where(site.free, factors, 1.0)
    changes: list[tuple[ir.Value, Array]] = []
    for port in (*site.writers, *site.shifts):
        changes.append((port.value, content(port.value) / factors[port.labels]))
    for read in site.reads:
        port = read.port
        changes.append((port.value, content(port.value) * factors[port.labels]))
    if not all(_is_normal(scaled) for _, scaled in changes):
        return False
    for value, scaled in changes:
        set_content(value, scaled.astype(np.float32))
    return True


def set_content(value: ir.Value, array: Array) -> None:
    """Gives an initializer new numbers; its name stays."""
    value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
    value.shape = ir.Shape(array.shape)


def _is_normal(array: Array) -> bool:
    """True when every number is zero or of a size that float32 holds with all its digits."""
    size = np.abs(array[array != 0])
    return not size.size or bool(size.min() >= _SMALLEST and size.max() <= _LARGEST)
