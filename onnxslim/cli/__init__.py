"""The command line. ``main`` and ``slim`` can be imported from here, as other projects do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxslim.compat import slim

__all__ = ["main", "slim"]


def main() -> int:
    """Runs the command line on ``sys.argv``; returns the exit code instead of leaving."""
    from onnxslim.cli import app

    try:
        app.main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def __getattr__(name: str) -> Any:
    if name == "slim":
        from onnxslim.compat import slim

        return slim
    raise AttributeError(f"module 'onnxslim.cli' has no attribute {name!r}")
