"""Sessions straight from packed models, and packed models as sources."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from pack_models import manifest_bytes, model_of, normal, packed_by_hand, raw_tensor, written

import onnxslim
from onnxslim.errors import ModelLoadError, PackError, RuntimeRefusedError, UsageError
from onnxslim.packing import pack

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 96), dtype=np.float32)


def weight(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def plain() -> onnx.ModelProto:
    """Two products; the second weight has too few bytes to be handed over apart."""
    model = parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 21]> g (float[3,96] x) => (float[3,4] y) {'
        " a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }"
    )
    model.graph.initializer.append(numpy_helper.from_array(weight(1, 96, 200), "w"))
    model.graph.initializer.append(numpy_helper.from_array(weight(2, 200, 4), "v"))
    return model


def overridable() -> onnx.ModelProto:
    """Weights that are also inputs."""
    model = plain()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, 1, tensor.dims))
    return model


def scattered() -> onnx.ModelProto:
    """Weights in a Constant, in the branches of an If, in a function, sparse, and in two names."""

    def constant(name: str, seed: int) -> onnx.NodeProto:
        value = numpy_helper.from_array(weight(seed, 96, 96), "")
        return helper.make_node("Constant", [], [name], value=value)

    def branch(name: str, seed: int) -> onnx.GraphProto:
        inner = numpy_helper.from_array(weight(seed, 96, 96), f"{name}_w")
        nodes = [
            constant(f"{name}_c", seed + 1),
            helper.make_node("Add", [f"{name}_c", f"{name}_w"], [f"{name}_s"]),
            helper.make_node("MatMul", ["a", f"{name}_s"], [f"{name}_y"]),
        ]
        info = helper.make_tensor_value_info(f"{name}_y", 1, [3, 96])
        return helper.make_graph(nodes, name, [], [info], initializer=[inner])

    nodes = [
        constant("c", 11),
        helper.make_node("MatMul", ["x", "c"], ["p"]),
        helper.make_node("MatMul", ["p", "tied"], ["q"]),
        helper.make_node("MatMul", ["q", "same"], ["r"]),
        helper.make_node("F", ["r"], ["a"], domain="own"),
        helper.make_node("ReduceSum", ["a"], ["total"], keepdims=0),
        helper.make_node("Cast", ["total"], ["flag"], to=TensorProto.BOOL),
        helper.make_node(
            "If", ["flag"], ["b"], then_branch=branch("then", 1), else_branch=branch("else", 5)
        ),
        helper.make_node("MatMul", ["b", "few"], ["y"]),
    ]
    opsets = [helper.make_opsetid("", 21)]
    body = [constant("f_w", 9), helper.make_node("MatMul", ["z", "f_w"], ["u"])]
    function = helper.make_function("own", "F", ["z"], ["u"], body, opsets)
    shared = weight(20, 96, 96)
    tensors = [numpy_helper.from_array(shared, name) for name in ("tied", "same")]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [3, 96])],
        [helper.make_tensor_value_info("y", 1, [3, 96])],
        initializer=tensors,
    )
    sparse = onnx.SparseTensorProto(dims=[96, 96])
    sparse.values.CopyFrom(numpy_helper.from_array(weight(7, 3000), "few"))
    places = np.sort(RNG.choice(96 * 96, 3000, replace=False)).astype("<i8")
    sparse.indices.CopyFrom(numpy_helper.from_array(places, ""))
    graph.sparse_initializer.append(sparse)
    return helper.make_model(
        graph,
        ir_version=9,
        functions=[function],
        opset_imports=[*opsets, helper.make_opsetid("own", 1)],
    )


def narrow() -> onnx.ModelProto:
    """Weights of types that numpy lacks, or that have two elements in a byte; a derived one."""
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[3,96] x) => (float[3,96] y) {'
        " d = DequantizeLinear(q, s) a = MatMul(x, d) h = Cast<to = 1>(b) c = MatMul(a, h)"
        " y = MatMul(c, t) z = MatMul(c, u) }"
    )
    codes = np.random.default_rng(3).integers(0, 256, 96 * 96 // 2, dtype=np.uint8).tobytes()
    square = weight(5, 96, 96)
    model.graph.initializer.extend(
        [
            raw_tensor("q", TensorProto.INT4, [96, 96], codes),
            numpy_helper.from_array(np.float32(0.03), "s"),
            raw_tensor("b", TensorProto.BFLOAT16, [96, 96], normal(96 * 96, "BFLOAT16", 4)),
            numpy_helper.from_array(square, "t"),
            numpy_helper.from_array(np.ascontiguousarray(square.T), "u"),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info("z", 1, [3, 96]))
    return model


def outputs(session: Any) -> list[bytes]:
    return [array.tobytes() for array in session.run(None, {"x": X})]


def expected(path: Path) -> list[bytes]:
    return outputs(onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]))


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    """A plain model, and the same packed."""
    path = written(plain(), tmp_path / "m.onnx")
    pack(path, tmp_path / "m.onnxz")
    return path, tmp_path / "m.onnxz"


@pytest.mark.parametrize("make", [plain, overridable, scattered, narrow])
@pytest.mark.parametrize("profile", ["default", "stdlib"])
def test_outputs_are_bit_equal(
    make: Callable[[], onnx.ModelProto], profile: str, tmp_path: Path
) -> None:
    path = written(make(), tmp_path / "m.onnx")
    pack(path, tmp_path / "p.onnxz", profile=profile)
    assert outputs(onnxslim.session(tmp_path / "p.onnxz")) == expected(path)


def test_old_models_that_list_all_weights_as_inputs(tmp_path: Path) -> None:
    model = overridable()
    model.ir_version = 3
    path = written(model, tmp_path / "m.onnx")
    pack(path, tmp_path / "p.onnxz")
    assert outputs(onnxslim.session(tmp_path / "p.onnxz")) == expected(path)


def test_weights_of_several_chunks_and_data_files(tmp_path: Path) -> None:
    model = plain()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight(1, 96, 9000), "w"))
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(weight(2, 9000, 4), "v"))
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    assert (tmp_path / "in" / "m.data").stat().st_size > 3_000_000
    pack(path, tmp_path / "p.onnxz")
    wanted = expected(path)
    (tmp_path / "in" / "m.data").unlink()
    assert outputs(onnxslim.session(tmp_path / "p.onnxz", threads=3)) == wanted
    assert outputs(onnxslim.session(tmp_path / "p.onnxz", threads=1)) == wanted


def test_nothing_is_written(paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[Any, ...]] = []
    watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open":
            writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
            if isinstance(arguments[2], int) and arguments[2] & writes:
                opened.append(arguments)

    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    sys.addaudithook(watch)  # it stays for good, so it is switched off
    session = onnxslim.session(paths[1])
    watching = False
    assert opened == []
    assert outputs(session) == expected(paths[0])


def test_options_reach_the_runtime(paths: tuple[Path, Path]) -> None:
    for path in paths:
        session = onnxslim.session(
            path, intra_op_num_threads=1, config={"session.disable_prepacking": "1"}
        )
        options = session.get_session_options()
        assert options.intra_op_num_threads == 1
        assert options.get_session_config_entry("session.disable_prepacking") == "1"
        with pytest.raises(UsageError, match="no option 'thread_count'"):
            onnxslim.session(path, thread_count=1)
        with pytest.raises(UsageError, match="takes no str"):
            onnxslim.session(path, intra_op_num_threads="many")


def test_a_session_from_a_pack_is_not_opened_again(paths: tuple[Path, Path]) -> None:
    session = onnxslim.session(paths[1])
    with pytest.raises(RuntimeRefusedError, match="name them when"):
        session.set_providers(["CPUExecutionProvider"])
    assert outputs(session) == expected(paths[0])


def test_what_is_damaged_or_no_model_is_refused(paths: tuple[Path, Path], tmp_path: Path) -> None:
    data = bytearray(paths[1].read_bytes())
    data[len(data) // 2] ^= 1
    paths[1].write_bytes(data)
    with pytest.raises(PackError, match="damaged"):
        onnxslim.session(paths[1])
    (tmp_path / "bad.onnx").write_bytes(b"nothing" * 100)
    with pytest.raises(RuntimeRefusedError, match="bad.onnx"):
        onnxslim.session(tmp_path / "bad.onnx")


def test_weights_are_compared_with_their_hash(tmp_path: Path) -> None:
    """A chunk with a right checksum, but of a tensor whose hash says something else."""
    model = plain()
    data = model.SerializeToString()
    raw = model.graph.initializer[0].raw_data
    start = data.index(raw)
    rest = data[:start] + data[start + len(raw) :]
    frames = [(2, 0, 0, len(rest), rest, zlib.crc32(rest)), (3, 0, 0, len(raw), raw, 0)]
    frames[1] = (*frames[1][:5], zlib.crc32(raw))
    for sha, sound in ((hashlib.sha256(raw).digest(), True), (bytes(32), False)):
        whole = hashlib.sha256(data).digest()
        files = [(b"", len(data), whole, [(start, 0)])]
        manifest = manifest_bytes([(len(raw), len(raw), sha)], files)
        (tmp_path / "p.onnxz").write_bytes(packed_by_hand(manifest, frames))
        if sound:
            assert outputs(onnxslim.session(tmp_path / "p.onnxz"))
        else:
            with pytest.raises(PackError, match="does not match its hash"):
                onnxslim.session(tmp_path / "p.onnxz")


def test_a_difference_needs_its_base(tmp_path: Path) -> None:
    old = written(plain(), tmp_path / "old.onnx")
    model = plain()
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(weight(1, 96, 200) * np.float32(1.0001), "w")
    )
    new = written(model, tmp_path / "new.onnx")
    pack(new, tmp_path / "p.onnxz", base=old)
    assert outputs(onnxslim.session(tmp_path / "p.onnxz", base=old)) == expected(new)
    with pytest.raises(PackError, match="--base"):
        onnxslim.session(tmp_path / "p.onnxz")


def test_an_open_pack_reads_what_it_is_asked_for(tmp_path: Path) -> None:
    tensors = [raw_tensor(f"w{n}", 1, [128, 128], normal(1 << 14, seed=n)) for n in range(100)]
    tensors.append(raw_tensor("half", TensorProto.FLOAT16, [3, 5], normal(15, "FLOAT16")))
    pack(written(model_of(tensors), tmp_path / "m.onnx"), tmp_path / "p.onnxz")
    opened = onnxslim.open_packed(tmp_path / "p.onnxz")
    assert opened.names == [tensor.name for tensor in tensors]
    assert (opened.dtype("half"), opened.shape("half")) == ("FLOAT16", (3, 5))
    assert opened.read("w57").tobytes() == tensors[57].raw_data
    assert opened.bytes_read < 0.02 * (tmp_path / "p.onnxz").stat().st_size
    with pytest.raises(PackError, match="no tensor 'other'"):
        opened.shape("other")
    graph = opened.graph()
    assert opened.bytes_read < 0.02 * (tmp_path / "p.onnxz").stat().st_size
    value = graph.graph.initializers["w8"].const_value
    assert value is not None
    assert value.tobytes() == tensors[8].raw_data


def test_a_pack_is_a_source_like_its_model(paths: tuple[Path, Path], tmp_path: Path) -> None:
    plain_path, packed_path = paths
    onnxslim.optimize(plain_path, tmp_path / "a.onnx")
    onnxslim.optimize(packed_path, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert onnxslim.validate(packed_path, tmp_path / "a.onnx").passed
    first, second = onnxslim.inspect(plain_path), onnxslim.inspect(packed_path)
    assert (first.snapshot, first.inputs) == (second.snapshot, second.inputs)


def test_a_pack_without_its_data_file_is_refused_as_a_source(tmp_path: Path) -> None:
    """The model names a data file that the packed file does not hold."""
    tensor = TensorProto(name="w", data_type=1, dims=[2000], data_location=1)
    tensor.external_data.add(key="location", value="gone.bin")
    data = model_of([tensor]).SerializeToString()
    sha = hashlib.sha256(data).digest()
    frames = [(2, 0, 0, len(data), data, zlib.crc32(data))]
    manifest = manifest_bytes([], [(b"", len(data), sha, [])])
    (tmp_path / "p.onnxz").write_bytes(packed_by_hand(manifest, frames))
    opened = onnxslim.open_packed(tmp_path / "p.onnxz")
    with pytest.raises(ModelLoadError, match="'gone.bin' is not in"):
        opened.graph()
    with pytest.raises(ModelLoadError, match="'gone.bin' is not in"):
        onnxslim.session(tmp_path / "p.onnxz")


def test_graph_of_a_model_with_data_files(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    path = tmp_path / "in" / "m.onnx"
    onnx.save(plain(), path, save_as_external_data=True, location="deep/d.bin", size_threshold=0)
    pack(path, tmp_path / "p.onnxz")
    graph = onnxslim.open_packed(tmp_path / "p.onnxz").graph()
    assert isinstance(graph, ir.Model)
    value = graph.graph.initializers["w"].const_value
    assert value is not None
    assert np.array_equal(value.numpy(), weight(1, 96, 200))
