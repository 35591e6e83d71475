"""Chooses sizes for the dimensions that a model leaves open."""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnxslim.errors import UsageError
from onnxslim.runtime.specs import Dim, InputSpec, shape_text

Key = str | tuple[str, int]
"""A named symbol, or (input, axis) for a dimension without a name."""

# Sizes that are tried when the first ones do not run: hidden constraints are mostly multiples, and
# models of sound want a stretch of samples.
_LADDER = (1, 2, 4, 8, 16, 32, 64, 128, 224, 256, 512, 1024, 4096, 16_000)
_MAX_ELEMENTS = 20_000_000
_BATCH = (2, 3, 1, 4)
_RANKS = (2, 1, 3, 4, 0)
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
_FLOOR_DIVISIONS = (ast.FloorDiv, ast.Div)


@dataclass(frozen=True)
class Plan:
    """Sizes for one feed.

    Attributes:
        sizes: per open dimension.
        rank: for inputs of unknown rank.
        caution: 1: integers that nothing is known about are 0 or 1; 2: and floats lie between
            0 and 1, and optional inputs are empty.
    """

    sizes: Mapping[Key, int]
    rank: int = 2
    caution: int = 0


class Sizer:
    """Makes plans for the inputs of one model.

    Args:
        specs: the inputs.
        shapes: demanded shapes by input name; a symbol in them is bound for all inputs.

    Raises:
        UsageError: a demanded shape names no input or contradicts the declared one.
    """

    def __init__(
        self, specs: Sequence[InputSpec], shapes: Mapping[str, Sequence[int]] | None = None
    ) -> None:
        self._specs = specs
        self._shapes = {name: tuple(shape) for name, shape in (shapes or {}).items()}
        self._bound: dict[Key, int] = {}
        self._bind()
        self._keys = self._open_dimensions()
        self._no_rank = any(spec.shape is None for spec in specs)

    def _bind(self) -> None:
        by_name = {spec.name: spec for spec in self._specs}
        for name, shape in self._shapes.items():
            spec = by_name.get(name)
            if spec is None:
                known = ", ".join(by_name)
                raise UsageError(f"no input is named {name!r}; the inputs are: {known}")
            if min(shape, default=0) < 0 or not _fits(shape, spec.shape):
                raise UsageError(
                    f"shape {list(shape)} does not fit input {name}, declared as "
                    f"{shape_text(spec.shape)}"
                )
            for axis, size in enumerate(shape):
                declared = spec.shape[axis] if spec.shape is not None else None
                if isinstance(declared, str) and self._bound.setdefault(declared, size) != size:
                    raise UsageError(f"the demanded shapes give {declared!r} two sizes")

    def _open_dimensions(self) -> list[tuple[Key, str]]:
        """Every open dimension once, with its kind: batch, image or other."""
        found: dict[Key, str] = {}
        for spec in self._specs:
            for axis, size in enumerate(spec.shape or ()):
                key: Key = size if isinstance(size, str) else (spec.name, axis)
                if isinstance(size, int) or key in found or spec.name in self._shapes:
                    continue
                if key not in self._bound and not _is_expression(key):
                    found[key] = _kind_of(spec, axis)
        return list(found.items())

    def plans(self, index: int) -> Iterator[Plan]:
        """Plans to try for feed ``index``, most wanted first; indices differ in their sizes."""
        ranks = _RANKS if self._no_rank else (2,)
        first = self._wanted(index)
        for caution in (0, 1):
            for rank in ranks:
                yield Plan(first, rank, caution)
        yield from self._ladder(index)
        for rank in ranks:
            yield Plan(first, rank, 2)

    def _ladder(self, index: int) -> Iterator[Plan]:
        """All open dimensions alike, the batch alike or apart."""
        if not self._keys:
            return
        sizes = _LADDER if index % 2 == 0 else (*_LADDER[1:], 1)
        for size in sizes:
            for batch in dict.fromkeys((size, 1, 2)):
                plan = {key: batch if kind == "batch" else size for key, kind in self._keys}
                if self._is_small(plan):
                    yield Plan({**plan, **self._bound}, 2, 1)

    def _wanted(self, index: int) -> dict[Key, int]:
        sizes = dict(self._bound)
        counts = {"batch": 0, "image": 0, "other": 0}
        for key, kind in self._keys:
            nth = counts[kind] if isinstance(key, str) else 0
            if isinstance(key, str):
                counts[kind] += 1
            if kind == "image":
                sizes[key] = 32 + 8 * nth + 16 * (index % 4)
            elif kind == "batch" and nth == 0:
                sizes[key] = _BATCH[index % len(_BATCH)]
            else:  # distinct symbols get distinct sizes, so that a mix-up shows
                sizes[key] = 5 + 2 * nth + 3 * (index % 4)
        return sizes

    def _is_small(self, sizes: Mapping[Key, int]) -> bool:
        plan = Plan({**sizes, **self._bound})
        for spec in self._specs:
            count = 1
            for size in self.shape(spec, plan):
                count *= size
            if count > _MAX_ELEMENTS:
                return False
        return True

    def shape(self, spec: InputSpec, plan: Plan) -> tuple[int, ...]:
        """The shape of one input under a plan."""
        if spec.name in self._shapes:
            return self._shapes[spec.name]
        if spec.shape is None:
            return (2, 3, 4, 5)[: plan.rank]
        return tuple(
            resolve(size, spec.name, axis, plan.sizes) for axis, size in enumerate(spec.shape)
        )


def resolve(size: Dim, name: str, axis: int, sizes: Mapping[Key, int]) -> int:
    """The size of one declared dimension; ``"past + 1"`` is computed from its parts."""
    if isinstance(size, int):
        return size
    if size is None:
        return sizes.get((name, axis), 2)
    if size in sizes:
        return sizes[size]
    value = _evaluate(size, sizes)
    return 2 if value is None else max(value, 0)


def _fits(shape: Sequence[int], declared: tuple[Dim, ...] | None) -> bool:
    if declared is None:
        return True
    return len(shape) == len(declared) and all(
        not isinstance(want, int) or want == got for got, want in zip(shape, declared, strict=True)
    )


def _kind_of(spec: InputSpec, axis: int) -> str:
    if axis == 0:
        return "batch"
    rank = len(spec.shape or ())
    is_float = spec.dtype is not None and spec.dtype.is_floating_point()
    is_image = rank in (4, 5) and (is_float or spec.numpy_dtype.itemsize == 1)
    return "image" if is_image else "other"


def _is_expression(key: Key) -> bool:
    return isinstance(key, str) and any(sign in key for sign in "+-*/") and _parsed(key) is not None


def _parsed(text: str) -> ast.expr | None:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        return None


def _evaluate(text: str, sizes: Mapping[Key, int]) -> int | None:
    node = _parsed(text)
    return None if node is None else _value_of(node, sizes)


def _value_of(node: ast.expr, sizes: Mapping[Key, int]) -> int | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        return sizes.get(node.id, 2)
    if not isinstance(node, ast.BinOp):
        return None
    left, right = _value_of(node.left, sizes), _value_of(node.right, sizes)
    if left is None or right is None:
        return None
    if isinstance(node.op, _FLOOR_DIVISIONS):
        return left // right if right else None
    combine = _OPERATORS.get(type(node.op))
    return None if combine is None else int(combine(left, right))
