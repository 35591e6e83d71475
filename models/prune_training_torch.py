"""A small CNN for digits that is pruned while it trains, with `torch.nn.utils.prune`.

`--mode` says what becomes zero: `random` weights, the weights of least magnitude (`l1`), or whole
filters (`structured`); `dense` is the same training without pruning. `--amount` is the share of
every layer that is zero in the end. Zeros grow along a cubic ramp over the epochs; the last
epochs only fine-tune. Before the export `prune.remove` writes the masks into the weights, so
the files hold plain zeros in full shapes: as large and as slow as the dense network.

A filter is zero only if nothing of its channel is left: its weights, its bias in the Conv, and
gamma and beta in the BatchNorm behind it. Masking the filter alone leaves a constant channel.

    python models/prune_training_torch.py
    python models/prune_training_torch.py --mode l1 structured --amount 0.75 --out models
"""

from collections.abc import Iterator

import digits
import digits_torch
import pruning_schedule
import torch
from torch import nn
from torch.nn.utils import prune

PREFIX = "digits_prune"
MODES = ("random", "l1", "structured")
AMOUNTS = (0.5, 0.75, 0.9)
EPOCHS = 40
WIDTHS = ((32, 1), (64, 2), (64, 1), (64, 2))  # channels and stride of each Conv


class DigitsCNN(nn.Module):
    """Four 3x3 Conv with bias, BatchNorm and ReLU; then a linear layer on all 2x2 places."""

    def __init__(self) -> None:
        """Build the net with fresh weights."""
        super().__init__()
        layers: list[nn.Module] = []
        channels_in = 1
        for channels, stride in WIDTHS:
            conv = nn.Conv2d(channels_in, channels, 3, stride, 1)
            layers += [conv, nn.BatchNorm2d(channels), nn.ReLU()]
            channels_in = channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels_in * 2 * 2, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, 1, 8, 8) to logits (N, 10)."""
        return self.classifier(torch.flatten(self.features(x), 1))

    def pairs(self) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """Each Conv with the BatchNorm behind it."""
        layers = list(self.features)
        return zip(layers[0::3], layers[1::3], strict=True)


class Pruner:
    """Zeroes more of a model at the start of every epoch, as the schedule has it."""

    def __init__(self, model: DigitsCNN, mode: str, amount: float, epochs: int) -> None:
        """Prune `model` in `mode`, up to `amount` (0 to 1) of every layer."""
        self.model, self.mode, self.amount, self.epochs = model, mode, amount, epochs

    def __call__(self, epoch: int) -> None:
        """Zero what is due from `epoch` (from 0) on; what is zero already stays zero."""
        if self.mode == "structured":
            for conv, norm in self.model.pairs():
                self._zero_filters(conv, norm, epoch)
        elif self.mode != pruning_schedule.DENSE:
            for layer in layers_of(self.model):
                self._zero_weights(layer, epoch)

    def _more(self, total: int, epoch: int) -> int:
        # A count given to torch.nn.utils.prune is of what is not masked yet.
        before = pruning_schedule.due(total, self.amount, epoch - 1, self.epochs)
        return pruning_schedule.due(total, self.amount, epoch, self.epochs) - before

    def _zero_weights(self, layer: nn.Module, epoch: int) -> None:
        method = prune.random_unstructured if self.mode == "random" else prune.l1_unstructured
        if more := self._more(layer.weight.numel(), epoch):
            method(layer, "weight", more)

    def _zero_filters(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, epoch: int) -> None:
        more = self._more(conv.out_channels, epoch)
        if not more:
            return
        with torch.no_grad():  # what reaches the next layer is scaled by gamma
            scores = conv.weight * norm.weight.view(-1, 1, 1, 1)
        prune.ln_structured(conv, "weight", more, n=2, dim=0, importance_scores=scores)
        mask = conv.weight_mask[:, 0, 0, 0].clone()
        for module, name in ((conv, "bias"), (norm, "weight"), (norm, "bias")):
            prune.custom_from_mask(module, name, mask)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers whose weights can be pruned one by one."""
    return [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def make_permanent(model: DigitsCNN, mode: str, amount: float) -> None:
    """Write the masks into the weights, and check that as much is zero as was asked for.

    Raises:
        ValueError: a layer has another number of zeros.
    """
    for module in model.modules():
        for name, _ in list(module.named_parameters(recurse=False)):
            if name.endswith("_orig"):
                prune.remove(module, name.removesuffix("_orig"))
    found = zero_filters(model) if mode == "structured" else zero_weights(model)
    for zeros, total in found:
        if zeros != round(total * amount):
            raise ValueError(f"{zeros} of {total} are zero, not {amount:.0%}")


def zero_weights(model: DigitsCNN) -> list[tuple[int, int]]:
    """Per layer: (weights that are exactly zero, weights)."""
    weights = [layer.weight for layer in layers_of(model)]
    return [(int((weight == 0).sum()), weight.numel()) for weight in weights]


def zero_filters(model: DigitsCNN) -> list[tuple[int, int]]:
    """Per Conv: (channels of which filter, bias, gamma and beta are exactly zero, channels)."""
    counts = []
    for conv, norm in model.pairs():
        parts = (conv.weight.flatten(1), conv.bias[:, None], norm.weight[:, None])
        rows = torch.cat((*parts, norm.bias[:, None]), dim=1)
        counts.append((int(rows.eq(0).all(dim=1).sum()), conv.out_channels))
    return counts


def trained(data: digits.Digits, mode: str, amount: float, epochs: int) -> DigitsCNN:
    """Train a fresh network, always from the same seed, and prune it on the way."""
    digits_torch.seed_everything()
    model = DigitsCNN()
    pruner = Pruner(model, mode, amount, epochs)
    digits_torch.fit(model, data, epochs=epochs, rate=4e-3, seed=0, decay=1e-2, each_epoch=pruner)
    make_permanent(model, mode, amount)
    return model


def main() -> None:
    """Train and export every mode and amount that was asked for."""
    given = pruning_schedule.options(__doc__, MODES, AMOUNTS, EPOCHS)
    data = digits.load()
    for mode, amount in pruning_schedule.runs(given.mode, given.amount):
        path = given.out / pruning_schedule.file_name(PREFIX, mode, amount)
        digits_torch.export(trained(data, mode, amount, given.epochs), path, data, "script")


if __name__ == "__main__":
    main()
