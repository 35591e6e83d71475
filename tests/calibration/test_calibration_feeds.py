"""Made-up inputs: in range where they index, masks where they mask, two sizes each."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graph_check import parse

from onnxslim.calibration.feeds import generate_feeds
from onnxslim.errors import DataError, UsageError
from onnxslim.runtime.session import open_session

TABLE = "<float[5, 2] table = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}>"


def feeds_of(text: str, **options):
    """Feeds that the model really runs on."""
    model = parse(text)
    feeds = generate_feeds(model, **options)
    session = open_session(model, optimize=False)
    for feed in feeds:
        session.run(feed)
    return feeds


def values(feeds, name):
    return np.concatenate([feed[name].reshape(-1) for feed in feeds])


@pytest.mark.parametrize(
    "body",
    [
        "y = Gather(table, i)",
        "c = Cast<to = 6>(i) y = Gather(table, c)",
        "a = Constant<value_ints = [1]>() u = Unsqueeze(i, a) v = Squeeze(u) y = Gather(table, v)",
        "one = Constant<value_int = 1>() p = Add(i, one) q = Sub(p, one) y = Gather(table, q)",
        "t = Transpose(table) y = Gather<axis = 1>(t, i)",
        "a = Constant<value_ints = [-1]>() u = Unsqueeze(i, a) y = GatherND(table, u)",
        """a = Constant<value_ints = [1]>() u = Unsqueeze(i, a) b = Constant<value_ints = [1, 2]>()
           e = Tile(u, b) y = GatherElements(table, e)""",
        "u = Concat<axis = 0>(i, i) y = Gather(table, u)",
    ],
)
def test_indices_stay_in_the_table(body):
    feeds = feeds_of(
        f"agraph (int64[200] i) => (float y) {TABLE} {{ {body} }}".replace(
            "float y", "float[?, ?] y"
        )
    )
    seen = values(feeds[:2], "i")
    assert set(seen.tolist()) == {0, 1, 2, 3, 4}


def test_a_shift_moves_the_range():
    feeds = feeds_of(
        f"""agraph (int64[100] i) => (float[?, 2] y) {TABLE} {{
              three = Constant<value_int = 3>()
              p = Sub(i, three)
              y = Gather(table, p)
        }}"""
    )
    assert set(values(feeds[:2], "i").tolist()) == {3, 4, 5, 6, 7}


def test_the_smallest_of_several_tables_counts():
    feeds = feeds_of(
        """agraph (int64[100] i) => (float[?] y)
           <float[7] big = {1, 2, 3, 4, 5, 6, 7}, float[3] small = {1, 2, 3}> {
             a = Gather(big, i)
             b = Gather(small, i)
             y = Add(a, b)
        }"""
    )
    assert set(values(feeds[:2], "i").tolist()) == {0, 1, 2}


def test_indices_into_an_input_of_open_size():
    feeds = feeds_of("agraph (float[N, 2] x, int64[50] i) => (float[?, 2] y) { y = Gather(x, i) }")
    for feed in feeds:
        assert feed["i"].max() < len(feed["x"])
    assert feeds[0]["i"].max() > 0


def test_indices_are_followed_into_subgraphs():
    feeds = feeds_of(
        f"""agraph (bool c, int64[100] i) => (float[?, 2] y) {TABLE} {{
              y = If(c) <
                then_branch = t () => (float[?, 2] a) {{ a = Gather(table, i) }},
                else_branch = e () => (float[?, 2] b) {{ j = Identity(i) b = Gather(table, j) }}
              >
        }}"""
    )
    assert set(values(feeds[:2], "i").tolist()) == {0, 1, 2, 3, 4}
    assert [bool(feed["c"]) for feed in feeds] == [True, False, False]


def test_indices_are_followed_into_functions():
    text = f"""<ir_version: 10, opset_import: ["" : 17, "local" : 1]>
        agraph (int64[100] i) => (float[?, 2] y) {TABLE} {{
          j = local.same(i)
          y = local.look(table, j)
        }}
        <domain: "local", opset_import: ["" : 17]> same (a) => (b) {{ b = Identity(a) }}
        <domain: "local", opset_import: ["" : 17]> look (t, k) => (r) {{ r = Gather(t, k) }}"""
    assert set(values(feeds_of(text)[:2], "i").tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("dtype", ["int64", "float", "bool", "int32"])
def test_inputs_named_mask_are_masks(dtype):
    feeds = feeds_of(
        f"""agraph ({dtype}[B, S] attention_mask) => ({dtype}[B, S] y) {{
              y = Identity(attention_mask)
        }}"""
    )
    for feed in feeds[:2]:
        mask = feed["attention_mask"]
        assert set(np.unique(mask).tolist()) == {0, 1}
        assert mask[:, 0].all()
    assert feeds[2]["attention_mask"].all()


@pytest.mark.parametrize(
    "body",
    [
        "m = Cast<to = 9>(p) y = Where(m, x, z)",
        "zero = Constant<value_int = 0>() m = Equal(p, zero) y = Where(m, x, z)",
        """one = Constant<value_float = 1.0>() f = Cast<to = 1>(p) s = Sub(one, f)
           k = Mul(s, z) y = Add(x, k)""",
    ],
)
def test_inputs_used_as_masks_are_masks(body):
    feeds = feeds_of(
        f"agraph (int64[B, 4] p, float[B, 4] x, float[B, 4] z) => (float[B, 4] y) {{ {body} }}"
    )
    for feed in feeds[:2]:
        assert set(np.unique(feed["p"]).tolist()) == {0, 1}


def test_each_symbol_has_two_sizes_and_the_same_everywhere():
    feeds = feeds_of(
        """agraph (float[B, S] x, float[B, S] y, float[T, S] w) => (float[B, T] z) {
             a = Add(x, y)
             v = Transpose(w)
             z = MatMul(a, v)
        }"""
    )
    shapes = [{name: array.shape for name, array in feed.items()} for feed in feeds]
    for shape in shapes:
        assert shape["x"] == shape["y"]
        assert shape["x"][1] == shape["w"][1]
        assert len({*shape["x"], *shape["w"]}) == 3
    assert not set(shapes[0]["w"]) & set(shapes[1]["w"])
    assert shapes[0]["x"][0] != shapes[1]["x"][0]


def test_dimensions_that_are_computed_from_others():
    model = parse("agraph (float[Q] x, float[P] y) => (float[?] z) { z = Concat<axis = 0>(x, y) }")
    model.graph.inputs[0].shape = ir.Shape(["P + 1"])
    for feed in generate_feeds(model):
        assert len(feed["x"]) == len(feed["y"]) + 1


def test_demanded_shapes_bind_symbols():
    feeds = feeds_of(
        "agraph (float[B, S] x, float[S] y) => (float[B, S] z) { z = Add(x, y) }",
        shapes={"x": [4, 9]},
    )
    assert {feed["x"].shape for feed in feeds} == {(4, 9)}
    assert {feed["y"].shape for feed in feeds} == {(9,)}


@pytest.mark.parametrize(
    ("shapes", "what"),
    [
        ({"q": [1]}, "no input is named 'q'"),
        ({"x": [4]}, "does not fit input x"),
        ({"x": [4, 5]}, "does not fit input x"),
        ({"x": [4, 3], "y": [5]}, "two sizes"),
    ],
)
def test_demanded_shapes_that_do_not_fit(shapes, what):
    model = parse("agraph (float[B, 3] x, float[B] y) => (float[B, 3] z) { z = Relu(x) }")
    with pytest.raises(UsageError, match=what):
        generate_feeds(model, shapes=shapes)


@pytest.mark.parametrize(
    "dtype",
    [
        "float",
        "double",
        "float16",
        "bfloat16",
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "int64",
        "uint64",
        "bool",
    ],
)
def test_every_dtype(dtype):
    model = parse(f"agraph ({dtype}[N, 40] x) => ({dtype}[N, 40] y) {{ y = Identity(x) }}")
    wanted = model.graph.inputs[0].dtype.numpy()
    for feed in generate_feeds(model):
        assert feed["x"].dtype == wanted
        assert np.isfinite(feed["x"].astype(np.float64)).all()
    assert len(np.unique(generate_feeds(model)[0]["x"].astype(np.float64))) > 1


def test_bytes_are_images():
    feeds = generate_feeds(
        parse("agraph (uint8[1, 3, H, W] x) => (uint8[1, 3, H, W] y) { y = Identity(x) }")
    )
    assert feeds[0]["x"].min() < 16
    assert feeds[0]["x"].max() > 239


def test_strings_and_sequences_and_optionals():
    feeds = feeds_of(
        """agraph (string[6] t, seq(float[N]) s, optional(float[2]) o)
           => (string[6] u, float[?] y, bool h) {
             u = Identity(t)
             y = ConcatFromSequence<axis = 0>(s)
             h = OptionalHasElement(o)
        }""".replace("agraph", '<ir_version: 10, opset_import: ["" : 18]> agraph')
    )
    assert all(isinstance(word, str) for word in feeds[0]["t"])
    assert [len(feed["s"]) for feed in feeds] == [2, 2, 2]


def test_lengths_and_trip_counts_fit():
    feeds = feeds_of(
        """agraph (float[S, B, 2] x, int64[B] lens, int64 trips) => (float[S, B, 2] y, float z) {
             y = ReverseSequence<time_axis = 0, batch_axis = 1>(x, lens)
             c = Constant<value = bool {1}>()
             f = Constant<value_float = 0.0>()
             z = Loop(trips, c, f) <body = b (int64 i, bool k, float v) => (bool k2, float v2) {
               k2 = Identity(k)
               one = Constant<value_float = 1.0>()
               v2 = Add(v, one)
             }>
        }"""
    )
    for feed in feeds:
        assert feed["lens"].min() >= 1
        assert feed["lens"].max() <= len(feed["x"])
        assert 1 <= feed["trips"] <= 4


def test_integer_divisors_are_never_zero():
    feeds = feeds_of("agraph (int64[64] a, int64[64] b) => (int64[64] y) { y = Div(a, b) }")
    assert all(feed["b"].min() >= 1 for feed in feeds)


def test_the_last_feed_is_zero_and_the_seed_decides():
    text = "agraph (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }"
    feeds = generate_feeds(parse(text), seed=3)
    assert not feeds[-1]["x"].any()
    again = generate_feeds(parse(text), seed=3)
    other = generate_feeds(parse(text), seed=4)
    for one, two in zip(feeds, again, strict=True):
        np.testing.assert_array_equal(one["x"], two["x"])
    assert not np.array_equal(feeds[0]["x"], other[0]["x"])


def test_defaults_are_left_to_the_model_and_the_model_is_untouched():
    text = "agraph (float[2] x, float[2] d) => (float[2] y) <float[2] d = {1, 2}> { y = Add(x, d) }"
    model = parse(text)
    before = onnx.printer.to_text(ir.to_proto(model))
    assert list(generate_feeds(model)[0]) == ["x"]
    assert onnx.printer.to_text(ir.to_proto(model)) == before


def test_an_input_that_is_no_tensor_is_refused():
    model = parse("agraph (seq(float[2]) s) => (seq(float[2]) t) { t = Identity(s) }")
    model.graph.inputs[0].type = ir.OptionalType(model.graph.inputs[0].type)
    with pytest.raises(DataError, match="input s"):
        generate_feeds(model)
