"""Images as inputs: resized, cropped, normalised, laid out. Needs Pillow, and only here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxslim.calibration.checks import Place
from onnxslim.calibration.image_options import DEFAULT_SIZE, ImageOptions, resolve
from onnxslim.errors import DataError, UsageError
from onnxslim.runtime.specs import Array, Feed, InputSpec

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})


def find_images(folder: Path) -> list[Path]:
    """Images of a folder and the folders in it, sorted by path."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)


def image_feeds(
    files: Sequence[Path],
    specs: Sequence[InputSpec],
    batch_size: int,
    options: ImageOptions | None,
) -> tuple[Callable[[], Iterable[tuple[Place, Callable[[], Feed]]]], int, list[str]]:
    """Feeds of images for a model whose one required input takes them.

    Returns:
        What gives the loaders, the number of feeds, and notes.

    Raises:
        DataError: Pillow is missing, or the model's input does not look like an image.
    """
    _pillow()
    spec = _image_input(specs)
    settings, notes = resolve(options or ImageOptions(), spec, options is None)
    first = spec.shape[0] if spec.shape else None
    group = first if isinstance(first, int) else max(batch_size, 1)
    whole = len(files) // group * group if isinstance(first, int) else len(files)
    if not whole:
        raise DataError(f"{len(files)} images do not fill one batch of {group} for input {spec}")
    if whole < len(files):
        notes.append(f"{len(files) - whole} images do not fill a batch of {group}: left out")
    channels = _channels(spec, settings)

    def loaders() -> Iterator[tuple[Place, Callable[[], Feed]]]:
        for start in range(0, whole, group):
            batch = tuple(files[start : min(start + group, whole)])
            place = Place(start, len(batch) > 1, tuple(file.name for file in batch))
            yield place, _Batch(batch, spec, settings, channels)

    return loaders, -(-whole // group), notes


def _image_input(specs: Sequence[InputSpec]) -> InputSpec:
    required = [spec for spec in specs if spec.required]
    if len(required) != 1 or required[0].kind != "tensor" or required[0].dtype is None:
        raise DataError(
            f"images serve a model with one input, this one has {len(required)}: "
            f"{', '.join(map(str, required))}; give a .npz"
        )
    spec = required[0]
    if spec.numpy_dtype.kind not in "fu" or (spec.shape is not None and len(spec.shape) != 4):
        raise DataError(f"input {spec} does not take images; give a .npz")
    return spec


def _channels(spec: InputSpec, options: ImageOptions) -> int:
    dims = spec.shape or (None, None, None, None)
    found = dims[1] if options.layout == "NCHW" else dims[3]
    channels = found if isinstance(found, int) else 3
    if channels not in (1, 3):
        raise DataError(f"input {spec} wants {channels} channels; images have 1 or 3")
    for name, values in (("mean", options.mean), ("std", options.std)):
        if values is not None and len(values) not in (1, channels):
            raise UsageError(f"image {name} has {len(values)} numbers for {channels} channels")
    return channels


@dataclass(frozen=True)
class _Batch:
    """Reads some images into one feed."""

    files: tuple[Path, ...]
    spec: InputSpec
    options: ImageOptions
    channels: int

    def __call__(self) -> Feed:
        arrays = [read_image(file, self.options, self.channels, self._raw) for file in self.files]
        return {self.spec.name: np.stack(arrays).astype(self.spec.numpy_dtype, copy=False)}

    @property
    def _raw(self) -> bool:
        return self.spec.numpy_dtype.kind == "u"


def read_image(path: Path, options: ImageOptions, channels: int, raw: bool = False) -> Array:
    """One image as an array of three axes.

    Args:
        path: the file.
        options: from `resolve`.
        channels: 1 or 3.
        raw: pixels stay uint8, no scale, mean and deviation.

    Raises:
        DataError: Pillow is missing, or the file is no image it can read.
    """
    image_module = _pillow()
    try:
        with image_module.open(path) as image:
            picture = image.convert("L" if channels == 1 else "RGB")
            pixels = np.asarray(_fitted(picture, options, image_module))
    except (OSError, ValueError, SyntaxError, image_module.DecompressionBombError) as error:
        text = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read as an image: {text}") from error
    pixels = pixels.reshape(*pixels.shape[:2], channels)
    if options.order == "BGR":
        pixels = pixels[:, :, ::-1]
    if not raw:
        mean = np.asarray(options.mean or (0.0,), np.float32)
        std = np.asarray(options.std or (1.0,), np.float32)
        pixels = (pixels.astype(np.float32) * np.float32(options.scale) - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) if options.layout == "NCHW" else pixels)


def _fitted(picture: Any, options: ImageOptions, image_module: Any) -> Any:
    """The picture in the size of the input."""
    height, width = options.size or (DEFAULT_SIZE, DEFAULT_SIZE)
    bilinear = image_module.Resampling.BILINEAR
    if options.fit == "stretch":
        return picture.resize((width, height), bilinear)
    if options.fit == "pad":
        factor = min(width / picture.width, height / picture.height)
        small = picture.resize(_scaled(picture, factor), bilinear)
        gray = 114 if picture.mode == "L" else (114, 114, 114)
        canvas = image_module.new(picture.mode, (width, height), gray)
        canvas.paste(small, ((width - small.width) // 2, (height - small.height) // 2))
        return canvas
    shorter = max(options.resize or 1, 1)
    # never smaller than the crop, however long the sides
    factor = max(
        shorter / min(picture.width, picture.height), width / picture.width, height / picture.height
    )
    large = picture.resize(_scaled(picture, factor), bilinear)
    left, top = (large.width - width) // 2, (large.height - height) // 2
    return large.crop((left, top, left + width, top + height))


def _scaled(picture: Any, factor: float) -> tuple[int, int]:
    return max(round(picture.width * factor), 1), max(round(picture.height * factor), 1)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            "reading images needs Pillow; install it with: pip install onnxslim[images]"
        ) from error
    return Image
