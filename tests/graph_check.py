"""`check`: the form of every pass test, a graph before and a graph after in ONNX text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime

from onnxslim.ir import shapes
from onnxslim.ir.verify import verify
from onnxslim.pipeline import Context, Exactness, Pass

TOLERANCE = {np.dtype(np.float16): 2e-3, np.dtype(np.float32): 2e-6, np.dtype(np.float64): 1e-12}


def parse(text: str) -> ir.Model:
    """A model from ONNX text; a graph alone gets IR version 10 and opset 17."""
    if not text.lstrip().startswith("<"):
        text = f'<ir_version: 10, opset_import: ["" : 17]>\n{text}'
    return ir.from_proto(onnx.parser.parse_model(text))


def as_written(model: ir.Model) -> ir.Model:
    """A copy with the declarations that the product puts back before it writes a file."""
    copy = model.clone()
    shapes.restore_declared(copy)
    return copy


def normalise(model: ir.Model) -> str:
    """Text in which names count only at the border: inner values and nodes are renumbered."""
    proto = ir.to_proto(as_written(model))
    _rename(proto.graph, {}, [0])
    proto.producer_name = ""
    for function in proto.functions:
        for node in function.node:
            node.name = ""
    return onnx.printer.to_text(proto)


def _rename(graph: onnx.GraphProto, outer: dict[str, str], counter: list[int]) -> None:
    border = {value.name for value in (*graph.input, *graph.output)}
    names = dict(outer)

    def new(name: str) -> str:
        if not name or name in border:
            names.pop(name, None)
            return name
        if name not in names:
            counter[0] += 1
            names[name] = f"v{counter[0]}"
        return names[name]

    graph.ClearField("value_info")
    graph.name = "g"
    used: list[str] = []
    for node in graph.node:
        node.name = ""
        node.input[:] = [new(name) for name in node.input]
        used.extend(node.input)
        for attribute in sorted(node.attribute, key=lambda item: item.name):
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                _rename(inner, names, counter)
        node.output[:] = [new(name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = new(tensor.name)
    order = {name: index for index, name in reversed(list(enumerate(used)))}
    tensors = sorted(graph.initializer, key=lambda item: (order.get(item.name, 1 << 30), item.name))
    copies = [onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(t), t.name) for t in tensors]
    del graph.initializer[:]
    graph.initializer.extend(copies)


def make_feeds(model: ir.Model, seed: int = 0, size: int = 3) -> dict[str, np.ndarray]:
    """Seeded random inputs; every symbolic dimension becomes ``size``."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        dims = [item if isinstance(item, int) else size for item in value.shape or ()]
        dtype = value.dtype.numpy()
        if dtype == np.bool_:
            feeds[value.name] = rng.integers(0, 2, dims).astype(np.bool_)
        elif dtype.kind in "iu":
            feeds[value.name] = rng.integers(0, 3, dims).astype(dtype)
        else:
            feeds[value.name] = np.asarray(rng.standard_normal(dims), dtype=dtype)
    return feeds


def run(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of the model in onnxruntime with graph optimizations off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        ir.to_proto(as_written(model)).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    return session.run(None, dict(feeds))


def assert_same_outputs(
    before: Sequence[np.ndarray], after: Sequence[np.ndarray], *, exact: bool = False
) -> None:
    """Same number, dtype, shape and values; floats relative to the output's largest magnitude."""
    assert len(before) == len(after)
    for one, other in zip(before, after, strict=True):
        if isinstance(one, list):
            assert_same_outputs(one, other, exact=exact)
            continue
        one, other = np.asarray(one), np.asarray(other)
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        if exact or one.dtype.kind not in "fc":
            np.testing.assert_array_equal(one, other)
        else:
            finite = one[np.isfinite(one)]
            scale = float(np.abs(finite).max()) if finite.size else 1.0
            tolerance = TOLERANCE[one.dtype]
            np.testing.assert_allclose(
                other, one, rtol=tolerance, atol=tolerance * max(scale, 1e-6)
            )


def apply(pass_: Pass, model: ir.Model) -> int:
    """Infers shapes, runs the pass once, verifies; returns the number of changes."""
    shapes.set_aside_declared(model)
    shapes.infer(model)
    changes = pass_(model, Context(model)).changes
    verify(model)
    return changes


def check(
    pass_: Pass,
    before: str,
    after: str | None = None,
    *,
    changes: int | None = None,
    feeds: Mapping[str, np.ndarray] | None = None,
    runs: bool = True,
) -> ir.Model:
    """Runs the pass on ``before`` and compares with ``after``; None means that nothing changes.

    Args:
        pass_: the pass under test.
        before: the graph (or whole model) in ONNX text.
        after: the expected graph in ONNX text, or None for a refusal.
        changes: the expected number of changes, when it matters.
        feeds: inputs; seeded random ones when left out.
        runs: False when onnxruntime cannot run the graph (an operator of an unknown domain).

    Returns:
        The rewritten model.
    """
    original, model = parse(before), parse(before)
    made = apply(pass_, model)
    expected = parse(after if after is not None else before)
    assert normalise(model) == normalise(expected)
    if changes is not None or after is None:
        assert made == (changes or 0)
    else:
        assert made > 0
    if pass_.idempotent:
        assert pass_(model, Context(model)).changes == 0, "a second run changes something"
    if runs:
        inputs = feeds if feeds is not None else make_feeds(original)
        exact = pass_.exactness is Exactness.EXACT
        assert_same_outputs(run(original, inputs), run(model, inputs), exact=exact)
    return model
