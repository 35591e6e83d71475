"""A small vision transformer for digits: 2x2 patches, two layers of four heads.

python models/train_digits_transformer.py --out models
"""

import digits
import digits_torch
import torch
from torch import nn

PATCH = 2
WIDTH = 64
HEADS = 4
LAYERS = 2
TOKENS = (8 // PATCH) ** 2 + 1  # the patches and a class token


class Layer(nn.Module):
    """A pre-norm transformer layer: self-attention, then a GELU network of twice the width."""

    def __init__(self) -> None:
        """Build a layer with fresh weights."""
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, TOKENS, WIDTH) to the same shape."""
        x = x + self._attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            part.reshape(-1, TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        scores = query @ key.transpose(-2, -1) / (WIDTH // HEADS) ** 0.5
        mixed = scores.softmax(dim=-1) @ value
        return self.project(mixed.transpose(1, 2).reshape(-1, TOKENS, WIDTH))


class DigitsTransformer(nn.Module):
    """Patches to tokens, a class token, learned positions, layers, a linear classifier."""

    def __init__(self) -> None:
        """Build the net with fresh weights."""
        super().__init__()
        self.embed = nn.Linear(PATCH * PATCH, WIDTH)
        self.class_token = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, TOKENS, WIDTH) * 0.02)
        self.layers = nn.Sequential(*[Layer() for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(WIDTH)
        self.classifier = nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, 1, 8, 8) to logits (N, 10)."""
        side = 8 // PATCH
        x = x.reshape(-1, side, PATCH, side, PATCH).permute(0, 1, 3, 2, 4)
        x = self.embed(x.reshape(-1, side * side, PATCH * PATCH))
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        tokens = self.layers(tokens + self.positions)
        return self.classifier(self.norm(tokens[:, 0]))


def main() -> None:
    """Train and export."""
    out = digits.parser(__doc__).parse_args().out
    digits_torch.seed_everything()
    data = digits.load()
    model = DigitsTransformer()
    digits_torch.fit(model, data, epochs=120, rate=3e-3, seed=0, decay=5e-2)
    digits_torch.export(model, out / "digits_transformer.onnx", data, "script")


if __name__ == "__main__":
    main()
