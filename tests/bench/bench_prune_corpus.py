"""Does a model get faster by the removal of its zeroed channels, and never slower?

    python tests/bench/bench_prune_corpus.py FOLDER [--align auto] [--rounds 40] [--only GLOB]

Every ``*.onnx`` in the folder goes through the default pipeline with and without the removal. Where
the removal changed something, the original, the model without it and the model with it run in turn
in onnxruntime on one thread, on the same random inputs; printed is the least time of each, the
median of the ratios of neighbouring runs, and how far the outputs are apart relative to the largest
value of an output. Open dimensions: the first is 1, for the others some sizes are tried.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from onnxslim import api, io

PASS = "eliminate-zeroed-channels"
# For open dimensions after the first, in order; the last one repeats.
_SIZES = ((160,), (48, 320), (16000,))
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


def open_session(model: bytes) -> Any:
    """onnxruntime as people use it, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def feed_for(session: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Random inputs of a size that the model takes: floats in 0..1, integers 0 or 1."""
    for sizes in _SIZES[:-1]:
        feed = _feed(session, sizes)
        try:
            session.run(None, feed)
        except Exception:  # whatever it says, the next size may do
            continue
        return feed
    return _feed(session, _SIZES[-1])


def _feed(session: Any, sizes: tuple[int, ...]) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    feed = {}
    for item in session.get_inputs():
        left = [*sizes, *sizes[-1:] * 8]
        dims = []
        for index, extent in enumerate(item.shape):
            open_extent = 1 if index == 0 else left.pop(0) if not isinstance(extent, int) else 0
            dims.append(extent if isinstance(extent, int) else open_extent)
        values = rng.random(dims)
        dtype = _TYPES[item.type]
        feed[item.name] = (values if "float" in item.type else values > 0.5).astype(dtype)
    return feed


def compare(path: Path, align: str, rounds: int) -> str | None:
    """One line about a model, or None when the pass changed nothing."""
    slim = api.optimize(path, align=align, validate=False)
    changes = sum(entry.changes for entry in slim.report.passes if entry.name == PASS)
    if not changes:
        return None
    plain = api.optimize(path, skip_passes=[PASS], validate=False)
    models = [path.read_bytes()]
    models += [io.to_proto(item.model).SerializeToString() for item in (plain, slim)]
    sessions = [open_session(model) for model in models]
    feed = feed_for(sessions[0])
    outputs = [session.run(None, feed) for session in sessions]
    times: list[list[float]] = [[], [], []]
    for _ in range(rounds):
        for index, session in enumerate(sessions):
            started = time.perf_counter()
            session.run(None, feed)
            times[index].append((time.perf_counter() - started) * 1e3)
    ratios = [with_it / without for without, with_it in zip(times[1], times[2], strict=True)]
    weights = [step.report.after.weight_bytes for step in (plain, slim)]
    error = max(_error(one, other) for one, other in zip(outputs[0], outputs[2], strict=True))
    original, without, with_it = (min(series) for series in times)
    return (
        f"{path.name}: {changes} changes, weights {weights[0]:,} -> {weights[1]:,} B; original "
        f"{original:.3f} ms, without {without:.3f} ms, with {with_it:.3f} ms "
        f"({(with_it / without - 1) * 100:+.1f} %, median {statistics.median(ratios):.3f}); "
        f"error {error:.1e}"
    )


def _error(one: Any, other: Any) -> float:
    first, second = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    scale = float(np.abs(first).max(initial=0.0))
    return float(np.abs(first - second).max(initial=0.0)) / max(scale, 1e-30)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--align", default="auto")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", default="*.onnx", help="which files of the folder")
    given = parser.parse_args()
    for path in sorted(given.folder.glob(given.only)):
        try:
            line = compare(path, given.align, given.rounds)
        except Exception as error:  # one model that cannot be run must not end the table
            line = f"{path.name}: {type(error).__name__}: {str(error)[:100]}"
        if line is not None:
            print(line, flush=True)


if __name__ == "__main__":
    main()
