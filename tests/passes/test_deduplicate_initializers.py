"""DeduplicateInitializers: equal bytes once, whatever their size, and nothing else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graph_check import assert_same_outputs, check, parse, run

from onnxslim.ir.verify import verify
from onnxslim.passes.simplify.deduplicate_initializers import DeduplicateInitializers
from onnxslim.pipeline import Context

PASS = DeduplicateInitializers()


class CountingTensor(ir.Tensor):
    """A tensor that counts the bytes that are read of it, and can only be read in ranges."""

    def __init__(self, content: np.ndarray) -> None:
        super().__init__(content)
        self.bytes_read = 0

    def read_range(self, start: int, stop: int) -> bytes:
        self.bytes_read += stop - start
        return super().tobytes()[start:stop]

    def tobytes(self) -> bytes:
        raise AssertionError("read as a whole")


def model_of(*contents: np.ndarray | ir.TensorProtocol) -> ir.Model:
    """A model that gives each of the constants back through an Identity."""
    values, nodes = [], []
    for index, content in enumerate(contents):
        tensor = ir.tensor(content) if isinstance(content, np.ndarray) else content
        values.append(
            ir.Value(
                name=f"w{index}",
                type=ir.TensorType(tensor.dtype),
                shape=ir.Shape(tensor.shape.numpy()),
                const_value=tensor,
            )
        )
        nodes.append(ir.node("Identity", [values[-1]]))
    graph = ir.Graph(
        [],
        [node.outputs[0] for node in nodes],
        nodes=nodes,
        initializers=values,
        opset_imports={"": 21},
    )
    return ir.Model(graph, ir_version=10)


def shared(*contents: np.ndarray | ir.TensorProtocol) -> int:
    model = model_of(*contents)
    changes = PASS(model, Context(model)).changes
    assert len(model.graph.initializers) == len(contents) - changes
    for node, content in zip(model.graph, contents, strict=True):
        tensor = node.inputs[0].const_value
        expected = ir.tensor(content) if isinstance(content, np.ndarray) else content
        if expected.dtype != ir.DataType.STRING:
            assert tensor.numpy().tobytes() == expected.numpy().tobytes()
    assert PASS(model, Context(model)).changes == 0
    return changes


def test_small():
    check(
        PASS,
        """g (float[N,2] x) => (float[N,2] y)
        <float[2] v = {1, 2}, float[2] w = {1, 2}, float[2] u = {1, 3}> {
            a = Mul (x, v)
            b = Add (a, w)
            y = Add (b, u)
        }""",
        """g (float[N,2] x) => (float[N,2] y) <float[2] v = {1, 2}, float[2] u = {1, 3}> {
            a = Mul (x, v)
            b = Add (a, v)
            y = Add (b, u)
        }""",
        changes=1,
    )


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, 100_000, 3_000_000])
def test_any_size(size):
    content = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    assert shared(content, content.copy(), content.copy()) == 2


@pytest.mark.parametrize("position", [0, 1, 777, 250_000, 499_998, 499_999])
def test_one_other_element_anywhere(position):
    content = np.random.default_rng(0).standard_normal(500_000).astype(np.float32)
    other = content.copy()
    other[position] += 1
    assert shared(content, other) == 0


def test_bits_count_not_values():
    zero, minus = np.zeros(4, np.float32), -np.zeros(4, np.float32)
    assert shared(zero, minus) == 0
    nan = np.full(3, np.nan, np.float32)
    assert shared(nan, nan.copy()) == 1
    payload = nan.view(np.uint32).copy()
    payload[0] |= 1
    assert shared(nan, payload.view(np.float32)) == 0


def test_type_and_shape_count():
    content = np.arange(4, dtype=np.int32)
    others = [content.view(np.float32), content.reshape(2, 2), content.view(np.uint32)]
    assert shared(content, *others) == 0
    assert shared(np.zeros((0, 4), np.float32), np.zeros(0, np.float32)) == 0


def test_scalar_and_one_element_stay_apart():
    assert shared(np.array(1, np.float32), np.array([1], np.float32)) == 0


def test_four_bit_types():
    values = np.arange(-8, 8, dtype=np.int8)
    packed = [ir.Tensor(values.astype(ir.DataType.INT4.numpy())) for _ in range(2)]
    other = ir.Tensor(values[::-1].astype(ir.DataType.INT4.numpy()))
    assert shared(*packed, other) == 1


def test_other_layout_in_memory():
    content = np.arange(6000, dtype=np.float32).reshape(60, 100)
    assert shared(content, np.asfortranarray(content)) == 1


def test_strings():
    texts = ([b"a", b"bc"], [b"a", b"bc"], [b"ab", b"c"])
    assert shared(*(ir.StringTensor(each, shape=ir.Shape([2])) for each in texts)) == 1


def test_of_unique_weights_only_a_sample_is_read():
    random = np.random.default_rng(1)
    tensors = [CountingTensor(random.standard_normal(1 << 18)) for _ in range(4)]
    assert shared(*tensors) == 0
    assert all(tensor.bytes_read <= 1024 for tensor in tensors)
    alone = CountingTensor(random.standard_normal(77))
    assert shared(*tensors, alone) == 0
    assert alone.bytes_read == 0


def test_twins_that_can_only_be_read_in_ranges():
    content = np.random.default_rng(1).standard_normal(1 << 18)
    assert shared(CountingTensor(content), CountingTensor(content.copy())) == 1
    assert shared(CountingTensor(content), content.copy()) == 1


def test_equal_samples_are_still_compared():
    base = np.zeros(100_000, np.float32)
    tensors = []
    for index in range(6):
        content = base.copy()
        content[1000 + index // 2] = 1  # between the sampled pieces; pairs are equal
        tensors.append(content)
    assert shared(*tensors) == 3


def test_inputs_and_outputs_stay():
    check(
        PASS,
        """g (float[N,2] x, float[2] d = {1, 2}) => (float[N,2] y, float[2] o)
        <float[2] o = {1, 2}, float[2] w = {1, 2}> {
            a = Mul (x, d)
            y = Add (a, w)
        }""",
    )


def test_subgraph_reads_the_outer_twin():
    check(
        PASS,
        """g (bool p, float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
            a = Mul (x, w)
            y = If (p) <
                then_branch = t () => (float[2] ty) <float[2] k = {1, 2}> { ty = Add (a, k) },
                else_branch = e () => (float[2] ey) <float[2] k = {1, 2}, float[2] l = {1, 2}> {
                    b = Add (a, k)
                    ey = Add (b, l)
                }
            >
        }""",
        """g (bool p, float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
            a = Mul (x, w)
            y = If (p) <
                then_branch = t () => (float[2] ty) { ty = Add (a, w) },
                else_branch = e () => (float[2] ey) { b = Add (a, w) ey = Add (b, w) }
            >
        }""",
        changes=3,
    )


def branches(size: int, ir_version: int = 10, other: str = "l") -> ir.Model:
    """A model with an equal weight in both branches of an If."""
    model = parse(
        f"""<ir_version: {ir_version}, opset_import: ["" : 17]>
        g (bool p, float[{size}] a) => (float[{size}] y) {{
            y = If (p) <
                then_branch = t () => (float[{size}] ty) {{ ty = Add (a, k) }},
                else_branch = e () => (float[{size}] ey) {{ ey = Sub (a, {other}) }}
            >
        }}"""
    )
    content = np.arange(size, dtype=np.float32)
    for name, graph in zip(("k", other), model.graph[0].attributes.values(), strict=True):
        inner = graph.as_graph()
        old = inner[0].inputs[1]
        value = ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=ir.Shape([size]),
            const_value=ir.tensor(content, name=name),
        )
        inner.register_initializer(value)
        inner[0].replace_input_with(1, value)
        assert old is not None
    return model


@pytest.mark.parametrize("other", ["l", "k"])
def test_twins_in_branches_move_to_the_main_graph(other):
    model, original = branches(256, other=other), branches(256, other=other)
    assert PASS(model, Context(model)).changes == 1
    verify(model)
    assert list(model.graph.initializers) == ["k_shared"]
    assert all(not graph.initializers for graph in model.graph.subgraphs())
    for p in (True, False):
        feeds = {"p": np.array(p), "a": np.ones(256, np.float32)}
        assert_same_outputs(run(original, feeds), run(model, feeds), exact=True)
    assert PASS(model, Context(model)).changes == 0


def test_small_twins_in_branches_and_old_models_stay():
    for model in (branches(255), branches(256, ir_version=3)):
        assert PASS(model, Context(model)).changes == 0
        assert not model.graph.initializers


def test_twins_in_branches_that_differ_by_one_bit_stay():
    model = branches(256)
    graph = model.graph[0].attributes["else_branch"].as_graph()
    content = np.arange(256, dtype=np.float32)
    content[200] = np.nextafter(content[200], np.float32(1000))
    graph.initializers["l"].const_value = ir.tensor(content, name="l")
    assert PASS(model, Context(model)).changes == 0


def test_small_siblings_keep_their_own():
    check(
        PASS,
        """g (bool p, float[2] a) => (float[2] y) {
            y = If (p) <
                then_branch = t () => (float[2] ty) <float[2] k = {1, 2}> { ty = Add (a, k) },
                else_branch = e () => (float[2] ey) <float[2] l = {1, 2}> { ey = Sub (a, l) }
            >
        }""",
    )


def test_twin_hidden_by_a_name_inside_stays_unused():
    check(
        PASS,
        """g (bool p, float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
            a = Mul (x, w)
            y = If (p) <
                then_branch = t () => (float[2] ty) <float[2] k = {1, 2}> {
                    w = Exp (a)
                    ty = Add (w, k)
                },
                else_branch = e () => (float[2] ey) { ey = Neg (a) }
            >
        }""",
        runs=False,
    )


def test_tensors_named_by_annotations_stay():
    model = parse(
        """g (float[N] x) => (float[N] y) <float k = {2}, float scale = {2}> {
            a = Mul (x, k)
            y = Mul (a, scale)
        }"""
    )
    model.graph.outputs[0].meta["quant_parameter_tensor_names"] = {"SCALE_TENSOR": "scale"}
    assert PASS(model, Context(model)).changes == 0


def test_late_tensors_are_not_computed():
    def compute() -> ir.Tensor:
        raise AssertionError("computed")

    shape = ir.Shape([1000, 1000])
    late = [ir.LazyTensor(compute, dtype=ir.DataType.FLOAT, shape=shape) for _ in range(2)]
    model = model_of(*late)
    assert PASS(model, Context(model)).changes == 0


def test_switch_off_one():
    content = np.ones(4, np.float32)
    model = model_of(content, content, content)
    assert PASS(model, Context(model, disabled=[(PASS.name, "w1")])).changes == 1
    assert set(model.graph.initializers) == {"w0", "w1"}
