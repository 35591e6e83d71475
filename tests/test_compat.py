"""`onnxslim.slim` and the names that other projects import, called the way they call them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

import onnxslim
from onnxslim import passes, presets, utils
from onnxslim.compat import names
from onnxslim.errors import DemandMissedError, InvalidModelError, UsageError
from onnxslim.pipeline import leaves

TEXT = """<ir_version: 9, opset_import: ["" : 17]>
g (float[N,3,8,8] x) => (float[N,4,8,8] y)
   <float[4,3,1,1] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[4] s = {1,2,1,2}, float[4] b = {0,1,2,3},
    float[4] m = {0,1,0,1}, float[4] v = {1,1,2,2}>
{
  i = Identity (x)
  c = Conv (i, w)
  n = BatchNormalization (c, s, b, m, v)
  y = Relu (n)
}"""

FIXED = """<ir_version: 9, opset_import: ["" : 17]>
g (float[1,3,8,8] a:1, float[1,3,8,8] b) => (float[1,3,8,8] y) {
  s = Add (a:1, b)
  y = Relu (s)
}"""


def model(text: str = TEXT) -> onnx.ModelProto:
    if "a:1" in text:  # the text format has no names with colons
        proto = onnx.parser.parse_model(text.replace("a:1", "a_1"))
        proto.graph.input[0].name = "a:1"
        proto.graph.node[0].input[0] = "a:1"
        return proto
    return onnx.parser.parse_model(text)


def operators(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def run(proto: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


X = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(model(), tmp_path / "in.onnx")
    return tmp_path / "in.onnx"


def test_every_kind_of_source(path: Path) -> None:
    sources = [str(path), path, path.read_bytes(), model(), onnxslim.load(path)]
    results = [onnxslim.slim(source) for source in sources]
    assert all(isinstance(result, onnx.ModelProto) for result in results)
    assert {result.SerializeToString() for result in results} == {results[0].SerializeToString()}
    assert operators(results[0]) == ["Conv", "Relu"]


def test_the_callers_proto_stays(path: Path) -> None:
    proto = model()
    before = proto.SerializeToString()
    onnxslim.slim(proto, dtype="fp16", input_shapes={"x": [1, 3, 8, 8]}, outputs=["c"])
    assert proto.SerializeToString() == before


def test_with_a_target_it_writes_and_returns_none(path: Path, tmp_path: Path) -> None:
    assert onnxslim.slim(path, tmp_path / "a.onnx") is None
    assert onnxslim.slim(str(path), output_model=str(tmp_path / "b.onnx")) is None
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    onnxslim.slim(path, tmp_path / "c.onnx", save_as_external_data=True)
    onnx.checker.check_model(str(tmp_path / "c.onnx"))


def test_a_list_is_compared(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert onnxslim.slim([path, onnxslim.slim(path)]) is None
    printed = capsys.readouterr().out
    assert "BatchNormalization" in printed
    assert "[N,3,8,8]" in printed


def test_dump_to_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    assert onnxslim.slim([path], inspect=True, dump_to_disk=True) is None
    lines = (path.parent / "in.onnx_model_info.csv").read_text().splitlines()
    assert lines[0] == "node,operator,output,dtype,shape"
    assert [line.split(",")[1] for line in lines[1:]] == operators(model())
    with pytest.raises(UsageError, match="list of models"):
        onnxslim.slim(path, dump_to_disk=True)


@pytest.mark.parametrize(
    "given", [{"x": [1, 3, 8, 8]}, {"x": (1, 3, 8, 8)}, ["x:1,3,8,8"], "x:1,3,8,8"]
)
def test_forms_of_input_shapes(given: object) -> None:
    result = onnxslim.slim(model(), input_shapes=given)
    dims = [[size.dim_value for size in face.type.tensor_type.shape.dim] for face in
            (result.graph.input[0], result.graph.output[0])]  # fmt: skip
    assert dims == [[1, 3, 8, 8], [1, 4, 8, 8]]


def test_fixed_dimensions_change_and_names_may_hold_colons() -> None:
    result = onnxslim.slim(model(FIXED), input_shapes=["a:1:1,3,4,4", "b:1,3,4,4"])
    onnx.checker.check_model(result, full_check=True)
    small = X[:1, :, :4, :4]
    np.testing.assert_array_equal(run(result, **{"a:1": small, "b": small})[0],
                                  np.maximum(small + small, 0))  # fmt: skip


def test_a_subgraph_between_values() -> None:
    result = onnxslim.slim(model(), inputs=["c"], outputs=["n"])
    onnx.checker.check_model(result, full_check=True)
    assert [face.name for face in result.graph.input] == ["c"]
    assert [face.name for face in result.graph.output] == ["n"]
    conv = run(onnxslim.slim(model(), outputs=["c"]), x=X)[0]
    whole = run(onnxslim.slim(model(), outputs=["n"]), x=X)[0]
    np.testing.assert_allclose(run(result, c=conv)[0], whole, rtol=1e-5)


def test_types_at_the_cut() -> None:
    result = onnxslim.slim(model(), inputs=["c:fp16"], outputs=["y:fp16"])
    half = onnx.TensorProto.FLOAT16
    faces = [*result.graph.input, *result.graph.output]
    assert [(face.name, face.type.tensor_type.elem_type) for face in faces] == [
        ("c", half),
        ("y", half),
    ]
    assert run(result, c=np.ones((1, 4, 8, 8), np.float16))[0].dtype == np.float16


def test_float16_for_all_and_back() -> None:
    result = onnxslim.slim(model(), dtype="fp16", model_check=True)
    assert result.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    assert all(one.data_type == onnx.TensorProto.FLOAT16 for one in result.graph.initializer)
    expected = run(model(), x=X)[0]
    got = run(result, x=X.astype(np.float16))[0]
    assert np.abs(got.astype(np.float32) - expected).max() < 5e-3 * np.abs(expected).max()
    back = onnxslim.slim(result, dtype="fp32")
    assert back.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert np.abs(run(back, x=X)[0] - expected).max() < 5e-3 * np.abs(expected).max()


def test_float16_that_overflows_is_not_returned(path: Path, tmp_path: Path) -> None:
    text = TEXT.replace(
        "y = Relu (n)", "k = Constant <value = float {60000.0}> ()\n y = Mul (n, k)"
    )
    with pytest.raises(DemandMissedError, match="leaves the range"):
        onnxslim.slim(onnx.parser.parse_model(text), tmp_path / "o.onnx", dtype="fp16")
    assert not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_chek": True}, "did you mean model_check"),
        ({"dtype": "uint8"}, "want fp16 or fp32"),
        ({"skip_optimizations": ["constant_fold"]}, "did you mean constant_folding"),
        ({"skip_fusion_patterns": ["FusionConvBn"]}, "did you mean FusionConvBN"),
        ({"input_shapes": ["x"]}, "NAME:1,3,224,224"),
        ({"input_shapes": {"z": [1]}}, "no input is called 'z'"),
        ({"input_shapes": {"x": [1]}}, "4 dimensions, 1 given"),
        ({"inputs": ["q"]}, "no value of the main graph is called 'q'"),
        ({"inputs": ["y"], "outputs": ["c"]}, "the outputs still need 'x'"),
        ({"model_check_inputs": ["x"]}, "NAME:file.npy"),
        ({"model_check_inputs": {"z": [1]}}, "no input is called 'z'"),
    ],
)
def test_wrong_calls_say_what_is_wrong(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        onnxslim.slim(model(), **options)


def test_model_check_is_a_demand(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    for given in ([f"x:{tmp_path / 'x.npy'}"], {"x": X}, ["x:5,3,8,8"]):
        onnxslim.slim(model(), model_check=True, model_check_inputs=given)
    unknown = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17, "com.example" : 1]>\n'
        "g (float[2] x) => (float[2] y) { y = com.example.Unknown (x) }"
    )
    assert onnxslim.slim(unknown) is not None
    with pytest.raises(DemandMissedError, match="model check: not-run"):
        onnxslim.slim(unknown, tmp_path / "o.onnx", model_check=True)
    assert not (tmp_path / "o.onnx").exists()


def test_failures_are_failures() -> None:
    broken = model()
    broken.graph.node[1].input[0] = "missing"
    with pytest.raises(InvalidModelError):
        onnxslim.slim(broken)


def test_what_is_skipped() -> None:
    everything = list(names.OPTIMIZATIONS)
    left = onnxslim.slim(model(), skip_optimizations=everything)
    assert operators(left) == operators(model())
    assert "BatchNormalization" in operators(
        onnxslim.slim(model(), skip_fusion_patterns=["FusionConvBN"])
    )
    assert operators(onnxslim.slim(model(), no_shape_infer=True)) == ["Conv", "Relu"]


def test_size_threshold_in_bytes() -> None:
    numbers = ",".join(map(str, range(64)))
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17]>\n'
        f"g (float[64] x) => (float[64] y) {{ a = Constant <value = float[64] {{{numbers}}}> ()\n"
        " b = Neg (a)\n y = Add (x, b) }"
    )
    assert operators(onnxslim.slim(proto, size_threshold=256)) == ["Add"]
    assert operators(onnxslim.slim(proto, size_threshold=255)) == ["Neg", "Add"]
    assert operators(onnxslim.slim(proto)) == ["Add"]


def test_every_name_leads_to_passes_of_the_default_preset() -> None:
    held = {step.name for step in leaves(presets.build("default"))}
    for name, entries in {**names.OPTIMIZATIONS, **names.FUSION_PATTERNS}.items():
        for entry in entries:
            assert entry.endswith("-") or entry in passes.REGISTRY, name
            assert any(one.startswith(entry) for one in held), name


def test_utils_sum_up_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = utils.summarize_model(model(), "before")
    assert (info.tag, info.op_set, info.ir_version) == ("before", "17", "9")
    assert info.op_type_counts["Conv"] == 1
    assert info.model_size == 4 * (12 + 16)
    assert info.input_maps["x"].shape == ("N", 3, 8, 8)
    assert info.output_maps["y"].dtype == np.float32
    utils.print_model_info_as_table([info, utils.summarize_model(onnxslim.slim(model()))], 1.5)
    assert "1.50 s" in capsys.readouterr().out
    feed, outputs, _ = utils.check_onnx(model(), ["x:2,3,8,8"])
    assert feed["x"].shape == (2, 3, 8, 8)
    again, _ = utils.onnxruntime_inference(onnxslim.slim(model()), feed)
    assert utils.check_result(outputs, again)
    assert not utils.check_result(outputs, {"y": again["y"] + 1})
    assert not utils.check_result(outputs, {"z": again["y"]})
    utils.save(model(), tmp_path / "saved.onnx", model_check=True)
    assert operators(onnx.load(tmp_path / "saved.onnx")) == operators(model())


def test_start_up_leaves_the_algebra_library_out_and_gives_the_real_one_afterwards() -> None:
    code = (
        "import sys, onnxslim\n"
        "onnxslim.optimize\n"
        "assert 'onnx_ir' in sys.modules and 'sympy' not in sys.modules\n"
        "import onnx_ir\n"
        "dim = onnx_ir.SymbolicDim('N') + 1\n"
        "assert str(dim.value).replace(' ', '') in ('N+1', '1+N'), dim\n"
        "import sympy\n"
        "assert sympy.Max(1, 2) == 2\n"
        "assert (onnx_ir.SymbolicDim('max(A, B)') * 2).value\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_patterns_are_listed_in_the_documentation() -> None:
    page = Path(__file__).resolve().parent.parent / "docs" / "compatibility.md"
    text = page.read_text(encoding="utf-8")
    for name, entries in names.FUSION_PATTERNS.items():
        shown = ", ".join(f"`{entry}`" for entry in entries)
        assert f"| {name} | {shown or 'none: no pass makes this rewrite'} |" in text
    for name in names.OPTIMIZATIONS:
        assert f"`{name}`" in text
