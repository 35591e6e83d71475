"""A small MobileNet for digits, from Keras through tf2onnx: NHWC, depthwise Conv, ReLU6.

One training, two files: as tf2onnx writes it by default, and with tf2onnx's own rewriting of
transposes and BatchNormalization left out, so that what NHWC costs stays in the graph.
Weights repeat from run to run; the names of equal constants that tf2onnx merges do not.

    python models/train_digits_mobilenet.py --out models
"""

import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # oneDNN reorders sums from run to run

import digits
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
from tf2onnx.optimizer import _get_optimizers as get_optimizers

L = tf.keras.layers
BATCH = 64
EPOCHS = 40


def normalised(x: tf.Tensor) -> tf.Tensor:
    """BatchNormalization and ReLU6, which follow every Conv here."""
    return L.ReLU(6.0)(L.BatchNormalization(momentum=0.9)(x))


def separable(x: tf.Tensor, channels: int, stride: int) -> tf.Tensor:
    """A depthwise 3x3 Conv, then a 1x1 Conv to `channels`."""
    x = normalised(L.DepthwiseConv2D(3, stride, "same", use_bias=False)(x))
    return normalised(L.Conv2D(channels, 1, use_bias=False)(x))


def build() -> tf.keras.Model:
    """Build the net: images (N, 8, 8, 1) to probabilities (N, 10)."""
    image = L.Input((8, 8, 1), name=digits.KERAS_INPUT)
    x = normalised(L.Conv2D(32, 3, 1, "same", use_bias=False)(image))
    for channels, stride in ((64, 1), (128, 2), (128, 1), (128, 2)):
        x = separable(x, channels, stride)
    x = L.Dropout(0.2)(L.Flatten()(x))
    return tf.keras.Model(image, L.Dense(10, activation="softmax", name="probabilities")(x))


def train(
    model: tf.keras.Model,
    data: digits.Digits,
    epochs: int = EPOCHS,
    callbacks: Sequence[tf.keras.callbacks.Callback] = (),
) -> None:
    """Train in place with Adam and a cosine learning rate; callbacks are told the right epoch."""
    rng = np.random.default_rng(digits.SEED)
    steps = -(-len(data.train_images) // BATCH)
    rate = tf.keras.optimizers.schedules.CosineDecay(3e-3, epochs * steps)
    model.compile(tf.keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    for epoch in range(epochs):
        images = digits.nhwc(digits.shifted(data.train_images, rng))
        model.fit(
            images,
            data.train_labels,
            BATCH,
            initial_epoch=epoch,
            epochs=epoch + 1,
            verbose=0,
            callbacks=list(callbacks),
        )


def export(model: tf.keras.Model, path: Path, data: digits.Digits, left_out: set[str]) -> None:
    """Convert without the rewrites named in `left_out`, check, print the accuracy."""
    rewrites = {k: v for k, v in get_optimizers().items() if k not in left_out}
    signature = [tf.TensorSpec((None, 8, 8, 1), tf.float32, name=digits.KERAS_INPUT)]
    proto, _ = tf2onnx.convert.from_keras(
        model, input_signature=signature, opset=17, optimizers=rewrites
    )
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"  # it was unk__ and a number
    onnx.save(proto, path)
    digits.verify(path)
    measured = digits.accuracy(path, digits.nhwc(data.test_images), data.test_labels)
    print(f"{path.name}: {path.stat().st_size} bytes, accuracy {measured:.4f} (onnxruntime)")


def make_repeatable() -> None:
    """One seed, one thread, deterministic kernels; before anything of TensorFlow runs."""
    tf.keras.utils.set_random_seed(digits.SEED)
    tf.config.experimental.enable_op_determinism()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def main() -> None:
    """Train and export."""
    out = digits.parser(__doc__).parse_args().out
    make_repeatable()
    data = digits.load()
    model = build()
    train(model, data)
    raw = {"optimize_transpose", "remove_back_to_back"}
    export(model, out / "digits_mobilenet_keras.onnx", data, raw)
    export(model, out / "digits_mobilenet_keras_default.onnx", data, set())


if __name__ == "__main__":
    main()
