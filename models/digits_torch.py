"""Training and export, shared by the models that come from PyTorch."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import digits
import numpy as np
import onnx
import torch
from torch import nn

BATCH = 64


def seed_everything() -> None:
    """Make a run repeatable: one thread, deterministic kernels, one seed."""
    torch.manual_seed(digits.SEED)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)


def fit(
    model: nn.Module,
    data: digits.Digits,
    *,
    epochs: int,
    rate: float,
    seed: int,
    decay: float,
    each_epoch: Callable[[int], None] | None = None,
) -> None:
    """Train in place with AdamW and a one-cycle learning rate; `rate` is its peak.

    `each_epoch` is called with the number of the epoch, from 0, before it starts.
    """
    rng = np.random.default_rng(seed)
    steps = -(-len(data.train_images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    model.train()
    for epoch in range(epochs):
        if each_epoch is not None:
            each_epoch(epoch)
        order = rng.permutation(len(data.train_images))
        images = torch.from_numpy(digits.shifted(data.train_images[order], rng))
        labels = torch.from_numpy(data.train_labels[order])
        for batch, target in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            optimizer.zero_grad()
            loss_of(model(batch), target).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def torch_accuracy(model: nn.Module, data: digits.Digits) -> float:
    """Share of held-out images that the PyTorch model classifies rightly."""
    model.eval()
    with torch.no_grad():
        scores = model(torch.from_numpy(data.test_images))
    return float((scores.argmax(1).numpy() == data.test_labels).mean())


def export(
    model: nn.Module, path: Path, data: digits.Digits, exporter: Literal["script", "dynamo"]
) -> None:
    """Export with a dynamic batch, drop what names this machine, check, print the accuracy.

    Raises:
        ValueError: onnxruntime and PyTorch disagree on the held-out images.
    """
    model.eval()
    example = (torch.from_numpy(data.test_images[:2].copy()),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter announces its own end
        if exporter == "script":
            _export_script(model, example, path)
        else:
            _export_dynamo(model, example, path)
    proto = onnx.load(path)
    digits.scrub(proto)
    onnx.save(proto, path)
    digits.verify(path)
    measured = digits.accuracy(path, data.test_images, data.test_labels)
    if abs(measured - torch_accuracy(model, data)) > 1e-9:
        raise ValueError(f"{path.name}: {measured} in onnxruntime, not as in PyTorch")
    print(f"{path.name}: {path.stat().st_size} bytes, accuracy {measured:.4f} (onnxruntime)")


def _export_script(model: nn.Module, example: tuple[torch.Tensor], path: Path) -> None:
    # PRESERVE, not EVAL: with EVAL the exporter itself fuses BatchNormalization into Conv.
    torch.onnx.export(
        model,
        example,
        path,
        dynamo=False,
        opset_version=17,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        input_names=[digits.TORCH_INPUT],
        output_names=["logits"],
        dynamic_axes={digits.TORCH_INPUT: {0: "batch"}, "logits": {0: "batch"}},
    )


def _export_dynamo(model: nn.Module, example: tuple[torch.Tensor], path: Path) -> None:
    torch.onnx.export(
        model,
        example,
        path,
        dynamo=True,
        external_data=False,
        verbose=False,
        input_names=[digits.TORCH_INPUT],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
