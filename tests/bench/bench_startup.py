"""Whole processes on one small model, in turn: wall time and CPU time of each command.

    python tests/bench/bench_startup.py models/digits_lstm.onnx --peer "onnxsim {in} {out}"

A command is text with ``{in}`` and ``{out}``. The product is measured with and without validation.
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds of the wall clock and of the processors (user and system) for one process."""
    # the product of this checkout, and nothing of it for a peer that has the same name
    path = {"PYTHONPATH": os.getcwd()} if command[0] == sys.executable else {}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command, check=True, env=os.environ | path, **silent)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
    return wall, spent


def main() -> None:
    """Prints one line per command: medians over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--peer", action="append", default=[], help='"tool {in} {out}"')
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    own = f"{shlex.quote(sys.executable)} -m onnxslim {{in}} {{out}}"
    commands = [own, f"{own} --no-validate", *options.peer]
    times: dict[str, list[tuple[float, float]]] = {command: [] for command in commands}
    source = str(Path(options.model).resolve())
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for index, command in enumerate(commands):
                target = f"{folder}/{number}_{index}.onnx"
                names = {"{in}": source, "{out}": target}
                words = [names.get(word, word) for word in shlex.split(command)]
                times[command].append(measure(words))
    for command, found in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{wall:6.3f} s wall  {cpu:6.3f} s cpu  {command}")


if __name__ == "__main__":
    main()
