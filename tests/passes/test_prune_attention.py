"""Heads of attentions and their dimensions: which ones go, which ones stay, and why."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from attention_models import Block, whole_heads
from prune_models import Net, Pruned, count_parameters

DIMS = [(head, (3 * head + 2 * place) % 16) for head in range(4) for place in range(4)]


def widths(pruned: Pruned) -> tuple[int, int, int, int]:
    """How many columns of queries, keys and values are left, and rows of the output."""
    columns = [pruned.dims(f"{name}.w")[1] for name in "qkv"]
    return (*columns, pruned.dims("o.w")[0])


def targets(model: ir.Model) -> list[list[int]]:
    """The constant target shapes of all Reshapes."""
    shapes = [node.inputs[1].const_value for node in model.graph if node.op_type == "Reshape"]
    return [shape.numpy().tolist() for shape in shapes if shape is not None]


@pytest.mark.parametrize("side", ["values", "output"])
@pytest.mark.parametrize("key", ["direct", "twice"])
def test_dead_heads_go_with_their_queries_and_keys(side, key):
    dead = whole_heads([2, 3])
    block = Block(zero={"v": dead}, key=key) if side == "values" else Block(unread=dead, key=key)
    pruned = Pruned(block.whole())
    assert widths(pruned) == (32, 32, 32, 32)
    assert targets(pruned.after) == [[-1, 5, 2, 16]] * 3 + [[-1, 5, 32]]
    assert count_parameters(pruned.before) == 16641
    assert pruned.parameters() == 8353
    pruned.assert_equal()


@pytest.mark.parametrize("share", [False, True])
def test_literal_pieces_of_computed_shapes_follow(share):
    block = Block(zero={"v": whole_heads([0, 2])}, dynamic=True, sequence="t", share_shape=share)
    pruned = Pruned(block.whole())
    assert widths(pruned) == (32, 32, 32, 32)
    pruned.assert_equal()


@pytest.mark.parametrize("share", [False, True])
def test_zeros_in_target_shapes_stay_valid(share):
    pruned = Pruned(Block(zero={"v": whole_heads([1])}, sequence="t", share_shape=share).whole())
    assert widths(pruned) == (48, 48, 48, 48)
    assert targets(pruned.after) == [[0, 0, 3, 16]] * 3 + [[0, 0, 48]]
    pruned.assert_equal()


def test_shared_target_shapes_are_copied_where_cuts_differ():
    """Queries and keys keep all dimensions and values lose some, from one literal."""
    block = Block(zero={"v": DIMS}, dynamic=True, sequence="t", share_shape=True)
    pruned = Pruned(block.whole())
    assert widths(pruned) == (64, 64, 48, 48)
    pruned.assert_equal()


def test_constant_values_are_folded_into_the_output():
    pruned = Pruned(Block(zero={"v": whole_heads([2, 3])}, bias={"v": 0.7}).whole())
    assert widths(pruned) == (32, 32, 32, 32)
    assert "o.b_folded" in pruned.after.graph.initializers
    pruned.assert_equal()


def test_dimensions_of_values_may_differ_from_head_to_head():
    pruned = Pruned(Block(zero={"v": DIMS}).whole())
    assert widths(pruned) == (64, 64, 48, 48)
    assert targets(pruned.after) == [[-1, 5, 4, 16], [-1, 5, 4, 16], [-1, 5, 4, 12], [-1, 5, 48]]
    pruned.assert_equal()


def test_every_head_loses_equally_many_dimensions():
    pruned = Pruned(Block(zero={"v": DIMS[:-1]}).whole())
    assert widths(pruned) == (64, 64, 52, 52)
    assert "equally many channels in every head" in pruned.reasons()
    pruned.assert_equal()


@pytest.mark.parametrize(("side", "scale"), [("q", "scores"), ("k", "query"), ("q", "")])
def test_a_zero_dimension_of_queries_goes_with_that_of_keys(side, scale):
    block = Block(zero={side: DIMS}, scale=scale)
    pruned = Pruned(block.whole())
    assert widths(pruned) == (48, 48, 64, 64)
    if scale:
        number = pruned.after.graph.initializers["scale"].const_value.numpy()
        assert number == np.float32(0.25), "the scale is not that of the fewer dimensions"
    pruned.assert_equal()


def test_dimensions_dead_on_different_sides_count_together():
    block = Block(zero={"q": DIMS[::2], "k": DIMS[1::2]})
    pruned = Pruned(block.whole())
    assert widths(pruned) == (48, 48, 64, 64)
    pruned.assert_equal()


@pytest.mark.parametrize("side", ["q", "k"])
def test_a_head_without_queries_still_averages_its_values(side):
    pruned = Pruned(Block(zero={side: whole_heads([2])}).whole())
    assert widths(pruned) == (64, 64, 64, 64)
    assert "its head stays" in pruned.reasons()
    pruned.assert_equal()


def test_without_any_queries_one_dimension_of_each_head_stays():
    pruned = Pruned(Block(zero={"q": whole_heads(range(4))}).whole())
    assert widths(pruned) == (4, 4, 64, 64)
    pruned.assert_equal()


def test_one_head_stays_when_all_are_dead():
    pruned = Pruned(Block(zero={"v": whole_heads(range(4))}).whole())
    assert widths(pruned) == (16, 16, 1, 1)
    pruned.assert_equal()


@pytest.mark.parametrize("repeat", ["expand", "guarded", "gather"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_shared_keys_and_values_go_with_all_their_queries(repeat, dynamic):
    block = Block(unread=whole_heads([2, 3]), shared=2, repeat=repeat, dynamic=dynamic)
    pruned = Pruned(block.whole())
    assert widths(pruned) == (32, 16, 16, 32)
    pruned.assert_equal()


@pytest.mark.parametrize("repeat", ["expand", "gather"])
def test_one_query_of_a_group_stays_with_the_others(repeat):
    pruned = Pruned(Block(unread=whole_heads([1]), shared=2, repeat=repeat).whole())
    assert widths(pruned) == (64, 32, 32, 64)
    assert pruned.changes == 0
    assert "v.w: 16 zeroed channels stay" in pruned.reasons()


@pytest.mark.parametrize("packed", ["split", "gather"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_packed_projections(packed, dynamic):
    block = Block(zero={"v": whole_heads([2, 3])}, packed=packed, dynamic=dynamic)
    pruned = Pruned(block.whole())
    assert pruned.dims("qkv.w") == (64, 96)
    assert pruned.dims("qkv.b") == (96,)
    assert pruned.dims("o.w") == (32, 64)
    pruned.assert_equal()


def test_an_array_of_queries_keys_and_values_keeps_one_length():
    """Behind one Reshape to (3, heads, size) all three lose equally many dimensions or none."""
    pruned = Pruned(Block(zero={"v": DIMS}, packed="gather").whole())
    assert pruned.changes == 0
    assert "equally many channels in every head" in pruned.reasons()
    pruned = Pruned(Block(zero={"v": DIMS, "q": DIMS}, packed="gather").whole())
    assert pruned.dims("qkv.w") == (64, 144)
    pruned.assert_equal()


def test_rotated_dimensions_stay_and_rotated_heads_go():
    zero = {"v": whole_heads([2, 3]), "q": DIMS}
    pruned = Pruned(Block(zero=zero, rotary=True).whole())
    assert widths(pruned) == (32, 32, 32, 32)
    pruned.assert_equal()


@pytest.mark.parametrize("mask", ["input", "constant"])
def test_masks_for_all_heads_do_not_hold_them(mask):
    pruned = Pruned(Block(zero={"v": whole_heads([2, 3])}, mask=mask).whole())
    assert widths(pruned) == (32, 32, 32, 32)
    pruned.assert_equal()


def test_an_input_that_masks_each_head_holds_them():
    pruned = Pruned(Block(zero={"v": whole_heads([2, 3])}, mask="heads").whole())
    assert widths(pruned) == (64, 64, 64, 64)
    assert "'mask' is not computed from prunable weights" in pruned.reasons()


@pytest.mark.parametrize(
    ("output", "kept"),
    [("weights", (64, 64, 64, 64)), ("scores", (64, 64, 64, 64)), ("mixed", (64, 64, 64, 64))],
)
def test_what_is_shown_as_an_output_stays(output, kept):
    pruned = Pruned(Block(zero={"v": whole_heads([2, 3])}).whole(output))
    assert widths(pruned) == kept
    assert f"'{output}' is a graph output" in pruned.reasons()
    pruned.assert_equal()


def test_outputs_of_weights_do_not_hold_dimensions():
    pruned = Pruned(Block(zero={"v": DIMS, "k": DIMS}).whole("weights"))
    assert widths(pruned) == (48, 48, 48, 48)
    pruned.assert_equal()


def test_a_reader_of_the_head_axis_holds_heads():
    block = Block(zero={"v": whole_heads([2, 3])})
    x = block.net.input("x", ["n", 5, 64], axis=2)
    y = block.build(x)
    pruned = Pruned(block.net.model(y, block.net.op("ReduceMax", ["mixed"], axes=[1, 3])))
    assert widths(pruned) == (64, 64, 64, 64)
    pruned.assert_equal()


def test_a_length_of_heads_that_is_read_holds_all_dimensions():
    """A scale that is computed from the shape of the queries must not change."""
    block = Block(zero={"q": DIMS, "v": whole_heads([3])}, scale="")
    x = block.net.input("x", ["n", 5, 64], axis=2)
    y = block.build(x)
    (scores,) = [node for node in block.net.nodes if "scores" in node.output]
    shape = block.net.op("Shape", [scores.input[0]])
    place = block.net.weight("last", np.array([3], dtype=np.int64))
    size = block.net.op("Cast", [block.net.op("Gather", [shape, place], axis=0)], to=1)
    y = block.net.op("Div", [y, size])
    pruned = Pruned(block.net.model(y))
    assert widths(pruned) == (48, 48, 48, 48)
    pruned.assert_equal()


def test_single_head_without_a_head_axis():
    net = Net()
    x = net.input("x", ["n", 5, 24], axis=2)
    query, key = (net.linear(x, 16, name, zero=zero) for name, zero in (("q", [3, 5]), ("k", [7])))
    value = net.linear(x, 16, "v", zero=[0, 1, 2])
    scores = net.op("MatMul", [query, net.op("Transpose", [key], perm=[0, 2, 1])])
    mixed = net.op("MatMul", [net.op("Softmax", [scores], axis=-1), value], 16)
    pruned = Pruned(net.model(net.linear(mixed, 8, "o", unread=[15])))
    assert pruned.dims("q.w") == (24, 13)
    assert pruned.dims("k.w") == (24, 13)
    assert pruned.dims("v.w") == (24, 12)
    assert pruned.dims("o.w") == (12, 8)
    pruned.assert_equal()


@pytest.mark.parametrize("last", [-1, 512])
def test_flattened_images_of_any_batch(last):
    """Conv, then a Reshape to a shape of pieces with the batch of the input, then Gemm."""
    net = Net()
    x = net.input("x", ["n", 3, 4, 4])
    y = net.op("Relu", [net.conv(x, 32, "c", zero=range(12))])
    shape = net.op("Shape", [y])
    batch = net.op("Gather", [shape, net.weight("first", np.array(0))], axis=0)
    batch = net.op("Unsqueeze", [batch, net.weight("axis", np.array([0]))])
    rest = net.weight("rest", np.array([last]))
    flat = net.op("Reshape", [y, net.op("Concat", [batch, rest], axis=0)], 512)
    pruned = Pruned(net.model(net.gemm(flat, 10, "g")))
    assert pruned.dims("c.w")[0] == 20
    assert pruned.dims("g.w") == (10, 320)
    pruned.assert_equal()


def test_a_target_that_ends_with_the_rest():
    """What the output projection reads tells how long the last axis is."""
    block = Block(unread=whole_heads([0, 3]), dynamic=True, sequence="t")
    model = block.whole()
    (flat,) = [node for node in block.net.nodes if node.input[0] == "turned"]
    (shape,) = [node for node in block.net.nodes if flat.input[1] in node.output]
    block.net.weights[shape.input[-1]][:] = -1
    x = block.net.inputs[0].name
    assert x in {value.name for value in model.graph.inputs}
    pruned = Pruned(block.net.model(block.net.nodes[-1].output[0]))
    assert widths(pruned) == (32, 32, 32, 32)
    pruned.assert_equal()


def test_heads_that_a_subgraph_reads_stay():
    block = Block(zero={"v": whole_heads([2, 3])})
    x = block.net.input("x", ["n", 5, 64], axis=2)
    y = block.build(x)
    model = block.net.model(y)
    (mixed,) = [node.outputs[0] for node in model.graph if node.outputs[0].name == "mixed"]
    inner = ir.Node("", "Neg", [mixed], num_outputs=1)
    inner.outputs[0].name = "inner"
    body = ir.Graph([], [inner.outputs[0]], nodes=[inner], opset_imports={"": 17})
    other = ir.Node("", "Identity", [mixed], num_outputs=1)
    other.outputs[0].name = "other"
    orelse = ir.Graph([], [other.outputs[0]], nodes=[other], opset_imports={"": 17})
    for graph in (body, orelse):
        graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    condition = ir.Value(name="c", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    model.graph.inputs.append(condition)
    attributes = [ir.AttrGraph("then_branch", body), ir.AttrGraph("else_branch", orelse)]
    chosen = ir.Node("", "If", [condition], attributes=attributes, num_outputs=1)
    chosen.outputs[0].name = "chosen"
    chosen.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.append(chosen)
    model.graph.outputs.append(chosen.outputs[0])
    pruned = Pruned(model)
    assert widths(pruned) == (64, 64, 64, 64)
    assert "'mixed' is used inside a subgraph" in pruned.reasons()


def test_half_precision():
    pruned = Pruned(Block(zero={"v": whole_heads([1]), "q": DIMS}, dtype=np.float16).whole())
    assert widths(pruned) == (36, 36, 48, 48)
    pruned.assert_equal(tolerance=4e-3)


# -- random blocks --------------------------------------------------------------------------------


def some(rng: np.random.Generator, heads: int, size: int) -> list[tuple[int, int]]:
    """A random set of (head, dimension): none, heads, equally many, any, the same, all, mixed."""
    grid = np.zeros((heads, size), dtype=bool)
    mode = int(rng.integers(7))
    if mode in (1, 6):
        grid[rng.random(heads) < 0.5] = True
    if mode == 2:
        count = int(rng.integers(1, size))
        for head in range(heads):
            grid[head, rng.permutation(size)[:count]] = True
    if mode in (3, 6):
        grid |= rng.random((heads, size)) < rng.choice([0.2, 0.6, 0.9])
    if mode == 4:
        grid[:, rng.random(size) < 0.5] = True
    if mode == 5:
        grid[:] = True
    return [(int(head), int(place)) for head, place in zip(*np.nonzero(grid), strict=True)]


def random_block(seed: int) -> tuple[Block, list[str]]:
    rng = np.random.default_rng(seed)
    heads, size = int(rng.choice([1, 2, 4, 6])), int(rng.choice([2, 4, 6]))
    grouped = heads > 1 and rng.random() < 0.35
    shared = int(rng.choice([heads // 2, 1])) if grouped else None
    zero = {
        name: some(rng, heads if name == "q" or shared is None else shared, size) for name in "qkv"
    }
    mask = str(rng.choice(["", "", "input", "constant", "heads"]))
    rotary, dynamic = bool(rng.random() < 0.2), bool(rng.random() < 0.5)
    open_length = (dynamic or rng.random() < 0.3) and not mask and not rotary
    block = Block(
        width=int(rng.choice([8, 12])),
        heads=heads,
        size=size,
        shared=shared,
        sequence="t" if open_length else 5,
        zero=zero,
        unread=some(rng, heads, size),
        bias={name: float(rng.choice([0, 0, 0.5])) for name in "qkv"},
        dynamic=dynamic,
        packed="" if grouped else str(rng.choice(["", "", "split", "gather"])),
        key=str(rng.choice(["direct", "twice"])),
        scale=str(rng.choice(["scores", "query", ""])),
        mask=mask,
        share_shape=bool(rng.random() < 0.4) and not grouped,
        repeat=str(rng.choice(["expand", "guarded", "gather"])),
        rotary=rotary,
        seed=seed,
    )
    return block, [name for name in ("scores", "weights", "mixed") if rng.random() < 0.05]


def check_blocks(seeds: range) -> int:
    """Prunes random blocks, compares their outputs, and counts those that got smaller."""
    cut = 0
    for seed in seeds:
        block, outputs = random_block(seed)
        pruned = Pruned(block.whole(*outputs))
        pruned.assert_equal(seeds=1, tolerance=1e-5)
        cut += pruned.parameters() < count_parameters(pruned.before)
    return cut


def test_random_blocks_keep_their_outputs():
    assert check_blocks(range(150)) > 75, "the blocks do not exercise the rules"


@pytest.mark.slow
def test_many_more_random_blocks_keep_their_outputs():
    check_blocks(range(150, 3000))
