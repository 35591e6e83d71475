"""Every error the product raises on purpose.

A message says what is wrong, where (file, node, value), and what to do, in one line. The library
raises; the command line turns the error into that line and its ``exit_code``.
"""

from __future__ import annotations


class OnnxSlimError(Exception):
    """Base of all deliberate errors. ``exit_code`` is what the command line returns."""

    exit_code = 1


class ModelLoadError(OnnxSlimError):
    """The source cannot be read as an ONNX model (missing, truncated, not ONNX, unsafe paths)."""


class ModelSaveError(OnnxSlimError):
    """The target cannot be written; nothing half-written is left behind."""


class InvalidModelError(OnnxSlimError):
    """The model was read but breaks the ONNX rules, so rewriting it would be guesswork."""


class DataError(OnnxSlimError):
    """Feeds, calibration data or labels that cannot be used with this model."""


class PackError(OnnxSlimError):
    """A packed file (.onnxz) is damaged, hostile, or needs something that is not installed."""


class StoreError(OnnxSlimError):
    """A store of models is missing, damaged, or does not hold what is asked for."""


class PassError(OnnxSlimError):
    """A pass failed. ``pass_name`` and ``node`` say where."""

    def __init__(self, message: str, *, pass_name: str, node: str | None = None) -> None:
        super().__init__(message)
        self.pass_name = pass_name
        self.node = node


class VerificationError(OnnxSlimError):
    """A graph breaks an invariant (SSA, topological order, scopes, arity)."""


class RuntimeRefusedError(OnnxSlimError):
    """onnxruntime cannot open or run a model here (unknown operator, missing kernel, bad data)."""


class UsageError(OnnxSlimError):
    """The call itself is wrong: an unknown option, name, or combination."""

    exit_code = 2


class DemandMissedError(OnnxSlimError):
    """A demanded result (equal outputs, a target) was missed; nothing was written."""

    exit_code = 3
