"""More inputs out of few: mixtures of the calibration samples, for fits that would learn them.

A descent moves every weight of a layer, so a few hundred samples are soon learned by heart. The
original answers any input, so what it answers to mixtures of the samples is as good a target as
what it answers to them. Three kinds are made, all of the shapes, types and, for integers, values
that the calibration data has:

* *blends*: a sample and a share of another one (mixup, Zhang et al. 2018), of inputs alone;
* *crossings*: a sample up to some place along an axis, and another one from there on;
* noise on top of both, of a random size.

Blends and noise are for float inputs. Integers cross where all inputs are alike in shape, as those
of a text are: then all of them cross at the same place. Other inputs are passed on as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from onnxslim.pruning.sampling import Feeds, samples_of, spread_of

Array = npt.NDArray[Any]

# Samples there should be, the calibration data included.
_ENOUGH = 8192
# The most noise, relative to the standard deviation of an input.
_MOST_NOISE = 0.25


class Mixtures(Sequence[Mapping[str, Any]]):
    """The feeds, and mixtures of them up to some thousands of samples.

    Each is made when it is asked for, and the same for the same arguments, so they take no memory.

    Args:
        feeds: the calibration feeds.
        seed: of the mixtures.
    """

    def __init__(self, feeds: Feeds, seed: int) -> None:
        self._feeds = feeds
        self._seed = seed
        self._spread = spread_of(feeds)
        self._crosses = _alike(feeds)
        samples = sum(samples_of(feed) for feed in feeds)
        changes = self._spread or (self._crosses and _inner_axes(feeds))
        self._copies = max(1, _ENOUGH // max(samples, 1)) if samples > 1 and changes else 1

    def __len__(self) -> int:
        return len(self._feeds) * self._copies

    @overload
    def __getitem__(self, number: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Mapping[str, Any]]: ...
    def __getitem__(self, number: int | slice) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
        if isinstance(number, slice):
            return [self[place] for place in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        copy, own = divmod(number % len(self), len(self._feeds))
        return self._feeds[own] if copy == 0 else self._mixed(copy, own)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return (self[number] for number in range(len(self)))

    def _mixed(self, copy: int, own: int) -> Mapping[str, Any]:
        rng = np.random.default_rng([self._seed, copy, own])
        feed = self._feeds[own]
        other = self._partner(feed, rng)
        crossing = copy % 2 == 0 or not self._spread
        mixed = self._crossed(feed, other, rng) if crossing else self._blended(feed, other, rng)
        result = {}
        for name, content in mixed.items():
            if name in self._spread:
                size = self._spread[name] * _MOST_NOISE * rng.random()
                content = content + size * rng.standard_normal(content.shape)
            result[name] = content.astype(np.asarray(feed[name]).dtype)
        return result

    def _partner(self, feed: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Array]:
        """A feed of the same shapes, its samples shuffled where they can be told apart."""
        shapes = {name: np.shape(content) for name, content in feed.items()}
        fitting = [
            one
            for one in self._feeds
            if {name: np.shape(content) for name, content in one.items()} == shapes
        ]
        other = {n: np.asarray(c) for n, c in fitting[int(rng.integers(len(fitting)))].items()}
        counts = {shape[:1] for shape in shapes.values()}
        if len(counts) != 1 or () in counts:
            return other
        order = rng.permutation(next(iter(counts))[0])
        return {name: content[order] for name, content in other.items()}

    def _blended(
        self, feed: Mapping[str, Any], other: Mapping[str, Array], rng: np.random.Generator
    ) -> dict[str, Array]:
        shares = rng.random(max(samples_of(feed), 1))
        result = {}
        for name, content in feed.items():
            own = np.asarray(content)
            if name in self._spread:
                rows = own.shape[:1] == shares.shape
                part = shares.reshape(-1, *[1] * (own.ndim - 1)) if rows else shares[0]
                own = own + part * (other[name] - own)
            result[name] = own
        return result

    def _crossed(
        self, feed: Mapping[str, Any], other: Mapping[str, Array], rng: np.random.Generator
    ) -> dict[str, Array]:
        result = {}
        taken: Array | None = None
        for name, content in feed.items():
            own = np.asarray(content)
            if not self._crosses:
                taken = None
            if name in self._spread or self._crosses:
                taken = _behind_a_place(own.shape, rng) if taken is None else taken
                own = np.where(taken, other[name], own)
            result[name] = own
        return result


def _behind_a_place(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Which elements lie behind a random place on one of the inner axes, sample by sample."""
    axes = [axis for axis, size in enumerate(shape) if axis and size > 1]
    if not axes:
        return np.zeros([1] * len(shape), dtype=bool)
    axis = int(rng.choice(axes))
    places = rng.integers(1, shape[axis], size=shape[0])
    numbers = np.arange(shape[axis]).reshape(-1, *[1] * (len(shape) - axis - 1))
    return np.asarray(numbers >= places.reshape(-1, *[1] * (len(shape) - 1)))


def _alike(feeds: Feeds) -> bool:
    """Have all inputs of a feed the same shape?"""
    return all(len({np.shape(content) for content in feed.values()}) == 1 for feed in feeds)


def _inner_axes(feeds: Feeds) -> bool:
    """Is there a place where two samples could cross?"""
    return any(max(np.shape(content)[1:], default=1) > 1 for f in feeds for content in f.values())
