"""Single weights: exact counts, seeds, dtypes, and a refit that earns its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxslim import io
from onnxslim.errors import DataError, DemandMissedError, UsageError
from onnxslim.pruning.data import PruningData, read_data
from onnxslim.pruning.judge import Judge
from onnxslim.pruning.sparse import SparseRequest, prune_sparse
from onnxslim.pruning.sweep import damped, refit_masked
from onnxslim.pruning.unstructured import zero_masks
from onnxslim.pruning.weights import find_weights, zeros_in
from onnxslim.validated_run import no_progress

MODELS = Path(__file__).resolve().parents[2] / "models"
HEADER = '<ir_version: 9, opset_import: ["" : 17]>'


def with_weights(text: str, **contents: np.ndarray[Any, Any]) -> ir.Model:
    """A model from ONNX text, with initializers of the given contents."""
    model = ir.from_onnx_text(f"{HEADER}\n{text}")
    for value in list(model.graph.inputs):
        if value.name in contents:
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(contents[value.name], name=value.name)
            value.shape = ir.Shape(contents[value.name].shape)
            value.type = ir.TensorType(value.const_value.dtype)
            model.graph.register_initializer(value)
    return model


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def mlp(dtype: Any = np.float32) -> ir.Model:
    return with_weights(
        """g (float[N,7] x, float[7,13] a, float[13] b, float[13,5] c) => (float[N,5] y)
        { m = MatMul (x, a) s = Add (m, b) h = Relu (s) y = MatMul (h, c) }""",
        a=normal(7, 13, dtype=dtype),
        b=normal(13, seed=1, dtype=dtype),
        c=normal(13, 5, seed=2, dtype=dtype),
    )


def contents(model: ir.Model) -> dict[str, np.ndarray[Any, Any]]:
    return {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }


def pruned(model: ir.Model, **request: Any) -> ir.Model:
    seed = request.pop("seed", 0)
    return prune_sparse(model, SparseRequest(**request), PruningData(seed=seed), no_progress).model


@pytest.mark.parametrize("amount", [0.0, 0.3, 0.5, 0.777, 1.0])
@pytest.mark.parametrize("method", ["l1", "random"])
def test_counts_are_exact_per_tensor(method: str, amount: float) -> None:
    found = contents(pruned(mlp(), amount=amount, method=method))
    assert zeros_in(found["a"]) == round(amount * 91)
    assert zeros_in(found["c"]) == round(amount * 65)
    assert zeros_in(found["b"]) == 0


@pytest.mark.parametrize("amount", [0.25, 0.61])
@pytest.mark.parametrize("method", ["l1", "random"])
def test_counts_are_exact_globally(method: str, amount: float) -> None:
    found = contents(pruned(mlp(), amount=amount, method=method, scope="global"))
    assert zeros_in(found["a"]) + zeros_in(found["c"]) == round(amount * (91 + 65))


def test_half_rounds_to_even_as_python_and_torch_do() -> None:
    model = with_weights(
        "g (float[N,5] x, float[5,1] a) => (float[N,1] y) { y = MatMul (x, a) }", a=normal(5, 1)
    )
    assert zeros_in(contents(pruned(model, amount=0.5))["a"]) == 2
    assert zeros_in(contents(pruned(model, amount=0.7))["a"]) == 4


def test_smallest_magnitudes_go_and_others_keep_their_bits() -> None:
    before, after = contents(mlp()), contents(pruned(mlp(), amount=0.4))
    gone = after["a"] == 0
    assert np.abs(before["a"][gone]).max() <= np.abs(before["a"][~gone]).min()
    np.testing.assert_array_equal(before["a"][~gone], after["a"][~gone])


def test_global_scope_compares_all_weights_with_each_other() -> None:
    model = mlp()
    weights = find_weights(model)
    weights[0].write(weights[0].read() * np.float32(100))
    found = contents(pruned(model, amount=0.4, scope="global"))
    assert zeros_in(found["a"]) < 5
    assert zeros_in(found["c"]) > 55


def test_ties_are_broken_by_index_and_zeros_count() -> None:
    content = np.ones((4, 5), np.float32)
    content[3, 4] = -0.0
    model = with_weights(
        "g (float[N,4] x, float[4,5] a) => (float[N,5] y) { y = MatMul (x, a) }", a=content
    )
    flat = contents(pruned(model, amount=0.3))["a"].reshape(-1)
    assert np.flatnonzero(flat == 0).tolist() == [0, 1, 2, 3, 4, 19]


def test_more_zeros_than_asked_for_stay() -> None:
    content = normal(4, 5)
    content[:3] = 0
    model = with_weights(
        "g (float[N,4] x, float[4,5] a) => (float[N,5] y) { y = MatMul (x, a) }", a=content
    )
    for method in ("l1", "random"):
        np.testing.assert_array_equal(
            contents(pruned(model, amount=0.2, method=method))["a"], content
        )


def test_random_follows_the_seed() -> None:
    first, again, other = (
        contents(pruned(mlp(), amount=0.5, method="random", seed=seed))["a"] for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first == 0, other == 0)
    assert zeros_in(other) == zeros_in(first) == round(0.5 * 91)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_dtype_stays(dtype: Any) -> None:
    found = contents(pruned(mlp(dtype), amount=0.3))["a"]
    assert found.dtype == dtype
    assert zeros_in(found) == round(0.3 * 91)


def test_every_kind_of_weight_and_no_other_constant() -> None:
    model = with_weights(
        """g (float[1,4,6,6] x, float[8,2,3,3] conv, float[8] bias, float[8,3,2,2] up, float[3] s,
              float[9,108] gemm, float[1,12,9] w, float[1,12,3] r, float[1,24] lb)
           => (float[1,1,1,3] y) {
             c = Conv <group = 2> (x, conv, bias)
             t = ConvTranspose <strides = [2, 2]> (c, up)
             n = BatchNormalization (t, s, s, s, s)
             f = Flatten (n)
             short = Slice (f, zero, most, one)
             m = Gemm <transB = 1> (short, gemm)
             q = Unsqueeze (m, zero)
             y = LSTM <hidden_size = 3> (q, w, r, lb)
           }""",
        conv=normal(8, 2, 3, 3),
        bias=np.zeros(8, np.float32),
        up=normal(8, 3, 2, 2),
        s=np.ones(3, np.float32),
        gemm=normal(9, 108),
        w=normal(1, 12, 9),
        r=normal(1, 12, 3),
        lb=normal(1, 24),
    )
    assert [weight.name for weight in find_weights(model)] == ["conv", "up", "gemm", "w", "r"]


def test_shared_weight_counts_once() -> None:
    model = with_weights(
        """g (float[N,6] x, float[6,6] a) => (float[N,6] y) {
             h = MatMul (x, a) y = Gemm <transB = 1> (h, a) }""",
        a=normal(6, 6),
    )
    outcome = prune_sparse(
        model, SparseRequest(amount=0.25, scope="global"), PruningData(), no_progress
    )
    assert (outcome.zeros, outcome.size) == (9, 36)


def test_the_input_is_not_touched() -> None:
    model = mlp()
    pruned(model, amount=0.9)
    np.testing.assert_array_equal(contents(model)["a"], normal(7, 13))


@pytest.mark.parametrize("amount", [-0.1, 1.01, float("nan")])
def test_amount_outside_is_refused(amount: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        pruned(mlp(), amount=amount)


def test_unknown_method_is_refused() -> None:
    with pytest.raises(UsageError, match="l1, random"):
        zero_masks(find_weights(mlp()), "l7", 0.5)


def test_update_without_data_says_what_is_needed() -> None:
    with pytest.raises(UsageError, match=r"--calibration FILE.npz .* x float32 \[N, 7\]"):
        pruned(mlp(), amount=0.5, update=True)


def test_masked_refit_is_the_least_squares_solution() -> None:
    rows = normal(300, 12, dtype=np.float64) @ normal(12, 12, seed=1, dtype=np.float64)
    target = normal(5, 12, seed=2, dtype=np.float64)
    moment = damped(rows.T @ rows / len(rows))
    zero = np.random.default_rng(3).random((5, 12)) < 0.6
    found = refit_masked(target, moment, zero)
    assert not found[zero].any()
    for output in range(5):
        kept = ~zero[output]
        inside, across = moment[np.ix_(kept, kept)], moment[kept] @ target[output]
        np.testing.assert_allclose(found[output, kept], np.linalg.solve(inside, across), rtol=1e-4)


def calibration(count: int) -> list[dict[str, np.ndarray[Any, Any]]]:
    images = np.load(MODELS / "digits_calibration.npz")["input"]
    return [{"input": images[start : start + 8]} for start in range(0, count, 8)]


def test_update_beats_masking_on_held_out_labels() -> None:
    model = io.load(MODELS / "digits_cnn.onnx")
    data = read_data(model, calibration(48))
    judge = Judge(model, read_data(model, labels=MODELS / "digits_labels.npz"))
    scores = {}
    for update in (False, True):
        outcome = prune_sparse(model, SparseRequest(amount=0.7, update=update), data, no_progress)
        assert [t.zeros for t in outcome.tensors] == [round(0.7 * t.size) for t in outcome.tensors]
        scores[update] = judge.score(outcome.model)
    assert scores[True].points > scores[False].points + 30
    assert scores[True].closeness > scores[False].closeness + 5
    assert judge.drop(scores[True]) < 3


def test_half_precision_keeps_its_dtype_and_count_through_the_refit() -> None:
    model = with_weights(
        """g (float16[N,20] x, float16[20,30] a, float16[30] b, float16[30,4] c)
        => (float16[N,4] y) { m = MatMul (x, a) s = Add (m, b) h = Relu (s) y = MatMul (h, c) }""",
        a=normal(20, 30, dtype=np.float16),
        b=normal(30, dtype=np.float16),
        c=normal(30, 4, dtype=np.float16),
    )
    feeds = [{"x": normal(16, 20, seed=seed, dtype=np.float16)} for seed in range(6)]
    outcome = prune_sparse(model, SparseRequest(amount=0.55), read_data(model, feeds), no_progress)
    found = contents(outcome.model)
    assert "refitted" in outcome.how
    assert found["a"].dtype == np.float16
    assert (zeros_in(found["a"]), zeros_in(found["c"])) == (round(0.55 * 600), round(0.55 * 120))


def test_limit_is_demanded_and_named() -> None:
    model = io.load(MODELS / "digits_cnn.onnx")
    data = read_data(model, None, MODELS / "digits_labels.npz", max_drop=0.5)
    with pytest.raises(DemandMissedError, match=r"--max-drop 0.5 was missed by \d+\.\d\d points"):
        prune_sparse(model, SparseRequest(amount=0.9), data, no_progress)


def test_limit_that_holds_passes() -> None:
    model = io.load(MODELS / "digits_cnn.onnx")
    data = read_data(model, None, MODELS / "digits_labels.npz", max_drop=0.5)
    outcome = prune_sparse(model, SparseRequest(amount=0.05), data, no_progress)
    assert outcome.before is not None
    assert outcome.after is not None
    assert outcome.before.points - outcome.after.points <= 0.5


def test_limit_without_anything_to_judge_by_is_refused() -> None:
    with pytest.raises(UsageError, match="--max-drop needs data"):
        read_data(mlp(), max_drop=1)


def test_one_sample_goes_on_with_a_warning() -> None:
    model = mlp()
    data = read_data(model, [{"x": normal(1, 7)}])
    outcome = prune_sparse(model, SparseRequest(amount=0.5), data, no_progress)
    assert any("one sample only" in warning for warning in outcome.warnings)
    assert outcome.before is None
    assert zeros_in(contents(outcome.model)["a"]) == round(0.5 * 91)


def test_bad_numbers_are_named() -> None:
    bad = normal(4, 7)
    bad[2, 1] = np.nan
    with pytest.raises(DataError, match="calibration sample 1: input x has NaN"):
        read_data(mlp(), [{"x": normal(4, 7)}, {"x": bad}])


def test_guard_and_fit_are_disjoint() -> None:
    feeds = [{"x": normal(2, 7, seed=seed)} for seed in range(11)]
    data = read_data(mlp(), feeds)
    assert len(data.guard) == 2
    assert len(data.fit) == 9
    held = {feed["x"].tobytes() for feed in data.guard}
    assert not held & {feed["x"].tobytes() for feed in data.fit}


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    written = []
    for number in range(2):
        model = mlp()
        feeds = [{"x": normal(16, 7, seed=seed)} for seed in range(6)]
        outcome = prune_sparse(
            model, SparseRequest(amount=0.5), read_data(model, feeds), no_progress
        )
        path = tmp_path / f"{number}.onnx"
        io.save(outcome.model, path)
        written.append(path.read_bytes())
    assert written[0] == written[1]


def test_interrupted_refit_keeps_the_masked_model() -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "refitting weights":
            raise KeyboardInterrupt

    model = mlp()
    feeds = [{"x": normal(16, 7, seed=seed)} for seed in range(6)]
    outcome = prune_sparse(model, SparseRequest(amount=0.5), read_data(model, feeds), interrupt)
    assert any("interrupted" in warning for warning in outcome.warnings)
    assert zeros_in(contents(outcome.model)["a"]) == round(0.5 * 91)
