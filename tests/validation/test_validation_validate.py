"""Whole models against each other in onnxruntime."""

import json

import numpy as np
import onnx
import pytest
from graph_check import parse

from onnxslim.pipeline import Exactness
from onnxslim.validation import find_culprit, validate
from onnxslim.validation.randomness import random_outputs

SCALE = """agraph (float[N, 3] x) => (float[N, 3] y) <float[1] k = {K}> { y = Mul(x, k) }"""


def scale(factor):
    return parse(SCALE.replace("K", str(factor)))


def with_opset(text, opset):
    return parse(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}')


def test_a_model_agrees_with_itself():
    result = validate(scale(2.0), scale(2.0))
    assert result.status == "passed"
    assert result.passed
    (output,) = result.outputs
    assert (output.name, output.max_abs_error, output.cosine, output.exact) == ("y", 0, 1, True)
    shapes = [feed["x"] for feed in result.feeds]
    assert len(shapes) == 3
    assert shapes[0] != shapes[1]


@pytest.mark.parametrize("factor", [2.001, -2.0, 0.0])
def test_another_model_fails(factor):
    result = validate(scale(2.0), scale(factor))
    assert result.status == "failed"
    assert "output y, feed 1: differs" in result.reason
    (output,) = result.outputs
    assert output.max_abs_error > 0
    assert not output.passed


def test_the_promise_decides():
    one, other = scale(2.0), scale(2.00005)
    assert validate(one, other, exactness=Exactness.ROUNDING).passed
    assert not validate(one, other, exactness=Exactness.EXACT).passed
    assert validate(one, other, exactness=Exactness.EXACT, rtol=1e-3).passed
    assert not validate(one, other, exactness=Exactness.ROUNDING, rtol=1e-6, atol=0.0).passed


def test_given_feeds_are_used():
    one = parse("agraph (float[N] x) => (float[N] y) { y = Relu(x) }")
    other = parse("agraph (float[N] x) => (float[N] y) { y = Identity(x) }")
    positive = [{"x": np.ones(4, np.float32)}]
    result = validate(one, other, feeds=positive)
    assert result.passed
    assert result.feeds == [{"x": [4]}]
    assert not validate(one, other, feeds=[*positive, {"x": -np.ones(2, np.float32)}]).passed


def test_feeds_that_the_original_refuses_are_not_a_verdict():
    result = validate(scale(2.0), scale(2.0), feeds=[{"x": np.ones((1, 4), np.float32)}])
    assert result.status == "not-run"
    assert "does not run on the feeds" in result.reason
    assert validate(scale(2.0), scale(2.0), feeds=[]).status == "not-run"


def test_a_difference_that_needs_an_odd_size_is_found():
    one = parse(
        """agraph (float[N] x) => (float[M] y) {
          s = Constant<value_ints = [0]>() e = Constant<value_ints = [9223372036854775807]>()
          y = Slice(x, s, e)
        }"""
    )
    other = parse(
        """agraph (float[N] x) => (float[M] y) {
          s = Constant<value_ints = [0]>() e = Constant<value_ints = [2]>()
          y = Slice(x, s, e)
        }"""
    )
    result = validate(one, other)
    assert result.status == "failed"
    assert "shape [2] instead of [3]" in result.reason


def test_nan_must_stay():
    one = parse("agraph (float[N] x) => (float[N] y) { y = Log(x) }")
    other = parse("agraph (float[N] x) => (float[N] y) { a = Abs(x) y = Log(a) }")
    feed = [{"x": np.array([1, -1], np.float32)}]
    assert validate(one, one, feeds=feed).passed
    result = validate(one, other, feeds=feed)
    assert result.status == "failed"
    assert "NaN" in result.reason
    assert json.loads(json.dumps(result.to_dict()))["outputs"][0]["max_abs_error"] is None


def test_another_dtype_fails():
    one = parse("agraph (float[N] x) => (float[N] y) { y = Relu(x) }")
    other = parse("agraph (float[N] x) => (double[N] y) { a = Relu(x) y = Cast<to = 11>(a) }")
    result = validate(one, other)
    assert "dtype float64 instead of float32" in result.reason


@pytest.mark.parametrize(
    "other",
    [
        "agraph (float[N] x) => (float[N] z) { z = Relu(x) }",
        "agraph (float[N] q) => (float[N] y) { y = Relu(q) }",
        "agraph (float[N] x) => (float[N] y, float[N] z) { y = Relu(x) z = Relu(x) }",
    ],
)
def test_another_interface_fails(other):
    one = parse("agraph (float[N] x) => (float[N] y) { y = Relu(x) }")
    result = validate(one, parse(other))
    assert result.status == "failed"
    assert "puts are" in result.reason


def test_a_result_that_does_not_open_fails():
    one = parse("agraph (float[N] x) => (float[N] y) { y = Relu(x) }")
    other = parse("agraph (float[N] x) => (float[N] y) { y = Nonsense(x) }")
    result = validate(one, other)
    assert result.status == "failed"
    assert "the result does not" in result.reason
    assert "\n" not in result.reason


def test_a_result_that_does_not_run_fails():
    one = parse("agraph (float[N, 4] x) => (float[A, B] y) { y = Relu(x) }")
    other = parse(
        """agraph (float[N, 4] x) => (float[A, B] y) {
          s = Constant<value_ints = [2, 4]>()
          y = Reshape(x, s)
        }"""
    )
    result = validate(one, other)
    assert result.status == "failed"
    assert "the original runs, the result does not" in result.reason


def test_a_model_that_nothing_runs_is_not_judged():
    text = """<ir_version: 10, opset_import: ["" : 17, "mine" : 1]>
              agraph (float[N] x) => (float[N] y) { y = mine.Op(x) }"""
    result = validate(parse(text), parse(text))
    assert result.status == "not-run"
    assert "onnxruntime cannot open" in result.reason
    assert "\n" not in result.reason


def test_the_reference_evaluator_helps_out():
    # onnxruntime has no kernel that adds bfloat16
    text = "agraph (bfloat16[N, 4] x, bfloat16[4] k) => (bfloat16[N, 4] y) { y = OP(x, k) }"
    one = with_opset(text.replace("OP", "Add"), 17)
    result = validate(one, one)
    assert result.status == "passed"
    assert result.evaluator == "reference"
    assert any("reference evaluator" in note for note in result.notes)
    assert not validate(one, with_opset(text.replace("OP", "Sub"), 17)).passed


def test_other_sizes_are_tried_when_the_first_do_not_run():
    text = """agraph (float[N, C] x) => (float[A, B] y) {
      s = Constant<value_ints = [-1, 16]>()
      r = Reshape(x, s)
      w = Constant<value_ints = [4, 8]>()
      q = Reshape(x, w)
      y = FN(r)
    }"""
    one = parse(text.replace("FN", "Relu"))
    result = validate(one, one)
    assert result.passed
    for feed in result.feeds:
        assert np.prod(feed["x"]) == 32
    assert not validate(one, parse(text.replace("FN", "Abs"))).passed


def test_sizes_that_never_run_are_not_judged():
    text = """agraph (float[N] x) => (float[A] y) {
      s = Constant<value_ints = [7919]>()
      y = Reshape(x, s)
    }"""
    result = validate(parse(text), parse(text))
    assert result.status == "not-run"
    assert "could not be run on made-up inputs" in result.reason
    assert "Reshape" in result.reason
    assert validate(parse(text), parse(text), shapes={"x": [7919]}).passed


def test_random_outputs_are_compared_by_form():
    text = """agraph (float[N] x) => (float[N] y, float[N] z) {
      r = RandomUniformLike(x)
      y = Add(x, r)
      z = FN(x)
    }"""
    one = parse(text.replace("FN", "Relu"))
    result = validate(one, one)
    assert result.passed
    assert [output.random for output in result.outputs] == [True, False]
    assert any("random" in note and "y" in note for note in result.notes)
    assert not validate(one, parse(text.replace("FN", "Abs"))).passed


def test_random_operators_are_found_everywhere():
    model = parse(
        """<ir_version: 10, opset_import: ["" : 17, "local" : 1]>
        agraph (float[2] x, bool c)
            => (float[2] a, float[2] b, float[2] d, float[2] e, float[2] f) {
          a = local.noise(x)
          b = If(c) <
            then_branch = t () => (float[2] p) { p = RandomNormalLike(x) },
            else_branch = e () => (float[2] q) { q = Identity(x) }>
          r = Bernoulli(x)
          d = If(c) <
            then_branch = t2 () => (float[2] p2) { p2 = Relu(r) },
            else_branch = e2 () => (float[2] q2) { q2 = Identity(x) }>
          e = Relu(x)
          yes = Constant<value = bool {1}>()
          half = Constant<value_float = 0.5>()
          f = Dropout(x, half, yes)
        }
        <domain: "local", opset_import: ["" : 17]> noise (i) => (o) { o = RandomUniformLike(i) }"""
    )
    assert random_outputs(model) == {"a", "b", "d", "f"}


def test_integers_must_be_equal():
    text = "agraph (float[N, 4] x) => (int64[M] y) { y = OP<axis = 1, keepdims = 0>(x) }"
    one = parse(text.replace("OP", "ArgMax"))
    assert validate(one, one).passed
    assert not validate(one, parse(text.replace("OP", "ArgMin"))).passed


def test_sequences_and_strings_are_compared():
    text = """agraph (string[3] s, float[N] x) => (string[3] t, seq(float[M]) q) {
      t = Identity(s)
      two = FN(x)
      q = SequenceConstruct(x, two)
    }"""
    one = parse(text.replace("FN", "Relu"))
    assert validate(one, one).passed
    assert not validate(one, parse(text.replace("FN", "Neg"))).passed


def test_a_model_without_inputs():
    text = "agraph () => (float[2] y) { y = Constant<value_floats = [V, 2.0]>() }"
    one = parse(text.replace("V", "1.0"))
    assert validate(one, one).passed
    assert not validate(one, parse(text.replace("V", "1.5"))).passed


def test_a_fault_that_shows_only_under_the_runtimes_optimizations(monkeypatch):
    from onnxslim.validation import validator as module

    real = module.open_session
    one, other, swapped = scale(2.0), scale(2.0), scale(3.0)

    def open_session(model, *, optimize, threads=0, spin=True):
        # stands for an optimizer that mistreats the result
        return real(swapped if model is other and optimize else model, optimize=optimize)

    monkeypatch.setattr(module, "open_session", open_session)
    result = validate(one, other)
    assert result.status == "failed"
    assert "under the runtime's optimizations" in result.reason
    assert validate(one, other, optimized=False).passed


def test_the_runtimes_own_rounding_is_no_fault(monkeypatch):
    from onnxslim.validation import validator as module

    real = module.open_session
    one, other, moved = scale(2.0), scale(2.0), scale(2.0005)

    def open_session(model, *, optimize, threads=0, spin=True):
        return real(moved if model is other and optimize else model, optimize=optimize)

    monkeypatch.setattr(module, "open_session", open_session)
    assert validate(one, other, exactness=Exactness.EXACT).passed


def test_outputs_without_a_finite_value_are_noted():
    text = """agraph (float[N] x) => (float[N] y, float[N] z) {
      n = Constant<value_float = -1.0>() r = Sqrt(n) y = Mul(x, r) z = Relu(x)
    }"""
    result = validate(parse(text), parse(text))
    assert result.passed
    assert result.notes == ["output y has no finite value on any feed"]


def test_the_result_is_plain_data():
    data = validate(scale(2.0), scale(2.5)).to_dict()
    again = json.loads(json.dumps(data, allow_nan=False))
    assert again["status"] == "failed"
    assert {"name", "max_abs_error", "max_rel_error", "cosine", "passed"} <= set(
        again["outputs"][0]
    )


def test_the_same_seed_gives_the_same_figures():
    first = validate(scale(2.0), scale(2.00001), seed=5).to_dict()
    assert first == validate(scale(2.0), scale(2.00001), seed=5).to_dict()
    assert first != validate(scale(2.0), scale(2.00001), seed=6).to_dict()


def test_a_model_on_disk_with_large_weights(tmp_path):
    from onnxslim.io import load

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((256, 256)).astype(np.float32)
    models = []
    for name, matrix in (("a", weight), ("b", weight * np.float32(1.01))):
        proto = onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 17]>'
            "agraph (float[N, 256] x) => (float[N, 256] y) { y = MatMul(x, w) }"
        )
        proto.graph.initializer.append(onnx.numpy_helper.from_array(matrix, "w"))
        onnx.save(proto, tmp_path / f"{name}.onnx")
        models.append(load(tmp_path / f"{name}.onnx"))
    assert validate(models[0], load(tmp_path / "a.onnx")).outputs[0].exact
    assert not validate(*models).passed


@pytest.mark.parametrize("total", [1, 2, 3, 7, 100])
def test_the_culprit_is_found(total):
    for culprit in range(1, total + 1):
        asked = []

        def is_bad(limit, culprit=culprit, asked=asked):
            asked.append(limit)
            return limit >= culprit

        assert find_culprit(is_bad, total) == culprit
        assert len(asked) <= total.bit_length()
        assert all(0 < limit < total for limit in asked)


def test_without_rewrites_there_is_no_culprit():
    with pytest.raises(ValueError, match="no culprit"):
        find_culprit(lambda _: True, 0)
