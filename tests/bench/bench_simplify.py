"""Whole-process time and peak memory of simplification, with peers in the same run on request.

    python tests/bench/bench_simplify.py                       # transformers of 24, 48, 96 layers
    python tests/bench/bench_simplify.py FOLDER [FOLDER ...]   # every .onnx in the folders too
    python tests/bench/bench_simplify.py --peers PYTHON ...    # and onnxsim and its like there

The transformer has 82 nodes per layer, as an exporter with dynamic axes writes them: Shape, Gather,
Unsqueeze and Concat in front of every Reshape, layer normalizations and Gelu in primitive
operators. Tools take turns on every model, and the fastest of the rounds counts. Processor time is
given beside, because it depends less on what else the machine does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HIDDEN, HEADS, INNER = 64, 4, 128
PEERS = ("onnxslim", "onnxsim")


class Transformer:
    """Writes the layers one after the other."""

    def __init__(self, layers: int) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.count = 0
        self.zero = self.constant(np.array(0, np.int64))
        self.one = self.constant(np.array(1, np.int64))
        self.first = self.constant(np.array([0], np.int64))
        self.heads = self.constant(np.array([HEADS], np.int64))
        self.width = self.constant(np.array([HIDDEN // HEADS], np.int64))
        self.all = self.constant(np.array([HIDDEN], np.int64))
        value = "x"
        for _ in range(layers):
            value = self.layer(value)
        self.nodes[-1].output[0] = "y"

    def model(self) -> onnx.ModelProto:
        shape = ["batch", "sequence", HIDDEN]
        graph = helper.make_graph(
            self.nodes,
            "transformer",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            self.weights,
        )
        return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def scalar(self, number: float) -> str:
        return self.constant(np.array(number, np.float32))

    def weight(self, *shape: int) -> str:
        return self.constant((self.rng.standard_normal(shape) * 0.05).astype(np.float32))

    def op(self, operator: str, *inputs: str, **attributes: object) -> str:
        self.count += 1
        name = f"v{self.count}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def dense(self, value: str, size: int, out: int) -> str:
        return self.op("Add", self.op("MatMul", value, self.weight(size, out)), self.weight(out))

    def size(self, value: str, axis: str) -> str:
        found = self.op("Gather", self.op("Shape", value), axis, axis=0)
        return self.op("Unsqueeze", found, self.first)

    def reshape(self, value: str, *rest: str) -> str:
        sizes = [self.size(value, self.zero), self.size(value, self.one), *rest]
        return self.op("Reshape", value, self.op("Concat", *sizes, axis=0))

    def split_heads(self, value: str, perm: Sequence[int]) -> str:
        return self.op("Transpose", self.reshape(value, self.heads, self.width), perm=perm)

    def normalize(self, value: str) -> str:
        mean = self.op("ReduceMean", value, axes=[-1])
        centred = self.op("Sub", value, mean)
        square = self.op("Pow", centred, self.scalar(2.0))
        variance = self.op("ReduceMean", square, axes=[-1])
        deviation = self.op("Sqrt", self.op("Add", variance, self.scalar(1e-5)))
        scaled = self.op("Mul", self.op("Div", centred, deviation), self.weight(HIDDEN))
        return self.op("Add", scaled, self.weight(HIDDEN))

    def gelu(self, value: str) -> str:
        erf = self.op("Erf", self.op("Div", value, self.scalar(2**0.5)))
        shifted = self.op("Add", erf, self.scalar(1.0))
        return self.op("Mul", self.op("Mul", value, shifted), self.scalar(0.5))

    def layer(self, value: str) -> str:
        query, key, content = (self.dense(value, HIDDEN, HIDDEN) for _ in range(3))
        query = self.split_heads(query, [0, 2, 1, 3])
        key = self.split_heads(key, [0, 2, 3, 1])
        content = self.split_heads(content, [0, 2, 1, 3])
        scores = self.op("Div", self.op("MatMul", query, key), self.scalar(4.0))
        weights = self.op("Identity", self.op("Softmax", scores, axis=-1))
        mixed = self.op("Transpose", self.op("MatMul", weights, content), perm=[0, 2, 1, 3])
        joined = self.reshape(mixed, self.all)
        attended = self.op("Identity", self.dense(joined, HIDDEN, HIDDEN))
        value = self.normalize(self.op("Add", attended, value))
        inner = self.gelu(self.dense(value, HIDDEN, INNER))
        outer = self.op("Dropout", self.dense(inner, INNER, HIDDEN))
        summed = self.op("Cast", self.op("Add", outer, value), to=TensorProto.FLOAT)
        return self.normalize(self.op("Identity", summed))


@dataclass
class Cost:
    """Of one process: seconds on the wall and of processors, peak memory in MB."""

    wall: float
    cpu: float
    peak: float

    def text(self) -> str:
        return f"{self.wall:7.2f} s {self.cpu:6.2f} s cpu {self.peak:6.0f} MB"


def measure(command: Sequence[str], folder: str) -> Cost | None:
    """Runs a command away from the checkout, whose package has the name of a peer."""
    started = time.perf_counter()
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=folder, stdout=quiet, stderr=quiet)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        return None
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def commands(peers: str | None) -> dict[str, list[str]]:
    own = [sys.executable, "-m", "onnxslim"]
    found = {"this": own, "this, not validated": [*own, "--no-validate"]}
    if peers is not None:
        found |= {f"peer {name}": [peers, "-m", name] for name in PEERS}
    return found


def count_nodes(path: Path) -> int:
    """Nodes of all graphs, those of subgraphs included."""

    def count(graph: onnx.GraphProto) -> int:
        inner = [item.g for node in graph.node for item in node.attribute if item.HasField("g")]
        return len(graph.node) + sum(map(count, inner))

    return count(onnx.load(path, load_external_data=False).graph)


def nodes_in(path: Path) -> int:
    """As `count_nodes`, in another process.

    The peak memory of a new process starts at what this one holds, so this one loads no model.
    """
    command = [sys.executable, __file__, "--count", str(path)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(model: Path, tools: dict[str, list[str]], rounds: int, folder: str) -> dict[str, Cost]:
    best: dict[str, Cost] = {}
    nodes: dict[str, int] = {}
    for _ in range(rounds):
        for name, command in tools.items():
            target = Path(folder) / f"{len(os.listdir(folder))}.onnx"
            cost = measure([*command, str(model), str(target)], folder)
            if cost is None:
                continue
            if name not in best or cost.wall < best[name].wall:
                best[name] = cost
            nodes[name] = nodes_in(target)
            target.unlink()
    print(f"{model.name}: {nodes_in(model)} nodes")
    for name in tools:
        line = f"{best[name].text()}  -> {nodes[name]} nodes" if name in best else "failed"
        print(f"  {name:22s} {line}", flush=True)
    return best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--peers", help="a Python that has the peers")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--layers", type=int, nargs="*", default=[24, 48, 96])
    parser.add_argument("--count", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.count is not None:
        print(count_nodes(given.count))
        return
    tools = commands(given.peers)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as source:
        for layers in given.layers:
            path = Path(source) / f"transformer_{layers}.onnx"
            onnx.save(Transformer(layers).model(), path)
            compare(path, tools, given.rounds, folder)
        models = sorted(path for where in given.folders for path in where.resolve().glob("*.onnx"))
        costs = [compare(path, tools, given.rounds, folder) for path in models]
    if costs:
        print(f"median of {len(costs)} models")
    for name in tools if costs else ():
        known = [cost[name] for cost in costs if name in cost]
        fields = ([getattr(cost, field) for cost in known] for field in ("wall", "cpu", "peak"))
        print(f"  {name:22s} {Cost(*map(statistics.median, fields)).text()}")


if __name__ == "__main__":
    main()
