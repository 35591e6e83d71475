"""Single tensors of a packed file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pack_models import all_dtypes, model_of, nested, normal, raw_tensor, with_data_files, written

from onnxslim.errors import PackError
from onnxslim.packing import list_tensors, pack, read_tensor
from onnxslim.packing.reader import open_reader


def test_every_tensor_reads_as_in_the_model(tmp_path: Path) -> None:
    model = all_dtypes()
    pack(written(model, tmp_path / "m.onnx"), tmp_path / "p.onnxz")
    checked = 0
    for tensor in model.graph.initializer:
        if tensor.name == "typed":  # packed float_data are the same bytes as raw data
            values = read_tensor(tmp_path / "p.onnxz", tensor.name)
            assert np.array_equal(values, np.arange(900, dtype="<f4"))
            continue
        if not tensor.HasField("raw_data"):
            with pytest.raises(PackError, match="not stored as raw data"):
                read_tensor(tmp_path / "p.onnxz", tensor.name)
            continue
        value = read_tensor(tmp_path / "p.onnxz", tensor.name)
        if isinstance(value, bytes):
            assert value == tensor.raw_data
        else:
            expected = numpy_helper.to_array(tensor)
            assert value.dtype == expected.dtype
            assert value.shape == expected.shape
            assert value.tobytes() == tensor.raw_data
        checked += 1
    assert checked == len(model.graph.initializer) - 2


def test_list_names_types_shapes_and_hashes(tmp_path: Path) -> None:
    pack(written(nested(), tmp_path / "m.onnx"), tmp_path / "p.onnxz")
    listed = {item.name: item for item in list_tensors(tmp_path / "p.onnxz")}
    assert {"p", "c", "then_w", "then_c", "else_w", "else_c", "f_w", "sparse"} <= set(listed)
    weight = listed["then_w"]
    assert (weight.dtype, weight.shape, weight.raw_bytes) == ("FLOAT", (100, 80), 32_000)
    assert weight.codec == "rot-planes"
    assert 0 < weight.packed_bytes < 32_000
    assert read_tensor(tmp_path / "p.onnxz", "then_w").tobytes() == normal(8000, seed=1)
    assert listed["p"].codec == "graph"
    assert listed["p"].shape == ()


def test_tensors_in_data_files(tmp_path: Path) -> None:
    model, _ = with_data_files(tmp_path / "in")
    pack(model, tmp_path / "p.onnxz")
    for number in range(6):
        for name in (f"w{number}", f"tied{number}"):
            assert read_tensor(tmp_path / "p.onnxz", name).tobytes() == normal(50_000, seed=number)


def test_one_tensor_of_a_hundred_reads_little(tmp_path: Path) -> None:
    tensors = [raw_tensor(f"w{n}", 1, [128, 128], normal(1 << 14, seed=n)) for n in range(100)]
    pack(written(model_of(tensors), tmp_path / "m.onnx"), tmp_path / "p.onnxz")
    reader = open_reader(tmp_path / "p.onnxz")
    places = [place for found, place in reader.model.find(reader.file(0)) if found.name == "w57"]
    assert len(places) == 1
    assert places[0] is not None
    blob = reader.model.blob_of(places[0])
    assert blob is not None
    assert bytes(reader.read_blob(blob)) == tensors[57].raw_data
    assert reader.bytes_read < 0.02 * (tmp_path / "p.onnxz").stat().st_size
    assert np.array_equal(
        read_tensor(tmp_path / "p.onnxz", "w57"), numpy_helper.to_array(tensors[57])
    )


def test_any_range_of_the_restored_file(tmp_path: Path) -> None:
    data = nested().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data)
    pack(tmp_path / "m.onnx", tmp_path / "p.onnxz")
    file = open_reader(tmp_path / "p.onnxz").file(0)
    rng = np.random.default_rng(0)
    for start, stop in rng.integers(0, len(data), (200, 2)):
        low, high = int(min(start, stop)), int(max(start, stop))
        assert file.read(low, high - low) == data[low:high]
    with pytest.raises(PackError, match="beyond the end"):
        file.read(len(data) - 1, 2)


def test_names_that_are_missing_or_ambiguous(tmp_path: Path) -> None:
    same = normal(3000)
    tensors = [raw_tensor("twice", 1, [3000], normal(3000, seed=n)) for n in (1, 2)]
    tensors += [raw_tensor("equal", 1, [3000], same) for _ in range(2)]
    tensors += [raw_tensor("wrong", 1, [7], same)]
    pack(written(model_of(tensors), tmp_path / "m.onnx"), tmp_path / "p.onnxz")
    with pytest.raises(PackError, match="no tensor 'none'"):
        read_tensor(tmp_path / "p.onnxz", "none")
    with pytest.raises(PackError, match="2 different tensors named 'twice'"):
        read_tensor(tmp_path / "p.onnxz", "twice")
    with pytest.raises(PackError, match="do not fit"):
        read_tensor(tmp_path / "p.onnxz", "wrong")
    assert read_tensor(tmp_path / "p.onnxz", "equal").tobytes() == same


def test_report_matches_the_list(tmp_path: Path) -> None:
    report = pack(written(nested(), tmp_path / "m.onnx"), tmp_path / "p.onnxz")
    assert list(report.tensors) == list_tensors(tmp_path / "p.onnxz")
    assert math.isclose(report.ratio, report.raw_bytes / report.packed_bytes)
    assert onnx.load(tmp_path / "m.onnx") == nested()
