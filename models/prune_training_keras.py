"""The small Keras MobileNet, pruned while it trains by a schedule written by hand.

Keras itself has no pruning. A callback holds a mask per variable: at the start of an epoch it
zeroes what is due then, and after every batch it zeroes it again, since the optimizer moves it.
`--mode` says what becomes zero: `filters` of the Conv layers (with gamma and beta of the
BatchNormalization behind them) or single `weights` of least magnitude; `dense` is the same
training without pruning.

Depthwise layers are left alone: they hold 6 % of the weights, nine to a channel. In `filters`,
once the filter before it is zero, a depthwise channel is a constant, which is for the tool to find.

    python models/prune_training_keras.py
    python models/prune_training_keras.py --mode filters --amount 0.75 --out models
"""

import train_digits_mobilenet as mobilenet  # isort: skip  (quietens TensorFlow before its import)
import digits
import numpy as np
import numpy.typing as npt
import pruning_schedule
import tensorflow as tf

L = tf.keras.layers
PREFIX = "digits_prune_keras"
MODES = ("weights", "filters")
AMOUNTS = (0.5, 0.75, 0.9)
EPOCHS = 60

Mask = npt.NDArray[np.float32]  # 1 keeps, 0 zeroes; broadcasts over its variable


class Pruning(tf.keras.callbacks.Callback):
    """Zeroes more at the start of every epoch, and keeps it zero after every batch."""

    def __init__(self, mode: str, amount: float, epochs: int) -> None:
        """Prune in `mode`, up to `amount` (0 to 1) of every layer after the ramp."""
        super().__init__()
        self.mode, self.amount, self.epochs = mode, amount, epochs
        self.masks: list[tuple[tf.Variable, Mask]] = []

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        """Choose anew what is zero; zeros have the least scores, so they stay."""
        share = self.amount * pruning_schedule.ramp(epoch, self.epochs)
        if self.mode == "filters":
            pairs = [filter_masks(*pair, share) for pair in filtered(self.model)]
            self.masks = [mask for masks in pairs for mask in masks]
        elif self.mode == "weights":
            self.masks = [weight_mask(kernel, share) for kernel in kernels(self.model)]
        self.apply()

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        """Undo what the optimizer did to zeros."""
        self.apply()

    def apply(self) -> None:
        """Zero what the masks say."""
        for variable, mask in self.masks:
            variable.assign(variable * mask)


def kernels(model: tf.keras.Model) -> list[tf.Variable]:
    """The weights of every full Conv and Dense layer, without biases."""
    return [layer.kernel for layer in model.layers if type(layer) in (L.Conv2D, L.Dense)]


def filtered(model: tf.keras.Model) -> list[tuple[L.Layer, L.Layer]]:
    """Each full Conv with the BatchNormalization behind it."""
    following = zip(model.layers, model.layers[1:], strict=False)
    return [(layer, after) for layer, after in following if type(layer) is L.Conv2D]


def lowest(scores: npt.NDArray[np.float32], share: float) -> npt.NDArray[np.bool_]:
    """Mark the `share` of lowest scores; same shape as `scores`."""
    chosen = np.zeros(scores.size, bool)
    chosen[np.argsort(scores, axis=None, kind="stable")[: round(share * scores.size)]] = True
    return chosen.reshape(scores.shape)


def weight_mask(kernel: tf.Variable, share: float) -> tuple[tf.Variable, Mask]:
    """Mask the weights of least magnitude."""
    return kernel, np.float32(~lowest(np.abs(kernel.numpy()), share))


def filter_masks(conv: L.Layer, norm: L.Layer, share: float) -> list[tuple[tf.Variable, Mask]]:
    """Mask whole filters, the last axis of the kernel, and their gamma and beta."""
    sizes = np.linalg.norm(conv.kernel.numpy().reshape(-1, conv.filters), axis=0)
    mask = np.float32(~lowest(sizes * np.abs(norm.gamma.numpy()), share))
    return [(variable, mask) for variable in (conv.kernel, norm.gamma, norm.beta)]


def check(model: tf.keras.Model, mode: str, amount: float) -> None:
    """Check that as much is exactly zero as was asked for.

    Raises:
        ValueError: a layer has another number of zeros.
    """
    if mode == "filters":
        used = [filter_use(conv, norm) for conv, norm in filtered(model)]
    else:
        used = [kernel.numpy() != 0 for kernel in kernels(model)]
    for alive in used:
        if int((~alive).sum()) != round(alive.size * amount):
            raise ValueError(f"{(~alive).sum()} of {alive.size} are zero, not {amount:.0%}")


def filter_use(conv: L.Layer, norm: L.Layer) -> npt.NDArray[np.bool_]:
    """Per filter: whether its weights, gamma or beta hold anything but zero."""
    rows = conv.kernel.numpy().reshape(-1, conv.filters)
    return np.vstack((rows, norm.gamma.numpy(), norm.beta.numpy())).any(axis=0)


def trained(data: digits.Digits, mode: str, amount: float, epochs: int) -> tf.keras.Model:
    """Train a fresh network, always from the same seed, and prune it on the way."""
    tf.keras.backend.clear_session()
    tf.keras.utils.set_random_seed(digits.SEED)
    model = mobilenet.build()
    mobilenet.train(model, data, epochs, [Pruning(mode, amount, epochs)])
    check(model, mode, amount)
    return model


def main() -> None:
    """Train and export every mode and amount that was asked for."""
    given = pruning_schedule.options(__doc__, MODES, AMOUNTS, EPOCHS)
    mobilenet.make_repeatable()
    data = digits.load()
    for mode, amount in pruning_schedule.runs(given.mode, given.amount):
        path = given.out / pruning_schedule.file_name(PREFIX, mode, amount)
        mobilenet.export(trained(data, mode, amount, given.epochs), path, data, set())


if __name__ == "__main__":
    main()
