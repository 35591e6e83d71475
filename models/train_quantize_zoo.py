"""Trains the networks that static int8 is measured on: a minute or two each, on one core.

The digits are enlarged to 32x32, so that layers are as large as those of real networks and not all
of the time goes by between them. Writes NAME.onnx, NAME_calibration.npz (256 training images) and
NAME_labels.npz (450 held-out ones with labels) into a folder; nothing of it is kept here.

Needs torch, scikit-learn and onnx. Run: python models/train_quantize_zoo.py FOLDER [NAME ...]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)
SIZE = 32


def images():
    """Training images and labels, then the held-out ones, as `digits.py` splits them."""
    pixels, labels = load_digits(return_X_y=True)
    small = torch.tensor(pixels.reshape(-1, 1, 8, 8) / 16, dtype=torch.float32)
    large = nn.functional.interpolate(small, size=SIZE, mode="bilinear", align_corners=False)
    split = train_test_split(
        large.numpy(), labels.astype(np.int64), test_size=450, stratify=labels, random_state=0
    )
    return split[0], split[2], split[1], split[3]


def conv(c_in, c_out, kernel=3, stride=1, groups=1):
    """Convolution, normalization and Relu."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(),
    )


def head(width):
    """Mean over the image, then classes."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]


def cnn():
    """Plain convolutions."""
    return nn.Sequential(
        conv(1, 32, stride=2), conv(32, 64), conv(64, 96, stride=2), conv(96, 96), *head(96)
    )


def mobilenet():
    """Depthwise and pointwise convolutions."""
    parts = [conv(1, 32, stride=2)]
    for c_in, c_out, stride in ((32, 96, 1), (96, 192, 2), (192, 192, 1), (192, 256, 1)):
        parts += [conv(c_in, c_in, stride=stride, groups=c_in), conv(c_in, c_out, 1)]
    return nn.Sequential(*parts, *head(256))


class Block(nn.Module):
    """Attention and a feed-forward net, normalized before each."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        """Adds both to the stream."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
        x = x + self.out((scores @ v).transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Patches of 4x4, two blocks of 192."""

    def __init__(self, width=192):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.places = nn.Parameter(0.02 * torch.randn(1, (SIZE // 4) ** 2, width))
        self.blocks = nn.Sequential(Block(width, 6), Block(width, 6))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x):
        """Classes."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(x)).mean(1))


class Gru(nn.Module):
    """Rows of the image one by one, then two linear layers."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(SIZE, 96, batch_first=True)
        self.head = nn.Sequential(nn.Linear(96, 512), nn.ReLU(), nn.Linear(512, 10))

    def forward(self, x):
        """Classes."""
        return self.head(self.gru(x[:, 0])[0][:, -1])


class UNet(nn.Module):
    """Down twice, up twice, with the finer levels joined in; removes noise."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = conv(1, 24), conv(24, 48), conv(48, 96)
        self.up2, self.up1 = nn.ConvTranspose2d(96, 48, 2, 2), nn.ConvTranspose2d(48, 24, 2, 2)
        self.join2, self.join1, self.last = conv(96, 48), conv(48, 24), nn.Conv2d(24, 1, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        """The clean image."""
        one = self.first(x)
        two = self.second(self.pool(one))
        up = self.up2(self.third(self.pool(two)))
        up = self.join2(torch.cat([up, two], 1))
        return self.last(self.join1(torch.cat([self.up1(up), one], 1)))


NETS = {
    "cnn": (cnn, 6, 2e-3),
    "mobilenet": (mobilenet, 8, 3e-3),
    "transformer": (Transformer, 14, 1e-3),
    "gru": (Gru, 25, 3e-3),
    "unet": (UNet, 4, 3e-3),
}


def noisy(x):
    """With Gaussian noise, the same at every call."""
    rng = np.random.default_rng(0)
    return (x + 0.2 * rng.standard_normal(x.shape)).astype(np.float32)


def train(net, x, y, epochs, rate):
    """Adam with one cycle of the learning rate."""
    loss_of = nn.MSELoss() if y.dtype == torch.float32 else nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=1e-2)
    steps = epochs * (len(x) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    net.train()
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for part in order[: len(x) // 32 * 32].reshape(-1, 32):
            optimizer.zero_grad()
            loss_of(net(x[part]), y[part]).backward()
            optimizer.step()
            schedule.step()
    net.eval()


def make(name, folder):
    """Trains one net and writes its files."""
    started = time.perf_counter()
    build, epochs, rate = NETS[name]
    x, y, x_test, y_test = images()
    if name == "unet":
        x, y, x_test, y_test = noisy(x), x, noisy(x_test), x_test
    torch.manual_seed(0)
    net = build()
    train(net, torch.tensor(x), torch.tensor(y), epochs, rate)
    torch.onnx.export(
        net, (torch.tensor(x[:2]),), str(folder / f"{name}.onnx"), dynamo=False, opset_version=17,
        input_names=["input"], output_names=["output"],
        dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
    )  # fmt: skip
    np.savez(folder / f"{name}_calibration.npz", input=x[:256])
    np.savez(folder / f"{name}_labels.npz", input=x_test, labels=y_test)
    print(f"{name}: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for wanted in sys.argv[2:] or NETS:
        make(wanted, target)
