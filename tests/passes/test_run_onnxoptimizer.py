"""What onnxoptimizer's passes do through the graph, and what keeps them from doing it wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from graph_check import apply, assert_same_outputs, check, make_feeds, parse, run

from onnxslim.errors import RuntimeRefusedError
from onnxslim.ir import shapes
from onnxslim.passes.simplify.run_onnxoptimizer import RunOnnxoptimizer
from onnxslim.pipeline import Context
from onnxslim.runtime.onnxoptimizer_passes import Answer, ask

PADDED = "g (float[1,3,8,8] x, float[4,3,3,3] w) => (float[1,4,m,n] y)"
PADS = "int64[8] p = {0,0,1,2,0,0,3,4}"


def test_pad_into_conv() -> None:
    check(
        RunOnnxoptimizer(),
        f"{PADDED} <{PADS}> {{ t = Pad (x, p) y = Conv (t, w) }}",
        f"{PADDED} {{ y = Conv <pads = [1, 2, 3, 4]> (x, w) }}",
        changes=1,
    )


def test_pad_adds_to_the_pads_of_the_conv_and_keeps_all_else() -> None:
    check(
        RunOnnxoptimizer(),
        f"""{PADDED} <{PADS}, float zero = {{0}}, float[4] b = {{1, 2, 3, 4}}>
        {{ t = Pad <mode = "constant"> (x, p, zero)
           y = Conv <strides = [2, 1], pads = [1, 0, 0, 1], kernel_shape = [3, 3]> (t, w, b) }}""",
        f"""{PADDED} <float[4] b = {{1, 2, 3, 4}}>
        {{ y = Conv <strides = [2, 1], pads = [2, 2, 3, 5], kernel_shape = [3, 3]> (x, w, b) }}""",
        changes=1,
    )


def test_two_pads_into_one_conv() -> None:
    check(
        RunOnnxoptimizer(),
        f"{PADDED} <{PADS}> {{ s = Pad (x, p) t = Pad (s, p) y = Conv (t, w) }}",
        f"{PADDED} {{ y = Conv <pads = [2, 4, 6, 8]> (x, w) }}",
        changes=2,
    )


def test_constant_nodes() -> None:
    check(
        RunOnnxoptimizer(),
        f"""{PADDED} {{ p = Constant <value_ints = [0, 0, 1, 1, 0, 0, 1, 1]> ()
        t = Pad (x, p) y = Conv (t, w) }}""",
        f"{PADDED} {{ y = Conv <pads = [1, 1, 1, 1]> (x, w) }}",
    )


@pytest.mark.parametrize(
    "body",
    [
        't = Pad <mode = "reflect"> (x, p) y = Conv (t, w)',
        "t = Pad (x, p, one) y = Conv (t, w)",
        't = Pad (x, p) y = Conv <auto_pad = "SAME_UPPER"> (t, w)',
        't = Pad (x, p) y = Conv <auto_pad = "VALID"> (t, w)',
        "t = Pad (x, cut) y = Conv (t, w)",
        "t = Pad (x, p) y = Conv (w2, t)",
        "t = Pad (x, q) y = Conv (t, w)",
        "t = Pad (x, p) s = Relu (t) y = Conv (s, w)",
        "t = Pad (x, p) y = MaxPool <kernel_shape = [2, 2]> (t)",
    ],
)
def test_pads_that_stay(body: str) -> None:
    constants = f"""{PADS}, float one = {{1}}, int64[8] cut = {{0,0,-1,0,0,0,0,0}},
        float[1,3,16,16] w2 = {{{",".join(["0"] * 768)}}}"""
    head = "g (float[1,3,8,8] x, float[1,3,3,3] w, int64[8] q) => (float[a,b,m,n] y)"
    feeds = make_feeds(parse(f"{head} {{ y = Identity (x) }}"))
    feeds["q"] = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    check(RunOnnxoptimizer(), f"{head} <{constants}> {{ {body} }}", feeds=feeds)


def test_pad_of_channels_or_of_the_batch_stays() -> None:
    head = "g (float[1,2,8,8] x, float[4,3,3,3] w) => (float[2,4,m,n] y)"
    check(
        RunOnnxoptimizer(),
        f"{head} <int64[8] p = {{0,0,1,1,1,1,1,1}}> {{ t = Pad (x, p) y = Conv (t, w) }}",
    )


def test_pad_with_axes_stays() -> None:
    check(
        RunOnnxoptimizer(),
        """<ir_version: 10, opset_import: ["" : 18]>
        g (float[1,3,8,8] x, float[4,3,3,3] w) => (float[1,4,m,n] y)
        <int64[8] p = {0,0,1,2,0,0,3,4}, float zero = {0}, int64[4] a = {0, 1, 3, 2}>
        { t = Pad (x, p, zero, a) y = Conv (t, w) }""",
    )


def test_pad_with_attributes_stays() -> None:
    check(
        RunOnnxoptimizer(),
        """<ir_version: 8, opset_import: ["" : 10]>
        g (float[1,3,8,8] x, float[4,3,3,3] w) => (float[1,4,m,n] y)
        { t = Pad <pads = [0, 0, 1, 1, 0, 0, 1, 1], value = 2.0> (x) y = Conv (t, w) }""",
    )


def test_pad_with_other_readers_stays() -> None:
    head = "g (float[1,3,8,8] x, float[4,3,3,3] w) => (float[1,4,m,n] y, float[1,3,k,l] {})"
    check(
        RunOnnxoptimizer(),
        f"{head.format('z')} <{PADS}> {{ t = Pad (x, p) y = Conv (t, w) z = Relu (t) }}",
    )
    check(
        RunOnnxoptimizer(),
        f"{head.format('t')} <{PADS}> {{ t = Pad (x, p) y = Conv (t, w) }}",
    )


def test_pad_captured_by_a_subgraph_stays() -> None:
    check(
        RunOnnxoptimizer(),
        f"""g (float[1,3,8,8] x, float[4,3,3,3] w, bool c)
        => (float[1,4,m,n] y, float[1,3,k,l] z) <{PADS}>
        {{ t = Pad (x, p) y = Conv (t, w)
           z = If (c) <then_branch = a () => (float[1,3,k,l] i) {{ i = Relu (t) }},
                       else_branch = b () => (float[1,3,k,l] j) {{ j = Neg (t) }}> }}""",
    )


def test_inside_a_subgraph() -> None:
    head = "g (float[1,3,8,8] x, float[4,3,3,3] w, bool c) => (float[1,4,m,n] y)"
    other = "else_branch = b () => (float[1,4,m,n] j) { j = Conv <pads = [1,2,3,4]> (x, w) }"
    check(
        RunOnnxoptimizer(),
        f"""{head} <{PADS}> {{ y = If (c) <then_branch = a () => (float[1,4,m,n] i)
        {{ t = Pad (x, p) i = Conv (t, w) }}, {other}> }}""",
        f"""{head} {{ y = If (c) <then_branch = a () => (float[1,4,m,n] i)
        {{ i = Conv <pads = [1,2,3,4]> (x, w) }}, {other}> }}""",
    )


SLICED = "g (float[2,6,8,8] x) => (float[a,b,m,n] y)"


def sliced(*slices: tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int]]) -> str:
    constants, body, value = [], [], "x"
    for index, lists in enumerate(slices):
        names = [f"{word}{index}" for word in ("starts", "ends", "axes", "steps")]
        constants += [
            f"int64[{len(items)}] {name} = {{{','.join(map(str, items))}}}"
            for name, items in zip(names, lists, strict=True)
        ]
        result = "y" if index == len(slices) - 1 else f"t{index}"
        body.append(f"{result} = Slice ({value}, {', '.join(names)})")
        value = result
    return f"{SLICED} <{', '.join(constants)}> {{ {' '.join(body)} }}"


def test_slices() -> None:
    check(
        RunOnnxoptimizer(),
        sliced(([1], [5], [1], [2]), ([7, -2], [0, 2147483647], [3, 2], [-2, 1])),
        sliced(([1, 7, -2], [5, 0, 2147483647], [1, 3, 2], [2, -2, 1])),
        changes=1,
    )


def test_three_slices() -> None:
    check(
        RunOnnxoptimizer(),
        sliced(([1], [5], [1], [1]), ([0], [4], [2], [1]), ([2], [6], [3], [1])),
        sliced(([1, 0, 2], [5, 4, 6], [1, 2, 3], [1, 1, 1])),
        changes=2,
    )


@pytest.mark.parametrize(("first", "second"), [(1, 1), (1, -3), (-3, 1), (-3, -3)])
def test_slices_of_one_axis_stay(first: int, second: int) -> None:
    check(RunOnnxoptimizer(), sliced(([1], [5], [first], [1]), ([1], [3], [second], [1])))


def test_slices_of_negative_axes() -> None:
    check(
        RunOnnxoptimizer(),
        sliced(([1], [5], [-2], [1]), ([1], [3], [1], [1])),
        sliced(([1, 1], [5, 3], [-2, 1], [1, 1])),
        changes=1,
    )


def test_slices_with_computed_bounds_stay() -> None:
    check(
        RunOnnxoptimizer(),
        """g (float[2,6,8,8] x, int64[1] e) => (float[a,b,m,n] y)
        <int64[1] s = {0}, int64[1] o = {1}, int64[1] f = {4}, int64[1] t = {2}>
        { v = Slice (x, s, e, o, o) y = Slice (v, s, f, t, o) }""",
    )


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("axis", [1, -1])
def test_log_of_softmax(axis: int, opset: int) -> None:
    head = f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[2,5,3] x) => (float[2,5,3] y)'
    check(
        RunOnnxoptimizer(),
        f"{head} {{ t = Softmax <axis = {axis}> (x) y = Log (t) }}",
        f"{head} {{ y = LogSoftmax <axis = {axis}> (x) }}",
        changes=1,
    )


@pytest.mark.parametrize(
    "body",
    [
        "t = Softmax (x) y = Log (t)",
        "t = Log (x) y = Softmax <axis = 1> (t)",
        "t = Sigmoid (x) y = Log (t)",
    ],
)
def test_logs_that_stay(body: str) -> None:
    check(RunOnnxoptimizer(), f"g (float[2,5,3] x) => (float[2,5,3] y) {{ {body} }}")


@pytest.mark.parametrize("before", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("flags", ["", ", keepdims = 0, select_last_index = 1"])
def test_argmax_of_softmax(before: str, flags: str) -> None:
    head = f"g (float[2,5,3] x) => (int64[{'2,3' if flags else '2,1,3'}] y)"
    check(
        RunOnnxoptimizer(),
        f"{head} {{ t = {before} <axis = 1> (x) y = ArgMax <axis = 1{flags}> (t) }}",
        f"{head} {{ y = ArgMax <axis = 1{flags}> (x) }}",
        changes=1,
    )


def test_argmax_of_log_of_softmax() -> None:
    head = "g (double[2,5,3] x) => (int64[2,a,3] y)"
    check(
        RunOnnxoptimizer(),
        f"{head} {{ t = Softmax <axis = 1> (x) s = Log (t) y = ArgMax <axis = 1> (s) }}",
        f"{head} {{ y = ArgMax <axis = 1> (x) }}",
        changes=2,
    )


@pytest.mark.parametrize(
    ("opset", "dtype", "body"),
    [
        (17, "float", "t = Softmax <axis = 2> (x) y = ArgMax <axis = 1> (t)"),
        (17, "float", "t = Softmax <axis = -2> (x) y = ArgMax <axis = 1> (t)"),
        (17, "float", "t = Exp (x) y = ArgMax <axis = 1> (t)"),
        (17, "float", "t = Sqrt (x) y = ArgMax <axis = 1> (t)"),
        (17, "float", "t = Log (x) y = ArgMax <axis = 1> (t)"),
        (17, "float16", "t = Softmax <axis = 1> (x) y = ArgMax <axis = 1> (t)"),
        (12, "float", "t = Softmax <axis = 1> (x) y = ArgMax <axis = 1> (t)"),
    ],
)
def test_argmaxes_that_stay(opset: int, dtype: str, body: str) -> None:
    check(
        RunOnnxoptimizer(),
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g ({dtype}[2,5,3] x) => (int64[2,a,3] y) {{ {body} }}""",
    )


def test_where_of_not() -> None:
    head = "g (bool[3,1] c, float[3,4] a, float[4] b) => (float[3,4] y)"
    check(
        RunOnnxoptimizer(),
        f"{head} {{ n = Not (c) y = Where (n, a, b) }}",
        f"{head} {{ y = Where (c, b, a) }}",
        changes=1,
    )


def test_where_of_two_nots() -> None:
    head = "g (bool[3,4] c, float[3,4] a) => (float[3,4] y)"
    check(
        RunOnnxoptimizer(),
        f"{head} {{ b = Neg (a) m = Not (c) n = Not (m) y = Where (n, a, b) }}",
        f"{head} {{ b = Neg (a) y = Where (c, a, b) }}",
        changes=2,
    )


def test_where_whose_condition_is_a_branch() -> None:
    head = "g (bool[3,4] c, bool[3,4] a) => (bool[3,4] y)"
    check(
        RunOnnxoptimizer(),
        f"{head} {{ n = Not (c) y = Where (n, a, c) }}",
        f"{head} {{ y = Where (c, c, a) }}",
        runs=False,  # no kernel for booleans
    )


def test_where_whose_condition_is_read_again_stays() -> None:
    check(
        RunOnnxoptimizer(),
        """g (bool[3,4] c, bool[3,4] a) => (bool[3,4] y)
        { n = Not (c) y = Where (n, a, n) }""",
        runs=False,
    )


RESHAPED = "g (float[2,6,4] x, int64[1] s) => (float[a,b] y)"


def test_concat_into_reshape() -> None:
    check(
        RunOnnxoptimizer(),
        f"{RESHAPED} <int64[1] k = {{8}}> {{ t = Concat <axis = 0> (s, k) y = Reshape (x, t) }}",
        f"{RESHAPED} <int64[2] t = {{-1, 8}}> {{ y = Reshape (x, t) }}",
        changes=1,
        feeds={"x": np.arange(48, dtype=np.float32).reshape(2, 6, 4), "s": np.array([6])},
    )


def test_concat_into_reshape_without_elements() -> None:
    check(
        RunOnnxoptimizer(),
        """g (float[n,6,4] x, int64[1] s) => (float[a,b] y) <int64[1] k = {24}>
        { t = Concat <axis = 0> (s, k) y = Reshape (x, t) }""",
        """g (float[n,6,4] x, int64[1] s) => (float[a,b] y) <int64[2] t = {-1, 24}>
        { y = Reshape (x, t) }""",
        feeds={"x": np.zeros((0, 6, 4), np.float32), "s": np.array([0])},
    )


def test_concat_into_reshape_in_a_subgraph_becomes_a_constant_node() -> None:
    head = "g (float[2,6,4] x, int64[1] s, bool c) => (float[a,b] y)"
    other = "else_branch = e () => (float[a,b] j) { j = Flatten (x) }"
    check(
        RunOnnxoptimizer(),
        f"""{head} <int64[1] k = {{8}}> {{ y = If (c) <then_branch = d () => (float[a,b] i)
        {{ t = Concat <axis = 0> (s, k) i = Reshape (x, t) }}, {other}> }}""",
        f"""{head} {{ y = If (c) <then_branch = d () => (float[a,b] i)
        {{ t = Constant <value = int64[2] {{-1, 8}}> () i = Reshape (x, t) }}, {other}> }}""",
        feeds={
            "x": np.arange(48, dtype=np.float32).reshape(2, 6, 4),
            "s": np.array([6]),
            "c": np.array(True),
        },
    )


@pytest.mark.parametrize(
    "body",
    [
        "t = Concat <axis = 0> (s, minus) y = Reshape (x, t)",  # two unknown dimensions
        "t = Concat <axis = 0> (s, s) y = Reshape (x, t)",
        "t = Concat <axis = 0> (s, zero, k) y = Reshape (x, t)",
        "t = Concat <axis = 0> (s, k) y = Reshape <allowzero = 1> (x, t)",
        "t = Concat <axis = 0> (two, k) y = Reshape (x, t)",  # two dimensions in one value
    ],
)
def test_concats_that_stay(body: str) -> None:
    check(
        RunOnnxoptimizer(),
        f"""g (float[2,6,4] x, int64[1] s, int64[2] two) => (y)
        <int64[1] k = {{4}}, int64[1] minus = {{-1}}, int64[1] zero = {{0}}> {{ {body} }}""",
        runs=False,
    )


def test_a_shape_that_a_caller_may_override_stays() -> None:
    check(
        RunOnnxoptimizer(),
        """g (float[2,6,4] x, int64[1] s, int64[1] k) => (float[a,b] y) <int64[1] k = {8}>
        { t = Concat <axis = 0> (s, k) y = Reshape (x, t) }""",
        feeds={"x": np.zeros((2, 6, 4), np.float32), "s": np.array([6])},
    )


def test_attribute_references_stay() -> None:
    check(
        RunOnnxoptimizer(),
        """<ir_version: 10, opset_import: ["" : 17, "local" : 1]>
        g (float[2,5] x) => (float[2,5] y) { y = local.LogOf <axis = 1> (x) }
        <domain: "local", opset_import: ["" : 17]>
        LogOf <axis> (a) => (b) { t = Softmax <axis : int = @axis> (a) b = Log (t) }""",
    )


def test_in_a_function() -> None:
    head = """<ir_version: 10, opset_import: ["" : 17, "local" : 1]>
        g (float[2,5] x) => (float[2,5] y) { y = local.LogOf (x) }
        <domain: "local", opset_import: ["" : 17]> LogOf (a) => (b)"""
    check(
        RunOnnxoptimizer(),
        f"{head} {{ t = Softmax <axis = 1> (a) b = Log (t) }}",
        f"{head} {{ b = LogSoftmax <axis = 1> (a) }}",
    )


def test_names_metadata_and_weights_stay() -> None:
    model = parse(
        f"""g (float[1,3,8,8] x) => (float[1,1,m,n] y)
        <{PADS}, float[1,3,3,3] w = {{{",".join(["2"] * 27)}}}>
        {{ t = Pad (x, p) y = Conv (t, w) }}"""
    )
    conv = model.graph[1]
    conv.name, conv.doc_string, conv.metadata_props["from"] = "layer", "the first", "here"
    weight = model.graph.initializers["w"].const_value
    assert apply(RunOnnxoptimizer(), model) == 1
    assert list(model.graph) == [conv]
    assert (conv.name, conv.doc_string) == ("layer", "the first")
    assert conv.metadata_props == {"from": "here"}
    assert list(model.graph.initializers) == ["w"]
    assert model.graph.initializers["w"].const_value is weight


def test_leave_is_asked_and_refusal_changes_nothing() -> None:
    text = f"{PADDED} <{PADS}> {{ t = Pad (x, p) y = Conv (t, w) }}"
    model = parse(text)
    shapes.infer(model)
    context = Context(model, disabled=[("run-onnxoptimizer", "y")])
    assert RunOnnxoptimizer()(model, context).changes == 0
    assert [node.op_type for node in model.graph] == ["Pad", "Conv"]
    context = Context(model)
    assert RunOnnxoptimizer()(model, context).changes == 1
    assert [(item.site, item.detail) for item in context.journal] == [("y", "fuse_pad_into_conv")]


def test_an_answer_of_several_nodes_is_refused() -> None:
    model = parse(
        """g (float[2,6,8,8] x, int64[1] e) => (float[a,b,m,n] y)
        <int64[1] s = {0}, int64[1] o = {1}, int64[1] t = {2}>
        { v = Slice (x, s, e, o, o) y = Slice (v, s, e, t, o) }"""
    )
    shapes.infer(model)
    with pytest.raises(RuntimeRefusedError, match="is more than one node"):
        ask("fuse_consecutive_slices", list(model.graph), 17)


def test_without_onnxoptimizer_nothing_changes_and_the_report_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxoptimizer", None)  # an import of it fails
    model = parse(f"{PADDED} <{PADS}> {{ t = Pad (x, p) y = Conv (t, w) }}")
    shapes.infer(model)
    context = Context(model)
    assert RunOnnxoptimizer()(model, context).changes == 0
    (refusal,) = context.refusals.values()
    assert refusal.site == "y"
    assert "fuse_pad_into_conv of onnxoptimizer fails" in refusal.reason
    assert [node.op_type for node in model.graph] == ["Pad", "Conv"]


def test_an_unknown_pass_is_a_refusal() -> None:
    model = parse("g (float[3] x) => (float[3] y) { t = Neg (x) y = Neg (t) }")
    with pytest.raises(RuntimeRefusedError, match="no_such_pass of onnxoptimizer fails"):
        ask("no_such_pass", list(model.graph), 17)


def test_the_answer_names_values_of_the_model() -> None:
    model = parse(f"{PADDED} <{PADS}> {{ t = Pad (x, p) y = Conv (t, w) }}")
    answer = ask("fuse_pad_into_conv", list(model.graph), 17)
    assert isinstance(answer, Answer)
    assert answer.inputs == tuple(model.graph.inputs)
    assert ask("rewrite_where", list(model.graph), 17) is None


def test_a_model_without_candidates_does_not_import_onnxoptimizer() -> None:
    code = """if True:
        import sys, onnx.parser, onnx_ir as ir
        from onnxslim.passes.simplify.run_onnxoptimizer import RunOnnxoptimizer
        from onnxslim.pipeline import Context
        text = '<ir_version: 10, opset_import: ["" : 17]> g (float[3] x) => (float[3] y) {BODY}'
        model = ir.from_proto(onnx.parser.parse_model(text))
        RunOnnxoptimizer()(model, Context(model))
        print("onnxoptimizer" in sys.modules)
    """
    for body, expected in (
        ("{ t = Log (x) y = Softmax <axis = 0> (t) }", "False"),
        ("{ t = Softmax <axis = 0> (x) y = Log (t) }", "True"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("{BODY}", body)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == expected


@pytest.mark.parametrize("seed", range(30))
def test_random_slices_give_the_same_bits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    slices = []
    for _ in range(int(rng.integers(2, 5))):
        axes = rng.permutation(4)[: rng.integers(1, 3)] - 4 * rng.integers(2)
        starts, ends = rng.integers(-9, 9, (2, len(axes)))
        slices.append((starts, ends, axes, rng.choice([-2, -1, 1, 2], len(axes))))
    before, after = parse(sliced(*slices)), parse(sliced(*slices))
    feeds = make_feeds(before, seed)
    used = [np.mod(item[2], 4) for item in slices]
    meet = [bool(np.isin(one, other).any()) for one, other in pairwise(used)]
    made = apply(RunOnnxoptimizer(), after)
    assert made > 0 or meet.count(True) > 0
    assert_same_outputs(run(before, feeds), run(after, feeds), exact=True)


@pytest.mark.parametrize("seed", range(30))
def test_random_convolutions_give_the_same_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dims = int(rng.integers(1, 4))
    group = int(rng.integers(1, 3))
    pads = [0, 0, *rng.integers(0, 3, dims), 0, 0, *rng.integers(0, 3, dims)]
    lists = {
        "pads": rng.integers(0, 3, 2 * dims),
        "strides": rng.integers(1, 3, dims),
        "dilations": rng.integers(1, 3, dims),
    }
    chosen = [key for key in lists if rng.integers(2)]
    attributes = ", ".join(
        [f"group = {group}", *(f"{key} = [{', '.join(map(str, lists[key]))}]" for key in chosen)]
    )
    size, kernel, result = ",9" * dims, ",3" * dims, ",".join("abcde"[: dims + 2])
    text = f"""g (float[2,4{size}] x, float[6,{4 // group}{kernel}] w) => (float[{result}] y)
        <int64[{len(pads)}] p = {{{",".join(map(str, pads))}}}>
        {{ t = Pad (x, p) y = Conv <{attributes}> (t, w) }}"""
    before, after = parse(text), parse(text)
    feeds = make_feeds(before, seed)
    assert apply(RunOnnxoptimizer(), after) == 1
    assert_same_outputs(run(before, feeds), run(after, feeds))
