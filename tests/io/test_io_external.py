"""External data: what is read, what is refused, where it is written."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxslim import io
from onnxslim.errors import ModelLoadError, ModelSaveError
from onnxslim.io import writer

WEIGHTS = {name: np.arange(500, dtype=np.float32) + n for n, name in enumerate(("a", "b", "c"))}


def plain() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Add", ["x", "a"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["q"]),
        helper.make_node("Add", ["q", "c"], ["z"]),
    ]
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, [500])],
        [helper.make_tensor_value_info("z", kind, [500])],
        [numpy_helper.from_array(value, name) for name, value in WEIGHTS.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def external(places: dict[str, dict[str, object]]) -> onnx.ModelProto:
    """Refer to external data as ``places`` says; tensors that are not named stay inline."""
    model = plain()
    for tensor in model.graph.initializer:
        if tensor.name in places:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in places[tensor.name].items():
                tensor.external_data.add(key=key, value=str(value))
    return model


def write(path: Path, model: onnx.ModelProto) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def one_file(folder: Path, location: str = "w.bin") -> Path:
    """Write a model whose tensor ``a`` lies in ``location``, without writing that file."""
    return write(folder / "m.onnx", external({"a": {"location": location}}))


def test_several_files_subfolders_offsets_lengths(tmp_path: Path) -> None:
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "w.bin").write_bytes(b"?" * 64 + WEIGHTS["a"].tobytes() + WEIGHTS["b"].tobytes())
    (tmp_path / "sub" / "deep" / "c.bin").write_bytes(WEIGHTS["c"].tobytes() + b"more")
    places: dict[str, dict[str, object]] = {
        "a": {"location": "w.bin", "offset": 64, "length": 2000, "checksum": "unread"},
        "b": {"location": "./w.bin", "offset": 2064},
        "c": {"location": "sub/deep/c.bin"},
    }
    model = io.load(write(tmp_path / "m.onnx", external(places)))
    for name, value in WEIGHTS.items():
        tensor = model.graph.initializers[name].const_value
        assert isinstance(tensor, io.SourceTensor)
        np.testing.assert_array_equal(tensor.numpy(), value)
    io.save(model, tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx") == plain()
    data, folder = io.runtime_proto(model)
    assert folder == str(tmp_path.resolve())
    locations = [
        entry.value
        for tensor in onnx.ModelProto.FromString(data).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    ]
    assert locations == ["w.bin", "w.bin", "sub/deep/c.bin"]


def test_one_descriptor_per_file(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHTS["a"].tobytes() * 3)
    places: dict[str, dict[str, object]] = {
        name: {"location": "./" * n + "w.bin", "offset": 2000 * n} for n, name in enumerate(WEIGHTS)
    }
    path = write(tmp_path / "m.onnx", external(places))
    gc.collect()  # models of other tests
    before = len(os.listdir("/proc/self/fd"))
    model = io.load(path)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.const_value.numpy()
    assert len(os.listdir("/proc/self/fd")) == before + 1  # nothing lies in the model's own
    del model, value
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("/etc/passwd", "absolute"),
        ("../w.bin", "leaves the model's folder"),
        ("sub/../../w.bin", "leaves the model's folder"),
        ("link.bin", "is a link out of the model's folder"),
        ("linked/w.bin", "is a link out of the model's folder"),
        ("linked/../w.bin", "is a link out of the model's folder"),
        ("missing.bin", "data file 'missing.bin' of '.*' is missing"),
        ("", "not a file name"),
        ("sub", "is a directory"),
    ],
)
def test_refused_locations(location: str, words: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "inner"
    outside.mkdir(parents=True)
    for folder in (outside, outside.parent, tmp_path):
        (folder / "w.bin").write_bytes(WEIGHTS["a"].tobytes())
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "link.bin").symlink_to(outside / "w.bin")
    (folder / "linked").symlink_to(outside)
    with pytest.raises(ModelLoadError, match=words) as caught:
        io.load(one_file(folder, location))
    assert "'a'" in str(caught.value) or "is a directory" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"offset": "-4"}, "external offset '-4' is not a number"),
        ({"offset": "zero"}, "'zero' is not a number"),
        ({"length": "1e3"}, "'1e3' is not a number"),
        ({"length": 1999}, "names 1999 bytes .* need 2000"),
        ({"offset": 1, "length": 2000}, "needs bytes 1 to 2001 .* has only 2000"),
        ({"offset": 10**30}, "has only 2000"),
    ],
)
def test_wrong_numbers(entries: dict[str, object], words: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHTS["a"].tobytes())
    model = external({"a": {"location": "w.bin", **entries}})
    with pytest.raises(ModelLoadError, match=words) as caught:
        io.load(write(tmp_path / "m.onnx", model))
    assert "'a'" in str(caught.value)


def test_links_that_are_fine(tmp_path: Path) -> None:
    """A model cache: the model is a link, its data lies beside the target."""
    blobs = tmp_path / "blobs"
    path = one_file(blobs, "via.bin")
    (blobs / "real.bin").write_bytes(WEIGHTS["a"].tobytes())
    os.link(blobs / "real.bin", tmp_path / "second name")
    (blobs / "via.bin").symlink_to("real.bin")
    (tmp_path / "snapshot").mkdir()
    link = tmp_path / "snapshot" / "model.onnx"
    link.symlink_to(path)
    model = io.load(link)
    assert io.source_path(model) == str(path.resolve())
    io.save(model, tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx") == plain()


def test_data_needs_a_path(tmp_path: Path) -> None:
    data = one_file(tmp_path).read_bytes()
    (tmp_path / "w.bin").write_bytes(WEIGHTS["a"].tobytes())
    for source in (data, onnx.ModelProto.FromString(data)):
        with pytest.raises(ModelLoadError, match="give the path of the model"):
            io.load(source)


def test_inline_data_of_the_wrong_size() -> None:
    model = plain()
    model.graph.initializer[1].dims[0] = 501
    with pytest.raises(ModelLoadError, match="'b' holds 2000 bytes, .* need 2004"):
        io.load(model.SerializeToString())


def test_held_descriptor_outlives_a_replaced_source(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", plain())
    model = io.load(path)
    (tmp_path / "other").write_bytes(b"something else")
    os.replace(tmp_path / "other", path)
    data, folder = io.runtime_proto(model)  # others would open the wrong file: all inline
    assert folder is None
    assert onnx.ModelProto.FromString(data) == plain()
    io.save(model, path)
    assert onnx.load(path) == plain()


def test_layout_of_the_data_file(tmp_path: Path) -> None:
    model = plain()
    big = np.random.default_rng(0).standard_normal(20_000).astype("f")
    small = numpy_helper.from_array(np.array([1], np.float32), "small")
    model.graph.initializer.extend([numpy_helper.from_array(big, "big"), small])
    io.save(io.load(model), tmp_path / "out.onnx", external_data=True)
    written = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    places = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in written.graph.initializer
    }
    assert places["small"] == {}
    assert {place["location"] for place in places.values() if place} == {"out.onnx.data"}
    assert int(places["big"]["offset"]) % 4096 == 0
    assert all(int(places[name]["offset"]) % 64 == 0 for name in "abc")
    assert onnx.load(tmp_path / "out.onnx").graph == _external_then_loaded(model)


def _external_then_loaded(model: onnx.ModelProto) -> onnx.GraphProto:
    """onnx.load marks what it fetched; set that mark."""
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) >= 1024:
            tensor.data_location = TensorProto.DEFAULT
    return model.graph


def test_over_the_limit_goes_external(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = io.load(plain())
    monkeypatch.setattr(writer, "INLINE_LIMIT", io.total_bytes(model))
    assert len(io.save(model, tmp_path / "fits.onnx").paths) == 1
    monkeypatch.setattr(writer, "INLINE_LIMIT", io.total_bytes(model) - 1)
    assert len(io.save(model, tmp_path / "split.onnx").paths) == 2
    io.save(io.load(tmp_path / "split.onnx"), tmp_path / "again.onnx")
    with (tmp_path / "stream").open("wb") as file, pytest.raises(ModelSaveError, match="2 GiB"):
        io.save(model, file)


def test_a_file_past_two_gib_is_read(tmp_path: Path) -> None:
    """Sparse on disk; nobody but us can parse it."""
    side = 1 << 29
    model = plain()
    head = TensorProto(name="huge", data_type=TensorProto.UINT8, dims=[side, 5])
    inner = head.SerializeToString()
    from onnxslim.io.wire import varint

    tag = b"\x4a" + varint(side * 5)
    tensor_length = len(inner) + len(tag) + side * 5
    graph = model.graph.SerializeToString()
    prefix = b"\x2a" + varint(tensor_length) + inner + tag
    start = b"\x3a" + varint(len(graph) + len(prefix) + side * 5) + graph + prefix
    model.ClearField("graph")
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        file.write(start)
        file.seek(side * 5 - 5, os.SEEK_CUR)
        file.write(b"final" + model.SerializeToString())
    loaded = io.load(path)
    tensor = loaded.graph.initializers["huge"].const_value
    assert isinstance(tensor, io.SourceTensor)
    assert tensor.nbytes == side * 5
    assert tensor.read_range(-5, side * 5) == b"final"
    assert io.total_bytes(loaded) > writer.INLINE_LIMIT
    data, folder = io.runtime_proto(loaded)
    assert len(data) < 10_000
    assert folder == str(tmp_path.resolve())
    loaded.graph.initializers["a"].const_value = tensor
    assert len(io.skeleton_proto(loaded).SerializeToString()) < 10_000


def test_skeleton_has_inputs_for_large_initializers() -> None:
    model = plain()
    model.graph.initializer.append(numpy_helper.from_array(np.arange(8), "shape"))
    constant = helper.make_node(
        "Constant", [], ["k"], value=numpy_helper.from_array(WEIGHTS["a"], "")
    )
    model.graph.node.append(constant)
    proto = io.skeleton_proto(io.load(model))
    assert [value.name for value in proto.graph.input] == ["x", "a", "b", "c"]
    assert [tensor.name for tensor in proto.graph.initializer] == ["shape"]
    assert proto.graph.input[1].type.tensor_type.shape.dim[0].dim_value == 500
    assert not proto.graph.node[-1].attribute[0].t.raw_data
    assert len(proto.SerializeToString()) < 1000
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    shapes = {info.name: info.type.tensor_type.shape for info in inferred.graph.value_info}
    assert shapes["q"].dim[0].dim_value == 500
    assert shapes["k"].dim[0].dim_value == 500


def test_runtime_proto_runs(tmp_path: Path) -> None:
    import onnxruntime as ort

    model = plain()
    model.graph.node.append(
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(WEIGHTS["b"], ""))
    )
    model.graph.node.append(helper.make_node("Add", ["z", "k"], ["zz"]))
    model.graph.output[0].name = "zz"
    loaded = io.load(write(tmp_path / "m.onnx", model))
    data, folder = io.runtime_proto(loaded)
    assert folder is not None
    assert len(data) < 1000
    options = ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    x = np.ones(500, np.float32)
    (result,) = session.run(None, {"x": x})
    np.testing.assert_array_equal(result, x + sum(WEIGHTS.values()) + WEIGHTS["b"])
