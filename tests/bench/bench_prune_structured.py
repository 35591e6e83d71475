"""Accuracy after training-free structured pruning of the example models, with nothing retrained.

Prints one table: model, share cut, criterion, MACs, and top-1 on the 450 held-out digits before and
after. 256 unlabelled images are all that the pruning sees.

    python tests/bench/bench_prune_structured.py
    python tests/bench/bench_prune_structured.py --peer PEER_PYTHON   # one with onnxsim installed

With ``--peer`` the same models go through ``onnxsim.pruning`` at the sparsity that comes closest to
our MACs from above.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxslim import api, io, model_files
from onnxslim.pruning.data import read_data
from onnxslim.pruning.structured import StructuredRequest, prune_structured
from onnxslim.runtime.session import open_session
from onnxslim.validated_run import no_progress

MODELS = Path(__file__).resolve().parents[2] / "models"
RUNS: tuple[tuple[str, float, tuple[str, ...]], ...] = (
    ("digits_cnn.onnx", 0.5, ()),
    ("digits_cnn.onnx", 0.75, ()),
    ("digits_transformer.onnx", 0.5, ("*qkv*",)),
    ("digits_transformer.onnx", 0.5, ()),
    ("digits_lstm.onnx", 0.5, ()),
)

# Runs in the other tool's interpreter: every sparsity from small to large until the MACs are met.
_PEER = """
import sys, onnx
from onnx import numpy_helper
from onnxsim import pruning
source, folder, calibration = sys.argv[1:4]
import numpy as np
data = np.load(calibration)
for sparsity in [float(text) for text in sys.argv[4:]]:
    for name in ("apply_structured_pruning", "apply_structured_wanda_pruning"):
        apply = getattr(pruning, name, None)
        if apply is None:
            continue
        try:
            if "wanda" in name:
                feeds = [{k: data[k] for k in data.files}]
                made = apply(onnx.load(source), feeds, sparsity=sparsity)
            else:
                made = apply(onnx.load(source), sparsity=sparsity)
        except Exception as error:
            print("failed", name, sparsity, type(error).__name__, str(error)[:100], file=sys.stderr)
            continue
        made = made[0] if isinstance(made, tuple) else made
        onnx.save(made, f"{folder}/{name}-{sparsity}.onnx")
"""


def accuracy(model: ir.Model | str) -> float:
    """Percent of the held-out images that a model classifies rightly."""
    with np.load(MODELS / "digits_labels.npz") as data:
        images, labels = data["input"], data["labels"]
    session = open_session(model, optimize=True)
    answer = session.run({session.inputs[0].name: images})[0]
    return float(100 * (answer.argmax(axis=1) == labels).mean())


def row(name: str, tool: str, share: float, model: ir.Model, macs: int | None) -> str:
    """One line of the table."""
    own = model_files.measure(model).macs
    part = f"{own / macs:.0%}" if own and macs else "?"
    return f"| {name} | {tool} | {share:.0%} | {part} | {accuracy(model):.2f} % |"


def peers(python: str, source: Path, folder: Path) -> list[Path]:
    """What the other tool makes of a model, at several sparsities."""
    script = folder / "peer.py"
    script.write_text(_PEER, encoding="utf-8")
    steps = [f"{step / 20:.2f}" for step in range(4, 19)]
    calibration = MODELS / "digits_calibration.npz"
    command = [python, str(script), str(source), str(folder), str(calibration), *steps]
    subprocess.run(command, check=True)
    return sorted(folder.glob("*-0.*.onnx"))


def closest(paths: list[Path], macs: int) -> list[Path]:
    """Of each method, the model whose MACs are closest to ours."""
    best: dict[str, tuple[float, Path]] = {}
    for path in paths:
        tool = path.stem.rpartition("-")[0]
        gap = abs((model_files.measure(io.load(path)).macs or 0) - macs)
        if tool not in best or gap < best[tool][0]:
            best[tool] = (gap, path)
    return [path for _, path in best.values()]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="interpreter that has onnxsim 0.8.1")
    given = parser.parse_args()
    print("| model | tool | cut | MACs left | top-1 |")
    print("|---|---|--:|--:|--:|")
    for name, amount, exclude in RUNS:
        model = api.optimize(MODELS / name, preset="default").model
        macs = model_files.measure(model).macs
        print(row(name, "(original)", 0, model, macs), flush=True)
        data = read_data(model, str(MODELS / "digits_calibration.npz"))
        request = StructuredRequest(amount, exclude=exclude)
        outcome = prune_structured(model, request, data, no_progress)
        what = f" without {exclude[0]}" if exclude else ""
        print(row(name, f"onnxslim{what}, {outcome.rung}", amount, outcome.model, macs), flush=True)
        if given.peer:
            with tempfile.TemporaryDirectory() as folder:
                source = Path(folder) / "original.onnx"
                io.save(model, source)
                own = model_files.measure(outcome.model).macs or 0
                for path in closest(peers(given.peer, source, Path(folder)), own):
                    made = io.load(path)
                    tool, _, sparsity = path.stem.rpartition("-")
                    print(row(name, f"onnxsim {tool}", float(sparsity), made, macs), flush=True)


if __name__ == "__main__":
    main()
