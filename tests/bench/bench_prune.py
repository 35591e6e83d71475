"""Time and peak memory of the removal of zeroed channels on large models.

    python tests/bench/bench_prune.py [--sizes 25000,50000,100000] [--runs 3]

First a network of the shape of ResNet-50 (25.5 million random weights, half of the filters inside
every block zero), then graphs of small residual blocks (Conv, Relu, Conv, Add, Relu) with that many
nodes. Every run is a process of its own; the least of its times counts, in seconds of one core.
Only the pass is timed, not loading and not shape inference; the peak is that of the whole process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import onnx_ir as ir

_STAGES = ((64, 256, 3), (128, 512, 4), (256, 1024, 6), (512, 2048, 3))


class Builder:
    """A graph that grows node by node."""

    def __init__(self, shape: tuple[int | str, ...]) -> None:
        self.rng = np.random.default_rng(0)
        kind = ir.TensorType(ir.DataType.FLOAT)
        self.source = ir.Value(name="x", type=kind, shape=ir.Shape(shape))
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []

    def weight(self, content: np.ndarray[Any, Any]) -> ir.Value:
        name = f"w{len(self.weights)}"
        value = ir.Value(name=name, const_value=ir.tensor(content, name=name))
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(content.shape)
        self.weights.append(value)
        return value

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        output = ir.Value(name=f"v{len(self.nodes)}")
        node = ir.node(op_type, inputs, attributes=attributes, outputs=[output])
        self.nodes.append(node)
        return output

    def conv(
        self, x: ir.Value, cin: int, cout: int, kernel: int, *, stride: int = 1, dead: int = 0
    ) -> ir.Value:
        """A Conv with bias; ``dead`` filters at random places are zero."""
        scale = np.float32((cin * kernel**2) ** -0.5)
        content = self.rng.standard_normal((cout, cin, kernel, kernel), dtype=np.float32) * scale
        bias = self.rng.standard_normal(cout, dtype=np.float32)
        zero = self.rng.permutation(cout)[:dead]
        content[zero], bias[zero] = 0, 0
        pads, strides = [kernel // 2] * 4, [stride] * 2
        parts = self.weight(content), self.weight(bias)
        return self.op("Conv", x, *parts, kernel_shape=[kernel] * 2, pads=pads, strides=strides)

    def model(self, output: ir.Value) -> ir.Model:
        output.type = ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(
            [self.source], [output], nodes=self.nodes, initializers=self.weights, name="bench"
        )
        graph.opset_imports[""] = 17
        return ir.Model(graph, ir_version=9)


def resnet() -> ir.Model:
    """The layers of ResNet-50 without normalisation, half of the inner filters zero."""
    net = Builder((1, 3, 224, 224))
    x = net.op("Relu", net.conv(net.source, 3, 64, 7, stride=2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    width = 64
    for stage, (inner, outer, blocks) in enumerate(_STAGES):
        for block in range(blocks):
            stride = 2 if stage and block == 0 else 1
            shortcut = x
            if block == 0:
                shortcut = net.conv(x, width, outer, 1, stride=stride)
            y = net.op("Relu", net.conv(x, width, inner, 1, dead=inner // 2))
            y = net.op("Relu", net.conv(y, inner, inner, 3, stride=stride, dead=inner // 2))
            x = net.op("Relu", net.op("Add", net.conv(y, inner, outer, 1), shortcut))
            width = outer
    x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    head = net.weight(net.rng.standard_normal((width, 1000), dtype=np.float32))
    return net.model(net.op("Gemm", x, head))


def blocks(count: int) -> ir.Model:
    """``count`` nodes of residual blocks with 8 channels, half of the inner ones zero."""
    net = Builder(("n", 8, 16, 16))
    x = net.source
    for _ in range(count // 5):
        y = net.op("Relu", net.conv(x, 8, 8, 3, dead=4))
        x = net.op("Relu", net.op("Add", net.conv(y, 8, 8, 1), x))
    return net.model(x)


def run(kind: str, align: int | None) -> dict[str, float]:
    """Builds the model, runs the pass, and measures."""
    from onnxslim.ir import shapes
    from onnxslim.passes.prune.eliminate_zeroed_channels import EliminateZeroedChannels
    from onnxslim.pipeline import Context

    model = resnet() if kind == "resnet" else blocks(int(kind))
    shapes.infer(model)
    before, held = _parameters(model), _peak()
    started = time.process_time()
    changes = EliminateZeroedChannels(align=align)(model, Context(model)).changes
    spent = time.process_time() - started
    return {
        "seconds": spent,
        "changes": changes,
        "parameters": before,
        "left": _parameters(model),
        "peak": _peak(),
        "before": held,
    }


def _parameters(model: ir.Model) -> int:
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.size for tensor in tensors if tensor is not None)


def _peak() -> float:
    """Megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="25000,50000,100000")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--align", default="auto")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    align = None if given.align == "auto" else int(given.align)
    if given.one:
        print(json.dumps(run(given.one, align)))
        return
    for kind in ["resnet", *given.sizes.split(",")]:
        command = [sys.executable, __file__, "--one", kind, "--align", given.align]
        results = [json.loads(subprocess.check_output(command)) for _ in range(given.runs)]
        best = min(results, key=lambda result: result["seconds"])
        print(
            f"{kind:>8}: {best['seconds']:.2f} s, {best['changes']} weights cut, "
            f"{best['parameters'] / 1e6:.2f} -> {best['left'] / 1e6:.2f} M parameters, "
            f"peak {best['before']:.0f} -> {best['peak']:.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
