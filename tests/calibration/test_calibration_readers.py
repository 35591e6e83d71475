"""Data files: how they are cut into feeds, and every way in which they can be wrong."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxslim.calibration.readers import describe_inputs, load_arrays, read_feeds
from onnxslim.errors import DataError
from onnxslim.runtime.specs import InputSpec

FLOAT, INT32, INT64 = ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64
OPEN = [InputSpec("x", FLOAT, ("N", 3))]
FIXED = [InputSpec("x", FLOAT, (4, 3))]
RNG = np.random.default_rng(0)


def write(tmp_path, name="data.npz", **arrays):
    path = tmp_path / name
    np.savez(path, **arrays)
    return path


def samples(count, *dims):
    return RNG.standard_normal((count, *dims)).astype(np.float32)


def test_an_open_batch_is_cut_into_chunks(tmp_path):
    x = samples(10, 3)
    feeds = read_feeds(write(tmp_path, x=x), OPEN, batch_size=4)
    assert [feed["x"].shape for feed in feeds] == [(4, 3), (4, 3), (2, 3)]
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]), x)
    assert (len(feeds), feeds.samples, feeds.notes) == (3, 10, [])


def test_a_fixed_batch_is_filled_and_the_rest_left_out(tmp_path):
    x = samples(10, 3)
    feeds = read_feeds(write(tmp_path, x=x), FIXED)
    assert [feed["x"].shape for feed in feeds] == [(4, 3), (4, 3)]
    np.testing.assert_array_equal(feeds[1]["x"], x[4:8])
    assert feeds.samples == 8
    assert len(feeds.notes) == 1
    assert "2 samples of x" in feeds.notes[0]


def test_an_array_of_exactly_the_shape_is_one_feed(tmp_path):
    x = samples(4, 3)
    (feed,) = read_feeds(write(tmp_path, x=x), FIXED)
    np.testing.assert_array_equal(feed["x"], x)


def test_an_axis_more_than_the_input_counts_whole_inputs(tmp_path):
    x = samples(5, 4, 3)
    feeds = read_feeds(write(tmp_path, x=x), FIXED)
    assert len(feeds) == 5
    np.testing.assert_array_equal(feeds[2]["x"], x[2])


def test_two_inputs_are_cut_alike(tmp_path):
    specs = [*OPEN, InputSpec("ids", INT64, ("N", "S"))]
    ids = RNG.integers(0, 9, (6, 5))
    feeds = read_feeds(write(tmp_path, x=samples(6, 3), ids=ids), specs, batch_size=4)
    assert [(len(feed["x"]), len(feed["ids"])) for feed in feeds] == [(4, 4), (2, 2)]
    np.testing.assert_array_equal(feeds[1]["ids"], ids[4:])


def test_an_array_that_fills_one_feed_goes_into_all(tmp_path):
    specs = [InputSpec("x", FLOAT, (1, 3)), InputSpec("k", FLOAT, (1, 2))]
    k = samples(1, 2)
    feeds = read_feeds(write(tmp_path, x=samples(3, 3), k=k), specs)
    assert len(feeds) == 3
    for feed in feeds:
        np.testing.assert_array_equal(feed["k"], k)


def test_a_scalar_goes_into_all_feeds(tmp_path):
    specs = [*OPEN, InputSpec("s", FLOAT, ())]
    feeds = read_feeds(write(tmp_path, x=samples(6, 3), s=np.float32(7)), specs, batch_size=3)
    assert [feed["s"].item() for feed in feeds] == [7, 7]


def test_an_input_with_a_default_may_be_missing(tmp_path):
    specs = [*OPEN, InputSpec("d", FLOAT, (2,), required=False)]
    (feed,) = read_feeds(write(tmp_path, x=samples(2, 3)), specs)
    assert list(feed) == ["x"]


def test_labels_are_passed_over_and_strangers_noted(tmp_path):
    path = write(tmp_path, x=samples(2, 3), labels=np.zeros(2), other=np.zeros(9))
    feeds = read_feeds(path, OPEN)
    assert list(feeds[0]) == ["x"]
    assert feeds.notes == ["arrays that are no inputs were left out: other"]


def test_a_folder_is_read_file_by_file(tmp_path):
    for name, value in (("b", 2), ("a", 1)):
        write(tmp_path, f"{name}.npz", x=np.full((2, 3), value, np.float32))
    feeds = read_feeds(tmp_path, OPEN)
    assert [feed["x"][0, 0] for feed in feeds] == [1, 2]
    assert feeds.samples == 4


def test_a_npy_serves_a_model_with_one_input(tmp_path):
    x = samples(2, 3)
    np.save(tmp_path / "x.npy", x)
    (feed,) = read_feeds(tmp_path / "x.npy", OPEN)
    np.testing.assert_array_equal(feed["x"], x)
    two = [*OPEN, InputSpec("y", FLOAT, ("N",))]
    with pytest.raises(DataError, match="one unnamed array"):
        read_feeds(tmp_path / "x.npy", two)


@pytest.mark.parametrize(
    ("given", "spec"),
    [
        (np.ones((2, 3), np.float64), OPEN[0]),
        (np.ones((2, 3), np.int64), InputSpec("x", INT32, ("N", 3))),
        (np.ones((2, 3), np.uint8), InputSpec("x", INT64, ("N", 3))),
        (np.ones((2, 3), np.float32), InputSpec("x", ir.DataType.FLOAT16, ("N", 3))),
        (np.array([["a", "b", "c"]]), InputSpec("x", ir.DataType.STRING, ("N", 3))),
    ],
)
def test_dtypes_that_are_converted(tmp_path, given, spec):
    (feed,) = read_feeds(write(tmp_path, x=given), [spec])
    assert feed["x"].dtype == spec.numpy_dtype
    np.testing.assert_array_equal(feed["x"], given)


@pytest.mark.parametrize(
    ("given", "spec", "what"),
    [
        (np.ones((2, 3), np.uint8), OPEN[0], "uint8 but the model wants float32"),
        (np.ones((2, 3), np.float32), InputSpec("x", INT64, ("N", 3)), "wants int64"),
        (np.ones((2, 3), np.bool_), OPEN[0], "wants float32"),
        (np.full((2, 3), 2**40), InputSpec("x", INT32, ("N", 3)), "do not fit int32"),
        (np.full((2, 3), -1), InputSpec("x", ir.DataType.UINT8, ("N", 3)), "do not fit uint8"),
        (np.full((2, 3), 1e300), OPEN[0], "x as float32 has infinity in sample 0"),
        (np.ones((2, 4), np.float32), OPEN[0], r"shape \[2, 4\], which does not fit \[N, 3\]"),
        (np.ones(3, np.float32), OPEN[0], r"shape \[3\]"),
        (np.ones((2, 3), np.float32), FIXED[0], r"does not fit \[4, 3\]"),
        (np.ones((0, 3), np.float32), OPEN[0], "no samples"),
        (np.array([[1, 2, 3], [1, np.nan, 3]], np.float32), OPEN[0], "NaN in sample 1"),
        (np.array([[1, 2, np.inf]], np.float32), OPEN[0], "infinity in sample 0"),
        (np.ones((2, 3), np.float32), InputSpec("x", FLOAT, None, "sequence"), "sequence"),
    ],
)
def test_data_that_does_not_fit(tmp_path, given, spec, what):
    with pytest.raises(DataError, match=what) as caught:
        read_feeds(write(tmp_path, x=given), [spec])
    assert "\n" not in str(caught.value)


def test_a_missing_array_names_what_is_wanted(tmp_path):
    specs = [*OPEN, InputSpec("ids", INT64, ("N", "S"))]
    with pytest.raises(DataError) as caught:
        read_feeds(write(tmp_path, x=samples(2, 3), wrong=samples(1)), specs)
    message = str(caught.value)
    assert "no array 'ids'" in message
    assert "x, wrong" in message
    assert "x float32 [N, 3], ids int64 [N, S]" in message


def test_arrays_of_different_length(tmp_path):
    same = [*OPEN, InputSpec("y", FLOAT, ("N",))]
    path = write(tmp_path, x=samples(6, 3), y=samples(5))
    with pytest.raises(DataError, match="different numbers of samples: x 6, y 5"):
        read_feeds(path, same)
    other = [*OPEN, InputSpec("y", FLOAT, ("M",))]
    (feed,) = read_feeds(path, other)
    assert (len(feed["x"]), len(feed["y"])) == (6, 5)
    fixed = [InputSpec("x", FLOAT, (1, 3)), InputSpec("y", FLOAT, (1,))]
    with pytest.raises(DataError, match="different numbers of feeds: x 6, y 5"):
        read_feeds(path, fixed)


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"", "complete"), (b"hello", "complete"), (b"PK\x03\x04 cut short", "complete")],
)
def test_files_that_are_no_npz(tmp_path, content, what):
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=what) as caught:
        read_feeds(path, OPEN)
    assert str(path) in str(caught.value)


def test_a_truncated_npz(tmp_path):
    path = write(tmp_path, x=samples(100, 3))
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match="complete"):
        read_feeds(path, OPEN)


def test_damaged_bytes_inside_a_npz(tmp_path):
    path = write(tmp_path, x=samples(100, 3))
    data = bytearray(path.read_bytes())
    data[400] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError):
        read_feeds(path, OPEN)


def test_pickled_objects_are_refused(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x=np.array([{"a": 1}], object))
    with pytest.raises(DataError, match="Python objects"):
        read_feeds(path, OPEN)


def test_missing_files_and_empty_folders(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_feeds(tmp_path / "none.npz", OPEN)
    with pytest.raises(DataError, match=r"holds no \.npz file, .*; wanted: .*x float32 \[N, 3\]"):
        read_feeds(tmp_path, OPEN)


def test_the_description_names_everything():
    specs = [
        *OPEN,
        InputSpec("t", ir.DataType.STRING, None),
        InputSpec("d", FLOAT, (), required=False),
    ]
    text = describe_inputs(specs)
    assert "x float32 [N, 3], t string [...]" in text
    assert "d float32" not in text
    assert "no inputs" in describe_inputs([])


def test_arrays_can_be_had_as_they_are(tmp_path):
    arrays = load_arrays(write(tmp_path, a=np.arange(3), b=np.ones(2)))
    assert list(arrays) == ["a", "b"]
    assert arrays["a"].tolist() == [0, 1, 2]
