"""A small depthwise separable CNN for digits, in the manner of MobileNet v1.

python models/train_digits_depthwise.py --out models
"""

import digits
import digits_torch
import torch
from torch import nn

WIDTHS = (24, 48, 64, 64, 96)
STRIDES = (1, 2, 1, 2)


def block(inner: int, outer: int, stride: int) -> nn.Sequential:
    """A depthwise 3x3 convolution, then a pointwise one; both with BatchNormalization and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(),
        nn.Conv2d(inner, outer, 1, bias=False),
        nn.BatchNorm2d(outer),
        nn.ReLU(),
    )


class DigitsDepthwise(nn.Module):
    """A stem, four depthwise separable blocks, global average pooling, a linear classifier."""

    def __init__(self) -> None:
        """Build the net with fresh weights."""
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, WIDTHS[0], 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()
        )
        pairs = zip(WIDTHS, WIDTHS[1:], STRIDES, strict=False)
        self.blocks = nn.Sequential(*[block(*sizes) for sizes in pairs])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(WIDTHS[-1], 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, 1, 8, 8) to logits (N, 10)."""
        return self.classifier(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))


def main() -> None:
    """Train and export."""
    out = digits.parser(__doc__).parse_args().out
    digits_torch.seed_everything()
    data = digits.load()
    model = DigitsDepthwise()
    digits_torch.fit(model, data, epochs=30, rate=1e-2, seed=0, decay=1e-2)
    digits_torch.export(model, out / "digits_depthwise.onnx", data, "dynamo")


if __name__ == "__main__":
    main()
