"""Weights in another form: bytes, speed, time to open and change of the outputs, per model.

    python tests/bench/bench_compress.py FOLDER... [--weights int8] [--seconds 2]

Each model is simplified without loss first; the compressed one is compared with that. Models
without a float32 or float16 weight of a layer are left out. Times are of one thread: both models
alternate, the best of all runs counts. ``weights`` is what the constants of the compressed model
take of what the float ones took (constants of other types are left out on both sides).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from onnxslim import api, io
from onnxslim.compression import Compression, run_compression
from onnxslim.compression.run import made_up_feeds
from onnxslim.ir.constants import constant_tensor
from onnxslim.ir.listed import take_listed
from onnxslim.ir.schema import is_op
from onnxslim.ir.traversal import graphs

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def constant_bytes(model: ir.Model, *, floats: bool) -> int:
    """Stored bytes of the constants; only of those in float32 and float16 with ``floats``."""
    total = 0
    for graph in graphs(model):
        nodes = (node.outputs[0] for node in graph if is_op(node, "Constant"))
        for value in (*graph.initializers.values(), *nodes):
            tensor = constant_tensor(value)
            if tensor is not None and (not floats or tensor.dtype in _FLOATS):
                total += int(tensor.nbytes)
    return total


def open_timed(path: Path) -> tuple[Any, float]:
    """A session of one thread, and the best of three times to open it, in ms."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        best = min(best, (time.perf_counter() - started) * 1000)
    return session, best


def run_times(sessions: list[Any], feed: dict[str, Any], seconds: float) -> list[float]:
    """The best time of each session in ms; they alternate."""
    best = [float("inf")] * len(sessions)
    for session in sessions:
        session.run(None, feed)
    end = time.perf_counter() + seconds
    turn = 0
    while turn < 5 or time.perf_counter() < end:
        order = range(len(sessions)) if turn % 2 == 0 else reversed(range(len(sessions)))
        for index in order:
            started = time.perf_counter()
            sessions[index].run(None, feed)
            best[index] = min(best[index], (time.perf_counter() - started) * 1000)
        turn += 1
    return best


def measure(path: Path, weights: str, runtime: str, seconds: float) -> str | None:
    """One row of the table, or None for a model without float weights."""
    slim = api.optimize(path, preset="simplify", validate=False).model
    take_listed(slim)
    result = run_compression(slim, Compression(weights, runtime=runtime))
    if not result.records:
        return None
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "slim.onnx", Path(folder) / "small.onnx"]
        for model, file in zip((slim, result.model), files, strict=True):
            io.save(model, file)
        sizes = [file.stat().st_size for file in files]
        opened = [open_timed(file) for file in files]
        feed = next(iter(made_up_feeds(slim)))
        times = run_times([session for session, _ in opened], dict(feed), seconds)
    floats = constant_bytes(slim, floats=True)
    others = constant_bytes(slim, floats=False) - floats
    share = (constant_bytes(result.model, floats=False) - others) / floats
    worst = max(record.error for record in result.records)
    outputs = [] if result.accuracy is None else result.accuracy.outputs
    ratios = [output.sqnr_db for output in outputs if output.sqnr_db is not None]
    sqnr = f"{min(ratios):.1f}" if ratios else "-"
    folded = len(result.records) - len(result.unfolded)
    return (
        f"| {path.stem} | {sizes[0] / 1e6:.2f} | {sizes[1] / 1e6:.2f} | {share:.3f} "
        f"| {folded}/{len(result.records)} | {worst:.4f} | {sqnr} "
        f"| {times[0]:.2f} | {times[1]:.2f} | {times[1] / times[0]:.3f} "
        f"| {opened[0][1]:.0f} | {opened[1][1]:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--weights", default="int8")
    parser.add_argument("--target", default="portable")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--only", default="", help="part of a name")
    given = parser.parse_args()
    print(f"onnxruntime {onnxruntime.__version__}, numpy {np.__version__}, {os.cpu_count()} cores")
    print(
        "| model | MB | compressed MB | weights | folded | worst weight error | worst SQNR dB "
        "| ms | compressed ms | ratio | open ms | compressed open ms |"
    )
    print("|---" * 12 + "|")
    for folder in given.folders:
        for path in sorted(folder.rglob("*.onnx")):
            if given.only not in path.stem:
                continue
            try:
                row = measure(path, given.weights, given.target, given.seconds)
            except Exception as error:  # one model must not end the table
                row = f"| {path.stem} | {type(error).__name__}: {error} |"
            if row is not None:
                print(row, flush=True)


if __name__ == "__main__":
    main()
