"""Bad calibration data: one line that names sample, tensor, expected and got; nothing written."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from graph_check import parse
from onnx import TensorProto, numpy_helper

from onnxslim import io
from onnxslim.calibration.run import calibrate
from onnxslim.calibration.store import merge_all
from onnxslim.calibration.streams import open_feeds
from onnxslim.errors import DataError, UsageError
from onnxslim.runtime.session import open_session
from onnxslim.runtime.specs import input_specs
from onnxslim.validation.accuracy import accuracy

ONE = "net (float[N,3] image) => (float[N,3] y) { y = Tanh (image) }"
TWO = """net (float[N,3] image, int64[N,S] ids) => (float[N,3] y, int64[N,S] i) {
    y = Tanh (image)
    i = Identity (ids)
}"""
RNG = np.random.default_rng(0)


def good(rows: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 3)).astype(np.float32)


def many(count: int = 40) -> list[dict[str, np.ndarray]]:
    return [{"image": good(seed=seed)} for seed in range(count)]


def refusal(data, text: str = ONE, **options) -> str:
    with pytest.raises(DataError) as caught:
        calibrate(parse(text), data, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def with_nan(rows: int = 1, row: int = 0, value: float = np.nan) -> np.ndarray:
    array = good(rows)
    array[row, 1] = value
    return array


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"imaeg": good()}, ["sample 1", "'imaeg' is no input", "did you mean image", "inputs:"]),
        ({"image": good()}, ["sample 1", "no value for input ids int64 [N, S]", "given: image"]),
        (
            {"image": good(), "ids": np.zeros((1, 2), np.int64), "mask": good()},
            ["sample 1", "'mask' is no input", "inputs: image, ids"],
        ),
        (
            {"image": np.zeros((1, 4), np.float32), "ids": np.zeros((1, 2), np.int64)},
            ["sample 1", "input image has shape [1, 4] but the model wants [N, 3]"],
        ),
        (
            {"image": good(), "ids": np.zeros(2, np.float32)},
            ["sample 1", "input ids is float32 but the model wants int64"],
        ),
        (
            {"image": np.zeros((1, 3), np.int32), "ids": np.zeros((1, 2), np.int64)},
            ["sample 1", "input image is int32 but the model wants float32"],
        ),
        (
            {"image": good(), "ids": np.zeros((1, 2, 2), np.int64)},
            ["sample 1", "input ids has shape [1, 2, 2] but the model wants [N, S]"],
        ),
        ((good(),), ["sample 1", "1 values for the 2 inputs image, ids"]),
        ({"image": object(), "ids": np.zeros((1, 2), np.int64)}, ["input image is object"]),
        (
            {"image": [[1.0, 2.0], [3.0]], "ids": np.zeros((1, 2), np.int64)},
            ["sample 1", "input image is a list of lists of different lengths"],
        ),
    ],
)
def test_samples_that_do_not_fit(item, words: list[str]) -> None:
    first = {"image": good(), "ids": np.zeros((1, 2), np.int64)}
    message = refusal([first, item], TWO)
    for word in words:
        assert word in message


def test_wider_floats_are_cast_with_a_note() -> None:
    found = calibrate(parse(ONE), [{"image": good().astype(np.float64)}] * 9)
    assert "input image was converted from float64 to float32" in found.notes
    message = refusal([{"image": np.full((1, 3), 1e300)}])
    assert "sample 0: tensor 'image' holds 3 NaN or infinite" in message


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_numbers_name_sample_tensor_and_count(bad: float, tmp_path: Path) -> None:
    message = refusal([{"image": good()}, {"image": with_nan(value=bad)}])
    assert "sample 1: tensor 'image' holds 1 NaN or infinite" in message
    x = good(20)
    x[13] = bad
    np.savez(tmp_path / "a.npz", image=x)
    message = refusal(str(tmp_path / "a.npz"))
    assert "sample 13: tensor 'image' holds 3 NaN or infinite" in message


def test_bad_samples_can_be_left_out() -> None:
    data = [*many(40), {"image": with_nan()}]
    found = calibrate(parse(ONE), data, skip_bad=True)
    assert (found.samples, found.skipped, found.feeds) == (40, 1, 40)
    assert any(
        "1 bad samples were left out; first: calibration sample 40" in n for n in found.notes
    )
    without = calibrate(parse(ONE), many(40))
    for name, one in found.tensors.items():
        np.testing.assert_array_equal(one.bins, without.tensors[name].bins)


def test_only_bad_rows_of_a_batch_are_left_out(tmp_path: Path) -> None:
    x = good(64)
    np.savez(tmp_path / "good.npz", image=np.delete(x, [5, 6], axis=0))
    x[5, 0], x[6, 2] = np.nan, np.inf
    np.savez(tmp_path / "bad.npz", image=x)
    found = calibrate(parse(ONE), str(tmp_path / "bad.npz"), skip_bad=True)
    wanted = calibrate(parse(ONE), str(tmp_path / "good.npz"))
    assert (found.samples, found.skipped) == (62, 2)
    np.testing.assert_array_equal(found.tensors["image"].bins, wanted.tensors["image"].bins)


def test_more_than_a_twentieth_of_bad_samples_is_too_much() -> None:
    data = [*many(30), {"image": with_nan()}, {"image": with_nan()}]
    message = refusal(data, skip_bad=True)
    assert "2 of 32 calibration samples hold NaN or infinite values, more than 5%" in message
    assert "first: calibration sample 30" in message
    assert "1 of 1 calibration samples" in refusal([{"image": with_nan()}], skip_bad=True)


def test_bad_samples_of_shards_are_counted_together() -> None:
    data = [*many(40), {"image": with_nan()}]
    parts = [
        calibrate(parse(ONE), data, shard=(number, 8), skip_bad=True) for number in range(1, 9)
    ]
    assert [part.skipped for part in parts] == [1, 0, 0, 0, 0, 0, 0, 0]  # 1 of 6: over a twentieth
    assert merge_all(parts).to_bytes() == calibrate(parse(ONE), data, skip_bad=True).to_bytes()
    with pytest.raises(DataError, match="1 of 11 calibration samples hold NaN"):
        merge_all(parts[:2])


@pytest.mark.parametrize("budget", [1, 1 << 28])
def test_bad_inner_values_leave_the_whole_sample_out(budget: int) -> None:
    text = "net (float[N,3] image) => (float[N,3] y) { h = Neg (image)  y = Sqrt (image) }"
    data = [{"image": np.abs(item["image"])} for item in many(40)]
    bad = {"image": -np.ones((1, 3), np.float32) * 100}
    message = refusal([*data, bad], text, strict=True, budget=budget)
    assert "sample 40: tensor 'y' holds 3 NaN" in message
    found = calibrate(
        parse(text), [*data, bad], tensors=["h", "y"], strict=True, skip_bad=True, budget=budget
    )
    assert (found.samples, found.skipped) == (40, 1)
    assert found.tensors["h"].high <= 0
    assert found.tensors["h"].count == 120


def test_of_a_batch_with_bad_inner_values_the_good_rows_stay() -> None:
    text = "net (float[N,3] image) => (float[N,3] y) { y = Sqrt (image) }"
    x = np.abs(good(40))
    x[7] = -1
    found = calibrate(parse(text), [x], strict=True, skip_bad=True)
    assert (found.samples, found.skipped) == (39, 1)
    assert found.tensors["image"].low >= 0
    assert found.tensors["y"].count == 39 * 3


@pytest.mark.parametrize("data", [[], iter(()), (), list])
def test_no_samples(data) -> None:
    assert "there are no calibration samples" in refusal(data)


def test_a_batch_of_length_zero(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=np.zeros((0, 3), np.float32))
    assert "array image holds no samples" in refusal(str(tmp_path / "a.npz"))
    assert "there are no calibration samples" in refusal([np.zeros((0, 3), np.float32)])


def test_warnings_about_useless_data() -> None:
    x = good()
    assert "all calibration samples are the same: ranges may be too narrow" in (
        calibrate(parse(ONE), [x] * 9).notes
    )
    zero = np.zeros((1, 3), np.float32)
    assert "all calibration samples are zero: ranges will be useless" in (
        calibrate(parse(ONE), [zero] * 9).notes
    )
    assert calibrate(parse(ONE), many(9)).notes == []
    notes = calibrate(parse(ONE), many(7)).notes
    assert notes == ["only 7 calibration samples: ranges may be too narrow"]
    one = calibrate(parse(ONE), many(1)).notes
    assert one == ["only 1 calibration sample: ranges may be too narrow"]


def cut_npz(path: Path) -> None:
    np.savez(path, image=good(500))
    path.write_bytes(path.read_bytes()[:2000])


def flipped_npz(path: Path) -> None:
    np.savez(path, image=good(500))
    data = bytearray(path.read_bytes())
    data[1000] ^= 0xFF
    path.write_bytes(data)


def flipped_compressed(path: Path) -> None:
    np.savez_compressed(path, image=good(500))
    data = bytearray(path.read_bytes())
    data[1000] ^= 0xFF
    path.write_bytes(data)


def pickled(path: Path) -> None:
    np.savez(path, image=np.array([{"a": 1}], object))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: path.write_bytes(b""), "not a complete"),
        (lambda path: path.write_bytes(b"hello, no zip"), "not a complete"),
        (cut_npz, "not a complete"),
        (flipped_npz, "not a complete"),
        (flipped_compressed, "cannot be read as a .npz|not a complete"),
        (pickled, "Python objects"),
        (lambda path: np.savez(path, imag=good()), "no array 'image'.*did you mean imag.*wanted"),
        (lambda path: np.savez(path, image=good().T), "does not fit"),
        (lambda path: np.savez(path, image=np.zeros((3, 3), int)), "int64 but the model wants"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, make, what: str) -> None:
    import re

    path = tmp_path / "data.npz"
    make(path)
    assert re.search(what, refusal(str(path)))


def test_a_truncated_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", good(500))
    data = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(data[:3000])
    assert "not a complete .npz file" in refusal(str(tmp_path / "x.npy"))


def test_an_array_for_a_model_with_several_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", good(5))
    assert "one unnamed array" in refusal(str(tmp_path / "x.npy"), TWO)


def test_missing_paths_and_empty_folders(tmp_path: Path) -> None:
    assert "does not exist" in refusal(str(tmp_path / "none"))
    message = refusal(tmp_path)
    assert "holds no .npz file, no test_data_set_* folder and no image" in message
    assert "image float32 [N, 3]" in message


def external() -> bytes:
    tensor = numpy_helper.from_array(good())
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="elsewhere")
    return tensor.SerializeToString()


def short() -> bytes:
    tensor = numpy_helper.from_array(good())
    tensor.raw_data = b"123"
    return tensor.SerializeToString()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\xff\xff\xff", "is not a tensor"),
        (b"", "is not a tensor"),
        (external(), "in another file"),
        (short(), "damaged tensor"),
    ],
)
def test_damaged_test_data(tmp_path: Path, content: bytes, what: str) -> None:
    folder = tmp_path / "test_data_set_0"
    folder.mkdir()
    (folder / "input_0.pb").write_bytes(content)
    message = refusal(tmp_path)
    assert what in message
    assert "input_0.pb" in message


def test_too_many_inputs_in_test_data(tmp_path: Path) -> None:
    folder = tmp_path / "test_data_set_0"
    folder.mkdir()
    for number in range(2):
        tensor = numpy_helper.from_array(good())
        (folder / f"input_{number}.pb").write_bytes(tensor.SerializeToString())
    assert "is input 1 of a model with 1 inputs: image" in refusal(tmp_path)


MODULE = """
def broken():
    yield {"image": [1.0, 2.0, 3.0]}
    raise RuntimeError("disk\\ngone")
def nothing():
    return None
def raises():
    raise ValueError("no data")
"""


def test_functions_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("failing_samples.py").write_text(MODULE)
    Path("unimportable_samples.py").write_text("import nothing_of_that_name_exists")
    message = refusal("failing_samples:broken")
    assert "sample 1: failing_samples:broken raised RuntimeError: disk gone" in message
    assert "returned NoneType" in refusal("failing_samples:nothing")
    assert "raised ValueError: no data" in refusal("failing_samples:raises")
    specs = input_specs(parse(ONE))
    for text, what in [
        ("failing_samples:brokn", "did you mean broken"),
        ("unimportable_samples:x", "cannot be imported"),
        ("module_that_is_not_there:x", "cannot be imported"),
    ]:
        with pytest.raises(UsageError, match=what):
            open_feeds(text, specs)


def test_things_that_are_no_samples() -> None:
    assert "is no iterable of samples" in refusal({"image": good()})
    assert "is no iterable of samples" in refusal(7)


def test_columns_that_are_missing() -> None:
    class Columns(list):
        column_names = ["img", "label"]  # noqa: RUF012

    message = refusal(Columns([{"img": 1, "label": 2}]))
    assert "has no column 'image' (columns: img, label" in message


def test_a_number_of_labels_that_does_not_fit(tmp_path: Path) -> None:
    np.savez(tmp_path / "l.npz", image=good(5), labels=np.zeros(4, np.int64))
    with pytest.raises(DataError, match="4 labels for samples: {'image': 5}"):
        accuracy(open_session(parse(ONE), optimize=False), tmp_path / "l.npz")


def test_the_runtime_refuses() -> None:
    text = "net (float[N,3] image, int64[M] i) => (float[M,3] y) { y = Gather (image, i) }"
    message = refusal([{"image": good(), "i": np.array([9])}], text)
    assert message.startswith("calibration sample 0: onnxruntime cannot run")


def command(monkeypatch: pytest.MonkeyPatch, capsys, *arguments: str) -> tuple[int, str]:
    from onnxslim.cli.app import main

    monkeypatch.setattr(sys, "argv", ["onnxslim", "calibrate", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return int(caught.value.code or 0), error


def test_the_command_line_says_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    io.save(parse(ONE), "m.onnx")
    np.savez("good.npz", image=good(9))
    np.savez("bad.npz", image=with_nan(9, 4))
    calibrate("m.onnx", "good.npz").save("c.npz")
    other = parse(ONE.replace("Tanh", "Neg"))
    calibrate(other, "good.npz").save("other.npz")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for arguments, code, words in [
        (("m.onnx", "bad.npz", "-o", "x.npz"), 1, "sample 4: tensor 'image' holds 1 NaN"),
        (("m.onnx", "bad.npz", "-o", "x.npz", "--skip-bad"), 1, "1 of 9 calibration samples"),
        (("m.onnx", "none.npz", "-o", "x.npz"), 1, "does not exist"),
        (("m.onnx", "good.npz", "-o", "no/x.npz"), 1, "folder"),
        (("m.onnx", "good.npz", "-o", "m.onnx"), 2, "is also an input"),
        (("m.onnx", "-o", "x.npz"), 2, "wants MODEL and DATA, 1 given"),
        (("m.onnx", "good.npz", "-o", "x.npz", "--shard", "0/3"), 2, "want I/N"),
        (("m.onnx", "good.npz", "-o", "x.npz", "--shard", "half"), 2, "want I/N"),
        (("--merge", "c.npz", "other.npz", "-o", "x.npz"), 1, "different models or plans"),
        (("--merge", "c.npz", "good.npz", "-o", "x.npz"), 1, "good.npz is not a complete"),
        (("--merge", "c.npz", "-o", "c.npz"), 2, "is also an input"),
        (("--merge", "c.npz", "-o", "x.npz", "--shard", "1/2"), 2, "--shard"),
    ]:
        found, error = command(monkeypatch, capsys, *arguments)
        assert (found, words in error) == (code, True), error
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
