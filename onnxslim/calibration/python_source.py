"""Samples that Python code makes: ``module:function``, data sets with columns, any iterable."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxslim.calibration.checks import near_names
from onnxslim.errors import DataError, OnnxSlimError, UsageError
from onnxslim.runtime.specs import InputSpec


def load_source(text: str) -> Iterable[Any]:
    """Calls the function that ``module:function`` names; what is no function is taken as it is.

    The module may lie in the current folder.

    Raises:
        UsageError: no such module or function.
        DataError: the function raises, or returns nothing that can be gone through.
    """
    found = load_object(text)
    if callable(found) and not isinstance(found, Iterable):
        try:
            found = found()
        except OnnxSlimError:
            raise
        except Exception as error:  # it is the user's code
            raise DataError(f"{text} raised {_said(error)}") from error
    if not isinstance(found, Iterable) and not hasattr(found, "__getitem__"):
        raise DataError(
            f"{text} returned {type(found).__name__}; wanted is an iterable of dicts by input name"
        )
    rows: Iterable[Any] = found
    return rows


def load_object(text: str) -> Any:
    """What ``module:name`` means; the module may lie in the current folder.

    Raises:
        UsageError: no such module or name.
    """
    module_name, _, attribute = text.rpartition(":")
    return _attribute(_module(module_name, text), attribute, text)


def rows_of(source: Any, specs: Sequence[InputSpec], label: str) -> Iterable[Any]:
    """The samples of an iterable; of a data set with named columns those that are inputs.

    Raises:
        DataError: it cannot be gone through, or has columns none of which is an input.
    """
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise DataError(
            f"{label} is no iterable of samples; give a list or generator of dicts by input name"
        )
    columns = getattr(source, "column_names", None)
    if not isinstance(columns, list):
        return _Rows(source, label, None)
    names = [spec.name for spec in specs]
    missing = [spec.name for spec in specs if spec.required and spec.name not in columns]
    if missing:
        raise DataError(
            f"{label} has no column {missing[0]!r} (columns: {', '.join(map(str, columns))}"
            f"{near_names(missing[0], map(str, columns))})"
        )
    return _Rows(source, label, [name for name in columns if name in names])


class _Rows(Iterable[Any]):
    """The samples, with whatever the user's code raises as one line."""

    def __init__(self, source: Iterable[Any], label: str, columns: list[str] | None) -> None:
        self._source, self._label, self._columns = source, label, columns

    def __iter__(self) -> Iterator[Any]:
        number = 0
        rows = iter(self._source)
        while True:
            try:
                item = next(rows)
            except StopIteration:
                return
            except OnnxSlimError:
                raise
            except Exception as error:  # it is the user's code
                raise DataError(
                    f"calibration sample {number}: {self._label} raised {_said(error)}"
                ) from error
            yield item if self._columns is None else {name: item[name] for name in self._columns}
            number += 1


def _module(name: str, text: str) -> Any:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except Exception as error:  # importing runs the user's code
        raise UsageError(f"{text}: module {name!r} cannot be imported: {_said(error)}") from error
    finally:
        if added:
            sys.path.remove(here)


def _attribute(module: Any, name: str, text: str) -> Any:
    if not hasattr(module, name):
        known = [one for one in dir(module) if not one.startswith("_")]
        raise UsageError(
            f"{text}: module {module.__name__} has no {name!r}{near_names(name, known)}"
        )
    return getattr(module, name)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
