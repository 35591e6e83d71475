"""Packs the tensors of a new version of a model as differences to those of a base version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from onnxslim.packing.decode import DIFF, XOR, inner
from onnxslim.packing.delta import difference, xor
from onnxslim.packing.encode import Encoded, Profile, Recipe, choose, encode
from onnxslim.packing.forms import BaseTensor
from onnxslim.packing.manifest import Blob
from onnxslim.packing.planes import Bytes


class Place(Protocol):
    """What is known of a tensor besides its bytes."""

    @property
    def length(self) -> int:
        """Bytes."""
        ...

    @property
    def width(self) -> int:
        """Bytes of an element."""
        ...

    @property
    def name(self) -> str:
        """Name in the model."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""
        ...


@dataclass(frozen=True)
class Delta:
    """How the chunks of one tensor are written: as differences, packed by ``recipes``."""

    codec: int
    width: int
    is_float: bool
    recipes: tuple[Recipe, ...]

    def encode(self, data: Bytes, base: Bytes, profile: Profile) -> Encoded | None:
        """Encode a chunk; None if the result would not be shorter than the data."""
        if self.codec == XOR:
            head, steps = b"", xor(data, base)
        else:
            head = bytes([self.width, self.is_float])
            steps = difference(data, base, self.width, self.is_float)
        payload = head + inner(*encode(steps, self.width, self.recipes, profile))
        return (self.codec, payload) if len(payload) < data.size else None


def best_delta(
    sample: Bytes, base: Bytes, width: int, is_float: bool, profile: Profile
) -> Delta | None:
    """Return the kind of difference that packs a sample best; None if the plain bytes do."""
    best = len(encode(sample, width, choose(sample, width, is_float, profile), profile)[1])
    found: Delta | None = None
    for codec in (DIFF, XOR):
        steps = xor(sample, base) if codec == XOR else difference(sample, base, width, is_float)
        delta = Delta(codec, width, is_float, choose(steps, width, False, profile))
        result = delta.encode(sample, base, profile)
        if result is not None and len(result[1]) < best:
            best, found = len(result[1]), delta
    return found


def pair_up(
    blobs: list[Blob],
    places: Sequence[Place],
    base: Sequence[tuple[Place, BaseTensor]],
) -> tuple[list[Blob], dict[int, int]]:
    """Find the counterpart of each tensor in a base version.

    Equal bytes first, under any name; then the same name with as many bytes; then, in order,
    tensors of the same shape that nothing else has claimed (renamed ones).

    Returns:
        The blobs, those with equal bytes as copies of the base (``base`` is the number in the
        list given here), and for others the number of the tensor to compare with.
    """
    by_content = {tensor: number for number, (_, tensor) in reversed(list(enumerate(base)))}
    by_name = {place.name: number for number, (place, _) in reversed(list(enumerate(base)))}
    made = list(blobs)
    pairs: dict[int, int] = {}
    for number, blob in enumerate(blobs):
        equal = by_content.get(BaseTensor(blob.length, blob.sha256))
        if equal is not None:
            made[number] = replace(blob, chunk=0, base=equal)
            continue
        same = by_name.get(places[number].name) if places[number].name else None
        if same is not None and _comparable(places[number], base[same][0]):
            pairs[number] = same
    _pair_by_shape(made, places, base, pairs)
    return made, pairs


def _comparable(new: Place, old: Place) -> bool:
    return (new.length, new.width) == (old.length, old.width)


def _pair_by_shape(
    blobs: list[Blob],
    places: Sequence[Place],
    base: Sequence[tuple[Place, BaseTensor]],
    pairs: dict[int, int],
) -> None:
    taken = set(pairs.values()) | {blob.base for blob in blobs if blob.base is not None}
    free: dict[tuple[object, ...], list[int]] = {}
    for number, (place, _) in enumerate(base):
        if number not in taken:
            free.setdefault((place.length, place.width, place.shape), []).append(number)
    for number, place in enumerate(places):
        mates = free.get((place.length, place.width, place.shape))
        if blobs[number].base is None and number not in pairs and mates:
            pairs[number] = mates.pop(0)
