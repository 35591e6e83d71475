"""Nothing a model holds is lost from load to save."""

from __future__ import annotations

import io as stdio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]
from onnx import TensorProto, helper, numpy_helper

from onnxslim import io
from onnxslim.io.extras import unknown_fields
from onnxslim.io.wire import field_bytes

UNKNOWN = field_bytes(777, b"kept") + field_bytes(778, b"x" * 40)
LARGE = np.arange(600, dtype=np.float32)


def simple(**changes: object) -> onnx.ModelProto:
    """Add, Relu; one large and one small initializer."""
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "w"], ["y"], name="add"),
            helper.make_node("Mul", ["y", "s"], ["m"]),
            helper.make_node("Relu", ["m"], ["z"], name="add"),
        ],
        "g",
        [helper.make_tensor_value_info("x", kind, ["batch", 600])],
        [helper.make_tensor_value_info("z", kind, ["batch", 600])],
        [
            numpy_helper.from_array(LARGE, "w"),
            numpy_helper.from_array(np.array([2], np.float32), "s"),
        ],
        value_info=[helper.make_tensor_value_info("y", kind, ["batch", 600])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for name, value in changes.items():
        setattr(model, name, value)
    return model


def branch(name: str, *nodes: onnx.NodeProto, initializers: list[TensorProto]) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), name, [], [output], initializers)


def with_subgraphs() -> onnx.ModelProto:
    model = simple()
    deep = branch(
        "deep",
        helper.make_node("Add", ["m", "c"], ["deep_out"]),
        initializers=[numpy_helper.from_array(LARGE + 1, "c")],
    )
    then = branch(
        "then",
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(LARGE * 2, "kk")),
        helper.make_node("If", ["cond"], ["i"], then_branch=deep, else_branch=deep),
        helper.make_node("Add", ["i", "k"], ["then_out"]),
        initializers=[],
    )
    other = branch("else", helper.make_node("Neg", ["m"], ["else_out"]), initializers=[])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "cond"))
    node = helper.make_node("If", ["cond"], ["out"], then_branch=then, else_branch=other)
    node.attribute[0].doc_string = "the then branch"
    model.graph.node.append(node)
    model.graph.output.append(helper.make_tensor_value_info("out", TensorProto.FLOAT, None))
    then.doc_string = "unused copy"
    return model


def with_sparse_initializer() -> onnx.ModelProto:
    model = simple()
    values = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "sp")
    indices = numpy_helper.from_array(np.array([0, 5, 9], np.int64), "")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [600]))
    model.graph.node.insert(0, helper.make_node("Add", ["x", "sp"], ["spx"]))
    model.graph.output.append(helper.make_tensor_value_info("spx", TensorProto.FLOAT, None))
    # also read from a subgraph, which has to find it in the outer scope
    inner = branch("b", helper.make_node("Neg", ["sp"], ["n"]), initializers=[])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "cond"))
    node = helper.make_node("If", ["cond"], ["o"], then_branch=inner, else_branch=inner)
    model.graph.node.append(node)
    return model


def with_sparse_constant() -> onnx.ModelProto:
    model = simple()
    values = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "")
    indices = numpy_helper.from_array(np.array([0, 5, 9], np.int64), "")
    sparse = helper.make_sparse_tensor(values, indices, [600])
    model.graph.node.append(helper.make_node("Constant", [], ["sc"], sparse_value=sparse))
    return model


def with_training_info() -> onnx.ModelProto:
    model = simple()
    info = model.training_info.add()
    info.algorithm.name = "step"
    info.algorithm.initializer.append(numpy_helper.from_array(LARGE, "t"))
    info.algorithm.node.append(helper.make_node("Relu", ["t"], ["u"]))
    info.update_binding.add(key="w", value="u")
    return model


def with_words() -> onnx.ModelProto:
    """Doc strings, metadata, denotations, quantization annotations at every level."""
    model = simple(
        producer_name="maker",
        producer_version="1.2",
        domain="org.example",
        model_version=7,
        doc_string="model doc",
    )
    graph = model.graph
    things = [model, graph, graph.node[0], graph.initializer[0], graph.initializer[1]]
    for number, thing in enumerate([*things, graph.input[0], graph.output[0], graph.value_info[0]]):
        thing.doc_string = f"doc {number}"
        thing.metadata_props.add(key="a", value=f"value {number}")
        thing.metadata_props.add(key="b", value="")
    graph.input[0].type.denotation = "IMAGE"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    for name in ("x", "w", "y", "z", "no such value"):
        annotation = graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    graph.node[1].attribute.append(helper.make_attribute("a", 1.5, doc_string="attribute doc"))
    return model


def with_functions() -> onnx.ModelProto:
    model = simple(ir_version=10)
    model.opset_import.append(helper.make_opsetid("local", 1))
    for overload in ("", "big"):
        constant = helper.make_node(
            "Constant", [], ["c"], value=numpy_helper.from_array(LARGE, "inside")
        )
        node = helper.make_node("Elu", ["a"], ["b"])
        node.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
        function = helper.make_function(
            "local",
            "F",
            ["a"],
            ["d"],
            [constant, node, helper.make_node("Add", ["b", "c"], ["d"])],
            [helper.make_opsetid("", 17)],
            ["needed"],
            [helper.make_attribute("slope", 0.5)],
            overload=overload or None,
            doc_string="function doc",
        )
        function.metadata_props.add(key="k", value="v")
        function.attribute_proto.append(
            helper.make_attribute("table", numpy_helper.from_array(LARGE * 3, "default"))
        )
        function.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [600]))
        model.functions.append(function)
        call = helper.make_node("F", ["x"], [f"f{overload}"], domain="local", needed=1)
        if overload:
            call.overload = overload
        model.graph.node.append(call)
    return model


def with_unknown_fields() -> onnx.ModelProto:
    model = with_functions()
    graph = model.graph
    constant = helper.make_node("Constant", [], ["u"], value=numpy_helper.from_array(LARGE, "n"))
    graph.node.append(constant)
    then = branch("t", helper.make_node("Neg", ["m"], ["no"]), initializers=[])
    then.MergeFromString(UNKNOWN)
    graph.initializer.append(numpy_helper.from_array(np.array(True), "cond"))
    graph.initializer.append(helper.make_tensor("text", TensorProto.STRING, [1], [b"a"]))
    node = helper.make_node("If", ["cond"], ["o"], then_branch=then, else_branch=then)
    graph.node.append(node)
    for thing in (
        model,
        graph,
        graph.node[0],
        graph.node[-2],
        graph.node[-2].attribute[0],
        graph.node[-2].attribute[0].t,
        graph.initializer[0],
        graph.initializer[1],
        graph.initializer[-1],
        graph.input[0],
        graph.input[0].type,
        graph.output[0],
        graph.value_info[0],
        model.functions[0],
        model.functions[0].node[1],
        model.functions[1].value_info[0],
    ):
        thing.MergeFromString(UNKNOWN)
    # every wire type, and a group
    model.MergeFromString(b"\x80\x7d\x05\x85\x7d\x01\x02\x03\x04\x81\x7d" + b"12345678")
    model.MergeFromString(b"\x83\x7d\x08\x07\x84\x7d")
    return model


def with_odd_types() -> onnx.ModelProto:
    """Maps, opaque types, sequences, optionals, sparse types, no type, no shape."""
    model = simple()
    types = {name: onnx.TypeProto() for name in ("map", "seq_map", "opaque", "opt", "sparse")}
    types["map"].map_type.key_type = TensorProto.INT64
    types["map"].map_type.value_type.tensor_type.elem_type = TensorProto.FLOAT
    types["seq_map"].sequence_type.elem_type.CopyFrom(types["map"])
    types["opaque"].opaque_type.domain = "d"
    types["opt"].optional_type.elem_type.sequence_type.elem_type.tensor_type.elem_type = 1
    types["sparse"].sparse_tensor_type.elem_type = 1
    types["sparse"].sparse_tensor_type.shape.dim.add(dim_param="n")
    for name, kind in types.items():
        model.graph.input.append(helper.make_value_info(f"{name}_in", kind))
        node = helper.make_node("Odd", [f"{name}_in"], [name, f"{name}_inner"], domain="odd")
        node.attribute.append(helper.make_attribute("tp", kind))
        model.graph.node.append(node)
        model.graph.value_info.append(helper.make_value_info(f"{name}_inner", kind))
        model.graph.output.append(helper.make_value_info(name, kind))
    model.opset_import.append(helper.make_opsetid("odd", 3))
    model.graph.input.append(helper.make_tensor_value_info("scalar", TensorProto.FLOAT, []))
    model.graph.input.append(helper.make_tensor_value_info("unranked", TensorProto.FLOAT, None))
    model.graph.input.append(
        helper.make_tensor_value_info("free", TensorProto.FLOAT, [None, "", 0])
    )
    return model


def with_odd_attributes() -> onnx.ModelProto:
    model = simple()
    node = helper.make_node("Odd", ["", "x", ""], ["", "odd", ""], domain="odd")
    add = node.attribute.add
    kinds = onnx.AttributeProto
    add(name="bytes", type=kinds.STRING, s=b"\xff\x00")
    add(name="many bytes", type=kinds.STRINGS, strings=[b"\xff", b"a"])
    add(name="untyped", i=5)
    add(name="empty ints", type=kinds.INTS)
    add(name="inf", type=kinds.FLOAT, f=float("inf"))
    add(name="floats", type=kinds.FLOATS, floats=[0.1, -0.0])
    add(name="tensors", type=kinds.TENSORS).tensors.append(numpy_helper.from_array(LARGE, "a"))
    add(name="graphs", type=kinds.GRAPHS).graphs.append(
        branch("b", helper.make_node("Neg", ["x"], ["q"]), initializers=[])
    )
    add(name="int", type=kinds.INT, i=-(2**62))
    node.attribute.append(helper.make_attribute("types", [onnx.TypeProto()] * 2))
    node.attribute[-1].type_protos[0].map_type.key_type = 7
    model.graph.node.append(node)
    return model


def with_overridable_initializer() -> onnx.ModelProto:
    model = simple(ir_version=3)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [600]))
    model.graph.output.append(model.graph.input[0])  # an input that is an output, declared ...
    model.graph.output[-1].type.tensor_type.shape.dim[0].dim_param = "otherwise"
    model.graph.output.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [1]))
    return model


def with_described_initializers() -> onnx.ModelProto:
    model = simple()
    model.graph.value_info.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, ["k"]))
    return model


def unsorted() -> onnx.ModelProto:
    model = simple()
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    return model


def with_devices() -> onnx.ModelProto:
    model = simple(ir_version=11)
    model.configuration.add(name="two", num_devices=2, device=["a", "b"])
    placed = model.graph.node[0].device_configurations.add(configuration_id="two")
    placed.pipeline_stage = 1
    placed.sharding_spec.add(tensor_name="w", device=[0, 1]).sharded_dim.add(axis=0)
    return model


MODELS: list[Callable[[], onnx.ModelProto]] = [
    simple,
    with_subgraphs,
    with_sparse_initializer,
    with_sparse_constant,
    with_training_info,
    with_words,
    with_functions,
    with_unknown_fields,
    with_odd_types,
    with_odd_attributes,
    with_overridable_initializer,
    with_described_initializers,
    unsorted,
    with_devices,
]


def normal(model: onnx.ModelProto) -> onnx.ModelProto:
    """Sort what has no order in the format."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for holder in (model.graph, *model.functions):
        infos = sorted(holder.value_info, key=lambda info: info.name)
        del holder.value_info[:]
        holder.value_info.extend(infos)
    notes = sorted(model.graph.quantization_annotation, key=lambda note: note.tensor_name)
    del model.graph.quantization_annotation[:]
    model.graph.quantization_annotation.extend(notes)
    return model


def _lines(model: onnx.ModelProto) -> list[str]:
    text: str = text_format.MessageToString(model, print_unknown_fields=True)
    return [line for line in text.split("\n") if "raw_data" not in line]


def assert_same(left: onnx.ModelProto, right: onnx.ModelProto) -> None:
    left, right = normal(left), normal(right)
    assert _lines(left) == _lines(right)
    assert left == right
    # == ignores nothing, but say so in bytes as well: unknown fields, presence of empty strings
    assert left.SerializeToString(deterministic=True) == right.SerializeToString(deterministic=True)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("way", ["path", "bytes", "file", "stream", "proto", "ir"])
def test_round_trip(make: Callable[[], onnx.ModelProto], way: str, tmp_path: Path) -> None:
    proto = make()
    data = proto.SerializeToString()
    path = tmp_path / "in.onnx"
    path.write_bytes(data)
    if way == "path":
        model = io.load(path)
    elif way == "bytes":
        model = io.load(data)
    elif way == "file":
        with path.open("rb") as file:
            model = io.load(file)
    elif way == "stream":
        model = io.load(stdio.BytesIO(data))
    elif way == "proto":
        model = io.load(proto)
    else:
        model = io.load(io.load(path))
    target = tmp_path / "out.onnx"
    expected = io.total_bytes(model)
    saved = io.save(model, target)
    assert saved == io.SavedFiles((str(target.resolve()),), expected)
    assert target.stat().st_size == expected
    assert_same(onnx.load(target), proto)
    assert path.read_bytes() == data == proto.SerializeToString()


@pytest.mark.parametrize("make", MODELS)
def test_round_trip_with_external_data(make: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    proto = make()
    (tmp_path / "in.onnx").write_bytes(proto.SerializeToString())
    saved = io.save(io.load(tmp_path / "in.onnx"), tmp_path / "out.onnx", external_data=True)
    assert [Path(path).name for path in saved.paths] == ["out.onnx", "out.onnx.data"]
    assert sum(Path(path).stat().st_size for path in saved.paths) == saved.bytes
    assert (tmp_path / "out.onnx.data").stat().st_size >= LARGE.nbytes
    io.save(io.load(tmp_path / "out.onnx"), tmp_path / "back.onnx")
    assert_same(onnx.load(tmp_path / "back.onnx"), proto)


def test_unknown_fields_survive_by_level() -> None:
    """The comparison above would be blind if protobuf dropped them itself."""
    stream = stdio.BytesIO()
    io.save(io.load(with_unknown_fields().SerializeToString()), stream)
    saved = onnx.ModelProto.FromString(stream.getvalue())
    assert unknown_fields(saved).startswith(UNKNOWN)
    assert b"\x83\x7d\x08\x07\x84\x7d" in unknown_fields(saved)
    for thing in (saved.graph, saved.graph.node[0], saved.graph.initializer[0]):
        assert unknown_fields(thing) == UNKNOWN


def test_a_loaded_ir_model_is_not_touched() -> None:
    original = io.load(with_functions().SerializeToString())
    before = original.graph.num_nodes()
    copy = io.load(original)
    copy.graph.remove(list(copy.graph)[-1])
    copy.graph.initializers["w"].name = "renamed"
    assert original.graph.num_nodes() == before
    assert "w" in original.graph.initializers
    assert copy is not original


def test_sparse_initializer_as_the_passes_see_it() -> None:
    model = io.load(with_sparse_initializer().SerializeToString())
    value = next(iter(model.graph)).inputs[1]
    assert value is not None
    assert io.is_opaque_initializer(value)
    assert value.producer() is None
    assert not value.is_graph_input()
    assert value.const_value is None
    assert model.graph.initializers["sp"] is value
    assert value.shape == ir.Shape([600])
    inner = list(model.graph)[-1].attributes["then_branch"].as_graph()
    assert inner[0].inputs[0] is value
    # a pass that drops the value drops the tensor
    clone = model.clone()
    assert io.is_opaque_initializer(clone.graph.initializers["sp"])


def test_sparse_constants_differ_in_value() -> None:
    """Common subexpression elimination compares attribute values."""
    left, right = (
        next(n for n in io.load(m).graph if n.op_type == "Constant").attributes["sparse_value"]
        for m in (with_sparse_constant().SerializeToString(), with_sparse_constant())
    )
    assert left.type == ir.AttributeType.SPARSE_TENSOR
    assert left.value == right.value
    changed = with_sparse_constant()
    changed.graph.node[-1].attribute[0].sparse_tensor.dims[0] = 601
    other = next(n for n in io.load(changed).graph if n.op_type == "Constant")
    assert other.attributes["sparse_value"].value != left.value


def saved(model: ir.Model) -> onnx.GraphProto:
    stream = stdio.BytesIO()
    io.save(model, stream)
    graph: onnx.GraphProto = onnx.ModelProto.FromString(stream.getvalue()).graph
    return graph


def test_declared_types_stay_when_a_pass_learns_more() -> None:
    model = io.load(simple().SerializeToString())
    model.graph.outputs[0].shape = ir.Shape([1, 600])
    assert saved(model).output[0] == simple().graph.output[0]


def test_a_changed_interface_is_written() -> None:
    model = io.load(simple().SerializeToString())
    model.graph.inputs[0].shape = ir.Shape([8, 600])
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    graph = saved(model)
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_value == 8
    assert graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs[0].shape = ir.Shape(["batch", "free"])
    assert saved(model).output[0].type.tensor_type.shape.dim[1].dim_param == "free"
    model.graph.inputs[0].name = "renamed"
    assert saved(model).input[0].name == "renamed"


DTYPES = [kind for kind in ir.DataType if kind.name not in ("UNDEFINED", "STRING")]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda kind: kind.name)
def test_every_dtype(dtype: ir.DataType, tmp_path: Path) -> None:
    size = 4097  # odd: the last byte of a packed type is only partly used
    nbytes = (size * dtype.bitwidth + 7) // 8
    data = np.random.default_rng(0).integers(0, 256, nbytes, dtype=np.uint8)
    if dtype.bitwidth < 8:
        data[-1] &= (1 << (size * dtype.bitwidth - 8 * (nbytes - 1))) - 1  # padding is zero
    tensor = TensorProto(name="w", data_type=int(dtype), dims=[size], raw_data=data.tobytes())
    model = simple()
    model.graph.initializer.append(TensorProto.FromString(tensor.SerializeToString()))
    model.graph.initializer[-1].name = "odd"
    for number, source in enumerate((model.SerializeToString(), None)):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(model.SerializeToString())
        loaded = io.load(source or path)
        value = loaded.graph.initializers["odd"].const_value
        assert isinstance(value, io.SourceTensor)
        reference = ir.serde.deserialize_tensor(tensor)
        assert value.numpy().dtype == reference.numpy().dtype
        assert value.numpy().tobytes() == reference.numpy().tobytes()
        assert value.tobytes() == data.tobytes()
        assert (value.size, value.nbytes) == (size, nbytes)
        # and as an array in memory
        array = value.numpy()
        loaded.graph.initializers["odd"].const_value = ir.Tensor(array, dtype=dtype, name="odd")
        io.save(loaded, tmp_path / "out.onnx")
        assert onnx.load(tmp_path / "out.onnx") == model


@pytest.mark.parametrize("field", ["float_data", "int32_data", "int64_data", "double_data"])
def test_typed_fields_stay_typed(field: str, tmp_path: Path) -> None:
    kinds = {"float_data": 1, "int32_data": 6, "int64_data": 7, "double_data": 11}
    tensor = TensorProto(name="odd", data_type=kinds[field], dims=[500])
    getattr(tensor, field).extend(range(500))
    model = simple()
    model.graph.initializer.append(tensor)
    io.save(io.load(model.SerializeToString()), tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx") == model


def test_strings_and_empty_tensors(tmp_path: Path) -> None:
    model = simple()
    model.graph.initializer.append(
        helper.make_tensor(
            "text", TensorProto.STRING, [200], [b"\xffbytes %d" % i for i in range(200)]
        )
    )
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((0, 3), "f"), "none"))
    model.graph.initializer.append(TensorProto(name="bare", data_type=1, dims=[0]))
    io.save(io.load(model.SerializeToString()), tmp_path / "out.onnx", external_data=True)
    io.save(io.load(tmp_path / "out.onnx"), tmp_path / "back.onnx")
    assert onnx.load(tmp_path / "back.onnx") == model


def test_values_are_read_only_and_ranges_cheap(tmp_path: Path) -> None:
    (tmp_path / "in.onnx").write_bytes(simple().SerializeToString())
    model = io.load(tmp_path / "in.onnx")
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, io.SourceTensor)
    assert tensor.numpy().tolist() == LARGE.tolist()
    with pytest.raises(ValueError, match="read-only"):
        tensor.numpy()[0] = 1
    assert tensor.read_range(4, 12) == LARGE[1:3].tobytes()
    assert tensor.read_range(-4, 10**9) == LARGE[-1:].tobytes()
    assert np.asarray(tensor).sum() == LARGE.sum()
    assert np.from_dlpack(tensor).sum() == LARGE.sum()


@pytest.mark.parametrize("named", [True, False], ids=["empty domain", "no domain"])
def test_the_import_of_the_standard_operators_keeps_its_form(named: bool) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Relu (x) }'
    )
    if named:
        proto.opset_import[0].domain = ""
    else:
        proto.opset_import[0].ClearField("domain")
    kept = io.to_proto(io.load(proto)).opset_import[0]
    assert kept.SerializeToString() == proto.opset_import[0].SerializeToString()
