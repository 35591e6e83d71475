"""Measures what a layer costs by its channel counts, for ``onnxslim/rewrite/channels/costs.py``.

    python tests/bench/measure_channel_costs.py [--rounds 30] [--curve]

Every line is a chain of equal layers in onnxruntime on one thread, run in turn with the others of
its class; the least time of all rounds counts. The figure is nanoseconds for each multiplication
that the layer needs by its shape. ``fast`` are counts that are multiples of 16, ``slow`` the count
one below, where onnxruntime leaves its blocked kernels. ``--curve`` prints the time of two
convolutions with C channels between them for C from 1 to 65, in microseconds: where the steps are.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

# class -> (kernel, groups for C channels, widths, sizes)
CLASSES: dict[str, tuple[int, Callable[[int], int], Sequence[int], Sequence[int]]] = {
    "pointwise": (1, lambda c: 1, (32, 64, 128, 256), (14, 28)),
    "spatial": (3, lambda c: 1, (32, 64, 128), (14, 28)),
    "spatial5": (5, lambda c: 1, (32, 64), (14, 28)),
    "depthwise": (3, lambda c: c, (32, 64, 128, 256), (14, 28, 56)),
    "depthwise5": (5, lambda c: c, (64, 128), (14, 28)),
    "grouped": (3, lambda c: 4, (64, 128), (14, 28)),
}
DEPTH = 3


class Chain:
    """Layers one after the other, opened in onnxruntime with one thread."""

    def __init__(self, channels: Sequence[int], kernel: int, groups: int, size: int) -> None:
        rng = np.random.default_rng(0)
        nodes, weights, last = [], [], "x"
        for index, (cin, cout) in enumerate(itertools.pairwise(channels)):
            shape = (cout, cin // groups, kernel, kernel)
            data = rng.standard_normal(shape).astype(np.float32) * np.float32(0.05)
            weights += [numpy_helper.from_array(data, f"w{index}")]
            weights += [numpy_helper.from_array(np.zeros(cout, np.float32), f"b{index}")]
            inputs = [last, f"w{index}", f"b{index}"]
            pads = [kernel // 2] * 4
            last = f"r{index}"
            nodes += [helper.make_node("Conv", inputs, [f"c{index}"], pads=pads, group=groups)]
            nodes += [helper.make_node("Relu", [f"c{index}"], [last])]
        self.macs = sum(
            size * size * kernel**2 * (cin // groups) * cout
            for cin, cout in itertools.pairwise(channels)
        )
        self.feed = rng.standard_normal((1, channels[0], size, size)).astype(np.float32)
        take = helper.make_tensor_value_info("x", 1, self.feed.shape)
        give = helper.make_tensor_value_info(last, 1, None)
        graph = helper.make_graph(nodes, "chain", [take], [give], weights)
        opset = [helper.make_opsetid("", 17)]
        self.session = _open(helper.make_model(graph, opset_imports=opset, ir_version=9))

    def time(self) -> float:
        """Seconds of one run."""
        started = time.perf_counter()
        self.session.run(None, {"x": self.feed})
        return time.perf_counter() - started


def _open(model: onnx.ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)


def least(chains: Sequence[Chain], rounds: int) -> list[float]:
    """The least seconds of each chain, all of them in turn."""
    best = [float("inf")] * len(chains)
    for _ in range(rounds):
        for index, chain in enumerate(chains):
            best[index] = min(best[index], chain.time())
    return best


def measure(rounds: int) -> None:
    """Nanoseconds per multiplication, on and off the blocked path."""
    for name, (kernel, groups, widths, sizes) in CLASSES.items():
        rates: tuple[list[float], list[float]] = [], []
        for width in widths:
            for size in sizes:
                step = groups(width) if name == "grouped" else 1
                pair = [
                    Chain([count] * (DEPTH + 1), kernel, groups(count), size)
                    for count in (width, width - step)
                ]
                spent = least(pair, rounds)
                for rate, chain, seconds in zip(rates, pair, spent, strict=True):
                    rate.append(seconds / chain.macs * 1e9)
        fast, slow = (statistics.median(rate) for rate in rates)
        ratios = [slow / fast for fast, slow in zip(*rates, strict=True)]
        spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
        print(f"{name:10} fast {fast:.4f} slow {slow:.4f} ns/MAC, slow/fast {spread}", flush=True)


def curve(rounds: int) -> None:
    """Two convolutions, 64 -> C -> 64, by C."""
    for name, kernel in (("pointwise", 1), ("spatial", 3)):
        counts = range(1, 66)
        spent = least([Chain([64, count, 64], kernel, 1, 28) for count in counts], rounds)
        print(name, *(f"{c}:{s * 1e6:.0f}" for c, s in zip(counts, spent, strict=True)))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--curve", action="store_true")
    given = parser.parse_args()
    (curve if given.curve else measure)(given.rounds)


if __name__ == "__main__":
    main()
