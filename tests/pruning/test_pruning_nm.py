"""N:M patterns: the property holds on every block of every kind of weight, and the refit pays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxslim import io
from onnxslim.errors import UsageError
from onnxslim.pruning.data import PruningData, read_data
from onnxslim.pruning.judge import Judge
from onnxslim.pruning.nm import Pattern, blocks_of, zeros_in_rows
from onnxslim.pruning.sparse import SparseOutcome, SparseRequest, prune_sparse
from onnxslim.pruning.sweep import damped, refit_masked, refit_pattern
from onnxslim.pruning.weights import Weight, find_weights
from onnxslim.validated_run import no_progress

MODELS = Path(__file__).resolve().parents[2] / "models"
HEADER = '<ir_version: 9, opset_import: ["" : 17]>'
Array = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def model_of(text: str, **shapes: tuple[int, ...]) -> ir.Model:
    model = ir.from_onnx_text(f"{HEADER}\n{text}")
    for value in list(model.graph.inputs):
        if value.name in shapes:
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(normal(*shapes[value.name]), name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT)
            model.graph.register_initializer(value)
    return model


def lines(weight: Weight) -> Iterator[Array]:
    """What one output sums over at one kernel position: written out, operator by operator."""
    content = weight.read()
    match weight.node.op_type:
        case "Conv":
            for output in content:
                yield from output.reshape(len(output), -1).T
        case "ConvTranspose":
            groups = weight.node.attributes.get_int("group", 1)
            for part in content.reshape(groups, -1, *content.shape[1:]):
                yield from part.reshape(len(part), -1).T
        case "Gemm":
            yield from content if weight.node.attributes.get_int("transB", 0) else content.T
        case "MatMul":
            for matrix in content.reshape(-1, *content.shape[-2:]):
                yield from matrix.T
        case _:
            yield from content.reshape(-1, content.shape[-1])


def assert_pattern(weight: Weight, kept: int, block: int) -> None:
    for line in lines(weight):
        whole = len(line) // block * block
        for start in range(0, whole, block):
            assert np.count_nonzero(line[start : start + block]) <= kept, weight.name
        tail = line[whole:]
        assert np.count_nonzero(tail) <= -(-len(tail) * kept // block), weight.name


def run(model: ir.Model, pattern: str, data: PruningData | None = None) -> SparseOutcome:
    return prune_sparse(model, SparseRequest(pattern=pattern), data or PruningData(), no_progress)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:8", "1:2"])
def test_property_holds_for_every_operator(pattern: str) -> None:
    model = model_of(
        """g (float[2,6,5,5] x, float[8,3,3,3] conv, float[8,3,2,2] up, float[10,150] gemm,
              float[10,11] gemm2, float[11,7] mat, float[1,12,7] w, float[1,12,3] r)
           => (float[2,1,1,3] y) {
             c = Conv <group = 2, pads = [1, 1, 1, 1], strides = [2, 2]> (x, conv)
             t = ConvTranspose <group = 2> (c, up)
             f = Flatten (x)
             m = Gemm <transB = 1> (f, gemm)
             n = Gemm (m, gemm2)
             k = MatMul (n, mat)
             one = Constant <value_ints = [1]> ()
             q = Unsqueeze (k, one)
             y = LSTM <hidden_size = 3> (q, w, r)
           }""",
        conv=(8, 3, 3, 3),
        up=(8, 3, 2, 2),
        gemm=(10, 150),
        gemm2=(10, 11),
        mat=(11, 7),
        w=(1, 12, 7),
        r=(1, 12, 3),
    )
    kept, block = map(int, pattern.split(":"))
    outcome = run(model, pattern)
    found = find_weights(outcome.model)
    assert len(found) == 7
    for weight in found:
        assert_pattern(weight, kept, block)
        assert np.count_nonzero(weight.read()) > 0


@pytest.mark.parametrize(("size", "zeros"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (7, 3)])
def test_short_blocks_keep_their_share(size: int, zeros: int) -> None:
    mask = zeros_in_rows(np.abs(normal(3, size)), Pattern(2, 4))
    assert mask.sum(axis=1).tolist() == [zeros] * 3


def test_depthwise_keeps_everything() -> None:
    model = model_of(
        "g (float[1,6,5,5] x, float[6,1,3,3] w) => (float[1,6,3,3] y) {"
        " y = Conv <group = 6> (x, w) }",
        w=(6, 1, 3, 3),
    )
    assert run(model, "2:4").zeros == 0


@given(
    rows=st.integers(1, 4),
    size=st.integers(1, 19),
    block=st.integers(2, 8),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_largest_of_each_block_stay(rows: int, size: int, block: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, block - 1))
    magnitudes = np.abs(normal(rows, size, seed=data.draw(st.integers(0, 99))))
    mask = zeros_in_rows(magnitudes, Pattern(kept, block))
    for start in range(0, size // block * block, block):
        inside = slice(start, start + block)
        for row in range(rows):
            gone = magnitudes[row, inside][mask[row, inside]]
            stays = magnitudes[row, inside][~mask[row, inside]]
            assert len(gone) == block - kept
            assert gone.max() <= stays.min()


def test_blocks_are_input_channels_at_one_kernel_position() -> None:
    order, sizes = blocks_of(5, 4, Pattern(2, 4))
    assert sizes == [4, 1] * 4
    assert order[:5].tolist() == [0, 4, 8, 12, 16]
    assert sorted(order.tolist()) == list(range(20))


def correlated(size: int) -> Array:
    rows = np.random.default_rng(5).normal(size=(400, size)) @ normal(size, size, seed=6)
    return damped(np.asarray(rows.T @ rows / 400, dtype=np.float64))


@pytest.mark.parametrize(("inputs", "taps"), [(16, 1), (10, 3), (37, 1), (64, 4)])
def test_sweep_gives_a_pattern_and_a_smaller_error_than_masking(inputs: int, taps: int) -> None:
    pattern = Pattern(2, 4)
    order, sizes = blocks_of(inputs, taps, pattern)
    target = normal(6, inputs * taps, seed=1).astype(np.float64)
    moment = correlated(inputs * taps)
    none = np.zeros(target.shape, dtype=np.bool_)
    weights, zero = refit_pattern(target, moment, pattern, order, sizes, none)
    assert not weights[zero].any()
    blocks = zero[:, order]
    start = 0
    for size in sizes:
        assert (blocks[:, start : start + size].sum(axis=1) == pattern.zeros_of(size)).all()
        start += size

    def error(candidate: Array) -> float:
        apart = candidate - target
        return float(np.sum((apart @ moment) * apart))

    by_size = np.empty_like(zero)
    turned = np.abs(target[:, order]).reshape(6, taps, inputs)
    by_size[:, order] = np.concatenate(
        [zeros_in_rows(turned[:, t], pattern) for t in range(taps)], 1
    )
    assert error(weights) <= error(refit_masked(target, moment, by_size)) * (1 + 1e-6)
    assert error(weights) < 0.5 * error(np.where(by_size, 0.0, target))


def test_existing_zeros_count_and_stay() -> None:
    pattern = Pattern(2, 4)
    order, sizes = blocks_of(8, 1, pattern)
    target = normal(5, 8, seed=2).astype(np.float64)
    target[:, [0, 3, 5]] = 0
    weights, zero = refit_pattern(target, correlated(8), pattern, order, sizes, target == 0)
    assert (zero.sum(axis=1) == 4).all()
    assert not weights[:, [0, 3, 5]].any()


def calibration(count: int) -> list[dict[str, Array]]:
    images = np.load(MODELS / "digits_calibration.npz")["input"]
    return [{"input": images[start : start + 8]} for start in range(0, count, 8)]


def test_refit_beats_masking_on_held_out_labels() -> None:
    model = io.load(MODELS / "digits_cnn.onnx")
    judge = Judge(model, read_data(model, labels=MODELS / "digits_labels.npz"))
    masked = run(model, "1:4")
    refitted = run(model, "1:4", read_data(model, calibration(48)))
    assert any("BY MASKING ONLY" in warning for warning in masked.warnings)
    assert not any("BY MASKING ONLY" in warning for warning in refitted.warnings)
    for weight in find_weights(refitted.model):
        assert_pattern(weight, 1, 4)
    before, after = judge.score(masked.model), judge.score(refitted.model)
    assert after.points > before.points + 30
    assert judge.drop(after) < 2


@pytest.mark.parametrize("text", ["4:2", "0:4", "2:2", "2", "a:b", "2:400", "-1:4"])
def test_bad_patterns_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="want N:M"):
        Pattern.parse(text)


def test_pattern_and_amount_together_are_refused() -> None:
    model = model_of(
        "g (float[N,4] x, float[4,3] w) => (float[N,3] y) { y = MatMul (x, w) }", w=(4, 3)
    )
    with pytest.raises(UsageError, match="either"):
        prune_sparse(model, SparseRequest(amount=0.5, pattern="2:4"), PruningData(), no_progress)
