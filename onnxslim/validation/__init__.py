"""Says whether two models give the same answers, and by how much they differ."""

from onnxslim.validation.bisect import find_culprit
from onnxslim.validation.result import OutputResult, ValidationResult
from onnxslim.validation.validator import validate

__all__ = ["OutputResult", "ValidationResult", "find_culprit", "validate"]
