"""Time and peak memory of a whole run on a 1 GB model, against ``cp`` of the same file.

    python tests/bench/bench_io.py [--folder DIR] [--runs N] [--command "python -m onnxslim"]

The model: 60 blocks of MatMul (1024x2048), Relu, MatMul (2048x1024), then 20 pairs of Identity and
Relu; opset 17, dynamic batch, distinct random weights scaled so that outputs stay finite. It is
written as a stream, one weight at a time. Every run writes to a fresh name.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

WIDE = 2048
NARROW = 1024


def build(path: Path, blocks: int = 60, pairs: int = 20) -> None:
    """Write the model to ``path``."""
    import onnx_ir as ir

    from onnxslim import io

    kind = ir.TensorType(ir.DataType.FLOAT)
    source = ir.Value(name="x", type=kind, shape=ir.Shape(["batch", NARROW]))
    nodes: list[ir.Node] = []
    weights: list[ir.Value] = []
    last = source

    def add(op_type: str, *inputs: ir.Value) -> ir.Value:
        number = len(nodes)
        output = ir.Value(name=f"v{number}")
        nodes.append(ir.node(op_type, inputs, outputs=[output], name=f"n{number}"))
        return output

    def weight(name: str, shape: tuple[int, int]) -> ir.Value:
        tensor = _lazy_weight(name, shape, len(weights))
        weights.append(ir.Value(name=name, type=kind, shape=ir.Shape(shape), const_value=tensor))
        return weights[-1]

    for block in range(blocks):
        up = weight(f"up{block}", (NARROW, WIDE))
        down = weight(f"down{block}", (WIDE, NARROW))
        last = add("MatMul", add("Relu", add("MatMul", last, up)), down)
        for _ in range(pairs):
            last = add("Relu", add("Identity", last))
    last.type, last.shape = kind, ir.Shape(["batch", NARROW])
    graph = ir.Graph(
        [source], [last], nodes=nodes, initializers=weights, name="bench", opset_imports={"": 17}
    )
    io.save(ir.Model(graph, ir_version=8), path)


def _lazy_weight(name: str, shape: tuple[int, int], seed: int) -> ir.LazyTensor:
    import numpy as np
    import onnx_ir as ir

    def make() -> ir.TensorProtocol:
        generator = np.random.default_rng(seed)
        # He scaling: the Relus keep the variance near one through all blocks
        scale = np.float32(np.sqrt(2.0 / shape[0]))
        return ir.Tensor(generator.standard_normal(shape, dtype=np.float32) * scale)

    return ir.LazyTensor(make, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=name)


def measure(command: list[str]) -> tuple[float, float]:
    """Run ``command`` in a fresh process; return wall seconds and peak RSS in MB (10**6)."""
    started = time.perf_counter()
    # stdout is dropped so that a progress bar costs nothing
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)} failed with {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_maxrss * unit / 1e6


def compare(
    source: Path, runs: int, rows: dict[str, Callable[[Path], list[str]]]
) -> dict[str, tuple[float, float]]:
    """Run the rows in turns, so that a slow spell of the machine meets all; keep the best time."""
    best: dict[str, tuple[float, float]] = {}
    for _ in range(runs):
        for label, command in rows.items():
            target = source.with_name("out.onnx")
            target.unlink(missing_ok=True)
            os.sync()  # nobody pays for the pages of the run before
            seconds, peak = measure(command(target))
            old = best.get(label, (seconds, peak))
            best[label] = (min(seconds, old[0]), max(peak, old[1]))
            target.unlink(missing_ok=True)
    return best


def main() -> None:
    """Build, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=None, help="where the files go")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=60)
    parser.add_argument("--command", default=f"{shlex.quote(sys.executable)} -m onnxslim")
    parser.add_argument("--arguments", default="--no-validate")
    parser.add_argument("--build", type=Path, help="only write the model to this path")
    options = parser.parse_args()
    if options.build:
        build(options.build, options.blocks)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = Path(folder) / "in.onnx"
        # in another process: a child's peak begins at that of its parent, so this one stays small
        blocks = ["--blocks", str(options.blocks)]
        subprocess.run([sys.executable, __file__, "--build", str(source), *blocks], check=True)
        script = "import sys; from onnxslim import io; io.save(io.load(sys.argv[1]), sys.argv[2])"
        command = shlex.split(options.command)
        rows: dict[str, Callable[[Path], list[str]]] = {
            "cp": lambda target: ["cp", str(source), str(target)],
            "load + save": lambda target: [sys.executable, "-c", script, str(source), str(target)],
            "onnxslim": lambda target: [
                *command,
                str(source),
                str(target),
                *shlex.split(options.arguments),
            ],
        }
        if not command:  # --command "" leaves the whole process out
            del rows["onnxslim"]
        results = compare(source, options.runs, rows)
        base = results["cp"][0]
        print(f"{source.stat().st_size / 1e6:.0f} MB, best of {options.runs}")
        print(f"{'':12} {'wall s':>8} {'- cp':>8} {'/ cp':>8} {'peak MB':>8}")
        for label, (seconds, peak) in results.items():
            print(
                f"{label:12} {seconds:8.2f} {seconds - base:+8.2f} {seconds / base:8.2f} "
                f"{peak:8.0f}"
            )


if __name__ == "__main__":
    main()
