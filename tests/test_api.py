"""The Python interface: every kind of source and target, feeds, plugins, what is refused."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import onnxslim
from onnxslim.errors import DataError, ModelLoadError, UsageError

TEXT = """<ir_version: 9, opset_import: ["" : 17]>
g (float[N,4] x) => (float[N,4] y) {
  h = Identity (x)
  y = Relu (h)
}"""


@pytest.fixture
def proto() -> onnx.ModelProto:
    return onnx.parser.parse_model(TEXT)


def test_every_kind_of_source(proto: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    path.write_bytes(proto.SerializeToString())
    sources = [path, str(path), proto, proto.SerializeToString(), ir.from_proto(proto)]
    with path.open("rb") as file:
        sources.append(file)
        for source in sources:
            result = onnxslim.optimize(source)
            assert [node.op_type for node in result.model.graph] == ["Relu"]
            assert result.report.validation["status"] == "passed"
            assert result.report.target is None


def test_targets(proto: onnx.ModelProto, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    onnxslim.optimize(proto, buffer)
    onnxslim.optimize(proto, tmp_path / "out.onnx")
    assert buffer.getvalue() == (tmp_path / "out.onnx").read_bytes()


def test_slim_returns_a_proto_and_leaves_the_callers_alone(proto: onnx.ModelProto) -> None:
    before = proto.SerializeToString()
    slim = onnxslim.slim(proto)
    assert proto.SerializeToString() == before
    assert [node.op_type for node in slim.graph.node] == ["Relu"]
    onnx.checker.check_model(slim)


def test_slim_writes_a_file(proto: onnx.ModelProto, tmp_path: Path) -> None:
    assert onnxslim.slim(proto, tmp_path / "out.onnx") is None
    assert len(onnx.load(tmp_path / "out.onnx").graph.node) == 1


def test_given_feeds(proto: onnx.ModelProto, tmp_path: Path) -> None:
    np.savez(tmp_path / "feeds.npz", x=np.ones((5, 4), np.float32))
    result = onnxslim.optimize(proto, feeds=tmp_path / "feeds.npz")
    assert result.report.validation["status"] == "passed"
    np.savez(tmp_path / "wrong.npz", z=np.ones((5, 4), np.float32))
    with pytest.raises(DataError, match="x"):
        onnxslim.optimize(proto, feeds=tmp_path / "wrong.npz")


def test_pack_and_unpack(proto: onnx.ModelProto, tmp_path: Path) -> None:
    onnxslim.optimize(proto, tmp_path / "out.onnxz")
    onnxslim.unpack(tmp_path / "out.onnxz", tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == onnxslim.slim(proto).SerializeToString()
    again = onnxslim.optimize(tmp_path / "out.onnxz")
    assert again.report.validation["status"] == "passed"


def test_validate(proto: onnx.ModelProto) -> None:
    other = onnx.parser.parse_model(TEXT.replace("Relu", "Abs"))
    assert onnxslim.validate(proto, onnxslim.slim(proto)).status == "passed"
    assert onnxslim.validate(proto, other).status == "failed"


def test_inspect(proto: onnx.ModelProto, tmp_path: Path) -> None:
    onnxslim.save(onnxslim.load(proto), tmp_path / "m.onnx")
    inspection = onnxslim.inspect(tmp_path / "m.onnx")
    assert inspection.snapshot.operators == {"Identity": 1, "Relu": 1}
    assert inspection.snapshot.file_bytes == (tmp_path / "m.onnx").stat().st_size


def test_no_graph_is_no_model() -> None:
    with pytest.raises(ModelLoadError):
        onnxslim.optimize(onnx.ModelProto())


def test_input_shapes(proto: onnx.ModelProto) -> None:
    result = onnxslim.optimize(proto, input_shapes={"x": [2, 4]})
    assert list(result.model.graph.inputs[0].shape) == [2, 4]
    for shapes, words in (
        ({"x": [2]}, "has 2 dimensions, 1 given"),
        ({"x": [2, 5]}, "contradicts"),
        ({"q": [2]}, "no input is called 'q'"),
    ):
        with pytest.raises(UsageError, match=words):
            onnxslim.optimize(proto, input_shapes=shapes)


def test_quantization_without_data_says_what_is_needed(proto: onnx.ModelProto) -> None:
    with pytest.raises(DataError, match="x"):
        onnxslim.optimize(proto, quantization=onnxslim.Quantization(None))


def test_output_does_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    model = tmp_path / "in.onnx"
    model.write_bytes(onnx.parser.parse_model(TEXT).SerializeToString())
    program = f"import onnxslim; onnxslim.optimize({str(model)!r}, {str(tmp_path)!r} + '/o' + '%s')"
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", program % seed],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(onnxslim.__file__).parents[1])},
            check=True,
        )
    assert (tmp_path / "o1").read_bytes() == (tmp_path / "o2").read_bytes()


def test_passes_of_other_packages(tmp_path: Path, proto: onnx.ModelProto, monkeypatch) -> None:
    (tmp_path / "plugin_module.py").write_text(
        textwrap.dedent(
            """
            from dataclasses import dataclass
            from typing import ClassVar
            from onnxslim.ir.edit import bypass
            from onnxslim.pipeline import Exactness, Pass, PassResult

            @dataclass(frozen=True)
            class DropIdentities(Pass):
                name: ClassVar[str] = "plugin-drop-identities"
                exactness: ClassVar[Exactness] = Exactness.EXACT

                def run(self, model, context):
                    done = 0
                    for node in list(model.graph):
                        if node.op_type == "Identity" and context.allow(self, node.outputs[0].name):
                            bypass(node, node.inputs[0])
                            done += 1
                    return PassResult(done)
            """
        )
    )
    info = tmp_path / "plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[onnxslim.passes]\nplugin-drop-identities = plugin_module:DropIdentities\n"
        "plugin-broken = plugin_module:Nothing\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    result = onnxslim.optimize(proto, passes=["plugin-drop-identities"])
    assert [entry.pass_name for entry in result.report.rewrites] == ["plugin-drop-identities"]
    with pytest.raises(UsageError, match="does not load"):
        onnxslim.optimize(proto, passes=["plugin-broken"])


def test_public_functions_are_not_hidden_by_rooms_of_the_same_name() -> None:
    code = (
        "import onnxslim, onnxslim.api, onnxslim.packing, onnxslim.cli.app\n"
        "bad = [n for n in onnxslim.__all__ if type(getattr(onnxslim, n)).__name__ == 'module']\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_zeroed_channels_go_from_weights_beyond_two_gigabytes(tmp_path: Path) -> None:
    first = np.random.default_rng(0).standard_normal((32, 4, 3, 3), dtype=np.float32)
    first[16:] = 0
    second = np.random.default_rng(1).standard_normal((8, 32, 1, 1), dtype=np.float32)
    text = """<ir_version: 9, opset_import: ["" : 17]>
    g (float[n,4,8,8] x) => (float[n,8,h,w] y) {
        c = Conv <pads = [1,1,1,1]> (x, w1)
        r = Relu (c)
        y = Conv (r, w2)
    }"""
    proto = onnx.parser.parse_model(text)
    offset = 2**31 + 4096
    with (tmp_path / "weights.bin").open("wb") as file:  # sparse: nothing before the weights
        for name, content in (("w1", first), ("w2", second)):
            file.seek(offset)
            file.write(content.tobytes())
            tensor = proto.graph.initializer.add(name=name, dims=content.shape)
            tensor.data_type = onnx.TensorProto.FLOAT
            tensor.data_location = onnx.TensorProto.EXTERNAL
            place = {"location": "weights.bin", "offset": offset, "length": content.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            offset += content.nbytes
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    pruned = onnxslim.prune(tmp_path / "model.onnx", tmp_path / "small.onnx", align=1)
    assert pruned.report.validation["status"] == "passed"
    small = onnx.load(tmp_path / "small.onnx")
    assert [list(one.dims) for one in small.graph.initializer] == [[16, 4, 3, 3], [8, 16, 1, 1]]
