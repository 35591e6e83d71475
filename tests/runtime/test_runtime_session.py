"""Opening and running models in onnxruntime."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graph_check import parse

from onnxslim.errors import RuntimeRefusedError
from onnxslim.runtime.reference import ReferenceSession
from onnxslim.runtime.session import open_session
from onnxslim.runtime.specs import InputSpec, input_specs

SUM = """agraph (float[N, 3] x, float[?, 3] y) => (float[N, 3] z) { z = Add(x, y) }"""


def proto_bytes(text: str) -> bytes:
    return ir.to_proto(parse(text)).SerializeToString()


def test_runs_a_graph_in_memory():
    session = open_session(parse(SUM), optimize=False)
    (z,) = session.run({"x": np.ones((2, 3), np.float32), "y": np.full((1, 3), 2, np.float32)})
    np.testing.assert_array_equal(z, np.full((2, 3), 3, np.float32))
    assert session.output_names == ["z"]
    assert session.inputs == [
        InputSpec("x", ir.DataType.FLOAT, ("N", 3)),
        InputSpec("y", ir.DataType.FLOAT, (None, 3)),
    ]


def test_opens_bytes_and_paths(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(proto_bytes(SUM))
    feed = {"x": np.ones((1, 3), np.float32), "y": np.ones((1, 3), np.float32)}
    for source in (proto_bytes(SUM), path, str(path)):
        assert open_session(source, optimize=True).run(feed)[0].tolist() == [[2, 2, 2]]


def test_large_weights_stay_in_the_file(tmp_path):
    from onnxslim.io import load, runtime_proto

    weight = np.random.default_rng(0).standard_normal((300, 300)).astype(np.float32)
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 17]>'
        "agraph (float[N, 300] x) => (float[N, 300] y) { y = MatMul(x, w) }"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    model = load(path)
    assert len(runtime_proto(model)[0]) < weight.nbytes // 10
    x = np.random.default_rng(1).standard_normal((2, 300)).astype(np.float32)
    for optimize in (False, True):
        from_graph = open_session(model, optimize=optimize).run({"x": x})[0]
        from_file = open_session(path, optimize=optimize).run({"x": x})[0]
        np.testing.assert_array_equal(from_graph, from_file)
        np.testing.assert_allclose(from_graph, x @ weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8e4m3fn"])
def test_element_types_that_numpy_lacks(dtype):
    target = ir.DataType[dtype.upper()]
    text = f"""agraph ({dtype}[3] x, float[2] f) => ({dtype}[3] y, float[2] g) {{
      y = Identity(x)
      g = Relu(f)
    }}"""
    proto = ir.to_proto(parse(text))
    proto.opset_import[0].version = 21
    session = open_session(proto.SerializeToString(), optimize=False)
    x = np.array([1, -2, 0.5], np.float32).astype(target.numpy())
    y, g = session.run({"x": x, "f": np.array([-1, 1], np.float32)})
    assert y.dtype == target.numpy()
    assert y.astype(np.float32).tolist() == [1, -2, 0.5]
    assert g.tolist() == [0, 1]


def test_outputs_of_four_bits_are_unpacked():
    proto = ir.to_proto(parse("agraph (float[5] x) => (int4[5] y) { y = Cast<to = 22>(x) }"))
    proto.opset_import[0].version = 21
    session = open_session(proto.SerializeToString(), optimize=False)
    (y,) = session.run({"x": np.array([-8, -1, 0, 3, 7], np.float32)})
    assert y.astype(np.int32).tolist() == [-8, -1, 0, 3, 7]


def test_sequences_and_strings():
    session = open_session(
        parse(
            """agraph (seq(float[N]) s, string[2] t) => (float[N] y, seq(float[N]) z, string[2] u) {
              i = Constant<value_int = 1>()
              y = SequenceAt(s, i)
              z = SequenceErase(s, i)
              u = Identity(t)
            }"""
        ),
        optimize=False,
    )
    arrays = [np.zeros(2, np.float32), np.ones(2, np.float32)]
    y, z, u = session.run({"s": arrays, "t": np.array(["a", "ü"], object)})
    assert y.tolist() == [1, 1]
    assert [item.tolist() for item in z] == [[0, 0]]
    assert u.tolist() == ["a", "ü"]
    assert [spec.kind for spec in session.inputs] == ["sequence", "tensor"]


def test_a_model_that_does_not_open_is_one_line():
    with pytest.raises(RuntimeRefusedError, match="cannot open") as caught:
        open_session(b"not a model", optimize=False)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(RuntimeRefusedError, match=r"missing\.onnx"):
        open_session(tmp_path / "missing.onnx", optimize=False)


@pytest.mark.parametrize(
    ("feed", "what"),
    [
        ({"x": np.ones((1, 3), np.float32)}, "y"),
        ({"x": np.ones((1, 4), np.float32), "y": np.ones((1, 3), np.float32)}, "Expected: 3"),
        ({"x": np.ones((1, 3), np.float64), "y": np.ones((1, 3), np.float32)}, "double"),
    ],
)
def test_feeds_that_do_not_fit_are_one_line(feed, what):
    session = open_session(parse(SUM), optimize=False)
    with pytest.raises(RuntimeRefusedError, match=what) as caught:
        session.run(feed)
    assert "\n" not in str(caught.value)


def test_the_reference_evaluator_gives_the_same():
    feed = {"x": np.ones((2, 3), np.float32), "y": np.full((1, 3), 2, np.float32)}
    session = ReferenceSession(parse(SUM))
    assert session.output_names == ["z"]
    np.testing.assert_array_equal(
        session.run(feed)[0], open_session(parse(SUM), optimize=False).run(feed)[0]
    )


def test_the_reference_evaluator_refuses_in_one_line():
    session = ReferenceSession(parse(SUM))
    with pytest.raises(RuntimeRefusedError, match="reference evaluator") as caught:
        session.run({})
    assert "\n" not in str(caught.value)


def test_the_reference_evaluator_leaves_large_models_alone(monkeypatch):
    monkeypatch.setattr("onnxslim.runtime.reference.MAX_BYTES", 3)
    with pytest.raises(RuntimeRefusedError, match="too large"):
        ReferenceSession(
            parse("agraph (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(x, w) }")
        )


def test_specs_of_a_graph():
    model = parse(
        """agraph (float[N, ?, 3] x, string t, seq(int64[2]) s, optional(float16[1]) o, float[2] d)
           => (float[N, ?, 3] y) <float[2] d = {1, 2}> { y = Relu(x) }"""
    )
    specs = {spec.name: spec for spec in input_specs(model)}
    assert specs["x"].shape == ("N", None, 3)
    assert str(specs["x"]) == "x float32 [N, ?, 3]"
    assert str(specs["t"]) == "t string []"
    assert (specs["s"].kind, specs["s"].dtype) == ("sequence", ir.DataType.INT64)
    assert (specs["o"].kind, specs["o"].dtype) == ("optional", ir.DataType.FLOAT16)
    assert [name for name, spec in specs.items() if not spec.required] == ["d"]


def test_a_loop_that_never_ends_is_broken_off():
    session = open_session(
        parse(
            """agraph (float x) => (float y) {
              go = Constant<value = bool {1}>()
              y = Loop(, go, x) <body = b (int64 i, bool c, float v) => (bool d, float w) {
                d = Identity(c)
                w = Identity(v)
              }>
            }"""
        ),
        optimize=False,
    )
    with pytest.raises(RuntimeRefusedError, match="did not end within"):
        session.run({"x": np.float32(1)}, limit=0.2)
