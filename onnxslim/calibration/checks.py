"""Brings one sample into the form a model wants, or says in one line what is wrong with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxslim.errors import DataError
from onnxslim.runtime.specs import Array, Feed, InputSpec, dtype_name, shape_text


class BadNumbersError(DataError):
    """NaN or infinity in a sample: the only fault for which leaving the sample out is offered.

    Attributes:
        feed: the feed, when an input holds them.
        rows: where along the first axis of the inputs they are.
    """

    def __init__(self, message: str, feed: Feed | None = None, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.feed, self.rows = feed, list(rows)


@dataclass(frozen=True)
class Place:
    """Where a feed comes from, for messages.

    Attributes:
        number: of its first sample, from 0.
        batched: the rows of the feed are samples of their own.
        labels: names of the samples, as far as they have any: files.
    """

    number: int
    batched: bool = False
    labels: tuple[str, ...] = ()

    def at(self, row: int) -> str:
        """The sample in that row."""
        return str(Place(self.number + row, False, self.labels[row : row + 1]))

    def __str__(self) -> str:
        label = f" ({self.labels[0]})" if len(self.labels) == 1 else ""
        return f"calibration sample {self.number}{label}"


def near_names(name: str, known: Iterable[str]) -> str:
    """``; did you mean ...?`` with close names; empty when none is close."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


class FeedChecker:
    """Checks samples against the inputs of a model.

    Attributes:
        notes: conversions that were made, one line each.

    Args:
        specs: the inputs.
    """

    def __init__(self, specs: Sequence[InputSpec]) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self.notes: dict[str, None] = {}

    def feed(self, item: Any, where: Place) -> Feed:
        """The sample as arrays by input name.

        Args:
            item: a mapping by input name; a tuple or list in the order of the inputs; or the one
                array of a model with one input. Tensors of other packages that have ``numpy()``
                are arrays too. An array that lacks just the first axis gets one of length 1.
            where: names the sample in messages.

        Raises:
            DataError: a name, dtype or shape does not fit, or a value is missing.
        """
        values = self._by_name(item, where)
        feed: Feed = {}
        for name, spec in self.specs.items():
            if name in values:
                feed[name] = self._value(values[name], spec, where)
            elif spec.required:
                raise DataError(self._missing(name, spec, values, where))
        return feed

    def finite(self, feed: Feed, where: Place) -> None:
        """Raises BadNumbersError when an input holds NaN or infinity."""
        for name, value in feed.items():
            if not isinstance(value, np.ndarray) or kind_of(value.dtype) != "float":
                continue
            wide = value.astype(np.float32) if value.dtype.kind == "V" else value
            if not wide.size or np.isfinite([wide.min(), wide.max()]).all():
                continue
            bad = ~np.isfinite(wide)
            rows = (
                np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1)).tolist() if bad.ndim else []
            )
            count = int(np.count_nonzero(bad))
            place = where.at(rows[0]) if where.batched and rows else where
            raise BadNumbersError(
                f"{place}: tensor {name!r} holds {count} NaN or infinite values, for which there "
                "is no int8 scale; leave the sample out or correct it",
                feed,
                rows,
            )

    def _by_name(self, item: Any, where: Place) -> Mapping[str, Any]:
        required = [name for name, spec in self.specs.items() if spec.required]
        if isinstance(item, Mapping):
            for name in item:
                if name not in self.specs:
                    raise DataError(f"{where}: {name!r} is no input; {self._near(str(name))}")
            return item
        if not isinstance(item, tuple | list):
            item = (item,)
        if len(item) != len(required):
            raise DataError(
                f"{where}: {len(item)} values for the {len(required)} inputs "
                f"{', '.join(required)}; give one each, or a dict by name"
            )
        return dict(zip(required, item, strict=True))

    def _near(self, name: str) -> str:
        close = difflib.get_close_matches(name, self.specs, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{hint}inputs: {', '.join(self.specs) or 'none'}"

    def _missing(self, name: str, spec: InputSpec, values: Mapping[str, Any], where: Place) -> str:
        given = ", ".join(map(str, values)) or "nothing"
        return f"{where}: no value for input {spec}; given: {given}; closest: " + (
            ", ".join(difflib.get_close_matches(name, map(str, values), n=1, cutoff=0.0)) or "none"
        )

    def _value(self, content: Any, spec: InputSpec, where: Place) -> Any:
        if spec.kind != "tensor" or spec.dtype is None:
            return content
        array = self._typed(as_array(content, spec, where), spec, where)
        dims = spec.shape
        if dims and (dims[0] == 1 or not isinstance(dims[0], int)) and _fits(array.shape, dims[1:]):
            array = array[None]
        if dims is not None and not _fits(array.shape, dims):
            raise DataError(
                f"{where}: input {spec.name} has shape {list(array.shape)} but the model wants "
                f"{shape_text(dims)}"
            )
        return array

    def _typed(self, array: Array, spec: InputSpec, where: Place) -> Array:
        target = spec.numpy_dtype
        if array.dtype == target:
            return array
        if spec.dtype == ir.DataType.STRING and array.dtype.kind in "US":
            return array.astype(np.str_).astype(object)
        if kind_of(array.dtype) != kind_of(target):
            wanted = dtype_name(spec.dtype) if spec.dtype is not None else str(target)
            raise DataError(
                f"{where}: input {spec.name} is {array.dtype} but the model wants {wanted}; "
                "convert it, and scale it if the model wants that"
            )
        with np.errstate(all="ignore"):
            converted = array.astype(target)
        if kind_of(target) == "integer" and not np.array_equal(converted, array):
            raise DataError(f"{where}: input {spec.name} has values that do not fit {target}")
        self.notes[f"input {spec.name} was converted from {array.dtype} to {target}"] = None
        return converted


def kind_of(dtype: np.dtype[Any]) -> str:
    """``integer``, ``float`` (those that numpy lacks as well), or numpy's letter for others."""
    if dtype.kind in "iu":
        return "integer"
    if dtype.kind == "f" or "float" in str(dtype):
        return "float"
    return dtype.kind


def as_array(content: Any, spec: InputSpec, where: Place) -> Array:
    """The content as an array: numpy's own, lists, and tensors that have ``numpy()``.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(content, np.ndarray | np.generic):
        return np.asarray(content)
    if hasattr(content, "numpy"):
        if hasattr(content, "detach"):  # a tensor with gradients does not give its numbers away
            content = content.detach().cpu()
        return np.asarray(content.numpy())
    if hasattr(content, "__array__"):
        return np.asarray(content)
    if isinstance(content, list | tuple | int | float | bool | str):
        return _from_python(content, spec, where)
    raise DataError(
        f"{where}: input {spec.name} is {type(content).__name__}, not an array; "
        f"the model wants {spec}"
    )


def _from_python(content: Any, spec: InputSpec, where: Place) -> Array:
    """Python numbers have no width: floats and integers take that of the input."""
    try:
        array = np.asarray(content)
    except ValueError as error:
        raise DataError(
            f"{where}: input {spec.name} is a list of lists of different lengths; "
            f"the model wants {spec}"
        ) from error
    target = spec.numpy_dtype
    if array.dtype == np.float64 and kind_of(target) == "float":
        return array.astype(target)
    return array


def batch_of(feed: Mapping[str, Any], specs: Iterable[InputSpec]) -> int:
    """Samples in a feed: the longest first axis of inputs that declare an open or longer one."""
    sizes = [
        len(feed[spec.name])
        for spec in specs
        if isinstance(feed.get(spec.name), np.ndarray)
        and feed[spec.name].ndim
        and not (spec.shape and isinstance(spec.shape[0], int) and spec.shape[0] <= 1)
    ]
    return max(sizes, default=1)


def _fits(shape: tuple[int, ...], dims: Sequence[Any]) -> bool:
    return len(shape) == len(dims) and all(
        not isinstance(want, int) or want == got for got, want in zip(shape, dims, strict=True)
    )
