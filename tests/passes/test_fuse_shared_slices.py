"""FuseSharedSlices: a Slice that several readers cut further."""

from __future__ import annotations

import pytest
from graph_check import apply, assert_same_outputs, make_feeds, parse, run

from onnxslim.passes.simplify.fuse_shared_slices import FuseSharedSlices

PASS = FuseSharedSlices()
CONSTANTS = """int64[1] o = {0}, int64[1] i = {1}, int64[1] e = {9}, int64[1] k = {1},
    int64[1] l = {-1}, int64[1] s = {2}"""
LONG = "a_value_with_a_name_of_which_the_file_is_better_off_without_it_since_it_takes_many_bytes"


def merging(more: str = "", outputs: str = "", second: str = "l") -> str:
    """The four corners of every patch of 2 by 2."""
    groups = ""
    for row, start in (("even", "o"), ("odd", "i")):
        groups += f"{LONG}_{row}_{LONG} = Slice (x, {start}, e, k, s)\n"
        for column, begin in (("p", "o"), ("q", "i")):
            groups += f"{row}{column} = Slice ({LONG}_{row}_{LONG}, {begin}, e, {second}, s)\n"
    return f"""g (float[N,4,6] x) => (float[N,2,C] y{outputs}) <{CONSTANTS}> {{
        {groups}
        y = Concat <axis = 2> (evenp, evenq, oddp, oddq)
        {more}
    }}"""


def test_patches():
    model = parse(merging())
    feeds = make_feeds(model)
    expected = run(model, feeds)
    assert apply(PASS, model) == 2
    assert [node.op_type for node in model.graph] == ["Slice"] * 4 + ["Concat"]
    assert_same_outputs(expected, run(model, feeds), exact=True)
    assert apply(PASS, model) == 0


@pytest.mark.parametrize(
    "text",
    [
        # both are read by something else too
        merging(f"z = Add ({LONG}_even_{LONG}, {LONG}_odd_{LONG})", ", float[N,2,6] z"),
    ],
)
def test_refused(text):
    assert apply(PASS, parse(text)) == 0


def test_the_same_axis_twice():
    text = f"""g (float[N,8,6] x) => (float[N,A,6] y, float[N,B,6] z) <{CONSTANTS}> {{
        {LONG} = Slice (x, o, e, k, s)
        y = Slice ({LONG}, i, e, k, s)
        z = Slice ({LONG}, o, e, k, s)
    }}"""
    assert apply(PASS, parse(text)) == 0


def test_kept_where_the_file_would_grow():
    model = parse(merging().replace(f"_{LONG}", "").replace(LONG, "v"))
    assert apply(PASS, model) == 0
