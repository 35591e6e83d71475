"""Memory and time of calibration on a ResNet18-shaped model, 224 x 224.

    python tests/bench/bench_calibration.py [--samples 64 1024] [--time-samples 16]

Memory: peak of a process that calibrates, less its peak after opening the model and running it
once. Time: `calibrate` against the same runs in which only the smallest and largest value of every
tensor are taken (the cheapest thing a calibration can do), and against onnxruntime's own min-max.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

SIZE = 224
RUNS = 3


class Net:
    """A chain of layers with seeded weights; every method returns the name of its output."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(self, op_type: str, *inputs: str, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name, **attributes))
        return name

    def weight(self, *dims: int) -> str:
        name = f"w{len(self.weights)}"
        scale = (2 / np.prod(dims[1:])) ** 0.5 if len(dims) > 1 else 0.01
        content = (self.rng.standard_normal(dims) * scale).astype(np.float32)
        self.weights.append(numpy_helper.from_array(content, name))
        return name

    def conv(self, x: str, width: int, out: int, kernel: int, stride: int = 1) -> str:
        pad = kernel // 2
        weights = self.weight(out, width, kernel, kernel), self.weight(out)
        return self.op("Conv", x, *weights, strides=[stride] * 2, pads=[pad] * 4)

    def block(self, x: str, width: int, out: int, stride: int) -> str:
        inner = self.op("Relu", self.conv(x, width, out, 3, stride))
        inner = self.conv(inner, out, out, 3)
        short = x if width == out else self.conv(x, width, out, 1, stride)
        return self.op("Relu", self.op("Add", inner, short))


def build(path: Path) -> None:
    """Writes the model, opset 17, open batch."""
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 64, 7, 2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    width = 64
    for stage, out in enumerate((64, 128, 256, 512)):
        x = net.block(x, width, out, 1 if stage == 0 else 2)
        x = net.block(x, out, out, 1)
        width = out
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    y = net.op("Gemm", x, net.weight(512, 1000), net.weight(1000))
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        net.nodes,
        "resnet18_shaped",
        [helper.make_tensor_value_info("x", kind, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info(y, kind, ["N", 1000])],
        net.weights,
    )
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, path)


def images(path: Path, count: int) -> None:
    """Writes an npz of ``count`` images of noise, one row at a time."""
    plain = path.with_suffix(".npy")
    rows = np.lib.format.open_memmap(plain, "w+", np.float32, (count, 3, SIZE, SIZE))
    rng = np.random.default_rng(1)
    for row in rows:
        row[:] = rng.standard_normal(row.shape, dtype=np.float32)
    rows.flush()
    del rows
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        archive.write(plain, "x.npy")
    plain.unlink()


def peak_mib() -> float:
    """Largest resident size of this process so far, MiB (Linux; `getrusage` would count what the
    parent had when it started this one)."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition("VmHWM:")[2].split()[0]) / 1024


def child_memory(model: str, data: str) -> None:
    """Prints the peak after one plain run, and after the calibration."""
    import onnxslim.io
    from onnxslim.calibration.run import calibrate
    from onnxslim.runtime.session import open_session

    opened = open_session(onnxslim.io.load(model), optimize=False)
    opened.run({"x": np.zeros((1, 3, SIZE, SIZE), np.float32)})
    base = peak_mib()
    del opened
    found = calibrate(model, data)
    print(json.dumps({"base": base, "peak": peak_mib(), "samples": found.samples}))


def measure_memory(model: Path, folder: Path, counts: list[int]) -> None:
    for count in counts:
        data = folder / f"images{count}.npz"
        images(data, count)
        call = [sys.executable, __file__, "--child", str(model), str(data)]
        start = time.perf_counter()
        done = subprocess.run(call, capture_output=True, text=True, check=True, env=os.environ)
        seconds = time.perf_counter() - start
        row = json.loads(done.stdout.splitlines()[-1])
        data.unlink()
        print(
            f"{row['samples']:5d} samples: peak {row['peak']:.0f} MiB, "
            f"{row['peak'] - row['base']:.0f} above the model, {seconds:.0f} s",
            flush=True,
        )


def bare_minmax(model: str, feeds: list[dict[str, np.ndarray]], threads: int) -> None:
    """The runs of `calibrate` with the smallest and largest value of every tensor."""
    import onnxslim.io
    from onnxslim.calibration.collect import Collector
    from onnxslim.calibration.run import make_plan

    graph = onnxslim.io.load(model)
    collector = Collector(graph, make_plan(graph).names, threads=threads)
    for feed in feeds:
        for group in collector._groups.groups_for(feed):
            for array in collector._session.run_views(feed, group):
                array.min()
                array.max()


def engine_minmax(model: str, feeds: list[dict[str, np.ndarray]], threads: int) -> None:
    """onnxruntime's own calibration by smallest and largest value, in the graph."""
    import onnxruntime
    from onnxruntime.quantization.calibrate import MinMaxCalibrater

    class Reader:
        def __init__(self) -> None:
            self.rows = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rows, None)

    with tempfile.TemporaryDirectory() as folder:
        augmented = os.path.join(folder, "augmented.onnx")
        calibrater = MinMaxCalibrater(Path(model), augmented_model_path=augmented)
        calibrater.augment_graph()
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = threads
        calibrater.infer_session = onnxruntime.InferenceSession(
            augmented, options, providers=["CPUExecutionProvider"]
        )
        calibrater.collect_data(Reader())
        calibrater.compute_data()


def measure_time(model: Path, count: int, batch: int, threads: int) -> None:
    from onnxslim.calibration.run import calibrate

    rng = np.random.default_rng(2)
    feeds = [
        {"x": rng.standard_normal((batch, 3, SIZE, SIZE), dtype=np.float32)}
        for _ in range(count // batch)
    ]
    ways: dict[str, Callable[[], object]] = {
        "bare min-max": lambda: bare_minmax(str(model), feeds, threads),
        "calibrate": lambda: calibrate(str(model), feeds, threads=threads),
        "onnxruntime min-max": lambda: engine_minmax(str(model), feeds, threads),
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(RUNS):  # interleaved: other loads on the machine hit all alike
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            best[name] = min(best[name], time.perf_counter() - start)
    line = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in best.items())
    ratio = best["calibrate"] / best["bare min-max"]
    print(f"{count} samples, batch {batch}, {threads or 'all'} threads: {line}; {ratio:.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="*", default=[64, 1024])
    parser.add_argument("--time-samples", type=int, default=16)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child_memory(*arguments.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        build(model)
        for threads in (1, 0):
            for batch in (1, 8):
                measure_time(model, arguments.time_samples, batch, threads)
        measure_memory(model, Path(folder), arguments.samples)


if __name__ == "__main__":
    main()
