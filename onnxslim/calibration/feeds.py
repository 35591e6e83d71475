"""Makes up inputs for a model: in range where they index, masks where they mask, two sizes each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim.calibration.roles import Bound, Role
from onnxslim.calibration.sizes import Plan, Sizer
from onnxslim.calibration.tracing import find_roles
from onnxslim.errors import DataError
from onnxslim.runtime.specs import Array, Feed, InputSpec, input_specs

_WORDS = ("", "a", "onnx", "Zürich", "the quick brown fox", "0")
_DEFAULT_RANGE = (-4, 8)


def generate_feeds(
    model: ir.Model,
    *,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    count: int = 2,
) -> list[Feed]:
    """Feeds for the inputs of the main graph that hold no default value.

    Args:
        model: the model; it is not changed.
        seed: the same seed gives the same feeds.
        shapes: shapes by input name that must be used.
        count: number of random feeds, each with its own sizes for open dimensions.

    Returns:
        ``count`` random feeds and one more with floats all zero, masks all one and integers as
        small as they may be. They are what the model declares; whether it runs on them is found
        out by running it (`validate` goes on to other sizes).

    Raises:
        UsageError: ``shapes`` does not fit.
        DataError: an input is neither a tensor nor a sequence or optional of tensors.
    """
    maker = FeedMaker(model, seed=seed, shapes=shapes)
    feeds = [maker.make(next(maker.plans(index)), index) for index in range(count)]
    feeds.append(maker.make(next(maker.plans(0)), 0, zeros=True))
    return feeds


class FeedMaker:
    """Makes feeds for one model under changing sizes.

    Args: as for `generate_feeds`.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        seed: int = 0,
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.specs = [spec for spec in input_specs(model) if spec.required]
        for spec in self.specs:
            if spec.kind == "other" or spec.dtype is None:
                raise DataError(
                    f"no values can be made up for input {spec.name}: its type is not a tensor; "
                    "give feeds in a file"
                )
        self._roles = find_roles(model)
        self._sizer = Sizer(self.specs, shapes)
        self._seed = seed

    def plans(self, index: int) -> Iterator[Plan]:
        """Sizes to try for feed ``index``, most wanted first."""
        return self._sizer.plans(index)

    def make(self, plan: Plan, index: int, *, zeros: bool = False) -> Feed:
        """One feed. The same arguments always give the same values.

        Args:
            plan: the sizes.
            index: number of the feed; it selects the random values.
            zeros: floats are zero, masks one, integers as small as they may be.
        """
        feed: Feed = {}
        for position, spec in enumerate(self.specs):
            rng = np.random.default_rng((self._seed, index, position))
            role = self._roles.get(spec.name, Role())
            values = _Values(spec, role, plan, rng, index, zeros)
            shape = self._sizer.shape(spec, plan)
            if spec.kind == "sequence":
                feed[spec.name] = [values.make(shape), values.make(shape)]
            elif spec.kind == "optional" and plan.caution > 1:
                feed[spec.name] = None
            else:
                feed[spec.name] = values.make(shape)
        return feed


class _Values:
    """The values of one input in one feed."""

    def __init__(
        self,
        spec: InputSpec,
        role: Role,
        plan: Plan,
        rng: np.random.Generator,
        index: int,
        zeros: bool,
    ) -> None:
        self._spec, self._role, self._plan = spec, role, plan
        self._rng, self._index, self._zeros = rng, index, zeros
        self._is_mask = role.mask or "mask" in spec.name.lower()

    def make(self, shape: tuple[int, ...]) -> Any:
        dtype = self._spec.numpy_dtype
        if self._spec.dtype == ir.DataType.STRING:
            words = self._rng.choice(np.array(_WORDS), size=shape)
            return np.asarray(words).astype(object)
        if dtype == np.bool_:
            return self._bools(shape)
        if self._spec.dtype is not None and self._spec.dtype.is_integer():
            return self._integers(shape, dtype)
        return self._floats(shape, dtype)

    def _bools(self, shape: tuple[int, ...]) -> Array:
        if not shape:
            return np.array(self._index % 2 == 0 and not self._zeros)
        if self._zeros:
            return np.full(shape, self._is_mask)
        return self._mask(shape).astype(np.bool_)

    def _mask(self, shape: tuple[int, ...]) -> Array:
        """0 and 1, both of them; rows start with 1 so that none is masked out as a whole."""
        if self._zeros or not shape:
            return np.ones(shape, np.int64)
        mask = self._rng.integers(0, 2, shape)
        flat = mask.reshape(-1)
        if shape[-1] > 1:
            mask[..., 0] = 1
        flat[:1] = 1
        if flat.size > 1:
            flat[-1] = 0
        return mask

    def _floats(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        if self._is_mask:
            return self._mask(shape).astype(dtype)
        if self._role.extents and self._role.bounds:  # a count that may be given as a float
            low, high = self._intersection(self._role.bounds)
            return np.full(shape, max(low, min(high - 1, 3))).astype(dtype)
        if self._zeros:
            return np.zeros(shape, dtype)
        values = self._rng.standard_normal(shape)
        if self._plan.caution > 1:  # thresholds, probabilities and scales are happy with these
            values = self._rng.uniform(0.05, 0.95, shape)
        match self._role.domain:
            case "positive":
                values = np.ones(shape) if self._plan.caution > 1 else np.abs(values) + 0.25
            case "unit":
                values = np.clip(values / 3, -0.9, 0.9)
            case "above-one":
                values = np.abs(values) + 1.1
        if dtype.kind == "c":
            return np.asarray(values + 1j * self._rng.standard_normal(shape)).astype(dtype)
        return np.asarray(values).astype(np.float32).astype(dtype)

    def _integers(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        role = self._role
        if self._is_mask and not role.bounds:
            return self._mask(shape).astype(dtype)
        low, high = self._range(dtype)
        if math.prod(shape) == 1 and not role.bounds and not role.axes and low <= 0 < high - 1:
            low = 1  # a setting rather than data; as a step or divisor, zero would kill the process
        if role.reshapes:
            values = np.ones(shape, np.int64)
            values[:1] = -1
        elif role.axes and len(shape) == 1:
            values = low + np.arange(shape[0]) % (high - low)
        elif self._zeros:
            values = np.full(shape, max(low, min(0, high - 1)))
        else:
            values = self._rng.integers(low, high, shape)
            if role.mask and low <= 0 and high >= 2:  # an index that is also compared with 0 or 1
                values = np.where(self._rng.random(shape) < 0.3, self._mask(shape), values)
        return np.asarray(values).astype(dtype)

    def _range(self, dtype: np.dtype[Any]) -> tuple[int, int]:
        """The half-open range of the integers; never empty, never outside the dtype."""
        floor, ceiling = _limits(self._spec)
        if self._role.bounds:
            low, high = self._intersection(self._role.bounds)
        elif self._role.hints and not self._plan.caution:
            spans = [self._span(hint) for hint in self._role.hints]
            low, high = min(one for one, _ in spans), max(other for _, other in spans)
        elif self._plan.caution or _is_index_name(self._spec.name):
            low, high = 0, 2
        elif dtype.itemsize == 1:
            low, high = floor, ceiling
        else:
            low, high = _DEFAULT_RANGE
        low = min(max(low, floor), ceiling - 1)
        return low, max(min(high, ceiling), low + 1)

    def _intersection(self, bounds: Sequence[Bound]) -> tuple[int, int]:
        spans = [self._span(bound) for bound in bounds]
        return max(low for low, _ in spans), min(high for _, high in spans)

    def _span(self, bound: Bound) -> tuple[int, int]:
        size = bound.size
        if isinstance(size, str):
            size = self._plan.sizes.get(size)
        if size is None:
            return bound.low, bound.low + 1
        return bound.low, size + bound.high


def _limits(spec: InputSpec) -> tuple[int, int]:
    """The half-open range of an integer type, cut to what fits int64."""
    dtype = spec.dtype
    if dtype is None:
        return 0, 2
    bits = min(dtype.bitwidth, 63)
    if dtype.name.startswith("U"):
        return 0, 2**bits
    return -(2 ** (bits - 1)), 2 ** (bits - 1)


def _is_index_name(name: str) -> bool:
    lowered = name.lower()
    return any(word in lowered for word in ("ids", "index", "indices", "token"))
