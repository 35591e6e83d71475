"""A published recogniser of text loses its zero filters and reads the same; fetched by pip."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxslim import io, prune
from onnxslim.runtime.session import open_session

WHEEL = "rapidocr-onnxruntime==1.4.4"
INSIDE = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
# So many filters of one depthwise Conv of 480 are zero, with zero biases.
ZERO = 14


def fetch(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), WHEEL]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        return Path(wheel.extract(INSIDE, folder))


def depthwise(model: ir.Model) -> list[int]:
    groups = (node.attributes.get_int("group", 1) for node in model.graph if node.op_type == "Conv")
    return sorted(group for group in groups if group > 1)


@pytest.mark.slow
def test_a_recogniser_of_text_loses_its_zero_filters(tmp_path: Path) -> None:
    path = fetch(tmp_path)
    small = prune(path, tmp_path / "small.onnx", align=1).model
    original = io.load(path)
    assert sum(depthwise(original)) - sum(depthwise(small)) >= ZERO
    images = np.random.default_rng(0).normal(size=(4, 3, 48, 320)).astype(np.float32)
    before, after = (
        open_session(model, optimize=False).run({"x": images})[0] for model in (original, small)
    )
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()
    assert np.array_equal(before.argmax(axis=-1), after.argmax(axis=-1))
