"""Models whose layers hold weights worth storing in fewer bytes, and what tests ask of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from graph_check import make_feeds, parse, run

from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.traversal import graphs, nodes
from onnxslim.ir.verify import verify
from onnxslim.pipeline import Context, Pass
from onnxslim.rewrite.stored_weights.emit import META_KEY, Record
from onnxslim.runtime.loaded import loaded_graph

HEAD = '<ir_version: {ir}, opset_import: ["" : {opset}]>\n'

# name -> (graph as text, weights by name and shape); each holds one kind of layer.
LAYERS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "matmul": ("g (float[N,64] x) => (float[N,48] y) { y = MatMul (x, w) }", {"w": (64, 48)}),
    "left": ("g (float[48,N] x) => (float[64,N] y) { y = MatMul (w, x) }", {"w": (64, 48)}),
    "gemm": (
        "g (float[N,64] x) => (float[N,48] y) { y = Gemm <transB = 1> (x, w, b) }",
        {"w": (48, 64), "b": (48,)},
    ),
    "conv": (
        "g (float[1,16,6,6] x) => (float[1,24,4,4] y) { y = Conv (x, w) }",
        {"w": (24, 16, 3, 3)},
    ),
    "depthwise": (
        "g (float[1,64,5,5] x) => (float[1,64,3,3] y) { y = Conv <group = 64> (x, w) }",
        {"w": (64, 1, 3, 3)},
    ),
    "conv_transpose": (
        "g (float[1,16,4,4] x) => (float[1,24,6,6] y) { y = ConvTranspose (x, w) }",
        {"w": (16, 24, 3, 3)},
    ),
    "embedding": (
        "g (int64[N] i) => (float[N,32] y) { y = Gather (w, i) }",
        {"w": (40, 32)},
    ),
    "lstm": (
        "g (float[3,2,16] x) => (float[3,1,2,16] y) { y = LSTM <hidden_size = 16> (x, w, r) }",
        {"w": (1, 64, 16), "r": (1, 64, 16)},
    ),
    "behind_transpose": (
        "g (float[N,64] x) => (float[N,48] y) { t = Transpose (w) y = MatMul (x, t) }",
        {"w": (48, 64)},
    ),
}


def model_of(
    text: str,
    weights: Mapping[str, tuple[int, ...] | np.ndarray],
    *,
    opset: int = 21,
    ir_version: int = 10,
    seed: int = 0,
) -> ir.Model:
    """The graph with its weights: given arrays, or normal numbers of a shape."""
    proto = onnx.parser.parse_model(HEAD.format(ir=ir_version, opset=opset) + text)
    rng = np.random.default_rng(seed)
    for name, what in weights.items():
        array = what if isinstance(what, np.ndarray) else rng.normal(0, 0.3, what)
        content = array if isinstance(what, np.ndarray) else array.astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(content, name))
    return ir.from_proto(proto)


def layer(name: str, **options: int) -> ir.Model:
    return model_of(*LAYERS[name], **options)


def stored(pass_: Pass, model: ir.Model, changes: int | None = None) -> dict[str, Record]:
    """Runs the pass; the model stays valid, and onnxruntime folds all that was added."""
    context = Context(model)
    made = pass_(model, context).changes
    assert made == len(context.journal)
    if changes is not None:
        assert made == changes, list(context.refusals.values())
    verify(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    records = {
        value.meta[META_KEY].name: value.meta[META_KEY]
        for node in nodes(model)
        for value in node.outputs
        if META_KEY in value.meta
    }
    names = loaded_graph(model).names
    assert all(names.isdisjoint(record.nodes) for record in records.values())
    assert pass_(model, Context(model)).changes == 0, "a second run changes something"
    return records


def refusals(pass_: Pass, model: ir.Model) -> dict[str, str]:
    """Reasons by weight; nothing may change."""
    context = Context(model)
    before = ir.to_proto(model).SerializeToString()
    assert pass_(model, context).changes == 0
    assert ir.to_proto(model).SerializeToString() == before
    return {entry.site: entry.reason for entry in context.refusals.values()}


def weight_bytes(model: ir.Model) -> int:
    """Stored bytes of all constants."""
    total = 0
    for graph in graphs(model):
        constants = [node.outputs[0] for node in graph if node.op_type == "Constant"]
        for value in (*graph.initializers.values(), *constants):
            tensor = constant_tensor(value)
            total += 0 if tensor is None else int(tensor.nbytes)
    return total


def output_error(before: ir.Model, after: ir.Model, seed: int = 0) -> float:
    """Norm of the difference of the first output, relative to its norm."""
    feeds = make_feeds(before, seed)
    one, other = run(before, feeds)[0], run(after, feeds)[0]
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    return float(np.linalg.norm(other - one) / np.linalg.norm(one))


def branch_model(opset: int = 21) -> ir.Model:
    """Weights as Constant nodes in both branches of an If, and one captured from outside."""
    rng = np.random.default_rng(5)
    model = parse(
        HEAD.format(ir=10, opset=opset)
        + """g (bool p, float[2,32] x) => (float[2,32] y) {
            y = If (p) <
                then_branch = t () => (float[2,32] ty) { ty = MatMul (x, outer) },
                else_branch = e () => (float[2,32] ey) {
                    k = Constant <value = float[1] {0}> ()
                    ey = MatMul (x, k)
                }
            >
        }"""
    )
    condition = model.graph[0]
    then, other = (condition.attributes[key].as_graph() for key in ("then_branch", "else_branch"))
    content = rng.normal(size=(2, 32, 32)).astype(np.float32)
    outer = ir.Value(
        name="outer",
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape([32, 32]),
        const_value=ir.tensor(content[0], name="outer"),
    )
    model.graph.register_initializer(outer)
    then[0].replace_input_with(1, outer)
    other[0].attributes["value"] = ir.AttrTensor("value", ir.tensor(content[1]))
    return model
