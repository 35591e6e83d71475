"""Imports the graph library without the algebra library that it may never need.

onnx_ir imports sympy at its top, for arithmetic on symbolic dimensions: 0.3 s, more than all the
rest of a run on a small model, and nothing here does such arithmetic. While onnx_ir is imported, a
stand-in takes sympy's place; whatever is used of it later is fetched from the real one.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

_SYMPY = "sympy"
_LIBRARY = "onnx_ir"


class _Later:
    """A function of sympy that is looked up when it is called."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return getattr(importlib.import_module(_SYMPY), self._name)(*arguments, **keywords)


class _StandIn(ModuleType):
    """What onnx_ir keeps as its ``sympy``."""

    importing = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self.importing:
            return _Later(name)
        return getattr(importlib.import_module(_SYMPY), name)


def import_graph_library() -> None:
    """Imports onnx_ir, without sympy where that works, and otherwise as it is.

    Nothing is done where one of the two is imported already. Afterwards ``import sympy`` gives
    everybody the real one.
    """
    if _LIBRARY in sys.modules or _SYMPY in sys.modules:
        return
    stand_in = _StandIn(_SYMPY)
    sys.modules[_SYMPY] = stand_in
    try:
        importlib.import_module(_LIBRARY)
    except Exception:  # a version that computes with sympy while it is imported
        for name in [name for name in sys.modules if name.split(".")[0] == _LIBRARY]:
            del sys.modules[name]
    finally:
        stand_in.importing = False
        if sys.modules.get(_SYMPY) is stand_in:
            del sys.modules[_SYMPY]
    importlib.import_module(_LIBRARY)


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """No garbage collection while modules are imported, and none of what they made afterwards.

    For a process of our own: a tenth of the time of a short run went into looking through objects
    of modules, which stay in any case.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
