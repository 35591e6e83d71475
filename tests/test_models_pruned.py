"""The networks of models/ that were pruned while they trained: what is zero, and what is left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from onnxslim import Quantization, optimize, validate
from onnxslim.packing import pack
from onnxslim.runtime.session import open_session

MODELS = Path(__file__).resolve().parents[1] / "models"

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Pruned:
    """A network whose filters are zero, as its training script and models/README.md state it.

    Attributes:
        widths: per full Conv, in graph order: (filters in the file, filters that are not zero).
        parameters: share of the parameters that is left after slimming, at most.
        accuracy: top-1 on the held-out digits, as a count of images.
    """

    name: str
    widths: tuple[tuple[int, int], ...]
    parameters: float
    right: int


TORCH = Pruned(
    "digits_prune_structured_75.onnx", ((32, 8), (64, 16), (64, 16), (64, 16)), 0.075, 446
)
KERAS = Pruned(
    "digits_prune_keras_filters_75.onnx",
    ((32, 8), (64, 16), (128, 32), (128, 32), (128, 32)),
    0.1,
    440,
)
UNSTRUCTURED = "digits_prune_l1_75.onnx"
AMOUNT = 0.75


def weights(path: Path) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def full_convs(path: Path) -> list[tuple[Array, Array]]:
    """Weights and bias of every Conv that is not depthwise."""
    stored, found = weights(path), []
    for node in onnx.load(path).graph.node:
        groups = {a.name: a.i for a in node.attribute}.get("group", 1)
        if node.op_type == "Conv" and groups == 1:
            found.append((stored[node.input[1]], stored[node.input[2]]))
    return found


def alive(weight: Array) -> npt.NDArray[np.bool_]:
    return weight.reshape(len(weight), -1).any(axis=1)


def right_answers(path: Path) -> int:
    suffix = "_nhwc" if "keras" in path.name else ""
    arrays = dict(np.load(MODELS / f"digits_labels{suffix}.npz"))
    labels = arrays.pop("labels")
    (scores,) = open_session(path, optimize=True, threads=1).run(arrays)
    return int((scores.argmax(axis=1) == labels).sum())


@pytest.fixture(scope="module", params=[TORCH, KERAS], ids=lambda net: net.name)
def structured(request, tmp_path_factory):
    """The network, its file, and the file without what can go."""
    net = request.param
    slim = tmp_path_factory.mktemp("slim") / net.name
    report = optimize(MODELS / net.name, slim, align=1).report
    return net, MODELS / net.name, slim, report


def test_the_declared_filters_are_exactly_zero(structured):
    net, source, _, _ = structured
    convs = full_convs(source)
    assert [(len(w), int(alive(w).sum())) for w, _ in convs] == list(net.widths)
    for weight, bias in convs:
        assert not bias[~alive(weight)].any()


def test_gamma_and_beta_of_a_zero_filter_are_zero():
    model, stored = onnx.load(MODELS / TORCH.name), weights(MODELS / TORCH.name)
    norms = [node.input for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert len(norms) == len(TORCH.widths)
    for (weight, _), inputs in zip(full_convs(MODELS / TORCH.name), norms, strict=True):
        for name in inputs[1:3]:
            assert np.array_equal(stored[name] != 0, alive(weight))


def test_slimming_takes_every_zero_filter_out(structured):
    net, source, slim, report = structured
    assert [w.shape[0] for w, _ in full_convs(slim)] == [left for _, left in net.widths]
    assert all(alive(w).all() for w, _ in full_convs(slim))
    assert report.after.parameters < net.parameters * report.before.parameters
    assert report.after.macs < net.parameters * report.before.macs
    assert slim.stat().st_size < 0.15 * source.stat().st_size


def test_nothing_of_a_dead_channel_is_left_behind_it(structured):
    """No input of a layer is a constant: depthwise channels behind zero filters went as well."""
    net, _, slim, _ = structured
    read = [w.shape[1] for w, _ in full_convs(slim)]
    assert read == [1, *(left for _, left in net.widths[:-1])]


def test_answers_and_accuracy_stay_as_they_were(structured):
    net, source, slim, report = structured
    assert report.validation["status"] == "passed"
    suffix = "_nhwc" if net is KERAS else ""
    assert validate(source, slim, feeds=MODELS / f"digits_test{suffix}.npz").status == "passed"
    assert right_answers(source) == right_answers(slim) == net.right


def test_int8_of_the_slim_network_costs_at_most_one_point(structured, tmp_path):
    net, source, _, _ = structured
    suffix = "_nhwc" if net is KERAS else ""
    quantization = Quantization(str(MODELS / f"digits_calibration{suffix}.npz"))
    int8 = tmp_path / net.name
    optimize(source, int8, quantization=quantization)
    assert right_answers(int8) >= net.right - 4.5
    packed = pack(int8, tmp_path / "packed.onnxz")
    assert packed.packed_bytes < 0.1 * source.stat().st_size


def matrices(path: Path) -> list[Array]:
    """Weights of the Conv and linear layers, in the order of the file."""
    return [a for a in weights(path).values() if a.ndim > 1]


def test_three_quarters_of_every_weight_are_exactly_zero():
    for matrix in matrices(MODELS / UNSTRUCTURED):
        assert int((matrix == 0).sum()) == round(AMOUNT * matrix.size)


def test_single_zeros_survive_the_simplification(tmp_path):
    source, slim = MODELS / UNSTRUCTURED, tmp_path / "slim.onnx"
    report = optimize(source, slim, preset="simplify").report
    assert report.after.operators.get("BatchNormalization", 0) == 0
    counts = [[int((m == 0).sum()) for m in matrices(path)] for path in (source, slim)]
    assert counts[0] == counts[1]


def test_single_zeros_leave_the_answers_as_they_were(tmp_path):
    source, slim = MODELS / UNSTRUCTURED, tmp_path / "slim.onnx"
    assert optimize(source, slim).report.validation["status"] == "passed"
    zeros = sum(int((m == 0).sum()) for m in matrices(slim))
    assert zeros >= 0.74 * sum(m.size for m in matrices(slim))
    assert right_answers(source) == right_answers(slim) == 447


def test_single_zeros_show_in_the_packed_size_only(tmp_path):
    """Beside the same network in which no weight is zero: same file size, three times the pack."""
    rng = np.random.default_rng(0)
    model = onnx.load(MODELS / UNSTRUCTURED)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        if values.ndim > 1:
            zero = values == 0
            values[zero] = rng.normal(0, values[~zero].std(), int(zero.sum()))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    dense = tmp_path / "dense.onnx"
    onnx.save(model, dense)
    source = MODELS / UNSTRUCTURED
    assert dense.stat().st_size == source.stat().st_size
    stored = [pack(path, tmp_path / f"{path.stem}.onnxz").packed_bytes for path in (source, dense)]
    assert stored[0] < 0.36 * stored[1]
