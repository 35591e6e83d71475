"""The nonzero pattern of a weight: right for every layout, and read once, in pieces."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxslim.rewrite.channels import weight as weight_module
from onnxslim.rewrite.channels.weight import Weight


class Stored(ir.Tensor):
    """A tensor that counts the bytes that are read from it."""

    read = 0

    def read_range(self, start: int, stop: int) -> bytes:
        self.read += stop - start
        return super().numpy().tobytes()[start:stop]

    def numpy(self) -> np.ndarray:
        self.read += self.nbytes
        return super().numpy()


def sparse(rng: np.random.Generator, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    content = rng.integers(-3, 4, shape) * (rng.random(shape) < 0.2)
    content[rng.random(shape[0]) < 0.4] = 0
    content[:, rng.random(shape[1]) < 0.4] = 0
    return content.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int8])
@pytest.mark.parametrize(
    "shape", [(1, 1), (7, 5), (33, 20), (9, 6, 3, 3), (12, 1, 5), (64, 3, 1, 1)]
)
@pytest.mark.parametrize("out_axis", [0, 1])
def test_pattern(monkeypatch, shape, dtype, out_axis):
    rng = np.random.default_rng(sum(shape))
    for chunk in (1, 100, 1 << 20):
        monkeypatch.setattr(weight_module, "_CHUNK_BYTES", chunk)
        content = sparse(rng, shape, dtype)
        weight = Weight(Stored(content), out_axis)
        matrix = (content != 0).reshape(*shape[:2], -1).any(axis=2)
        matrix = matrix if out_axis == 0 else matrix.T
        np.testing.assert_array_equal(weight.matrix(), matrix)
        np.testing.assert_array_equal(weight.out_any(), matrix.any(axis=1))
        np.testing.assert_array_equal(weight.in_any(), matrix.any(axis=0))
        assert (weight.outputs, weight.inputs) == matrix.shape


def test_a_dense_weight_is_read_once_and_never_as_a_whole(monkeypatch):
    monkeypatch.setattr(weight_module, "_CHUNK_BYTES", 4096)
    tensor = Stored(np.ones((300, 40), dtype=np.float32))
    weight = Weight(tensor, 1)
    for _ in range(3):
        assert weight.out_any().all()
        assert weight.in_any().all()
    assert tensor.read == tensor.nbytes


def test_kernel_sums_are_in_float64():
    content = np.zeros((2, 3, 2, 2), dtype=np.float16)
    content[0, 1] = 40000
    content[1, 2] = [[1, -1], [2, 3]]
    sums = Weight(ir.tensor(content), 0).sums(np.array([2, 1]))
    np.testing.assert_array_equal(sums, [[0, 160000], [5, 0]])


def test_nan_and_subnormal_numbers_are_not_zero():
    content = np.zeros((4, 2), dtype=np.float32)
    content[0, 0], content[1, 0], content[2, 0] = np.nan, 1e-45, -0.0
    assert Weight(ir.tensor(content), 0).out_any().tolist() == [True, True, False, False]


def test_empty_weight():
    weight = Weight(ir.tensor(np.zeros((0, 3), dtype=np.float32)), 0)
    assert weight.out_any().tolist() == []
    assert weight.in_any().tolist() == [False, False, False]
