"""A store stays valid when processes that work on it are killed at any moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest
from pack_models import model_of, normal, raw_tensor, written

from onnxslim import Store

VARIANTS = 6

# Imports once; for each line read it forks a child that works on the store until it is killed.
_WORKERS = """
import os, random, sys
from onnxslim import Store
folder, *paths = sys.argv[1:]
for line in sys.stdin:
    child = os.fork()
    if not child:
        choose = random.Random(int(line))
        store = Store(folder)
        while True:
            number = choose.randrange(len(paths))
            step = choose.choice(("add", "add", "add", "remove", "collect"))
            if step == "add":
                store.add(paths[number], f"m{number}@1", threads=2)
            elif step == "collect":
                store.collect()
            elif any(item.name == f"m{number}" for item in store.models().models):
                store.remove(f"m{number}@1")
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


def variant(number: int) -> onnx.ModelProto:
    tensors = [
        raw_tensor(f"w{seed}", 1, [100, 100], normal(10_000, seed=seed))
        for seed in range(number, number + 4)
    ]
    return model_of(tensors, doc_string=str(number))


@contextmanager
def workers(folder: Path, paths: list[Path]) -> Iterator[subprocess.Popen[str]]:
    run = [sys.executable, "-c", _WORKERS, str(folder), *map(str, paths)]
    pipe = subprocess.PIPE
    with subprocess.Popen(run, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 0, process.stderr and process.stderr.read()


def start(process: subprocess.Popen[str], seed: int) -> int:
    """Let a child begin; return its process number."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{seed}\n")
    process.stdin.flush()
    return int(process.stdout.readline())


def kill(process: subprocess.Popen[str], child: int) -> None:
    os.kill(child, signal.SIGKILL)
    assert process.stdout is not None
    assert process.stdout.readline() == "ended\n"


def run_and_kill(folder: Path, times: int) -> tuple[int, int]:
    """Kill a working child again and again; return listed models and leftovers, added up."""
    paths = [written(variant(n), folder / f"{n}.onnx") for n in range(VARIANTS)]
    contents = {f"m{n}": path.read_bytes() for n, path in enumerate(paths)}
    store = Store(folder / "store")
    choose = random.Random(times)
    listed = leftovers = 0
    with workers(folder / "store", paths) as process:
        for seed in range(times):
            child = start(process, seed)
            time.sleep(choose.uniform(0, 0.25))
            kill(process, child)
            leftovers += len(list((folder / "store" / "tmp").iterdir()))
            result = store.check(threads=1)
            assert result.clean, (seed, result)
            for item in store.models().models:
                listed += 1
                store.get(f"{item.name}@{item.version}", folder / "back.onnx", threads=1)
                assert (folder / "back.onnx").read_bytes() == contents[item.name], (seed, item)
    store.collect()
    assert list((folder / "store" / "tmp").iterdir()) == []
    assert store.check().clean
    return listed, leftovers


def test_killed_twenty_times(tmp_path: Path) -> None:
    listed, _ = run_and_kill(tmp_path, 20)
    assert listed > 5


@pytest.mark.slow
def test_killed_two_hundred_times(tmp_path: Path) -> None:
    listed, leftovers = run_and_kill(tmp_path, 200)
    assert listed > 100
    assert leftovers > 5  # it was hit in the middle of writing, too
