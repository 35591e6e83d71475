"""Graphs of thousands of nodes: time grows with the number of nodes, not with its square."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench" / "bench_quantize_graph.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_quantize_graph", BENCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def seconds(bench: ModuleType, nodes: int) -> float:
    """Processor time, which other work on the machine does not change much."""
    start = time.process_time()
    found = bench.measure(nodes)
    assert found["int8"] == nodes
    return time.process_time() - start


def test_four_times_the_nodes_take_about_four_times_as_long(bench: ModuleType) -> None:
    seconds(bench, 100)  # imports and caches
    small, large = seconds(bench, 200), seconds(bench, 800)
    assert large < 9 * small


@pytest.mark.slow
def test_5000_nodes_take_less_than_30_seconds(bench: ModuleType) -> None:
    assert seconds(bench, 5000) < 30
