"""Encoders of one chunk of a tensor, and the choice between them.

Every encoder returns a codec and a payload. Which one a tensor gets is decided on a sample (or,
in the profile ``max``, by trying all of them on every chunk); the result depends on nothing but
the bytes and the profile.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxslim.errors import UsageError
from onnxslim.packing import decode as codecs
from onnxslim.packing import optional, zstd
from onnxslim.packing.decode import inner
from onnxslim.packing.layout import HEADER_SIZE, RATIO_LIMIT
from onnxslim.packing.planes import WIDTHS, Bytes, Words, rotated, split

Encoded = tuple[int, bytes]
Recipe = Callable[[Bytes, int, "Profile"], Encoded | None]

MIN_GAIN = 0.02
"""Below this gain a chunk is stored raw, so that it opens at the speed of a copy."""

_RAW_PLANE_BITS = 7.6
_SAMPLE = 1 << 12
_SPARSE = 0.2
_RUN = 8  # mean length of runs from which they are worth a trial


@dataclass(frozen=True)
class Profile:
    """How hard to try. ``uses_zstd`` is whether reading needs the package zstandard."""

    name: str
    uses_zstd: bool
    exhaustive: bool

    @property
    def quick(self) -> Profile:
        """The profile to take decisions with that need one answer for a tensor."""
        return PROFILES["default"] if self.exhaustive else self

    def entropy(self, data: Bytes) -> Encoded:
        """Pack bytes by their frequencies."""
        view = data.data
        if not self.uses_zstd:
            return _smaller(
                (codecs.ZLIB_HUFFMAN, _deflate(view, zlib.Z_HUFFMAN_ONLY)),
                (codecs.RAW, bytes(view)),
            )
        found = (codecs.ZSTD, zstd.compress(view, zstd.ENTROPY))
        if self.exhaustive:
            found = _smaller(found, self.matches(data))
            found = _smaller(found, (codecs.ZLIB_HUFFMAN, _deflate(view, zlib.Z_HUFFMAN_ONLY)))
            found = _smaller(found, (codecs.ZLIB_RLE, _deflate(view, zlib.Z_RLE)))
        return _smaller(found, (codecs.RAW, bytes(view)))

    def matches(self, data: Bytes) -> Encoded:
        """Pack bytes by repetitions and frequencies."""
        if self.uses_zstd:
            return codecs.ZSTD, zstd.compress(data.data, "19" if self.exhaustive else "9")
        return codecs.ZLIB, _deflate(data.data, zlib.Z_DEFAULT_STRATEGY)

    def matches_quickly(self, data: Bytes) -> int:
        """Return about how many bytes :meth:`matches` would give; at most a little too many."""
        if self.uses_zstd:
            return len(zstd.compress(data.data, "3"))
        return len(_deflate(data.data, zlib.Z_DEFAULT_STRATEGY))


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("default", uses_zstd=True, exhaustive=False),
        Profile("stdlib", uses_zstd=False, exhaustive=False),
        Profile("max", uses_zstd=True, exhaustive=True),
    )
}


def profile_named(name: str) -> Profile:
    """Return a profile.

    Raises:
        UsageError: there is none of that name.
        PackError: a package it needs is missing.
    """
    if name not in PROFILES:
        raise UsageError(f"unknown profile '{name}'; choose one of {', '.join(PROFILES)}")
    profile = PROFILES[name]
    if profile.uses_zstd:
        zstd.check_available()
    if profile.exhaustive:
        optional.check_available()
    return profile


def _deflate(view: memoryview, strategy: int) -> bytes:
    machine = zlib.compressobj(9 if strategy == zlib.Z_DEFAULT_STRATEGY else 6, strategy=strategy)
    return machine.compress(view) + machine.flush()


def _smaller(first: Encoded, second: Encoded) -> Encoded:
    return second if len(second[1]) < len(first[1]) else first


def bits_per_byte(data: Bytes) -> float:
    """Return the zeroth-order entropy of bytes, in bits."""
    counts = np.bincount(data, minlength=256)
    shares = counts[counts > 0] / data.size
    return float(-(shares * np.log2(shares)).sum())


def _middle(data: Bytes) -> Bytes:
    start = max(0, (data.size - _SAMPLE) // 2)
    return data[start : start + _SAMPLE]


def fill(data: Bytes, width: int, profile: Profile) -> Encoded | None:
    """Return one element if all are equal."""
    unit = width if data.size % width == 0 else 1
    if data.size <= unit or data[0] != data[-unit]:
        return None
    if not np.array_equal(data[unit:], data[:-unit]):
        return None
    return codecs.FILL, data[:unit].tobytes()


def rle(data: Bytes, width: int, profile: Profile) -> Encoded | None:
    """Return lengths of runs of equal elements, and the elements."""
    if width not in (1, *WIDTHS):
        return None
    words = data.view(f"<u{width}")
    starts = np.concatenate(([0], np.flatnonzero(words[1:] != words[:-1]) + 1))
    if starts.size * _RUN > words.size:
        return None
    runs = np.diff(starts, append=words.size).astype("<u4")
    head = bytes([width]) + int(starts.size).to_bytes(4, "little")
    return codecs.RLE, head + runs.tobytes() + words[starts].tobytes()


def entropy(data: Bytes, width: int, profile: Profile) -> Encoded | None:
    """Return the bytes, packed by their frequencies."""
    return profile.entropy(data)


def matches(data: Bytes, width: int, profile: Profile) -> Encoded | None:
    """Return the bytes, packed by repetitions too."""
    return profile.matches(data)


def turned_planes(data: Bytes, width: int, profile: Profile) -> Encoded | None:
    """Return byte planes of floats."""
    return _planes(data, width, profile, turn=True)


def plain_planes(data: Bytes, width: int, profile: Profile) -> Encoded | None:
    """Return byte planes of integers."""
    return _planes(data, width, profile, turn=False)


def _planes(data: Bytes, width: int, profile: Profile, *, turn: bool) -> Encoded | None:
    if width not in WIDTHS:
        return None
    source = rotated(data, width) if turn else data
    dense = [
        not profile.exhaustive and bits_per_byte(_middle(source[k::width])) > _RAW_PLANE_BITS
        for k in range(width)
    ]
    parts = [bytes([width, turn])]
    plane = 0
    while plane < width:
        pair = plane % 2 == 0 and dense[plane] and dense[plane + 1]
        count = 2 if pair and width > 2 else 1  # two raw planes stay together: a faster join
        part = split(source, width, plane, count)
        if dense[plane]:
            codec, payload = codecs.RAW, part.tobytes()
        elif part[0] == part[-1] and not np.any(part != part[0]):
            codec, payload = codecs.FILL, part[:1].tobytes()
        else:
            codec, payload = profile.entropy(part)
        parts.append(bytes([count]) + inner(codec, payload))
        plane += count
    return codecs.PLANES, b"".join(parts)


def bitmap_entropy(data: Bytes, width: int, profile: Profile) -> Encoded | None:
    """Return which elements are not zero, and those as plain bytes."""
    return _bitmap(data, width, profile, entropy, signed=False)


def bitmap_planes(data: Bytes, width: int, profile: Profile) -> Encoded | None:
    """Return which floats are not zero, the signs of zeros, and the others as planes.

    Weights pruned by multiplication with a mask hold as many -0.0 as 0.0.
    """
    return _bitmap(data, width, profile, turned_planes, signed=True)


def _bitmap(
    data: Bytes, width: int, profile: Profile, values: Recipe, *, signed: bool
) -> Encoded | None:
    if width not in (1, *WIDTHS):
        return None
    words = data.view(f"<u{width}")
    mask = _nonzero(words, signed)
    kept, zeros = words[mask], words[~mask]
    if not kept.size:
        return None
    signed = bool(zeros.any())
    parts = [bytes([width, signed]) + int(kept.size).to_bytes(4, "little")]
    parts.append(inner(*profile.entropy(np.packbits(mask))))
    if signed:
        parts.append(inner(*profile.entropy(np.packbits(zeros != 0))))
    body = values(kept.view(np.uint8), width, profile)
    if body is None:
        return None
    return codecs.BITMAP, b"".join([*parts, inner(*body)])


def _nonzero(words: Words, is_float: bool) -> npt.NDArray[np.bool_]:
    """Return which elements are not zero; of floats, neither 0.0 nor -0.0."""
    found: npt.NDArray[np.bool_] = (words << np.array(1, words.dtype) if is_float else words) != 0
    return found


def codebook(data: Bytes, width: int, profile: Profile) -> Encoded | None:
    """Return up to 256 distinct values and the index of each element."""
    if width not in WIDTHS:
        return None
    words = data.view(f"<u{width}")
    if np.unique(words[:: max(1, words.size // 2048)]).size > 256:
        return None  # the usual case, found without sorting everything
    table = np.unique(words)
    if table.size > 256:
        return None
    indices = np.searchsorted(table, words).astype(np.uint8)
    head = bytes([width, table.size - 1]) + table.tobytes()
    return codecs.CODEBOOK, head + inner(*profile.entropy(indices))


def pco_integers(data: Bytes, width: int, profile: Profile) -> Encoded | None:
    """Return what pcodec makes of unsigned integers."""
    if width not in (1, *WIDTHS):
        return None
    number = optional.PCO_TYPES.index(f"<u{width}")
    return codecs.PCO, optional.pco_compress(data, number)


def pco_floats(data: Bytes, width: int, profile: Profile) -> Encoded | None:
    """Return what pcodec makes of IEEE floats."""
    if width not in WIDTHS:
        return None
    number = optional.PCO_TYPES.index(f"<f{width}")
    return codecs.PCO, optional.pco_compress(data, number)


def brotli(data: Bytes, width: int, profile: Profile) -> Encoded | None:
    """Return the bytes as a brotli stream."""
    return codecs.BROTLI, optional.brotli_compress(data)


_FLOATS: tuple[Recipe, ...] = (turned_planes, matches, bitmap_planes, codebook, rle)
_WIDE: tuple[Recipe, ...] = (plain_planes, matches, bitmap_entropy, codebook, rle)
_NARROW: tuple[Recipe, ...] = (entropy, matches, bitmap_entropy, rle)


def _recipes(width: int, is_float: bool) -> tuple[Recipe, ...]:
    if width not in WIDTHS:
        return _NARROW
    return _FLOATS if is_float else _WIDE


def _optional_recipes(width: int, is_float: bool) -> tuple[Recipe, ...]:
    if width not in WIDTHS:
        return pco_integers, brotli
    return (pco_integers, pco_floats) if is_float else (pco_integers,)


def choose(sample: Bytes, width: int, is_float: bool, profile: Profile) -> tuple[Recipe, ...]:
    """Return the recipes to try on each chunk of a tensor.

    Args:
        sample: Some elements of the tensor, as bytes; the length is a multiple of ``width``.
        width: Bytes of an element.
        is_float: Whether the elements are IEEE floats or bfloat16.
        profile: How hard to try.
    """
    recipes = _recipes(width, is_float)
    if profile.exhaustive:
        return (*recipes, *_optional_recipes(width, is_float))
    words = sample.view(f"<u{width}") if width in WIDTHS else sample
    signed = is_float and width in WIDTHS
    sparse = np.count_nonzero(_nonzero(words, signed)) <= (1 - _SPARSE) * words.size
    best: tuple[int, Recipe] | None = None
    for recipe in recipes:
        if recipe in (bitmap_planes, bitmap_entropy) and not sparse:
            continue
        size = _size_of(recipe, sample, width, profile)
        if size is not None and recipe is matches:
            size += size // 100  # slower, so only for a gain
        if size is not None and (best is None or size < best[0]):
            best = size, recipe
    if best is None or best[0] > (1 - MIN_GAIN) * sample.size:
        return ()
    return (best[1],)


def _size_of(recipe: Recipe, sample: Bytes, width: int, profile: Profile) -> int | None:
    if recipe is matches:
        return profile.matches_quickly(sample)
    result = recipe(sample, width, profile)
    return None if result is None else len(result[1])


def is_structured(recipes: tuple[Recipe, ...]) -> bool:
    """Whether a tensor packs best by its repetitions, so that it gains from its neighbours."""
    return recipes == (matches,)


def encode(
    data: Bytes, width: int, recipes: tuple[Recipe, ...], profile: Profile, *, guarded: bool = False
) -> Encoded:
    """Encode one chunk; the payload is never longer than the data.

    Args:
        data: The chunk.
        width: Bytes of an element; a chunk of another multiple is treated as bytes.
        recipes: What :func:`choose` returned.
        profile: How hard to try.
        guarded: Avoid results so small that a reader would take them for a bomb.
    """
    if data.size % width:
        width, recipes = 1, _NARROW if recipes else ()  # bytes that are cut short
    constant = fill(data, width, profile)
    if constant is not None:
        return constant
    best: Encoded = codecs.RAW, data.tobytes()
    limit = int((1 - MIN_GAIN) * data.size)
    for recipe in recipes:
        result = recipe(data, width, profile)
        if guarded and result is not None and _is_suspicious(result, data.size):
            result = rle(data, width, profile) or _modest(data)
        if result is not None and len(result[1]) <= limit:
            best = _smaller(best, result)
    return best


def _modest(data: Bytes) -> Encoded:
    """Pack so that no reader takes the chunk for a bomb."""
    found = codecs.ZLIB, _deflate(data.data, zlib.Z_DEFAULT_STRATEGY)  # 1032 times at best
    if _is_suspicious(found, data.size):
        return codecs.ZLIB_HUFFMAN, _deflate(data.data, zlib.Z_HUFFMAN_ONLY)  # 8 times
    return found


def _is_suspicious(encoded: Encoded, length: int) -> bool:
    """Whether a reader would take a long series of such chunks for a bomb."""
    if encoded[0] in (codecs.FILL, codecs.RLE):
        return False
    return (len(encoded[1]) + HEADER_SIZE) * RATIO_LIMIT < length


def encode_rest(
    data: Bytes, profile: Profile, *, hurried: bool = False, guarded: bool = False
) -> Encoded:
    """Encode bytes of a file that belong to no tensor (the graph, and small tensors).

    Args:
        data: The bytes.
        profile: How hard to try.
        hurried: There is much of it; do not try the hardest.
        guarded: As for :func:`encode`.
    """
    constant = fill(data, 1, profile)
    if constant is not None:
        return constant
    if profile.uses_zstd:
        best: Encoded = codecs.ZSTD, zstd.compress(data.data, "9" if hurried else "19")
    else:
        best = codecs.ZLIB, _deflate(data.data, zlib.Z_DEFAULT_STRATEGY)
    if profile.exhaustive:
        best = _smaller(best, (codecs.BROTLI, optional.brotli_compress(data)))
    if guarded and _is_suspicious(best, data.size):
        best = _modest(data)
    return _smaller(best, (codecs.RAW, data.tobytes()))
