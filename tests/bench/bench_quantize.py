"""`onnxslim quantize` without flags beside `quantize_static` with its defaults.

Per network: accuracy on held-out labels (top-1, or PSNR of the net that removes noise), file size,
and latency at one thread, measured here and not by the product, at a batch size.

The networks: models/ and what models/train_quantize_zoo.py made in FOLDER.
Run: python tests/bench/bench_quantize.py FOLDER [--batch N ...] [--preset NAME] [NAME ...]
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import onnxslim

MODELS = Path(__file__).resolve().parents[2] / "models"
OWN = ("cnn", "depthwise", "lstm", "mobilenet_keras", "resnet_pruned", "transformer")
TRAINED = ("cnn", "mobilenet", "transformer", "gru", "unet")


@dataclass(frozen=True)
class Net:
    """A network with its data."""

    name: str
    model: Path
    calibration: Path
    labels: Path


def nets(folder: Path, wanted: list[str]) -> list[Net]:
    """Those of the project, then those that were trained."""
    found = []
    for name in OWN:
        end = "_nhwc" if "keras" in name else ""
        data = [MODELS / f"digits_{kind}{end}.npz" for kind in ("calibration", "labels")]
        found.append(Net(f"digits_{name}", MODELS / f"digits_{name}.onnx", *data))
    for name in TRAINED:
        files = [folder / f"{name}{end}" for end in (".onnx", "_calibration.npz", "_labels.npz")]
        if files[0].exists():
            found.append(Net(f"{name} 32x32", *files))
    return [net for net in found if not wanted or net.name.split()[0] in wanted]


def session(path: Path) -> Any:
    """As a user would open it, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def accuracy(path: Path, labels: Path) -> float:
    """Percent of right answers, or PSNR in dB."""
    data, one = np.load(labels), session(path)
    name = one.get_inputs()[0].name
    parts = [one.run(None, {name: data[name][i : i + 50]})[0] for i in range(0, 450, 50)]
    found, wanted = np.concatenate(parts), data["labels"]
    if wanted.dtype.kind == "i":
        return 100 * float((found.argmax(1) == wanted).mean())
    return float(10 * np.log10(np.square(wanted).max() / np.square(found - wanted).mean()))


def latencies(paths: dict[str, Path], calibration: Path, batch: int) -> dict[str, float]:
    """Least milliseconds of each, all in turn."""
    sessions = {label: session(path) for label, path in paths.items()}
    name = next(iter(sessions.values())).get_inputs()[0].name
    feed = {name: np.load(calibration)[name][:batch]}
    least = dict.fromkeys(paths, np.inf)
    started = time.perf_counter()
    rounds = 0
    while rounds < 20 or (time.perf_counter() - started < 3 and rounds < 3000):
        rounds += 1
        for label, one in sessions.items():
            begun = time.perf_counter()
            one.run(None, feed)
            least[label] = min(least[label], 1e3 * (time.perf_counter() - begun))
    return least


class Reader(CalibrationDataReader):
    """Calibration images for the plain engine, eight at a time."""

    def __init__(self, path: Path) -> None:
        data = np.load(path)
        name = next(iter(data))
        self._feeds = iter([{name: data[name][i : i + 8]} for i in range(0, 256, 8)])

    def get_next(self) -> Any:
        return next(self._feeds, None)


def plain(net: Net, target: Path) -> None:
    """`quantize_static` with its defaults, after its own pre-processing."""
    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(net.model), str(prepared), skip_symbolic_shape=True)
    quantize_static(str(prepared), str(target), Reader(net.calibration))


def rows(net: Net, folder: Path, preset: str, batches: list[int]) -> list[str]:
    """One line per batch size."""
    ours, theirs = folder / "ours.onnx", folder / "theirs.onnx"
    begun = time.perf_counter()
    result = onnxslim.quantize(
        net.model, ours, calibration=str(net.calibration), preset=preset,
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    status = result.report.steps[-1].details["quantization"]["status"]
    plain(net, theirs)
    paths = {"fp32": net.model, "ours": ours, "theirs": theirs}
    values = {label: accuracy(path, net.labels) for label, path in paths.items()}
    sizes = {label: path.stat().st_size / net.model.stat().st_size for label, path in paths.items()}
    found = []
    for batch in batches:
        times = latencies(paths, net.calibration, batch)
        ratio = {label: value / times["fp32"] for label, value in times.items()}
        TOTALS.setdefault(batch, []).append((sizes, ratio))
        found.append(
            f"| {net.name} | {batch} | {values['fp32']:.2f} | {values['ours']:.2f} | "
            f"{sizes['ours']:.2f} | {times['fp32']:.3f} | {ratio['ours']:.2f} | {status} | "
            f"{values['theirs']:.2f} | {sizes['theirs']:.2f} | {ratio['theirs']:.2f} | "
            f"{seconds:.0f} s |"
        )
    return found


TOTALS: dict[int, list[tuple[dict[str, float], dict[str, float]]]] = {}


def mean(values: list[float]) -> float:
    """Geometric mean."""
    return float(np.exp(np.mean(np.log(values))))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=[])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--preset", default="auto")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    print(
        "| network | batch | fp32 | onnxslim | size | fp32 ms | latency | status | plain | size | "
        "latency | took |\n|---|--:|--:|--:|--:|--:|--:|---|--:|--:|--:|--:|"
    )
    for net in nets(given.folder, given.names):
        with tempfile.TemporaryDirectory() as folder:
            for row in rows(net, Path(folder), given.preset, given.batch):
                print(row, flush=True)
    for batch, found in TOTALS.items():
        texts = []
        for label in ("ours", "theirs"):
            size, ratio = mean([s[label] for s, _ in found]), mean([r[label] for _, r in found])
            worst = max(r[label] for _, r in found)
            texts.append(f"{label}: size {size:.2f}, latency {ratio:.2f}, slowest {worst:.2f}")
        print(f"batch {batch}, geometric means: {'; '.join(texts)}")


if __name__ == "__main__":
    main()
