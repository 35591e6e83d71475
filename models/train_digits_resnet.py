"""A small ResNet for digits, half of whose channels are zeroed while it trains.

Six rounds of structured pruning (`torch.nn.utils.prune.ln_structured`), fine-tuned after each.
A channel is zeroed wherever it is made: the filter of the Conv, and gamma and beta of the
BatchNorm behind it. Channels of a residual stream are zeroed in every branch that adds into it.
The masks are then made permanent, so the exported files hold plain zeros and full shapes.

    python models/train_digits_resnet.py --out models
"""

from dataclasses import dataclass

import digits
import digits_torch
import torch
from torch import nn
from torch.nn.utils import prune

ROUNDS = 6
STREAM_SHARE = 0.5  # of the channels of a residual stream are zeroed in the end
INNER_SHARE = 0.55  # of the channels between the two Convs of a block


class Block(nn.Module):
    """Two 3x3 Conv + BatchNorm and a residual connection."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        """Build a block; a 1x1 Conv carries the residual where shapes differ."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, channels_in, H, W) to (N, channels, H / stride, W / stride)."""
        residual = x if self.shortcut is None else self.shortcut(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + residual)


class DigitsResNet(nn.Module):
    """Stem, two blocks of 32 channels at 8x8, two of 64 at 4x4, pooling, a linear layer."""

    def __init__(self) -> None:
        """Build the net with fresh weights."""
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32))
        self.stage1 = nn.Sequential(Block(32, 32, 1), Block(32, 32, 1))
        self.stage2 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, 1, 8, 8) to logits (N, 10)."""
        x = torch.relu(self.stem(x))
        x = self.stage2(self.stage1(x))
        return self.classifier(torch.flatten(self.pool(x), 1))


@dataclass(frozen=True)
class Group:
    """Conv + BatchNorm pairs whose output channels can only be zeroed together."""

    pairs: tuple[tuple[nn.Conv2d, nn.BatchNorm2d], ...]
    share: float

    @property
    def channels(self) -> int:
        """The number of channels, zeroed ones included."""
        return self.pairs[0][0].out_channels


def groups_of(model: DigitsResNet) -> list[Group]:
    """Collect the two residual streams and the inside of each block."""
    streams = [[tuple(model.stem)], []]
    groups = []
    for stream, stage in zip(streams, (model.stage1, model.stage2), strict=True):
        for block in stage:
            groups.append(Group(((block.conv1, block.bn1),), INNER_SHARE))
            stream.append((block.conv2, block.bn2))
            if block.shortcut is not None:
                stream.append(tuple(block.shortcut))
    return groups + [Group(tuple(stream), STREAM_SHARE) for stream in streams]


def zero_more(group: Group, step: int) -> None:
    """Zero the least important channels of a group, up to what is due after round `step`."""
    due = round(group.share * group.channels * step / ROUNDS)
    before = round(group.share * group.channels * (step - 1) / ROUNDS)
    with torch.no_grad():
        norms = [conv.weight.flatten(1).norm(dim=1) * bn.weight.abs() for conv, bn in group.pairs]
        importance = torch.stack(norms).norm(dim=0)
    for conv, bn in group.pairs:
        scores = importance.view(-1, 1, 1, 1).expand_as(conv.weight)
        prune.ln_structured(conv, "weight", due - before, n=2, dim=0, importance_scores=scores)
        mask = conv.weight_mask[:, 0, 0, 0].clone()
        prune.custom_from_mask(bn, "weight", mask)
        prune.custom_from_mask(bn, "bias", mask)


def make_permanent(group: Group) -> None:
    """Write the masks into the weights, and check that the group agrees on its zeros.

    Raises:
        ValueError: members of the group have zeroed different channels, or too few.
    """
    dead = []
    for conv, bn in group.pairs:
        for module, name in ((conv, "weight"), (bn, "weight"), (bn, "bias")):
            prune.remove(module, name)
            values = getattr(module, name)
            dead.append(values.detach().reshape(len(values), -1).eq(0).all(dim=1))
    if not all(torch.equal(dead[0], other) for other in dead):
        raise ValueError("the branches of a group have different zero channels")
    if int(dead[0].sum()) != round(group.share * group.channels):
        raise ValueError("a group has another number of zero channels than was asked for")


def main() -> None:
    """Train, prune in rounds, export with both exporters."""
    out = digits.parser(__doc__).parse_args().out
    digits_torch.seed_everything()
    data = digits.load()
    model = DigitsResNet()
    digits_torch.fit(model, data, epochs=30, rate=5e-3, seed=0, decay=1e-2)
    print(f"before pruning: accuracy {digits_torch.torch_accuracy(model, data):.4f}")
    groups = groups_of(model)
    for step in range(1, ROUNDS + 1):
        for group in groups:
            zero_more(group, step)
        epochs = 25 if step == ROUNDS else 8
        digits_torch.fit(model, data, epochs=epochs, rate=2e-3, seed=step, decay=1e-2)
        print(f"round {step}: accuracy {digits_torch.torch_accuracy(model, data):.4f}")
    for group in groups:
        make_permanent(group)
    digits_torch.export(model, out / "digits_resnet_pruned.onnx", data, "script")
    digits_torch.export(model, out / "digits_resnet_pruned_dynamo.onnx", data, "dynamo")


if __name__ == "__main__":
    main()
