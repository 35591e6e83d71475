"""Smaller models that run as they are: weights in fewer bytes, given back by standard operators."""

from onnxslim.compression.request import Compression
from onnxslim.compression.run import Compressed, run_compression, weight_only_int8

__all__ = ["Compressed", "Compression", "run_compression", "weight_only_int8"]
