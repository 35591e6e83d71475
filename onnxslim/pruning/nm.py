"""N:M patterns: of every M weights in a row along the input axis, at most N are nonzero.

A row is what one output sums over: the input channels of a Conv at one kernel position, the K axis
of a matrix product, the inputs of a recurrent gate. Blocks are M consecutive inputs, counted anew
in every group of a grouped operator. Where the number of inputs is no multiple of M, the T weights
left over keep at most ``ceil(T · N / M)``: the same share, rounded in favour of the accuracy.
So a depthwise Conv, with one input channel a group, keeps everything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.errors import UsageError
from onnxslim.pruning.weights import Mask, Weight

Array = npt.NDArray[Any]

_LARGEST = 64


@dataclass(frozen=True)
class Pattern:
    """At most ``kept`` of every ``block`` are nonzero."""

    kept: int
    block: int

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """``2:4``.

        Raises:
            UsageError: not of the form N:M with 0 < N < M <= 64.
        """
        match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text)
        pattern = cls(int(match[1]), int(match[2])) if match else None
        if pattern is None or not 0 < pattern.kept < pattern.block <= _LARGEST:
            raise UsageError(
                f"pattern {text!r}: want N:M, at most N nonzero of every M (0 < N < M <= "
                f"{_LARGEST}), such as 2:4"
            )
        return pattern

    def __str__(self) -> str:
        return f"{self.kept}:{self.block}"

    def zeros_of(self, size: int) -> int:
        """Zeros that a block of ``size`` elements has at least; the last one may be short."""
        return size * (self.block - self.kept) // self.block


def pattern_mask(weight: Weight, pattern: Pattern) -> Mask:
    """True where a weight is to be zero: the smallest magnitudes of each block.

    Args:
        weight: zeros in it stay zeros, and count.
        pattern: of the blocks along ``weight.axis``.
    """
    content = weight.read()
    moved = np.moveaxis(content, weight.axis, -1)
    rows = moved.reshape(-1, moved.shape[-1] // _groups(weight))
    mask = zeros_in_rows(np.abs(rows.astype(np.float64)), pattern)
    mask |= rows == 0
    return np.moveaxis(mask.reshape(moved.shape), -1, weight.axis)


def _groups(weight: Weight) -> int:
    """Groups that the summed axis is divided into: those of a ConvTranspose."""
    if weight.node.op_type != "ConvTranspose":
        return 1
    return weight.node.attributes.get_int("group", 1)


def zeros_in_rows(magnitudes: Array, pattern: Pattern) -> Mask:
    """Per row, the least of every block; among equals those that come first.

    Args:
        magnitudes: ``(rows, inputs)``, none negative.
        pattern: of the blocks.
    """
    mask = np.zeros(magnitudes.shape, dtype=np.bool_)
    size = magnitudes.shape[1]
    whole = size // pattern.block * pattern.block
    if whole:
        blocks = magnitudes[:, :whole].reshape(len(magnitudes), -1, pattern.block)
        mask[:, :whole] = _least(blocks, pattern.zeros_of(pattern.block)).reshape(-1, whole)
    if size > whole:
        mask[:, whole:] = _least(magnitudes[:, whole:], pattern.zeros_of(size - whole))
    return mask


def _least(blocks: Array, count: int) -> Mask:
    """Marks the ``count`` least along the last axis."""
    order = np.argsort(blocks, axis=-1, kind="stable")
    mask = np.zeros(blocks.shape, dtype=np.bool_)
    np.put_along_axis(mask, order[..., :count], True, axis=-1)
    return mask


def blocks_of(inputs: int, taps: int, pattern: Pattern) -> tuple[npt.NDArray[np.int64], list[int]]:
    """How the unknowns of a layer fall into blocks.

    Args:
        inputs: input channels of one group.
        taps: kernel positions; unknown ``c · taps + p`` is channel c at position p.
        pattern: of the blocks.

    Returns:
        The unknowns in an order in which blocks are contiguous, and the sizes of the blocks.
    """
    order = np.arange(inputs * taps, dtype=np.int64).reshape(inputs, taps).T.reshape(-1)
    whole, rest = divmod(inputs, pattern.block)
    sizes = [pattern.block] * whole + ([rest] if rest else [])
    return order, sizes * taps
