"""Nodes, bytes, time and memory of whole runs on every model of a folder, ours and others'.

    python tests/bench/bench_corpus.py FOLDER [FOLDER ...] [--tools onnxslim,onnxsim]
        [--peers PYTHON] [--only GLOB] [--latency] [--seeds]

Each run is a process of its own, which writes to a fresh file. Nodes are counted with those of
subgraphs and functions and without Constant. ``again`` says whether a second run of ours on its
own output changes a byte; with ``--seeds`` the first run is repeated under another hash seed, and
``seeds`` says whether the bytes are the same. ``--latency`` runs the original and the result in
turn in onnxruntime on one thread and gives the median of the ratios of neighbouring runs.

Other tools run in the interpreter ``--peers``; one that it does not have counts as failed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import onnx
from bench_prune_corpus import feed_for, open_session

OURS = "onnxslim"
_SAVE_BASIC = (
    "import sys, onnxruntime as r; o = r.SessionOptions(); o.log_severity_level = 3;"
    "o.graph_optimization_level = r.GraphOptimizationLevel.ORT_ENABLE_BASIC;"
    "o.optimized_model_filepath = sys.argv[2];"
    "r.InferenceSession(sys.argv[1], o, providers=['CPUExecutionProvider'])"
)
PEERS = {
    "onnxsim": "import sys, onnx, onnxsim; m, ok = onnxsim.simplify(onnx.load(sys.argv[1]));"
    "assert ok; onnx.save(m, sys.argv[2])",
    "onnxslim-of-the-index": "import sys, onnxslim; onnxslim.slim(sys.argv[1], sys.argv[2])",
    "onnxscript": "import sys, onnx, onnxscript.optimizer as o;"
    "onnx.save(o.optimize(onnx.load(sys.argv[1])), sys.argv[2])",
    "onnxruntime-basic": _SAVE_BASIC,
}


# The peak of a process counts from its fork on, so it is started from a small one.
_LAUNCH = (
    "import os, sys; child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ);"
    "_, status, usage = os.wait4(child, 0); print(usage.ru_maxrss);"
    "sys.exit(os.waitstatus_to_exitcode(status))"
)


@dataclass(frozen=True)
class Run:
    """One process. ``memory`` is its peak in MiB; ``target`` is None where it failed."""

    target: Path | None
    seconds: float
    memory: float


def run(command: list[str], target: Path, seed: str = "0") -> Run:
    """Runs a command and waits for it."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-S", "-c", _LAUNCH, *command],
        capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": seed},
        cwd=target.parent,
        check=False,
    )
    seconds = time.perf_counter() - started
    made = target if done.returncode == 0 and target.exists() else None
    return Run(made, seconds, int(done.stdout.split()[-1]) / 1024)


def ours(source: Path, target: Path, seed: str = "0") -> Run:
    command = [sys.executable, "-m", "onnxslim", "--no-validate", str(source), str(target)]
    return run(command, target, seed)


def peer(tool: str, python: str, source: Path, target: Path) -> Run:
    return run([python, "-c", PEERS[tool], str(source), str(target)], target)


def count(path: Path) -> int:
    """Nodes with those of subgraphs and functions, without Constant."""
    model = onnx.load(path, load_external_data=False)
    return _count(model.graph.node) + sum(_count(function.node) for function in model.functions)


def _count(nodes: object) -> int:
    total = 0
    for node in nodes:  # type: ignore[attr-defined]
        total += node.op_type != "Constant"
        for attribute in node.attribute:
            graphs = [attribute.g] if attribute.HasField("g") else attribute.graphs
            total += sum(_count(graph.node) for graph in graphs)
    return total


def latency_ratio(source: Path, target: Path, rounds: int = 25) -> float | None:
    """Time of the result over time of the original; None where no input is found that runs."""
    try:
        sessions = [open_session(path.read_bytes()) for path in (source, target)]
        feed = feed_for(sessions[0])
        ratios = []
        for _ in range(rounds):
            times = []
            for session in sessions:
                started = time.perf_counter()
                session.run(None, feed)
                times.append(time.perf_counter() - started)
            ratios.append(times[1] / times[0])
    except Exception as error:  # a model that does not run is shown without a figure
        print(f"  no latency of {source.name}: {type(error).__name__}", file=sys.stderr)
        return None
    return statistics.median(ratios)


def checks(source: Path, first: Run, folder: Path, seeds: bool) -> list[str]:
    """Whether a second run, and runs under other hash seeds, give the same bytes."""
    if first.target is None:
        return ["", ""]
    expected = first.target.read_bytes()
    again = ours(first.target, folder / "again.onnx", "random")
    words = ["same" if again.target and again.target.read_bytes() == expected else "CHANGED"]
    if not seeds:
        return [*words, ""]
    other = ours(source, folder / "other.onnx", "1")
    same = other.target is not None and other.target.read_bytes() == expected
    return [*words, "same" if same else "CHANGED"]


def measure(source: Path, tool: str, options: argparse.Namespace) -> str:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target = folder / "out.onnx"
        if tool == OURS:
            found = ours(source, target)
            words = checks(source, found, folder, options.seeds)
        else:
            found, words = peer(tool, options.peers, source, target), ["", ""]
        if found.target is None:
            return f"| {source.stem} | {tool} | failed ||||||||"
        ratio = latency_ratio(source, found.target) if options.latency else None
        cells = [source.stem, tool, count(source), count(target)]
        cells += [source.stat().st_size, target.stat().st_size]
        cells += [
            f"{found.seconds:.2f}",
            f"{found.memory:.0f}",
            "" if ratio is None else f"{ratio:.3f}",
        ]
        return "| " + " | ".join(map(str, [*cells, *words])) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--tools", default=OURS, help="comma separated; ours is onnxslim")
    parser.add_argument("--peers", default=sys.executable, help="interpreter with the other tools")
    parser.add_argument("--only", default="*.onnx")
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--seeds", action="store_true")
    options = parser.parse_args()
    tools = options.tools.split(",")
    for tool in tools:
        if tool != OURS and tool not in PEERS:
            parser.error(f"no tool is called {tool!r}; known: {OURS}, {', '.join(PEERS)}")
    print("| model | tool | nodes || bytes || seconds | MiB | latency | again | seeds |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|---|---|", flush=True)
    for folder in options.folders:
        for source in sorted(folder.resolve().glob(options.only)):
            for tool in tools:
                print(measure(source, tool, options), flush=True)


if __name__ == "__main__":
    main()
