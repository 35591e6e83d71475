"""FuseConsecutiveCasts: every chain of three types that is fused gives the same bits."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import onnx_ir as ir
import pytest
from graph_check import check, run

from onnxslim.passes.simplify import fuse_consecutive_casts as casts

PASS = casts.FuseConsecutiveCasts()
TYPES = [*casts._INTEGERS, *casts._FLOATS]
PAIRS = list(itertools.product(TYPES, TYPES))


def _numbers(dtype: ir.DataType) -> np.ndarray:
    """Corners and ordinary numbers of a type."""
    numpy = dtype.numpy()
    random = np.random.default_rng(0)
    if dtype == ir.DataType.BOOL:
        return np.array([False, True])
    if dtype in casts._INTEGERS:
        low, high = casts._INTEGERS[dtype]
        corners = [low, low + 1, high - 1, high, 0, 1, 2, 3, 77, 100]
        wide = [2**bits + step for bits in range(65) for step in (-1, 0, 1)]
        corners += [n for n in (*wide, *(-n for n in wide)) if low <= n <= high]
        return np.array(corners, dtype=numpy)
    plain = random.standard_normal(200) * np.repeat([1e-8, 1e-3, 1, 1e3], 50)
    return np.concatenate([plain, [0.0, -0.0, 1, -1, 0.5, 2.5, 60000]]).astype(numpy)


@pytest.mark.parametrize(("start", "middle"), PAIRS)
def test_exactness_means_that_every_number_survives(start, middle):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        numbers = _numbers(start)
        back = numbers.astype(middle.numpy()).astype(start.numpy())
    if casts._is_exact(start, middle):
        np.testing.assert_array_equal(back, numbers)
        assert (np.signbit(back.astype(float)) == np.signbit(numbers.astype(float))).all()


@pytest.mark.parametrize("start", TYPES)
def test_fused_chains_give_the_same_in_the_runtime(start):
    content = ir.tensor(_numbers(start), dtype=start, name="x")
    x = ir.Value(
        name="x",
        type=ir.TensorType(start),
        shape=ir.Shape(content.shape.numpy()),
        const_value=content,
    )
    nodes, outputs, chains = [], [], []

    def cast(value: ir.Value, to: ir.DataType) -> ir.Value:
        nodes.append(ir.node("Cast", [value], attributes={"to": int(to)}))
        nodes[-1].outputs[0].name = f"v{len(nodes)}"
        nodes[-1].outputs[0].type = ir.TensorType(to)
        return nodes[-1].outputs[0]

    for middle, end in PAIRS:
        if casts._is_exact(start, middle) and casts._same_result(start, middle, end):
            pair = [cast(cast(x, middle), end), cast(x, end)]
            if end == ir.DataType.BFLOAT16:  # numpy has no such outputs
                pair = [cast(value, ir.DataType.FLOAT) for value in pair]
            outputs.extend(pair)
            chains.append((middle, end))
    assert chains
    graph = ir.Graph([], outputs, nodes=nodes, initializers=[x], opset_imports={"": 17})
    results = iter(run(ir.Model(graph, ir_version=8), {}))
    for chain in chains:
        long, short = next(results), next(results)
        assert long.tobytes() == short.tobytes(), chain


@pytest.mark.parametrize(
    ("start", "middle", "end"),
    [
        ("float", 6, 1),  # truncates
        ("float", 7, 9),
        ("float", 10, 1),  # narrower
        ("double", 1, 11),
        ("int64", 1, 7),
        ("int32", 1, 7),
        ("int32", 6, 1),  # a cast to the same type is another pass's
        ("float", 11, 6),  # undefined out of range
        ("int8", 1, 2),  # integers wrap, floats do not
        ("float", 8, 1),  # strings
        ("int32", 8, 6),
        ("float", 9, 1),
    ],
)
def test_stays(start, middle, end):
    names = {"float": 1, "double": 11, "int64": 7, "int32": 6, "int8": 3}
    if names[start] == middle:
        return
    dtype = ir.DataType(end).name.lower()
    check(
        PASS,
        f"""g ({start}[N] x) => ({dtype}[N] y) {{
            h = Identity (x)
            a = Cast <to = {middle}> (h)
            b = Cast <to = {end}> (a)
            y = Identity (b)
        }}""",
    )


@pytest.mark.parametrize(
    ("start", "middle", "end"),
    [("float16", 1, 10), ("int8", 1, 3), ("bool", 6, 9), ("float", 11, 1), ("uint8", 7, 2)],
)
def test_there_and_back(start, middle, end):
    check(
        PASS,
        f"""g ({start}[N] x) => ({start}[N] y) {{
            h = Identity (x)
            a = Cast <to = {middle}> (h)
            b = Cast <to = {end}> (a)
            y = Identity (b)
        }}""",
        f"g ({start}[N] x) => ({start}[N] y) {{ h = Identity (x) y = Identity (h) }}",
    )


@pytest.mark.parametrize(
    ("start", "middle", "end", "result"),
    [
        ("float16", 1, 11, "double"),
        ("int8", 7, 1, "float"),
        ("int8", 7, 2, "uint8"),
        ("bool", 1, 7, "int64"),
        ("int8", 1, 7, "int64"),
        ("float16", 1, 9, "bool"),
    ],
)
def test_first_is_skipped(start, middle, end, result):
    check(
        PASS,
        f"""g ({start}[N] x) => ({result}[N] y) {{
            a = Cast <to = {middle}> (x)
            y = Cast <to = {end}> (a)
        }}""",
        f"g ({start}[N] x) => ({result}[N] y) {{ y = Cast <to = {end}> (x) }}",
    )


def test_first_that_is_read_elsewhere_stays():
    check(
        PASS,
        """g (float16[N] x) => (float16[N] y, float[N] z) {
            a = Cast <to = 1> (x)
            b = Cast <to = 10> (a)
            y = Neg (b)
            z = Exp (a)
        }""",
        """g (float16[N] x) => (float16[N] y, float[N] z) {
            a = Cast <to = 1> (x)
            y = Neg (x)
            z = Exp (a)
        }""",
    )


def test_input_to_output_keeps_one_cast():
    check(
        PASS,
        "g (float16[N] x) => (float16[N] y) { a = Cast <to = 1> (x) y = Cast <to = 10> (a) }",
        "g (float16[N] x) => (float16[N] y) { y = Cast <to = 10> (x) }",
    )


def test_chain():
    check(
        PASS,
        """g (bool[N] x) => (float[N] y, float[N] z) {
            a = Cast <to = 3> (x)
            b = Cast <to = 7> (a)
            c = Cast <to = 1> (b)
            y = Exp (c)
            z = Cast <to = 1> (a)
        }""",
        """g (bool[N] x) => (float[N] y, float[N] z) {
            c = Cast <to = 1> (x)
            y = Exp (c)
            z = Cast <to = 1> (x)
        }""",
    )


def test_unknown_type_stays():
    check(
        PASS,
        """<ir_version: 8, opset_import: ["" : 17, "loc" : 1]>
        g (float16[N] x) => (float16[N] y) { y = loc.F (x) }
        <domain: "loc", opset_import: ["" : 17]> F (x) => (y) {
            a = Cast <to = 1> (x)
            y = Cast <to = 10> (a)
        }""",
    )
