"""A bidirectional LSTM that reads the eight rows of a digit one after another.

python models/train_digits_lstm.py --out models
"""

import digits
import digits_torch
import torch
from torch import nn

HIDDEN = 64


class DigitsLSTM(nn.Module):
    """One bidirectional LSTM layer over the rows, mean and last state, a linear classifier."""

    def __init__(self) -> None:
        """Build the net with fresh weights."""
        super().__init__()
        self.rows = nn.LSTM(8, HIDDEN, batch_first=True, bidirectional=True)
        self.classifier = nn.Linear(4 * HIDDEN, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, 1, 8, 8) to logits (N, 10)."""
        states, (last, _) = self.rows(x.squeeze(1))
        features = torch.cat([states.mean(dim=1), last[0], last[1]], dim=1)
        return self.classifier(features)


def main() -> None:
    """Train and export."""
    out = digits.parser(__doc__).parse_args().out
    digits_torch.seed_everything()
    data = digits.load()
    model = DigitsLSTM()
    digits_torch.fit(model, data, epochs=60, rate=5e-3, seed=0, decay=1e-2)
    digits_torch.export(model, out / "digits_lstm.onnx", data, "script")


if __name__ == "__main__":
    main()
