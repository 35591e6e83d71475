"""The data of the example models: scikit-learn's digits, one fixed split, and what checks a file.

Run as a program it writes the `.npz` files beside the models; with `--check` it instead checks
every model there and prints what README.md says about it:

    python models/digits.py --out models
    python models/digits.py --out models --check

Images are 8x8, grey, float32 in [0, 1]; 1347 of the 1797 are for training, 450 are held out.
"""

import argparse
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HELD_OUT = 450
CALIBRATION_IMAGES = 256
SEED = 0
SIZE_LIMIT = 1_000_000  # bytes

TORCH_INPUT = "input"  # (batch, 1, 8, 8)
KERAS_INPUT = "image"  # (batch, 8, 8, 1)

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Digits:
    """The fixed split; images are (N, 1, 8, 8) float32 in [0, 1], labels (N,) int64."""

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels


def load() -> Digits:
    """Load the digits and split them: stratified by class, always the same way."""
    raw = load_digits()
    images = (raw.images / 16.0).astype(np.float32).reshape(-1, 1, 8, 8)
    labels = raw.target.astype(np.int64)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=HELD_OUT, stratify=labels, random_state=SEED
    )
    return Digits(train_x, train_y, test_x, test_y)


def nhwc(images: Images) -> Images:
    """Turn (N, 1, 8, 8) into the (N, 8, 8, 1) that Keras reads."""
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


def shifted(images: Images, rng: np.random.Generator) -> Images:
    """Move each image by -1, 0 or 1 pixels both ways: the only augmentation used."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows, columns = rng.integers(0, 3, (2, len(images)))
    moved = [p[:, r : r + 8, c : c + 8] for p, r, c in zip(padded, rows, columns, strict=True)]
    return np.stack(moved)


def accuracy(path: Path, images: Images, labels: Labels) -> float:
    """Share of held-out images that the file at `path` classifies rightly in onnxruntime."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {session.get_inputs()[0].name: images})
    return float((scores.argmax(axis=1) == labels).mean())


def zero_filters(model: onnx.ModelProto) -> list[tuple[str, int, int]]:
    """Count per Conv: (name, filters whose weights are all exactly zero, filters)."""
    weights = {t.name: t for t in model.graph.initializer}
    rows = []
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[1] in weights:
            weight = numpy_helper.to_array(weights[node.input[1]])
            used = weight.reshape(len(weight), -1).any(axis=1)
            rows.append((node.input[1], int((~used).sum()), len(used)))
    return rows


def scrub(model: onnx.ModelProto) -> None:
    """Remove what an exporter wrote about the machine: stack traces, file paths, doc strings."""
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    for holder in (model, graph, *graph.node, *graph.initializer, *values, *model.functions):
        kept = [p for p in holder.metadata_props if not _names_machine(p.key, p.value)]
        del holder.metadata_props[:]
        holder.metadata_props.extend(kept)
        holder.ClearField("doc_string")


def _names_machine(key: str, value: str) -> bool:
    return "stack_trace" in key or re.search(r"\.py\b|site-packages", value) is not None


def verify(path: Path) -> None:
    """Refuse a file that is invalid, too big, or that names this machine.

    Raises:
        ValueError: the file is too big, keeps weights elsewhere, or holds a local path.
        onnx.checker.ValidationError: the model is invalid.
    """
    onnx.checker.check_model(str(path), full_check=True)
    data = path.read_bytes()
    if len(data) >= SIZE_LIMIT:
        raise ValueError(f"{path.name}: {len(data)} bytes, the limit is {SIZE_LIMIT}")
    if any(t.external_data for t in onnx.load(path, load_external_data=False).graph.initializer):
        raise ValueError(f"{path.name}: weights outside the file")
    here = [str(Path.cwd()), str(Path.home()), sys.prefix, sys.base_prefix, "site-packages"]
    found = [text for text in here if len(text) > 1 and text.encode() in data]
    if found or re.search(rb"[\w-]+\.py\b", data):
        raise ValueError(f"{path.name}: names a local path {found}")


def write_arrays(folder: Path) -> None:
    """Write inputs for calibration and tests by input name; `labels` files add the classes."""
    data = load()
    calibration = data.train_images[:CALIBRATION_IMAGES]
    for suffix, name, layout in (("", TORCH_INPUT, np.asarray), ("_nhwc", KERAS_INPUT, nhwc)):
        test = {name: layout(data.test_images)}
        _save(folder / f"digits_calibration{suffix}.npz", {name: layout(calibration)})
        _save(folder / f"digits_test{suffix}.npz", test)
        _save(folder / f"digits_labels{suffix}.npz", test | {"labels": data.test_labels})


def _save(path: Path, arrays: dict[str, npt.NDArray[np.generic]]) -> None:
    np.savez_compressed(path, **arrays)
    shapes = {name: array.shape for name, array in arrays.items()}
    print(f"{path.name}: {path.stat().st_size} bytes, {shapes}")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The command line that all scripts here share: `--out FOLDER`."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--out", type=Path, default=Path(__file__).parent, help="target folder")
    return result


def report(folder: Path) -> None:
    """Check every model in `folder`; print size, opset, producer, accuracy and zero filters."""
    data = load()
    for path in sorted(folder.glob("*.onnx")):
        verify(path)
        model = onnx.load(path)
        images = nhwc(data.test_images) if "keras" in path.name else data.test_images
        share = accuracy(path, images, data.test_labels)
        opset = next(o.version for o in model.opset_import if not o.domain)
        producer = f"{model.producer_name} {model.producer_version}"
        print(f"{path.name}: {path.stat().st_size} bytes, opset {opset}, {producer}")
        operators = Counter(node.op_type for node in model.graph.node)
        print("  " + ", ".join(f"{count} {name}" for name, count in operators.most_common()))
        print(f"  accuracy {share:.4f} on {HELD_OUT} held-out images")
        zeros = zero_filters(model)
        if any(zero for _, zero, _ in zeros):
            print("  " + ", ".join(f"{name} {zero}/{total}" for name, zero, total in zeros))


def main() -> None:
    """Write the arrays, or check the models."""
    options = parser(__doc__)
    options.add_argument("--check", action="store_true", help="check the models, write nothing")
    given = options.parse_args()
    if given.check:
        report(given.out)
    else:
        write_arrays(given.out)


if __name__ == "__main__":
    main()
