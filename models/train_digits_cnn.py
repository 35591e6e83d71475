"""A plain CNN for digits with nothing pruned: what training-free pruning starts from.

Three 3x3 Convs of 16, 32 and 32 channels, a linear layer of 64 units, a linear classifier.

    python models/train_digits_cnn.py --out models
"""

import digits
import digits_torch
import torch
from torch import nn


class DigitsCnn(nn.Module):
    """Conv 16, Conv 32, pooling to 4x4, Conv 32, a linear layer of 64 units, ten classes."""

    def __init__(self) -> None:
        """Build the net with fresh weights."""
        super().__init__()
        self.features = nn.Sequential(
            *_conv(1, 16), *_conv(16, 32), nn.MaxPool2d(2), *_conv(32, 32), nn.Flatten()
        )
        self.hidden = nn.Linear(32 * 4 * 4, 64)
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, 1, 8, 8) to logits (N, 10)."""
        return self.classifier(torch.relu(self.hidden(self.features(x))))


def _conv(channels_in: int, channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels, 3, 1, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]


def main() -> None:
    """Train and export."""
    out = digits.parser(__doc__).parse_args().out
    digits_torch.seed_everything()
    data = digits.load()
    model = DigitsCnn()
    digits_torch.fit(model, data, epochs=30, rate=5e-3, seed=0, decay=1e-2)
    digits_torch.export(model, out / "digits_cnn.onnx", data, "script")


if __name__ == "__main__":
    main()
