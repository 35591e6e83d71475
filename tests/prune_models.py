"""Small models for pruning tests, built layer by layer with seeded weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from graph_check import make_feeds, run
from onnx import helper, numpy_helper

from onnxslim.ir import shapes
from onnxslim.ir.verify import verify
from onnxslim.passes.prune.eliminate_zeroed_channels import EliminateZeroedChannels
from onnxslim.pipeline import Context


class Net:
    """Nodes and weights in the order they are added; every method returns a value's name."""

    def __init__(self, seed: int = 0, dtype: type = np.float32, opset: int = 17) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = np.dtype(dtype)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.channels: dict[str, int] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: dict[str, tuple[int, ...]] = {}

    @property
    def element(self) -> int:
        return helper.np_dtype_to_tensor_dtype(self.dtype)

    def input(self, name: str, dims: Sequence[int | str], axis: int = 1) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, self.element, dims))
        self.channels[name] = int(dims[axis])
        return name

    def weight(self, name: str, content: np.ndarray) -> str:
        self.weights[name] = content
        return name

    def op(self, op_type: str, inputs: Sequence[str], channels: int | None = None, **attrs) -> str:
        name = attrs.pop("out", f"t{len(self.nodes)}")
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], **attrs))
        first = self.channels.get(inputs[0], 0)
        self.channels[name] = first if channels is None else channels
        return name

    def random(self, *dims: int, scale: float = 1.0) -> np.ndarray:
        return (self.rng.standard_normal(dims) * scale).astype(self.dtype)

    def conv(
        self,
        x: str,
        out: int,
        name: str,
        *,
        kernel: int = 3,
        pad: int | None = None,
        bias: bool = True,
        zero: Sequence[int] = (),
        unread: Sequence[int] = (),
        group: int = 1,
    ) -> str:
        """A Conv; ``zero``: filters (with bias) that are zero; ``unread``: inputs it ignores."""
        size = self.channels[x] // group
        weight = self.random(out, size, kernel, kernel, scale=(size * kernel**2) ** -0.5)
        weight[list(zero)] = 0
        weight[:, list(unread)] = 0
        inputs = [x, self.weight(f"{name}.w", weight)]
        if bias:
            vector = self.random(out, scale=0.3)
            vector[list(zero)] = 0
            inputs.append(self.weight(f"{name}.b", vector))
        pads = [kernel // 2 if pad is None else pad] * 4
        attrs = {"group": group} if group > 1 else {}
        return self.op("Conv", inputs, out, kernel_shape=[kernel] * 2, pads=pads, **attrs)

    def batch_norm(
        self,
        x: str,
        name: str,
        *,
        shift: Mapping[int, float] | None = None,
        dead: Sequence[int] = (),
    ) -> str:
        count = self.channels[x]
        gamma, beta = self.random(count) + self.dtype.type(2), self.random(count)
        gamma[list(dead)] = 0
        mean, variance = self.random(count, scale=0.1), np.abs(self.random(count)) + 1
        for index, value in (shift or {}).items():
            beta[index] = value
            mean[index] = 0
        parts = {"g": gamma, "b": beta, "m": mean, "v": variance.astype(self.dtype)}
        names = [self.weight(f"{name}.{key}", part) for key, part in parts.items()]
        return self.op("BatchNormalization", [x, *names])

    def linear(
        self,
        x: str,
        out: int,
        name: str,
        *,
        size: int | None = None,
        zero: Sequence[int] = (),
        unread: Sequence[int] = (),
    ) -> str:
        """MatMul and Add of a bias."""
        size = self.channels[x] if size is None else size
        weight, bias = self.random(size, out, scale=size**-0.5), self.random(out, scale=0.3)
        weight[:, list(zero)] = 0
        weight[list(unread)] = 0
        bias[list(zero)] = 0
        product = self.op("MatMul", [x, self.weight(f"{name}.w", weight)], out)
        return self.op("Add", [product, self.weight(f"{name}.b", bias)], out)

    def gemm(
        self, x: str, out: int, name: str, *, size: int | None = None, zero: Sequence[int] = ()
    ) -> str:
        size = self.channels[x] if size is None else size
        weight, bias = self.random(out, size, scale=size**-0.5), self.random(out, scale=0.3)
        weight[list(zero)] = 0
        bias[list(zero)] = 0
        inputs = [x, self.weight(f"{name}.w", weight), self.weight(f"{name}.b", bias)]
        return self.op("Gemm", inputs, out, transB=1)

    def model(self, *outputs: str, extra_domain: str | None = None) -> ir.Model:
        results = [
            helper.make_tensor_value_info(name, self.element, self.outputs.get(name))
            for name in outputs
        ]
        constants = [numpy_helper.from_array(data, name) for name, data in self.weights.items()]
        graph = helper.make_graph(self.nodes, "net", self.inputs, results, constants)
        opsets = [helper.make_opsetid("", self.opset)]
        if extra_domain:
            opsets.append(helper.make_opsetid(extra_domain, 1))
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        if extra_domain is None:
            # onnx infers no shape behind GroupNormalization, and says so when it is strict.
            strict = all(node.op_type != "GroupNormalization" for node in self.nodes)
            proto = onnx.shape_inference.infer_shapes(proto, strict_mode=strict)
            onnx.checker.check_model(proto)
        return ir.from_proto(proto)


class Pruned:
    """A model before and after the pass (with these options), and what the pass said."""

    def __init__(
        self, model: ir.Model, *, context: Context | None = None, **options: int | bool | None
    ) -> None:
        self.pass_ = EliminateZeroedChannels(**options)
        self.before = model
        self.after = ir.from_proto(ir.to_proto(model))
        self.context = context if context is not None else Context(self.after)
        shapes.set_aside_declared(self.after)
        shapes.infer(self.after)
        self.changes = self.pass_(self.after, self.context).changes
        verify(self.after)

    def dims(self, name: str) -> tuple[int, ...]:
        """The shape of a weight after the pass."""
        return tuple(self.after.graph.initializers[name].const_value.shape.numpy())

    def reasons(self) -> str:
        return "; ".join(f"{r.site}: {r.reason}" for r in self.context.refusals.values())

    def parameters(self) -> int:
        return count_parameters(self.after)

    def assert_equal(
        self, *, size: int = 3, seeds: int = 3, tolerance: float = 1e-6, once: bool = False
    ) -> None:
        """Same outputs, and (unless ``once``) a second run that finds nothing."""
        for seed in range(seeds):
            feeds = make_feeds(self.before, seed, size)
            for one, other in zip(run(self.before, feeds), run(self.after, feeds), strict=True):
                assert one.dtype == other.dtype
                assert one.shape == other.shape
                scale = float(np.abs(one).max(initial=0.0))
                error = float(np.abs(one.astype(np.float64) - other).max(initial=0.0))
                assert error <= tolerance * max(scale, 1e-3), (error, scale)
        if once:
            return
        again = self.pass_(self.after, Context(self.after))
        assert again.changes == 0, "a second run changes something"


def count_parameters(model: ir.Model) -> int:
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(t.size for t in tensors if t.dtype != ir.DataType.INT64)
