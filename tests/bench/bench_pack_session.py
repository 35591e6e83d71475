"""How long it takes until a session is ready: from a packed model, and from the plain file.

    python tests/bench/bench_pack_session.py [--rounds 7] MODEL.onnx ...

Each session is opened in a process of its own that has imported everything before the clock
starts; plain and packed take turns, the least of the rounds counts (wall clock), beside the least
processor time and the highest peak memory. Without models, stacks of products of growing size are
made up. Outputs are compared bit by bit in the first round.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

import onnxslim

_CHILD = """
import json, sys, time
import numpy, onnx, onnxruntime, zstandard
import onnxslim, onnxslim.api, onnxslim.packing, onnxslim.runtime.detached_session
def peak_kb():
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) for line in stream if line.startswith("VmHWM"))

before = peak_kb()
wall, cpu = time.perf_counter(), time.process_time()
session = onnxslim.session(sys.argv[1])
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
print(json.dumps({"wall": wall, "cpu": cpu, "peak": (peak_kb() - before) * 1024}))
"""


def made_up(megabytes: int, folder: Path) -> Path:
    """Return a model of square products with about so many MB of weights."""
    size = 1024 if megabytes >= 8 else 256
    count = max(1, megabytes * (1 << 20) // (4 * size * size))
    rng = np.random.default_rng(0)
    tensors, nodes = [], []
    for number in range(count):
        values = rng.standard_normal((size, size), dtype=np.float32) * np.float32(0.03)
        tensors.append(numpy_helper.from_array(values, f"w{number}"))
        nodes.append(helper.make_node("MatMul", [f"x{number}", f"w{number}"], [f"x{number + 1}"]))
    ends = [helper.make_tensor_value_info(f"x{n}", 1, [1, size]) for n in (0, count)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initializer=tensors)
    opsets = [helper.make_opsetid("", 21)]
    path = folder / f"products_{megabytes}MB.onnx"
    onnx.save(helper.make_model(graph, ir_version=9, opset_imports=opsets), path)
    return path


def measured(path: Path) -> dict[str, float]:
    """Open a session in a new process."""
    run = [sys.executable, "-c", _CHILD, str(path)]
    found: dict[str, float] = json.loads(
        subprocess.run(run, capture_output=True, check=True).stdout
    )
    return found


def same_outputs(plain: Path, packed: Path) -> bool:
    """Whether both sessions give the same bits for random inputs."""
    rng = np.random.default_rng(0)
    sessions = [onnxslim.session(path) for path in (plain, packed)]
    feeds: dict[str, Any] = {}
    for item in sessions[0].get_inputs():
        shape = [size if isinstance(size, int) else 2 for size in item.shape]
        kind = {"tensor(float)": np.float32, "tensor(int64)": np.int64}[item.type]
        feeds[item.name] = (rng.random(shape) * 2).astype(kind)
    first, second = (session.run(None, feeds) for session in sessions)
    return all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))


def main() -> None:
    """Print a row for each model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    print("model                          MB  packed   ms plain packed ratio   cpu ratio  peak MB")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in chosen.models or [made_up(size, folder) for size in (1, 10, 100, 500)]:
            packed = folder / f"{model.stem}.onnxz"
            onnxslim.pack(model, packed)
            pairs = [(measured(model), measured(packed)) for _ in range(chosen.rounds)]
            wall = [min(pair[side]["wall"] for pair in pairs) * 1e3 for side in (0, 1)]
            cpu = [min(pair[side]["cpu"] for pair in pairs) for side in (0, 1)]
            peak = [max(pair[side]["peak"] for pair in pairs) / 1e6 for side in (0, 1)]
            sizes = [path.stat().st_size / 1e6 for path in (model, packed)]
            equal = "" if same_outputs(model, packed) else "  OUTPUTS DIFFER"
            print(
                f"{model.stem:26} {sizes[0]:6.1f} {sizes[1]:7.1f} {wall[0]:10.0f} {wall[1]:6.0f} "
                f"{wall[1] / wall[0]:5.2f} {cpu[1] / cpu[0]:11.2f} "
                f"{peak[0]:6.0f} {peak[1]:.0f}{equal}",
                flush=True,
            )


if __name__ == "__main__":
    main()
