"""Slims and packs the networks that were pruned in training, and measures every file of them.

`measure_pruned.py` makes tables and a plot of the rows.
"""

import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import numpy_helper

import onnxslim
from onnxslim.packing import pack

HERE = Path(__file__).parent
NAME = re.compile(r"digits_prune_(?P<keras>keras_)?(?P<mode>[a-z]+\d*?)(_(?P<percent>\d+))?")
DENSE = "dense"
MODES = (DENSE, "random", "l1", "structured", "weights", "filters")
STEPS = ("trained", "slim", "int8")
ALIGNED = {"align 1": 1, "align 8": 8}  # further steps of networks with zero filters
FILTER_MODES = ("structured", "filters")
BATCH = 64  # images per timed run
WARM_UP = 10


@dataclass
class Row:
    """One file: one network at one step.

    Attributes:
        framework: `PyTorch` or `Keras`.
        percent: share of each layer that training made zero, 0 to 100.
        zeros: exact zeros among the weights of Conv, Gemm and MatMul, 0 to 1; None in int8 files.
        macs: multiply-accumulate operations for one image.
        latency: microseconds per image, (least, median), in batches of `BATCH` on one thread.
        accuracy: top-1 on the held-out images, 0 to 1.
    """

    framework: str
    mode: str
    percent: int
    step: str
    path: Path
    size: int
    packed: int
    zeros: float | None
    macs: int
    accuracy: float
    latency: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Data:
    """What one framework's files are calibrated and tested with."""

    calibration: Path
    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def load_data(framework: str) -> Data:
    """Read the arrays beside this script, in the layout of the framework."""
    suffix = "_nhwc" if framework == "Keras" else ""
    arrays = dict(np.load(HERE / f"digits_labels{suffix}.npz"))
    labels = arrays.pop("labels")
    (images,) = arrays.values()
    return Data(HERE / f"digits_calibration{suffix}.npz", images, labels)


def open_session(path: Path) -> ort.InferenceSession:
    """Open a file with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def accuracy(path: Path, data: Data) -> float:
    """Top-1 on the held-out images, 0 to 1."""
    session = open_session(path)
    (scores,) = session.run(None, {session.get_inputs()[0].name: data.images})
    return float((scores.argmax(axis=1) == data.labels).mean())


def zero_share(path: Path) -> float:
    """Share of exact zeros among all weights of two or more axes, 0 to 1."""
    stored = [numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
    weights = [a for a in stored if a.ndim > 1 and a.dtype == np.float32]
    return sum(int((a == 0).sum()) for a in weights) / sum(a.size for a in weights)


def slim(source: Path, work: Path, data: Data) -> dict[str, tuple[Path, int]]:
    """Run the tool on `source`; returns file and MACs per step."""
    floating, int8 = (work / f"{source.stem}.{step}.onnx" for step in STEPS[1:])
    plain = onnxslim.optimize(source, floating).report
    quantization = onnxslim.Quantization(str(data.calibration))
    quantized = onnxslim.optimize(source, int8, quantization=quantization).report
    found = ((source, plain.before), (floating, plain.after), (int8, quantized.after))
    return {step: (path, cost.macs) for step, (path, cost) in zip(STEPS, found, strict=True)}


def slim_aligned(source: Path, work: Path) -> dict[str, tuple[Path, int]]:
    """Run the tool on `source` with `--align 1` and `--align 8`; returns file and MACs of each."""
    made = {}
    for step, align in ALIGNED.items():
        target = work / f"{source.stem}.align{align}.onnx"
        made[step] = (target, onnxslim.optimize(source, target, align=align).report.after.macs)
    return made


def rows_of(source: Path, work: Path) -> list[Row]:
    """Slim and pack one trained file and measure all but the latency."""
    name = NAME.fullmatch(source.stem)
    if name is None:
        raise SystemExit(f"{source}: not named as the training scripts name their files")
    framework = "Keras" if name["keras"] else "PyTorch"
    data = load_data(framework)
    rows, files = [], slim(source, work, data)
    if name["mode"] in FILTER_MODES:
        files |= slim_aligned(source, work)
    for step, (path, macs) in files.items():
        packed = work / f"{path.stem}.onnxz"
        pack(path, packed)
        size, small = path.stat().st_size, packed.stat().st_size
        zeros = None if step == "int8" else zero_share(path)
        percent = int(name["percent"] or 0)
        share = accuracy(path, data)
        rows.append(
            Row(framework, name["mode"], percent, step, path, size, small, zeros, macs, share)
        )
    return rows


def time_in_turn(rows: Sequence[Row], rounds: int) -> None:
    """Fill in the latencies: every round runs every file once, so that noise hits all alike."""
    batch = load_data(rows[0].framework).images[:BATCH]
    sessions = [open_session(row.path) for row in rows]
    feed = {sessions[0].get_inputs()[0].name: batch}
    taken: list[list[float]] = [[] for _ in rows]
    for count in range(WARM_UP + rounds):
        for session, times in zip(sessions, taken, strict=True):
            start = time.perf_counter()
            session.run(None, feed)
            if count >= WARM_UP:
                times.append((time.perf_counter() - start) / BATCH * 1e6)
    for row, times in zip(rows, taken, strict=True):
        row.latency = (min(times), statistics.median(times))


def measure(folder: Path, rounds: int) -> list[Row]:
    """Measure every network in `folder`; the slim files go into a folder `slim` in it."""
    work = folder / "slim"
    work.mkdir(exist_ok=True)
    rows = []
    for source in sorted(folder.glob("digits_prune_*.onnx")):
        print(source.name, file=sys.stderr)
        rows += rows_of(source, work)
    rows.sort(key=lambda row: (row.framework != "PyTorch", MODES.index(row.mode), row.percent))
    for framework in ("PyTorch", "Keras"):
        mine = [row for row in rows if row.framework == framework]
        if not any(row.mode == DENSE for row in mine):
            raise SystemExit(f"{folder}: no dense {framework} network to compare with")
        time_in_turn(mine, rounds)
    return rows
