"""What the two scripts that prune during training share: the schedule, file names, options.

The schedule is the cubic ramp of M. Zhu and S. Gupta, "To prune, or not to prune" (2017): many
zeros early, when there is much to spare, few late; then training goes on with the zeros fixed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import digits

DENSE = "dense"
WARM_UP_SHARE = 0.15  # of the epochs, before the first zero
RAMP_END_SHARE = 0.6  # of the epochs; the rest is fine-tuning
FEWEST_EPOCHS = 5  # so that warm-up, ramp and fine-tuning have one epoch each
DEFAULT_FOLDER = Path("build/pruned")


def ramp(epoch: int, epochs: int) -> float:
    """Share of the final amount that is due from epoch `epoch` (from 0) of `epochs`: 0 to 1."""
    first = round(WARM_UP_SHARE * epochs)
    last = max(first + 1, round(RAMP_END_SHARE * epochs))
    progress = min(1.0, max(0.0, (epoch - first + 1) / (last - first + 1)))
    return 1.0 - (1.0 - progress) ** 3


def due(total: int, amount: float, epoch: int, epochs: int) -> int:
    """How many of `total` filters or weights are zero during epoch `epoch`; never fewer later."""
    return round(total * amount * ramp(epoch, epochs))


def file_name(prefix: str, mode: str, amount: float) -> str:
    """Name of an exported file, such as `digits_prune_l1_75.onnx`; the number is per cent."""
    ending = "" if mode == DENSE else f"_{round(100 * amount)}"
    return f"{prefix}_{mode}{ending}.onnx"


def options(
    description: str | None, modes: Sequence[str], amounts: Sequence[float], epochs: int
) -> argparse.Namespace:
    """Read the command line: `--mode`, `--amount`, `--epochs`, `--out`; makes the folder.

    `mode` of the result is a list, which holds `dense` and all `modes` when none was given.
    """
    parser = digits.parser(description)
    names = (DENSE, *modes)
    parser.add_argument("--mode", nargs="+", choices=names, default=list(names))
    parser.add_argument(
        "--amount", nargs="+", type=_amount, default=list(amounts), help="shares that become zero"
    )
    parser.add_argument("--epochs", type=_epochs, default=epochs)
    parser.set_defaults(out=DEFAULT_FOLDER)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    return given


def runs(modes: Sequence[str], amounts: Sequence[float]) -> list[tuple[str, float]]:
    """Every (mode, amount) to train; the dense network has no amount and is trained once."""
    pairs = [(mode, amount) for mode in modes for amount in amounts if mode != DENSE]
    return [(DENSE, 0.0)] * (DENSE in modes) + pairs


def _amount(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _epochs(text: str) -> int:
    value = int(text)
    if value < FEWEST_EPOCHS:
        raise argparse.ArgumentTypeError(f"{text} is fewer than {FEWEST_EPOCHS}")
    return value
